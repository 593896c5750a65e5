"""Samplers as data: the processors that settings ask for, in the order of transformers' `generate`, and running them.

A processor is known by its file in `tracekit.sampling.processors`. Sources of the order: `GenerationMixin.
_get_logits_processor` of transformers; for repetition-aware sampling, `cosyvoice/utils/common.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from tracekit.sampling.observed import Context
from tracekit.sampling.processor import Applied, Cut, Stated, cut_of, run
from tracekit.sampling.processors import BY_NAME, BY_SETTING, GENERATE, PROCESSORS
from tracekit.sampling.scores import Floats, working
from tracekit.trace import Json

RAS = "ras"
"""`sampler` of a sequence whose tokens CosyVoice's repetition-aware sampling chose."""
REPETITION_SETTINGS = ("win_size", "tau_r")
"""Of that sampler: when a token is drawn again from everything."""
ELSEWHERE = (
    *("do_sample", "sampler", "seed", "num_beams", "use_cache", "processors"),
    *("eos_token_id", "bos_token_id", "pad_token_id", "stop_token_ids"),
    *("max_new_tokens", "max_length", "min_len", "max_len", *REPETITION_SETTINGS),
)
"""Settings that change no score, or that other code reads."""


def chain(settings: Json) -> list[Applied]:
    """The processors that these settings ask for, by the names that GenerationConfig gives them."""
    sampler = settings.get("sampler")
    own = [each for each in PROCESSORS if each.sampler is not None and each.sampler == sampler]
    asked = (each.asked(settings) for each in own or GENERATE)
    return [each for each in asked if each is not None]


def stated(settings: Json) -> Stated:
    """Settings with the chain that they ask for."""
    return Stated(settings, tuple(chain(settings)), lambda other: tuple(chain(other)))


def unknown_settings(settings: Json) -> list[str]:
    """Settings that may change scores in a way that no processor here does: what is recomputed leaves them out."""
    return sorted(
        name for name, value in settings.items() if value not in (None, False, [], {}) and not _is_known(name, value)
    )


def _is_known(name: str, value: object) -> bool:
    processor = BY_SETTING.get(name)
    return name in ELSEWHERE if processor is None else processor.accepts(value)


def recorded_chain(rows: Iterable[Json], settings: Json) -> tuple[list[Applied], list[str]]:
    """The processors of a step's recorded `processor` events, and the classes among them that are not known.

    `rows` are the details: `class`, `settings`, `survivors`.
    """
    out, unknown = [], []
    for row in rows:
        processor = BY_NAME.get(str(row.get("class")))
        numbers = row.get("settings") or {}
        if processor is None or any(name not in numbers for name in processor.arguments):
            unknown.append(str(row.get("class")))
            continue
        out.append(processor.with_numbers({name: numbers[name] for name in processor.arguments}, settings))
    return out, unknown


def scores(logits: Floats, sampling: Json, history: Sequence[int] = (), prompt: int = 0) -> Floats:
    """Logits after the processors of these settings, [vocabulary]; minus infinity where a token was removed.

    `history` holds the prompt, its first `prompt` tokens, and the tokens so far.
    """
    return run(chain(sampling), logits, Context(history, prompt))


# -------------------------------------------------------------------- how near a cut is


def cuts(processors: Sequence[Applied], logits: Floats, context: Context) -> list[Cut]:
    """The cuts of a chain, each measured on the scores that reach it."""
    values, out = working(logits), []
    for each in processors:
        measured = cut_of(each, values)
        if measured is not None:
            out.append(measured)
        values = each.apply(values, context)
    return out


def cut_distance(
    logits: Floats, sampling: Json, tokens: Sequence[int], history: Sequence[int] = (), prompt: int = 0
) -> float:
    """How far the nearest cut is from `tokens`: in nats of score for top-k, in probability mass for top-p and min-p.

    The largest over the tokens of the smallest over the cuts: an error smaller than this cannot move all of them
    across a cut. Infinity where no cut is set.
    """
    if not len(tokens):
        return 0.0
    distances = np.full(len(tokens), np.inf)
    for cut in cuts(chain(sampling), logits, Context(history, prompt)):
        distances = np.minimum(distances, cut.distances[np.asarray(tokens)])
    return float(distances.max())
