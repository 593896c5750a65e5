"""The attention core: from projected queries, keys and values to the output projection's input.

Errors pass through no closed form here: they are drawn, and their spread is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing.arithmetic import AddedUp, Arithmetic, Cached, Emulated, Exact, Rounding
from tracekit.auditing.operations.operation import Effort, Given, Operation, Shape
from tracekit.auditing.rotary import Rotary
from tracekit.auditing.rounding import (
    ACCUMULATOR,
    LIBRARY,
    Floats,
    Result,
    as_stored,
    independent_errors,
    rounding,
    shrunk,
    unit,
)
from tracekit.dtypes import SIXTEEN_BITS
from tracekit.inspection.masked import places, sees, unmasked
from tracekit.trace import Json, Sequence

ROUNDINGS = {Effort.QUICK: 3, Effort.FULL: 8, Effort.MOST_DRAWS: 32}
"""Runs of the attention core with drawn rounding errors; each of its heads gives head_dim samples a row. Eight may miss
what a value is off by in which others cancel."""
SCORES = 1 << 17
"""Scores that are computed at a time: those of several heads where they are few."""
DRAWN_ROWS = 32
"""Query positions at which the core's rounding errors are drawn; between them the spread is interpolated."""


@dataclass(frozen=True)
class Core:
    """Grouped-query attention from projected queries, keys and values to the output projection's input.

    A recipe leaves the fields after `softcap` at their defaults, but for those that a sequence says (`within`); an
    explanation changes one of them.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rotary: Rotary
    scale: float
    window: int | None = None
    softcap: float | None = None
    masked: tuple[int, ...] = ()  # positions that no other one attends to, as the sequence says
    stands: tuple[int, ...] = ()  # where each position stands, where the sequence says it
    sees: bytes = b""  # bool [positions, positions]: which ones each attends to, where the sequence says it
    interleaved: bool = False  # pairs (0, 1), (2, 3) ... instead of the two halves
    table: str | None = None  # cos and sin rounded to this format
    angles: str | None = None  # positions times frequencies rounded to this format
    frequencies: str | None = None  # inverse frequencies rounded to this format
    places: str | None = None  # positions rounded to this format
    query_offset: int = 0
    late_from: int | None = None  # the first position that is not where it should be ...
    late_by: int | None = None  # ... but this much further; None: at position 0
    rotate_queries: bool = True
    rotate_keys: bool = True
    backwards: bool = False  # sin with the other sign on queries alone
    mask: str = "causal"  # or: open (the whole prompt), past (own key unseen), future (one key too many)
    prompt: int = 0  # positions of the prompt: a mask that is open shows them to all of them
    decoding_sees: int | None = None  # positions that queries after the prompt see, from 0 on
    head_map: str = "group"  # or: modulo
    prompt_keys_unrotated: bool = False  # while the prompt is read, though the cache gets rotated ones
    lost_row: int | None = None  # a cache row that is not there, for queries from `since`
    stale_row: int | None = None  # a cache row that holds another row's key and value: `source`, or nothing (-1)
    source: int = -1
    since: int = 0
    weights: str | None = None  # probabilities rounded to this format
    scores: str | None = None  # scores rounded to this format
    softmax: str | None = None  # the whole softmax in this format, its sum taken one by one
    sink_from: int | None = None  # one more entry in the softmax, of score and value 0, for queries from here

    @property
    def fused_columns(self) -> tuple[tuple[int, int], ...]:
        """The columns of queries, keys and values in the output of one fused projection."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (0, q), (q, q + kv), (q + kv, q + 2 * kv)


@dataclass(frozen=True)
class Attention(Operation):
    """The core of one layer. Inputs: queries [rows, heads * head_dim] of the rows; keys and values
    [positions, kv_heads * head_dim] of every position from 0 on."""

    kind = "attention"
    draws_errors = True
    finest = "float32"  # rotary tables and softmax, in whatever dtype a model runs

    core: Core
    cache: str | None = None
    """The format of cached keys and values, where the engine states one."""
    added: str = "float32"
    """The format in which the engine adds values up, where it states its cache's."""

    @property
    def in_narrow_sums(self) -> bool:
        """Whether values are added up in 16 bits."""
        return unit(self.added) > ACCUMULATOR

    def drawn(self, dtype: str, seed: int, wide: bool) -> Arithmetic:
        """One drawn run of the engine's arithmetic, without what adding up in 16 bits loses."""
        if self.cache is None or unit(self.cache) <= unit(dtype):
            return Rounding(dtype, seed, wide)
        return Cached(dtype, seed, self.cache, weights=not self.in_narrow_sums)

    def prepared(self, inputs: list[Floats]) -> list[Floats]:
        if self.cache is None:
            return inputs
        q, k, v = inputs
        return [q, k, as_stored(v, self.cache)]

    @property
    def in_repro(self) -> bool:
        plain = self.core.softcap is None and not self.core.masked and not self.core.sees
        return plain and self.core.rotate_queries and self.cache is None

    def within(self, sequence: Sequence) -> Attention:
        seen, each, told = unmasked(sequence), sees(sequence), places(sequence)
        stands = () if told is None else tuple(told.tolist())
        if each is not None:
            return replace(self, core=replace(self.core, sees=each.tobytes(), stands=stands))
        if seen is None:
            return self
        return replace(self, core=replace(self.core, masked=tuple(np.flatnonzero(~seen).tolist()), stands=stands))

    @property
    def block(self) -> int:
        return self.core.head_dim

    def numbers(self) -> Json:
        names = ("heads", "kv_heads", "head_dim", "scale", "window")
        rotary = {"rotated": self.core.rotary.width, "factor": self.core.rotary.frequencies()[1]}
        return {name: getattr(self.core, name) for name in names} | rotary

    def constants(self) -> Mapping[str, Floats]:
        return {"rotary.inverse_frequencies": self.core.rotary.frequencies()[0]}

    def from_start(self, index: int) -> bool:
        return index > 0

    def result(self, given: Given) -> Result:
        return _core_result(self, given)

    def values(self, given: Given) -> Floats:
        q, k, v = given.inputs
        return attend(self.core, q, k, v, given.rows, Exact(self.cache))

    def fits(self, shapes: Mapping[str, Shape], inputs: list[int], width: int) -> bool:
        queries, cached = self.core.heads * self.core.head_dim, self.core.kv_heads * self.core.head_dim
        return inputs == [queries, cached, cached] and width == queries


def attend(
    core: Core, q: Floats, k: Floats, v: Floats, rows: NDArray[np.int64], how: Arithmetic | None = None
) -> Floats:
    """The core at query positions `rows`, [rows, heads * head_dim].

    q [rows, heads * head_dim] are those positions' queries; k and v [positions, kv_heads * head_dim] all keys and
    values from position 0.
    """
    how = how or Exact()
    width, positions = core.head_dim, len(k)
    queries = q.reshape(len(rows), core.heads, width).transpose(1, 0, 2)
    keys = k.reshape(positions, core.kv_heads, width).transpose(1, 0, 2)
    values = v.reshape(positions, core.kv_heads, width).transpose(1, 0, 2)
    at = np.arange(positions, dtype=np.float64)
    if core.rotate_queries:
        queries = _rotate(
            core, queries, _places(core, rows.astype(np.float64)) + core.query_offset, how, core.backwards
        )
    plain = keys
    if core.rotate_keys:
        keys = _rotate(core, keys, _places(core, at), how, False)
    queries, keys = how.cached(queries), how.cached(keys)
    visible = _visible(core, rows, positions)
    out = np.empty((len(rows), core.heads, width))
    for part, seen_keys, seen_values in _caches(core, rows, plain, keys, values):
        sink = core.sink_from is not None and bool(rows[part].min(initial=1 << 62) >= core.sink_from)
        seen, asked = visible[part], queries[:, part]
        for heads in _head_groups(core, seen.size, how):
            kv = heads // (core.heads // core.kv_heads) if core.head_map == "group" else heads % core.kv_heads
            made = _heads(core, asked[heads], seen_keys[kv], seen_values[kv], seen, how, sink)
            out[np.ix_(part, heads)] = made.transpose(1, 0, 2)
    return out.reshape(len(rows), -1)


def _head_groups(core: Core, scores: int, how: Arithmetic) -> list[NDArray[np.int64]]:
    """The heads that are computed together: one by one where each draws its own errors, else as many as fit a cache,
    with so many scores each."""
    together = 1 if isinstance(how, Rounding) else max(1, SCORES // max(scores, 1))
    heads = np.arange(core.heads)
    return [heads[first : first + together] for first in range(0, core.heads, together)]


def _caches(
    core: Core, rows: NDArray[np.int64], plain: Floats, keys: Floats, values: Floats
) -> list[tuple[NDArray[np.bool_], Floats, Floats]]:
    """Which queries see which keys and values; all see the same, but for the mistakes that only some see."""
    since = core.sink_from if core.sink_from is not None else core.since
    if core.prompt_keys_unrotated:
        reading = rows < core.prompt
        parts = [(reading, plain, values), (~reading, keys, values)]
    elif core.stale_row is not None:
        parts = [(rows < since, keys, values), (rows >= since, *_stale(core, keys, values))]
    else:
        parts = [(rows < since, keys, values), (rows >= since, keys, values)]
    return [part for part in parts if part[0].any()]


def _stale(core: Core, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
    out = keys.copy(), values.copy()
    for side in out:
        side[:, core.stale_row] = side[:, core.source] if core.source >= 0 else 0.0
    return out


def _places(core: Core, positions: Floats) -> Floats:
    stands = np.array(core.stands, np.float64)[positions.astype(np.int64)] if core.stands else positions
    if core.late_from is None:
        return stands
    moved = stands + core.late_by if core.late_by is not None else np.zeros_like(stands)
    return np.where(positions >= core.late_from, moved, stands)


def _visible(core: Core, rows: NDArray[np.int64], positions: int) -> NDArray[np.bool_]:
    """Which keys each query sees, [rows, positions]."""
    at = np.arange(positions)[None, :]
    behind = rows[:, None] - at
    reading = (rows[:, None] < core.prompt) & (at < core.prompt)
    seen = behind >= 0
    if core.sees:  # a model takes it as it is, in place of its own mask and window
        seen = np.frombuffer(core.sees, dtype=bool).reshape(math.isqrt(len(core.sees)), -1)[rows][:, :positions]
    if core.mask == "past":
        seen = (seen & (behind > 0)) | ((rows[:, None] == 0) & (behind == 0))
    if core.mask in ("open", "future"):
        seen = seen | reading & (behind >= (-1 if core.mask == "future" else -positions))
    if core.decoding_sees is not None:
        seen = np.where(rows[:, None] < core.prompt, seen, at < core.decoding_sees)
    if core.masked:
        seen[:, [each for each in core.masked if each < positions]] = False
    if core.lost_row is not None:
        seen = seen & ((at != core.lost_row) | (rows[:, None] < core.since))
    return seen if core.window is None or core.sees else seen & (behind < core.window)


def _rotate(core: Core, heads: Floats, places: Floats, how: Arithmetic, backwards: bool) -> Floats:
    """Rotates [heads, rows, head_dim] by position."""
    frequencies, factor = core.rotary.frequencies()
    if core.frequencies is not None:
        frequencies = as_stored(frequencies, core.frequencies)
    if core.places is not None:
        places = as_stored(places, core.places)
    angles = how.angles(places, frequencies)
    if core.angles is not None:
        angles = as_stored(angles, core.angles)
    cos, sin = how.store(np.cos(angles) * factor), how.store(np.sin(angles) * factor)
    if core.table is not None:
        cos, sin = as_stored(cos, core.table), as_stored(sin, core.table)
    if backwards:
        sin = -sin
    width = core.rotary.width
    turned = heads.copy()
    if core.interleaved:
        first, second = (slice(0, width, 2), slice(1, width, 2))
    else:
        first, second = (slice(0, width // 2), slice(width // 2, width))
    one, other = heads[..., first], heads[..., second]
    turned[..., first] = how.store(how.store(one * cos) - how.store(other * sin))
    turned[..., second] = how.store(how.store(other * cos) + how.store(one * sin))
    return turned


def _heads(
    core: Core, q: Floats, k: Floats, v: Floats, visible: NDArray[np.bool_], how: Arithmetic, sink: bool
) -> Floats:
    """Some heads, [heads, rows, head_dim], from their queries, and the keys and values that they see [heads, positions,
    head_dim]."""
    scores = how.product(q, k.transpose(0, 2, 1))
    scores = how.score(how.score(scores, 1) * how.constant(core.scale), 2)
    if core.scores is not None:
        scores = as_stored(scores, core.scores)
    if core.softcap is not None:
        inside = how.score(scores / how.constant(core.softcap), 2)
        scores = how.score(how.score(how.float32(np.tanh(inside)), 2) * core.softcap, 2)
    scores = np.where(visible, scores, -np.inf)
    narrow = how.dtype if isinstance(how, Emulated) and how.softmax else core.softmax
    if narrow is not None:
        weights = how.store(_narrow_softmax(scores, narrow))
        return how.weighted(weights, v) if isinstance(how, Emulated) else how.store(weights @ v)
    top = np.maximum(scores.max(axis=-1, keepdims=True), 0.0 if sink else -np.inf)
    weights = how.float32(np.exp(scores - np.where(np.isfinite(top), top, 0.0)))
    total = how.total(weights) + (np.exp(-top) if sink else 0.0)
    weights = how.store(how.float32(weights / np.maximum(total, 1e-290)))
    if core.weights is not None:
        weights = as_stored(weights, core.weights)
    return how.weighted(weights, v) if isinstance(how, Emulated) else how.store(how.mixed(weights, v))


def _narrow_softmax(scores: Floats, dtype: str) -> Floats:
    """Every operation rounded, and the sum added up in the same format (candle's `softmax_last_dim` in 16 bits)."""
    rounded = np.where(np.isfinite(scores), as_stored(np.where(np.isfinite(scores), scores, 0.0), dtype), -np.inf)
    weights = as_stored(np.exp(as_stored(rounded - rounded.max(axis=-1, keepdims=True), dtype)), dtype)
    total = np.zeros(weights.shape[:-1])
    for column in np.moveaxis(weights, -1, 0):
        total = as_stored(total + column, dtype)
    return as_stored(weights / total[..., None], dtype)


def _core_result(attention: Attention, given: Given) -> Result:
    """The attention core, and its spread from drawn rounding errors, per row and head. In 16 bits also as fused kernels
    compute it, with scores in float32, and as eager ones do, each emulated and with its own spread. But for the
    quickest bounds, errors are drawn at every position."""
    core = attention.core
    q, k, v = given.inputs
    values = attend(core, q, k, v, given.rows, Exact(attention.cache))
    if given.dtype not in SIXTEEN_BITS:
        return _spread(attention, given, values, False)
    hows = tuple(Emulated(given.dtype, scores) for scores in (0, 1, 2))
    options = []
    spreads = {wide: _spread(attention, given, values, wide) for wide in (True, False)}
    for how in hows:
        emulated = attend(core, q, k, v, given.rows, how)
        options.append(replace(spreads[how.scores == 0], rounded=(emulated,), hows=hows))
    return replace(options[0], others=tuple(options[1:]))


def _spread(attention: Attention, given: Given, values: Floats, wide: bool) -> Result:
    """The exact values with the spread of one kind of arithmetic."""
    core = attention.core
    q, k, v = given.inputs
    drawn = min(DRAWN_ROWS, len(values)) if given.effort is Effort.QUICK else len(values)
    picked = np.unique(np.linspace(0, len(values) - 1, drawn).astype(np.int64))
    exact = values if attention.cache is None else attend(core, q, k, v, given.rows)
    draws = []
    for seed in range(ROUNDINGS[given.effort]):
        how = attention.drawn(given.dtype, seed, wide)
        draws.append(attend(core, q[picked], k, v, given.rows[picked], how) - exact[picked])
    variance = _drawn_variance(core, given.dtype, values, draws, picked)
    if attention.in_narrow_sums:
        added = attend(core, q, k, v, given.rows, AddedUp(attention.cache, attention.added))
        random = np.random.default_rng(0)
        draws = [error + random.standard_normal(error.shape) * np.sqrt(added[picked]) for error in draws]
        variance = variance + added
    independent = np.interp(np.arange(len(values)), picked, independent_errors(draws, variance[picked]))
    return Result(values, variance, draws=tuple(draws), drawn_rows=picked, independent=independent, bias=LIBRARY)


def _drawn_variance(core: Core, dtype: str, values: Floats, draws: list[Floats], picked: NDArray[np.int64]) -> Floats:
    """Variance of each element: a number a row and head, relative to that head's size and between the drawn rows
    interpolated, times one a column of the head, since columns of the values differ in size and what is added up may
    cancel. Half of it is taken as that of the partial sums, which are as large as the element is: where all rows are
    alike, all are off by this much in the column that is the largest. Where all rows were drawn, what was drawn of an
    element counts as well."""
    shape = (-1, core.heads, core.head_dim)
    squares = np.mean([np.square(error) for error in draws], axis=0).reshape(shape)
    spread = np.maximum(squares.mean(axis=2), 1e-290)
    size = np.square(values).reshape(shape).mean(axis=2)
    relative = np.sqrt(spread / np.maximum(size[picked], 1e-290))
    at = np.arange(len(values))
    everywhere = np.stack([np.interp(at, picked, relative[:, head]) for head in range(core.heads)], axis=1)
    columns = (squares / spread[:, :, None]).mean(axis=0)
    variance = np.square(everywhere)[:, :, None] * _sizes(size, columns, np.square(values).reshape(shape))
    if len(picked) == len(values):
        variance = shrunk(variance, squares, len(draws))
    return np.asarray(variance.reshape(values.shape) + rounding(values, dtype))


def _sizes(size: Floats, columns: Floats, own: Floats) -> Floats:
    """What the errors of a head's elements are relative to, [rows, heads, head_dim]: half the head's mean square `size`
    [rows, heads] in the proportion of its `columns` [heads, head_dim], half the element's square."""
    return np.asarray((size[:, :, None] * columns + own) / 2.0)


def variance_of_other(core: Core, right: Result, values: Floats) -> Floats:
    """The variance of what another core gives of the same inputs, [rows, width], from that of the right one: other
    elements of it cancel."""
    shape = (-1, core.heads, core.head_dim)
    spread = np.maximum(right.variance.reshape(shape).mean(axis=2), 1e-290)
    columns = (right.variance.reshape(shape) / spread[:, :, None]).mean(axis=0)
    sizes = [np.square(each).reshape(shape).mean(axis=2) for each in (right.values, values)]
    relative = spread / np.maximum(sizes[0], 1e-290)
    other = relative[:, :, None] * _sizes(sizes[1], columns, np.square(values).reshape(shape))
    return np.asarray(np.maximum(right.variance, other.reshape(values.shape)))
