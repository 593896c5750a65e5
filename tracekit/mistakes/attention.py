"""Mistakes of the attention core: rotary, scale, mask, head map, cache, precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing import operations
from tracekit.auditing.operations import Core, Floats, Result, Rotary
from tracekit.mistakes.fitting import best_on_grid, logarithmic
from tracekit.mistakes.suspect import Case, Hypothesis, Value, plainly

FITTED_ROWS = 12
"""Query positions that a fitted number is searched on."""
COMMON_THETAS = (1e2, 1e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1.5e5, 2.5e5, 5e5, 1e6, 2e6, 5e6, 1e7, 1e8)


def attention_mistakes(case: Case) -> Iterator[Hypothesis]:
    """Hypotheses for the core, simplest first."""
    assert case.recipe.core is not None
    core = case.recipe.core
    for kind, text, changed in _switches(case, core):
        flips = bool(changed.scores or changed.weights or changed.softmax or changed.table or changed.angles)
        yield replace(plainly(kind, text, _attended, case, changed), flips=flips)
    yield from _cache(case, core)
    yield from _swapped(case, core)
    if core.rotate_queries:
        yield _theta(case, core)
    yield _scale(case, core)
    yield _window(case, core)
    yield _softcap(case, core)
    if core.rotate_queries:
        yield _linear_factor(case, core)


def _exactly(case: Case, core: Core, rows: NDArray[np.int64]) -> Floats:
    """The core in float64 at some rows (indexes into the case's): what numbers are fitted on."""
    q, k, v = case.inputs
    return operations.attend(core, q[rows], k, v, case.window.rows[rows])


def _attended(case: Case, core: Core) -> Result:
    """The core at all rows, also as the engines that are emulated round it."""
    return _with_inputs(case, core, *case.inputs)


def _with_inputs(case: Case, core: Core, q: Floats, k: Floats, v: Floats) -> Result:
    rows = case.window.rows
    values = operations.attend(core, q, k, v, rows)
    emulated = tuple(operations.attend(core, q, k, v, rows, how) for how in case.right.hows)
    return Result(values, case.right.variance, rounded=emulated)


def _switches(case: Case, core: Core) -> Iterator[tuple[str, str, Core]]:
    """One thing changed that has no number to fit: what it is, how it is said, and the core that does it."""
    yield from _rotations(case, core)
    yield from _positions(case, core)
    yield from _precisions(case, core)
    prompt = case.prompt
    yield "mask missing", "no causal mask: the prompt sees all of itself", replace(core, mask="open", prompt=prompt)
    yield "mask one ahead", "the mask lets one key too many through", replace(core, mask="future", prompt=prompt)
    yield "mask one behind", "a position does not see its own key", replace(core, mask="past")
    yield "sink", "one more entry of score 0 in every softmax", replace(core, sink_from=0)
    if core.softcap is not None:
        yield (
            "soft cap of scores left out",
            f"the soft cap of {core.softcap:g} is left out",
            replace(core, softcap=None),
        )
    if core.window is not None:
        yield "window ignored", f"the sliding window of {core.window} is ignored", replace(core, window=None)
    if 1 < core.kv_heads < core.heads:
        text = "query heads map to KV heads by h % n instead of h / group"
        yield "KV-head map", text, replace(core, head_map="modulo")
    hidden = 1.0 / float(np.sqrt(core.heads * core.head_dim))
    yield "scale left out", "softmax scale left out", replace(core, scale=1.0)
    yield "scale of the hidden size", "softmax scale 1/sqrt(hidden size)", replace(core, scale=hidden)
    yield "scale squared", "softmax scale applied twice", replace(core, scale=core.scale**2)


def _rotations(case: Case, core: Core) -> Iterator[tuple[str, str, Core]]:
    rotary = core.rotary
    yield "interleaved rotary", "rotary of interleaved pairs instead of halves", replace(core, interleaved=True)
    yield "rotary backwards", "queries rotated the other way", replace(core, backwards=True)
    if not core.rotate_queries:
        both = replace(core, rotate_queries=True, rotate_keys=True)
        yield "rotary", "queries and keys are rotated in a layer that has no rotary embedding", both
        return
    yield "no rotary", "queries and keys are not rotated", replace(core, rotate_queries=False, rotate_keys=False)
    yield "keys not rotated", "keys are not rotated", replace(core, rotate_keys=False)
    yield "queries not rotated", "queries are not rotated", replace(core, rotate_queries=False)
    early = replace(core, prompt=case.prompt, prompt_keys_unrotated=True)
    yield "prompt keys not rotated", "the prompt's queries look at keys before rotation", early
    if rotary.scaling:
        kind = dict(rotary.scaling).get("rope_type", "scaling")
        plain = replace(core, rotary=replace(rotary, scaling=()))
        yield "rotary scaling left out", f"rotary scaling {kind} is left out", plain
    for share in (0.25, 0.5, 0.75, 1.0):
        width = int(core.head_dim * share) // 2 * 2
        if width and width != rotary.width:
            partly = replace(core, rotary=replace(rotary, width=width))
            yield "partial rotary", f"{width} of {core.head_dim} dimensions rotated instead of {rotary.width}", partly


def _positions(case: Case, core: Core) -> Iterator[tuple[str, str, Core]]:
    for offset in (-2, -1, 1, 2):
        places = f"{abs(offset)} position{'s' if abs(offset) > 1 else ''} {'late' if offset > 0 else 'early'}"
        yield "position offset", f"queries stand {places}", replace(core, query_offset=offset)
    prompt = case.prompt
    yield "decoding at position 0", "every decoded token stands at position 0", replace(core, late_from=prompt)
    for late in (-1, 1, prompt):
        places = f"{abs(late)} position{'s' if abs(late) > 1 else ''} too {'far' if late > 0 else 'early'}"
        yield "decode positions", f"decoded tokens stand {places}", replace(core, late_from=prompt, late_by=late)


def _precisions(case: Case, core: Core) -> Iterator[tuple[str, str, Core]]:
    for dtype in ("float16", "bfloat16"):
        if dtype != case.dtype:
            yield "rotary table rounded", f"rotary table rounded to {dtype}", replace(core, table=dtype)
            yield "scores rounded", f"attention scores rounded to {dtype}", replace(core, scores=dtype)
            yield "softmax rounded", f"softmax rounded to {dtype}", replace(core, weights=dtype)
            both = replace(core, scores=dtype, weights=dtype)
            yield "scores and softmax rounded", f"scores and softmax rounded to {dtype}", both
            yield "softmax narrow", f"the whole softmax in {dtype}", replace(core, softmax=dtype)
        yield "rotary angles rounded", f"rotary angles rounded to {dtype}", replace(core, angles=dtype)


def _cache(case: Case, core: Core) -> Iterator[Hypothesis]:
    """A cache row that is stale, lost or empty from the first wrong position on."""
    since = int(case.window.rows[int(case.wrong.argmax())])
    for row in (since, since - 1):
        if row < 0:
            continue
        yield Hypothesis("stale cache row", 2, partial(_stale, case, core, row, since), partial(_stale_text, row))
        lost = replace(core, lost_row=row, since=since)
        yield plainly("cache row lost", f"cache row {row} is not there", _attended, case, lost)
    empty = replace(core, sink_from=since)
    text = f"an empty cache row is attended from position {since} on"
    yield plainly("empty cache row", text, _attended, case, empty)


def _stale_text(row: int, value: Value) -> str:
    return f"cache row {row} holds {value}"


def _stale(case: Case, core: Core, row: int, since: int) -> tuple[Result, Value] | None:
    """The row whose key and value stand in `row`'s place, found at the first wrong position."""
    if row == 0:
        return None
    first = np.array([int(case.wrong.argmax())])
    changed = [replace(core, stale_row=row, source=source, since=since) for source in range(-1, row)]
    best = min(changed, key=lambda option: case.distance(_exactly(case, option, first), first))
    return _attended(case, best), "nothing" if best.source < 0 else f"row {best.source}"


def _swapped(case: Case, core: Core) -> Iterator[Hypothesis]:
    """Queries and keys the wrong way round, where their widths allow it; keys and values."""
    q, k, v = case.inputs
    if core.heads == core.kv_heads and len(q) == len(k):
        yield plainly("queries and keys swapped", "queries and keys swapped", _with_inputs, case, core, k, q, v)
    yield plainly("keys and values swapped", "keys and values swapped", _with_inputs, case, core, q, v, k)


def _fitted(
    case: Case, change: Callable[[float], Core], grid: list[float]
) -> tuple[Callable[[], tuple[Result, Value]], Callable[[float], Result]]:
    """A number fitted on the last rows, where most keys are seen, and the values at any number."""

    def make() -> tuple[Result, Value]:
        wrong = np.flatnonzero(case.wrong & case.region)
        rows = np.unique(np.concatenate([wrong[:3], wrong[-FITTED_ROWS:]])).astype(np.int64)
        number = best_on_grid(lambda at: case.distance(_exactly(case, change(at), rows), rows), grid)
        return _attended(case, change(number)), number

    return make, lambda number: _attended(case, change(number))


def _theta(case: Case, core: Core) -> Hypothesis:
    def change(theta: float) -> Core:
        return replace(core, rotary=Rotary(theta, core.rotary.width, core.rotary.scaling))

    grid = sorted({*COMMON_THETAS, *logarithmic(50.0, 2e8, 60)})
    make, at = _fitted(case, change, grid)
    declared = core.rotary.theta
    return Hypothesis("rotary theta", 2, make, lambda value: f"rotary theta {value:.9g} instead of {declared:.9g}", at)


def _scale(case: Case, core: Core) -> Hypothesis:
    make, at = _fitted(case, lambda factor: replace(core, scale=core.scale * factor), [*logarithmic(0.05, 20.0, 61)])
    return Hypothesis("attention scale", 2, make, lambda value: f"softmax scale times {value:.6g}", at)


def _softcap(case: Case, core: Core) -> Hypothesis:
    make, at = _fitted(case, lambda cap: replace(core, softcap=cap), logarithmic(1.0, 1000.0, 40))
    return Hypothesis("score soft cap", 2, make, lambda value: f"scores capped softly at {value:.6g}", at)


def _linear_factor(case: Case, core: Core) -> Hypothesis:
    def change(factor: float) -> Core:
        scaling = (("factor", factor), ("rope_type", "linear"))
        return replace(core, rotary=replace(core.rotary, scaling=scaling))

    make, at = _fitted(case, change, logarithmic(0.1, 64.0, 60))
    return Hypothesis("rotary positions divided", 2, make, lambda value: f"rotary positions divided by {value:.6g}", at)


def _window(case: Case, core: Core) -> Hypothesis:
    """The window whose edge lies where the last wrong row says."""

    def make() -> tuple[Result, Value] | None:
        last = np.flatnonzero(case.wrong)[-1:]
        longest = int(case.window.rows[last[0]]) + 1
        if longest > 2048:
            return None
        options = range(1, longest + 1)
        best = min(options, key=lambda window: case.distance(_exactly(case, replace(core, window=window), last), last))
        return _attended(case, replace(core, window=best)), float(best)

    declared = "no window" if core.window is None else f"{core.window}"
    return Hypothesis("window", 2, make, lambda value: f"a window of {value:.0f} positions instead of {declared}")
