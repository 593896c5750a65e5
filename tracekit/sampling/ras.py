"""CosyVoice's repetition-aware sampling: a token of the nucleus, drawn again from everything where it repeats.

`ras_sampling` and `sampling_ids` in `cosyvoice/utils/common.py` and `cosyvoice/llm/llm.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracekit.sampling.chain import RAS, chain
from tracekit.sampling.observed import Observed
from tracekit.sampling.processor import run
from tracekit.sampling.replay import Tape
from tracekit.sampling.scores import GONE, Floats, softmax, working
from tracekit.trace import Json

Pick = Callable[[Tape, Floats], int]
"""(words, probabilities f32 [n]) -> index."""
REDRAWS = 100
"""Times that `sampling_ids` draws again before it gives up."""
NONE = -1
"""No token: what a rule gives that would have drawn again where the recorded side did not."""


def race_of(tape: Tape, probs: Floats) -> int:
    """torch's exponential race among some probabilities."""
    return int(np.argmax(tape.race(probs)))


@dataclass(frozen=True)
class Ras:
    """The rule, and how it may be miswritten."""

    pick: Pick = race_of
    strict: bool = False
    """It has > for >=."""
    window_from_start: bool = False
    fallback: bool = True
    redraws: bool = True
    eos_only: bool = False
    """Of the stop tokens, which begin with sos, only the next one counts."""
    removes: bool = False
    """Stop tokens that come too early cannot be drawn at all."""

    def repeats(self, token: int, decoded: list[int], window: int, share: float) -> bool:
        """Whether the token just drawn stands in the last `window` tokens at least `window * share` times."""
        recent = decoded[:window] if self.window_from_start else decoded[-window:]
        count, least = recent.count(token), window * share
        return count > least if self.strict else count >= least


def redrawn(rule: Ras, tape: Tape, seen: Observed, stated: Json) -> int | None:
    """A token as `sampling_ids` chooses it: before `min_len` steps, a stop token is drawn again.

    None where it comes from probabilities that were not recorded.
    """
    listed = sorted(stated.get("stop_token_ids") or ())
    stops = set(listed[1:2] if rule.eos_only else listed)
    early = len(seen.context.generated) < int(stated.get("min_len") or 0)
    token: int | None = NONE
    for _ in range(1 + REDRAWS):
        token = _once(rule, tape, seen, stated, sorted(stops) if early and rule.removes else ())
        if not (early and token in stops and rule.redraws):
            break
    return token


def _once(rule: Ras, tape: Tape, seen: Observed, stated: Json, removed: Sequence[int]) -> int | None:
    """`ras_sampling`: the nucleus is drawn from with numbers for its survivors alone."""
    ids, kept, probs = _nucleus_of(seen, stated)
    token = int(ids[rule.pick(tape, kept)])
    window, share = int(stated.get("win_size", 10)), float(stated.get("tau_r", 0.1))
    if not (rule.fallback and rule.repeats(token, list(seen.context.generated), window, share)):
        return token
    if probs is None:
        return None if len(seen.draws) > 1 else NONE
    probs[[token for token in removed if token < probs.size]] = 0.0
    return rule.pick(tape, probs)


def _nucleus_of(seen: Observed, stated: Json) -> tuple[NDArray[np.int64], Floats, Floats | None]:
    """Tokens of the nucleus and their probabilities, f32: as recorded, whatever filter left them, else recomputed; and
    those of all tokens, which survivors alone do not say."""
    probs = None if seen.logits is None else softmax(working(seen.logits)).astype(np.float32)
    if seen.ids is not None and seen.probs is not None and seen.ids.size:
        return seen.ids, seen.probs.astype(np.float32), probs
    if seen.logits is None or probs is None:
        raise ValueError("repetition-aware sampling needs logits or survivors")
    values = run(chain(stated | {"sampler": RAS}), seen.logits, seen.context)
    order = np.argsort(-probs, kind="stable")
    ids = order[values[order] > GONE]
    return ids, probs[ids], probs
