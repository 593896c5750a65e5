"""What a candidate keeps between calls in a narrower format: keys and values, recurrent states, a convolution's inputs.

Tried where a site is right in the prompt and wrong in decoding: lines that keep and read a cache are none of the
prefill's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from tracekit.auditing.drawn_error import drawn_result, judged
from tracekit.auditing.own_error import Own
from tracekit.dtypes import UNIT_ROUNDOFF
from tracekit.inspection.positions import prompt_length
from tracekit.mistakes.explanation import Explanation, Extent, Mistake, Where
from tracekit.trace import LOGITS, Sequence, Trace, TraceError
from tracekit_torch.reference_program.decoding import Decoding, Kept
from tracekit_torch.reference_program.drawn_rounding import DrawnRounding
from tracekit_torch.reference_program.explaining import NEARLY, ROUNDED_AWAY
from tracekit_torch.reference_program.loading import on_its_tokens
from tracekit_torch.reference_program.replay import Replayed

FORMATS = ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
FIRST_CALLS = 8
"""Calls of decoding that refute most."""
LEFT = 0.3
"""Of the error there, that a hypothesis may leave to be tried at all calls."""
WORK = 1e11
"""Parameters times positions that are computed: what a core does in some ten seconds."""
DRAWS = 16
KEPT_ROUNDED = Mistake("kept_rounded", "{what} kept in {dtype} between calls", main="dtype")
"""Values that later calls read."""
Rounded = tuple[tuple[str, ...], str]
"""Names of what is kept, and the format."""


def kept_rounded(
    model: nn.Module, trace: Trace, sequence: Sequence, wrong: list[Own], unit: float, factors: Mapping[str, float]
) -> dict[str, Explanation]:
    """By site, of culprits in decoding alone: the format that what is kept between calls is rounded to."""
    prompt = prompt_length(sequence)
    sites = {own.recipe.site: own for own in wrong if _in_decoding_alone(own, sequence, prompt)}
    with suppress(TraceError), on_its_tokens(trace, sequence):
        decoding = Decoding(model, trace, sequence, factors)
        if not sites or not decoding.possible:
            return {}
        return _tried(decoding, sequence, sites, unit, sum(each.numel() for each in model.parameters()))
    return {}


def _in_decoding_alone(own: Own, sequence: Sequence, prompt: int) -> bool:
    rows = np.concatenate([window.rows for window in own.windows])[own.wrong_rows()]
    places = [sequence.step(int(row)).position for row in rows] if own.recipe.site == LOGITS else rows
    return len(rows) > 0 and min(places) >= prompt


def _tried(
    decoding: Decoding, sequence: Sequence, sites: Mapping[str, Own], unit: float, parameters: int
) -> dict[str, Explanation]:
    prompt, stop = prompt_length(sequence), sequence.positions
    first = min(stop, prompt + FIRST_CALLS)
    names: list[str] = []
    plain = decoding.decode(set(sites), lambda kept: names.extend(kept), first)
    options = list(_options(tuple(dict.fromkeys(names))))
    work = float(parameters) * (len(options) * (first - prompt) + (DRAWS + 1.0) * stop)
    if work > WORK or plain.keys() != sites.keys():
        return {}
    tried = ((_left(plain, decoding.decode(set(sites), _rounding(*each), first)), each) for each in options)
    found: dict[str, list[tuple[Rounded, float]]] = {}
    for _, option in sorted((share, each) for share, each in tried if share < LEFT):
        drawn = DrawnRounding(unit, UNIT_ROUNDOFF["float32"], 0, DRAWS)
        for name, site in decoding.decode(set(sites), _rounding(*option), stop, drawn).items():
            own = _judged(site, sequence, sites[name].level, unit)
            if not own.wrong:
                found.setdefault(name, []).append((option, own.statistics.size))
    return {name: _explanation(held) for name, held in found.items()}


def _options(names: tuple[str, ...]) -> Iterator[Rounded]:
    """Each by itself, and all together."""
    for dtype in FORMATS:
        yield from (((name,), dtype) for name in names)
        if len(names) > 1:
            yield names, dtype


def _rounding(names: tuple[str, ...], dtype: str) -> Callable[[Kept], None]:
    format_ = getattr(torch, dtype)

    def change(kept: Kept) -> None:
        for name in names:
            for value in kept.get(name, ()):
                value.copy_(value.to(format_).to(value.dtype))

    return change


def _left(plain: Mapping[str, Replayed], changed: Mapping[str, Replayed]) -> float:
    """Share of the error that is left, of the site at which least is."""
    with np.errstate(all="ignore"):
        shares = [_error(changed[name]) / _error(site) for name, site in plain.items() if name in changed]
    return float(np.nanmin(shares, initial=np.inf))


def _error(site: Replayed) -> float:
    return float(np.sqrt(np.mean(np.square(site.recorded - site.values))))


def _judged(site: Replayed, sequence: Sequence, level: float, unit: float) -> Own:
    data = sequence.sites.get(site.stored)
    stored = UNIT_ROUNDOFF.get((data.dtype if data is not None else sequence.logits_dtype) or "", unit)
    result = drawn_result(site.values, site.draws, stored)
    return judged(site.site, site.rows, site.recorded, result, level, stored)


def _explanation(held: list[tuple[Rounded, float]]) -> Explanation:
    """The one of least that fits, with those that fit as well; more than enough is not said."""
    least = min(residual for _, residual in held)
    near = sorted(
        (each for each in held if each[1] <= max(NEARLY * least, ROUNDED_AWAY)), key=lambda each: len(each[0][0])
    )
    kept: list[tuple[Rounded, float]] = []
    for (names, dtype), residual in near:
        if not any(set(fewer) <= set(names) and same == dtype for (fewer, same), _ in kept):
            kept.append(((names, dtype), residual))
    made = [
        Explanation(
            KEPT_ROUNDED,
            {"what": " and ".join(name.replace("_", " ").strip() for name in names), "dtype": dtype},
            residual,
            where=Where(Extent.DECODING),
        )
        for (names, dtype), residual in kept
    ]
    return replace(made[0], also=tuple(made[1:]))
