"""A site's values once more, in float64, from its recorded inputs and the checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing import operations
from tracekit.auditing.operations import Core, Emulated, Floats, Matrix, Result, Rounding
from tracekit.auditing.recipe import Recipe
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.dtypes import is_float
from tracekit.inspection.site_rows import logits_reader, site_reader
from tracekit.trace import ENCODER_PREFIX, Sequence, Trace, TraceError

DRAWN_ROUNDINGS = 3
"""Runs of the attention core with drawn rounding errors; each of its heads gives head_dim samples a row."""
CLOSE_ROUNDINGS = 8
"""The same where a core looks wrong and is judged closely, at every position."""
DRAWN_ROWS = 32
"""Query positions at which the core's rounding errors are drawn; between them the spread is interpolated."""

KEPT = 8
"""Blocks of recorded values that are kept for the next site to read."""


@dataclass(frozen=True)
class Window:
    """Rows [first, stop) of one site, positions or, of the logits, steps."""

    first: int
    stop: int

    @property
    def rows(self) -> NDArray[np.int64]:
        return np.arange(self.first, self.stop)


def joined(windows: Iterable[Window], row: int) -> Window:
    """The run of windows, each of which begins where the one before it ends, that holds a row. Raises StopIteration
    where none does."""
    runs: list[Window] = []
    for window in sorted(windows, key=lambda window: window.first):
        if runs and runs[-1].stop == window.first:
            runs[-1] = Window(runs[-1].first, window.stop)
        else:
            runs.append(window)
    return next(run for run in runs if run.first <= row < run.stop)


class Parameters:
    """The checkpoint's parameters in float64, as the engine holds them; each thread keeps its last matrix."""

    def __init__(self, trace: Trace, checkpoint: Checkpoint) -> None:
        self.trace, self.checkpoint = trace, checkpoint
        self._last = threading.local()

    def has(self, recipe: Recipe) -> bool:
        """Whether the checkpoint holds the module's parameters."""
        return all(self.find(name) is not None for name in recipe.parameters.values())

    def find(self, name: str) -> str | None:
        """The checkpoint's name of a parameter; of one that is tied and left out of the file, that of its twin."""
        found = self.checkpoint.find(name)
        held = self.trace.weights.get(name)
        if found is not None or held is None or held.digest is None:
            return found
        same = (
            twin.name for twin in self.trace.weights.values() if (twin.digest, twin.shape) == (held.digest, held.shape)
        )
        return next((other for other in map(self.checkpoint.find, same) if other is not None), None)

    def fits(self, recipe: Recipe, width: int, inputs: int) -> bool:
        """Whether their shapes are those of a module from `inputs` to `width` columns."""
        found = self.find(recipe.parameters.get("weight", ""))
        if found is None:
            return not recipe.parameters
        shape = self.checkpoint.shape(found)
        if recipe.kind == "linear":
            return shape == ((inputs, width) if recipe.transposed else (width, inputs))
        if recipe.kind == "embedding":
            return len(shape) == 2 and shape[1] == width
        return len(shape) == 1 and width == inputs and width % shape[0] == 0

    def vector(self, recipe: Recipe, role: str) -> Floats | None:
        """A parameter by its role, or None where the module has none of that role."""
        name = recipe.parameters.get(role)
        return None if name is None else self._values(name).astype(np.float64)

    def table(self, recipe: Recipe) -> NDArray[np.floating]:
        """An embedding's table, in the dtype of the file where that is a plain one."""
        return self._values(recipe.parameters["weight"])

    def matrix(self, recipe: Recipe) -> Matrix:
        key = (*sorted(recipe.parameters.values()), recipe.transposed)
        if getattr(self._last, "key", None) != key:
            weight = self._values(recipe.parameters["weight"]).astype(np.float64)
            weight = np.ascontiguousarray(weight.T) if recipe.transposed else weight
            self._last.key, self._last.matrix = key, Matrix(weight, self.vector(recipe, "bias"))
        matrix: Matrix = self._last.matrix
        return matrix

    def _values(self, name: str) -> NDArray[np.floating]:
        found = self.find(name)
        if found is None:
            raise KeyError(name)
        held = self.trace.weights.get(name)
        dtype = held.dtype if held is not None and is_float(held.dtype) else None
        return self.checkpoint.values(found, dtype)


class Recomputation:
    """One sequence of a trace: what its sites recorded, and what they should have."""

    def __init__(self, sequence: Sequence, parameters: Parameters) -> None:
        self.sequence, self.parameters = sequence, parameters
        self.first_step = sequence.step(0).position if sequence.step_count else 0
        # Most values are read as one site's output and as the input of one to three others, soon after.
        self._recorded = lru_cache(KEPT)(self._read)
        self.blind: set[str] = set()
        """Sites of which rows were left out since what went in is not finite."""

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """Token ids by position: the prompt's, then the sampled ones."""
        prompt = self.sequence.prompt_ids
        if prompt is None or (self.sequence.step_count and len(prompt) != self.first_step + 1):
            return np.zeros(0, np.int64)  # fed with something else than these ids
        head = np.asarray(prompt, dtype=np.int64)
        return np.concatenate([head, np.asarray(self.sequence.tokens, dtype=np.int64)])

    @cached_property
    def encoder_ids(self) -> NDArray[np.int64]:
        """Token ids that the encoder was given; none where it was given something else."""
        given = self.sequence.inputs.get(f"{ENCODER_PREFIX}token_ids")
        return np.zeros(0, np.int64) if given is None else np.asarray(given, dtype=np.int64)

    def looked_up(self, recipe: Recipe) -> NDArray[np.int64]:
        """The ids that an embedding looks up, by row."""
        data = self.sequence.sites.get(recipe.stored)
        return self.ids if data is None or data.axis is None else self.encoder_ids

    def dtype(self, site: str) -> str:
        """The format that a site was computed in."""
        if site == "logits":
            return self.sequence.logits_dtype or "float32"
        return self.sequence.sites[site].dtype

    def width(self, recipe: Recipe) -> int:
        """Values a row."""
        if recipe.site != "logits":
            data = self.sequence.sites.get(recipe.stored)
            return 1 if data is None else data.width
        logits = self.sequence.logits(0, 1)
        return 1 if logits is None else int(logits.shape[1])

    def windows(self, recipe: Recipe, stop: int) -> list[Window]:
        """Where a site and all its inputs are recorded, below position `stop`, each a run of rows without a gap."""
        if recipe.site == "logits":
            steps = min(self.sequence.step_count, max(0, stop - self.first_step))
            ranges = self._shared(recipe.inputs, ((self.first_step, self.first_step + steps),))
            return [Window(first - self.first_step, last - self.first_step) for first, last in ranges]
        data = self.sequence.sites[recipe.stored]
        if data.axis is not None:
            stop = max((last for _, last in data.ranges), default=0)  # an encoder runs before the first step
        if recipe.kind == "embedding":
            stop = min(stop, len(self.looked_up(recipe)))
        ranges = tuple((first, min(last, stop)) for first, last in data.ranges)
        if recipe.kind != "attention":
            return [Window(first, last) for first, last in self._shared(recipe.inputs, ranges)]
        queries, *cached = recipe.inputs
        # A query looks at every key and value before it.
        begun = [self._from_start(name) for name in cached]
        ranges = tuple((first, min(last, *begun)) for first, last in self._shared((queries,), ranges))
        return [Window(first, last) for first, last in ranges if first < last]

    def _shared(self, sites: tuple[str, ...], ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        """The parts of `ranges` at which all these sites are recorded."""
        ranges = tuple((first, stop) for first, stop in ranges if first < stop)
        for name in sites:
            data = self.sequence.sites.get(name)
            ranges = () if data is None else data.shared(ranges)
        return ranges

    def _from_start(self, site: str) -> int:
        """The first position that is not recorded."""
        data = self.sequence.sites.get(site)
        return next((stop for first, stop in data.ranges if first == 0), 0) if data is not None else 0

    def covers(self, site: str, window: Window) -> bool:
        """Whether all rows of a window are recorded of a site."""
        data = self.sequence.sites.get(site)
        return data is not None and data.covers(window.first, window.stop)

    def recorded(self, site: str, window: Window) -> Floats:
        """What the run recorded, [rows, width], to be read only."""
        return self._recorded(site, window)

    def _read(self, site: str, window: Window) -> Floats:
        reader = logits_reader(self.sequence) if site == "logits" else site_reader(self.sequence, site)
        values = reader(window.first, window.stop).astype(np.float64)
        values.flags.writeable = False
        return values

    def finite(self, recipe: Recipe, window: Window) -> list[Window]:
        """The rows of a window whose inputs are finite: of others nothing can be said."""
        inputs = self.inputs(recipe, window)
        bad = np.zeros(len(window.rows), dtype=bool)
        for index, values in enumerate(inputs):
            wrong = ~_finite_rows(values)
            if recipe.kind == "attention" and index:  # keys and values of every position up to the row's
                wrong = np.logical_or.accumulate(wrong)[window.first :]
            if wrong.size == bad.size:
                bad |= wrong
        if not bad.any():
            return [window]
        self.blind.add(recipe.site)
        edges = np.flatnonzero(np.diff(np.concatenate([[True], bad, [True]]).astype(np.int8)))
        bounds = (edges + window.first).tolist()
        return [Window(first, stop) for first, stop in zip(bounds[::2], bounds[1::2], strict=True)]

    def inputs(self, recipe: Recipe, window: Window) -> list[Floats]:
        """The recorded inputs of the same rows; of the attention core, keys and values from position 0."""
        if recipe.site == "logits":
            window = Window(window.first + self.first_step, window.stop + self.first_step)
        whole = Window(0, window.stop) if recipe.kind == "attention" else window
        rows = [self.recorded(name, whole if index else window) for index, name in enumerate(recipe.inputs)]
        cut = zip(rows, recipe.columns, strict=True) if recipe.columns else ()
        return [values if part is None else values[:, slice(*part)] for values, part in cut] or rows

    def _check_ids(self, recipe: Recipe, ids: NDArray[np.int64], rows: int, first: int) -> None:
        """Raise TraceError where a token id has no row in the embedding's table."""
        beyond = np.flatnonzero((ids < 0) | (ids >= rows))
        if beyond.size:
            at = int(beyond[0])
            raise TraceError(
                f"{self.parameters.trace.path}: sequence {self.sequence.index}, position {first + at}: token id "
                f"{ids[at]} has no row in {recipe.parameters['weight']}, which has {rows}; record the ids of the table "
                "that was read, or say with prompt/vocabulary which table each is from"
            )

    def result(self, recipe: Recipe, window: Window, inputs: list[Floats], closely: bool = False) -> Result:
        """What the site should hold, and how far rounding may have moved it."""
        dtype, parameters = self.computed_in(recipe), self.parameters
        if recipe.kind == "embedding":
            return self._looked_up(recipe, window, dtype)
        if recipe.kind == "identity":
            return operations.identity(inputs[0], dtype)
        if recipe.kind == "capped":
            return operations.capped(inputs[0], recipe.factor, recipe.cap, dtype)
        if recipe.kind == "linear":
            return operations.linear(parameters.matrix(recipe), inputs[0], dtype, closely)
        if recipe.kind == "rms_norm":
            weight = parameters.vector(recipe, "weight")
            return operations.rms_norm(inputs[0], weight, recipe.eps, dtype, recipe.plus_one)
        if recipe.kind == "layer_norm":
            weight, bias = parameters.vector(recipe, "weight"), parameters.vector(recipe, "bias")
            return operations.layer_norm(inputs[0], weight, bias, recipe.eps, dtype, recipe.plus_one)
        if recipe.kind == "residual":
            return operations.residual(inputs[0], inputs[1], dtype, recipe.factor)
        if recipe.kind == "gate":
            return operations.gated(inputs[0], inputs[1], recipe.activation, dtype)
        assert recipe.core is not None
        return attention(recipe.core, inputs, window, dtype, closely)

    def is_multiplied(self, recipe: Recipe) -> bool | None:
        """Whether an embedding's site holds rows that are multiplied already; None where it holds none to tell by."""
        data = self.sequence.sites.get(recipe.stored)
        windows = [] if data is None else self.windows(recipe, 1 << 62)[:1]
        for window in windows:
            recorded = self.recorded(recipe.stored, window)
            table = self.parameters.table(recipe)[self.ids[window.first : window.stop]].astype(np.float64)
            gaps = [float(np.square(recorded - table * factor).sum()) for factor in (1.0, recipe.factor)]
            return gaps[1] < gaps[0]
        return None

    def _looked_up(self, recipe: Recipe, window: Window, dtype: str) -> Result:
        """Rows of a table, multiplied where the family does; at the table's own site they may not be yet."""
        table, ids = self.parameters.table(recipe), self.looked_up(recipe)[window.first : window.stop]
        self._check_ids(recipe, ids, len(table), window.first)
        result = operations.embedding(table, ids, dtype, recipe.factor)
        if not recipe.either:
            return result
        return replace(result, others=(*result.others, operations.embedding(table, ids, dtype)))

    def computed_in(self, recipe: Recipe) -> str:
        """The coarser format of a site and its inputs: 16-bit logits are often handed over in float32."""
        dtypes = [self.dtype(name) for name in (recipe.stored, *recipe.inputs)]
        return max(dtypes, key=operations.unit)


def _finite_rows(values: Floats) -> NDArray[np.bool_]:
    """Rows without NaN or infinity; a product is quicker than looking at each element."""
    with np.errstate(over="ignore", invalid="ignore"):
        good = np.isfinite(np.vecdot(values, values))
    return good if good.all() else np.asarray(np.isfinite(values).all(axis=1))


def attention(core: Core, inputs: list[Floats], window: Window, dtype: str, closely: bool = False) -> Result:
    """The attention core, and its spread from drawn rounding errors, per row and head. In 16 bits also as fused kernels
    compute it, with scores in float32, and as eager ones do, each emulated and with its own spread. `closely`, errors
    are drawn at every position."""
    q, k, v = inputs
    values = operations.attend(core, q, k, v, window.rows)
    if dtype not in ("bfloat16", "float16"):
        return _spread(core, inputs, window, dtype, values, False, closely)
    hows = tuple(Emulated(dtype, scores) for scores in (0, 1, 2))
    options = []
    for how in hows:
        emulated = operations.attend(core, q, k, v, window.rows, how)
        option = _spread(core, inputs, window, dtype, values, how.scores == 0, closely)
        options.append(replace(option, rounded=(emulated,), hows=hows))
    return replace(options[0], others=tuple(options[1:]))


def _spread(
    core: Core, inputs: list[Floats], window: Window, dtype: str, values: Floats, wide: bool, closely: bool
) -> Result:
    """The exact values with the spread of one kind of arithmetic."""
    q, k, v = inputs
    drawn = len(values) if closely else min(DRAWN_ROWS, len(values))
    picked = np.unique(np.linspace(0, len(values) - 1, drawn).astype(np.int64))
    draws = []
    for seed in range(CLOSE_ROUNDINGS if closely else DRAWN_ROUNDINGS):
        how = Rounding(dtype, seed, wide)
        draws.append(operations.attend(core, q[picked], k, v, window.rows[picked], how) - values[picked])
    variance = _drawn_variance(core, dtype, values, draws, picked)
    return Result(values, variance, draws=tuple(draws), drawn_rows=picked, bias=operations.LIBRARY)


def _drawn_variance(core: Core, dtype: str, values: Floats, draws: list[Floats], picked: NDArray[np.int64]) -> Floats:
    """Variance of each element: one number a row and head, relative to that head's size, between the drawn rows
    interpolated."""
    heads = (len(picked), core.heads, core.head_dim)
    spread = np.mean([np.square(error).reshape(heads).mean(axis=2) for error in draws], axis=0)
    size = np.square(values).reshape(len(values), core.heads, core.head_dim).mean(axis=2)
    relative = np.sqrt(spread / np.maximum(size[picked], 1e-290))
    at = np.arange(len(values))
    everywhere = np.stack([np.interp(at, picked, relative[:, head]) for head in range(core.heads)], axis=1)
    variance = np.repeat(np.square(everywhere) * size, core.head_dim, axis=1)
    return np.asarray(variance + operations.rounding(values, dtype))
