"""CosyVoice's nucleus, which its repetition-aware sampling draws from: tokens from the top while the mass so far is
below top_p and fewer than top_k are taken. `nucleus_sampling` in `cosyvoice/utils/common.py`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.formats.file_values import is_number
from tracekit.sampling.exercise import (
    Exercise,
    FilterNotReached,
    NoRedraw,
    NoRepetitionFallback,
    NothingRecorded,
)
from tracekit.sampling.observed import Context, Observed
from tracekit.sampling.other_numbers import Interval, another, counts, mass_interval, within
from tracekit.sampling.processor import Applied, Apply, FilterMistake, Processor, Stated, Steps, Unit, Variant
from tracekit.sampling.processors.min_new_tokens import PROCESSOR as MINIMUM
from tracekit.sampling.processors.top_k import USUAL, kth_rounds
from tracekit.sampling.processors.top_p import drop_crossing
from tracekit.sampling.scores import GONE, SMALLEST, Floats, Rounded, descending, mass_above, softmax
from tracekit.trace import Json

NAME, RAS, PLACE = "nucleus_sampling", "ras", 300
TOP_P, TOP_K = 0.8, 25
"""Defaults of the published configuration."""


def nucleus(values: Floats, p: float, k: int) -> Floats:
    """Scores with what is not in the nucleus removed."""
    probs = softmax(values)
    order = np.argsort(-probs, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(probs[order])[:-1]])
    out = np.full_like(values, GONE)
    taken = order[: max(1, k)][before[: max(1, k)] < p]
    out[taken] = values[taken]
    return out


def _reads(settings: Json) -> Json:
    p, k = settings.get("top_p"), settings.get("top_k")
    return {"top_p": TOP_P if p is None else float(p), "top_k": TOP_K if k is None else int(k)}


def _make(numbers: Json, settings: Json) -> Apply:
    p, k = numbers["top_p"], numbers["top_k"]
    return lambda values, context: nucleus(values, p, k)


def _ends_by_mass(numbers: Json, values: Floats) -> bool:
    """It ends where the mass is reached, or after its k-th token if that comes first."""
    p, k = numbers["top_p"], min(int(numbers["top_k"]), values.size)
    return k == values.size or int(np.sum(nucleus(values, p, k) > GONE)) < k


def _rounds(numbers: Json, values: Floats, rounded: Rounded) -> Floats:
    if _ends_by_mass(numbers, values):
        return rounded.mass(values, descending(values))
    return kth_rounds(values, int(numbers["top_k"]), rounded)


def _cut(numbers: Json, values: Floats) -> tuple[Floats, Unit]:
    p, k = numbers["top_p"], min(int(numbers["top_k"]), values.size)
    if _ends_by_mass(numbers, values):
        return mass_above(values) - p, Unit.MASS
    wide = values.astype(np.float64)
    ordered = np.sort(wide)[::-1]
    return np.where(wide >= ordered[k - 1], wide - ordered[k], ordered[k - 1] - wide), Unit.NATS


# -------------------------------------------------------------------- mistakes


def _masked(stated: Stated, steps: Steps | None) -> Iterator[Variant]:
    stops, early = stated.settings.get("stop_token_ids") or [], int(stated.settings.get("min_len") or 0)
    if stops and early:
        removed = MINIMUM.of(early, {"eos_token_id": stops})
        yield Variant((removed, *stated.chain), {"min_len": early})


def _zeroed(stated: Stated, steps: Steps | None) -> Iterator[Variant]:
    """What is left then adds up to less than 1, and the nucleus takes more of it."""
    stops, early = stated.settings.get("stop_token_ids") or [], int(stated.settings.get("min_len") or 0)
    if not (stops and early):
        return
    removed, numbers = MINIMUM.of(early, {"eos_token_id": stops}), _reads(stated.settings)

    def apply(values: Floats, context: Context) -> Floats:
        rest = removed.apply(values, context)
        left = float(softmax(values)[rest > GONE].sum())
        return nucleus(rest, numbers["top_p"] / max(left, SMALLEST), numbers["top_k"])

    yield Variant(stated.replaced(NAME, apply), {"min_len": early})


def _drops_crossing(stated: Stated, steps: Steps | None) -> Iterator[Variant]:
    numbers = _reads(stated.settings)
    p, k = numbers["top_p"], numbers["top_k"]
    chain = stated.replaced(NAME, lambda values, context: nucleus(drop_crossing(values, p), 1.0, k))
    yield Variant(chain, {"p": p})


def _interval(stated: Stated, steps: Steps) -> Interval | None:
    def ended(seen: Observed) -> bool:
        """It may have ended by its count, which says nothing of its mass."""
        return seen.ids is not None and seen.ids.size >= _reads(stated.settings)["top_k"]

    return mass_interval(PLACE, stated, steps, ended)


def _counts(stated: Stated, steps: Steps) -> Iterator[float]:
    yield from (k for k in counts(steps, USUAL) if k != stated.settings.get("top_k"))


def _unexercised(each: Applied, done: Exercise) -> Iterator[object]:
    if not done.recorded:
        yield NothingRecorded()
        return
    if "redraw" not in done.events:
        yield NoRedraw(done.steps)
    if "repetition_fallback" not in done.events:
        yield NoRepetitionFallback(done.steps)
    if each.settings["top_k"] not in done.sizes:
        yield FilterNotReached("top_k", each.settings["top_k"], "top_p", done.steps)


PROCESSOR = Processor(
    name=NAME,
    setting="top_p",
    words="nucleus",
    place=PLACE,
    arguments=("top_p", "top_k"),
    make=_make,
    accepts=is_number,
    sampler=RAS,
    reads=_reads,
    cut=_cut,
    rounds=_rounds,
    unexercised=_unexercised,
    mistakes=(
        FilterMistake(
            "stop_tokens_masked",
            "stop tokens are removed before step {min_len} (min_len), where CosyVoice draws again",
            _masked,
            "min_len",
        ),
        FilterMistake(
            "stop_tokens_zeroed",
            "before step {min_len} (min_len) stop tokens get probability 0 and the others keep theirs, "
            "where CosyVoice draws again",
            _zeroed,
            "min_len",
        ),
        FilterMistake(
            "nucleus_drops_crossing_token",
            "top_p {p:g} drops the token that crosses it; the nucleus keeps it",
            _drops_crossing,
            "p",
            ("top_p",),
        ),
        within("top_p", _interval),
        another("top_k", _counts),
    ),
)
