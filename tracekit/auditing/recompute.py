"""A site's values recomputed in float64 from its recorded inputs and the checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing.block_formats import BLOCK
from tracekit.auditing.families import family_of
from tracekit.auditing.matrix import Matrix
from tracekit.auditing.operations.embedding_table import Embedding
from tracekit.auditing.operations.operation import Effort, Given, Shape
from tracekit.auditing.recipe import Recipe
from tracekit.auditing.rounding import Floats, Result, as_stored, unit
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.checkpoints.widened import narrowed
from tracekit.dtypes import SIXTEEN_BITS, is_float
from tracekit.inspection.cast_products import is_cast
from tracekit.inspection.sanity import recomputed_from
from tracekit.inspection.site_rows import logits_reader, site_reader
from tracekit.trace import ENCODER_PREFIX, LOGITS, Sequence, Trace, TraceError

NO_TOKENS = np.zeros(0, np.int64)

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
    """The checkpoint's parameters in float64, as the engine holds them; each thread keeps its last matrix. `finest`:
    the precision that sites are judged in which were computed in a finer one."""

    def __init__(self, trace: Trace, checkpoint: Checkpoint, finest: str = "float64") -> None:
        self.trace, self.checkpoint, self.finest = trace, checkpoint, finest
        self._last = threading.local()
        self._narrowed: dict[str, str | None] = {}  # the format that a parameter went through, by name

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

    def may_be_tied(self, recipe: Recipe) -> bool:
        """Whether a head is one of two tables: `config.json` ties it and the file has another for it, and the family,
        whose program decides, is not known."""
        if self.checkpoint.config.get("tie_word_embeddings") is not True or family_of(self.checkpoint.config):
            return False
        for name in recipe.parameters.values():
            other, held = self.checkpoint.other_head(name), self.trace.weights.get(name)
            if other is None:
                continue
            if held is None or held.digest is None:
                return True
            both = (self.checkpoint.find(name), other)
            return not all(one and self.checkpoint.may_hold(one, held.dtype, held.digest) for one in both)
        return False

    def shapes(self, recipe: Recipe) -> dict[str, Shape]:
        """The shapes of those that the checkpoint holds, by role."""
        found = {role: self.find(name) for role, name in recipe.parameters.items()}
        return {role: self.checkpoint.shape(name) for role, name in found.items() if name is not None}

    def of(self, recipe: Recipe) -> ModuleWeights:
        """Those of one module, by role."""
        return ModuleWeights(self, recipe)

    def vector(self, recipe: Recipe, role: str) -> Floats | None:
        """A parameter by its role, or None where the module has none of that role."""
        name = recipe.parameters.get(role)
        return None if name is None else self._values(name).astype(np.float64)

    def table(self, recipe: Recipe) -> NDArray[np.floating]:
        """An embedding's table, in the dtype of the file where that is a plain one."""
        return self._values(recipe.parameters["weight"])

    def matrix(self, recipe: Recipe) -> Matrix:
        """A weight as [outputs, inputs], with its bias; `recipe.operation` says how the checkpoint stores it."""
        transposed = recipe.operation.transposed
        key = (*sorted(recipe.parameters.values()), transposed, recipe.operation.reads_minima)
        if getattr(self._last, "key", None) != key:
            weight = self._values(recipe.parameters["weight"]).astype(np.float64)
            weight = np.ascontiguousarray(weight.T) if transposed else weight
            if recipe.operation.reads_minima:
                minima = self._minima(recipe.parameters["weight"], weight)
                weight = np.hstack([weight - np.repeat(minima, BLOCK, axis=1), minima])
            self._last.key, self._last.matrix = key, Matrix(weight, self.vector(recipe, "bias"))
        matrix: Matrix = self._last.matrix
        return matrix

    def _minima(self, name: str, weight: Floats) -> Floats:
        """The smallest value of each block of a weight, [outputs, blocks]: as the file has them, else, of a file that
        holds no blocks, the smallest of each."""
        found = self.find(name)
        held = None if found is None else self.checkpoint.file.block_minima(found)
        if held is not None:
            return held.astype(np.float64)
        return np.asarray(weight.reshape(len(weight), -1, BLOCK).min(axis=2))

    def _values(self, name: str) -> NDArray[np.floating]:
        found = self.find(name)
        if found is None:
            raise KeyError(name)
        held = self.trace.weights.get(name)
        dtype = held.dtype if held is not None and is_float(held.dtype) else None
        if name not in self._narrowed:
            self._narrowed[name] = narrowed(self.trace, self.checkpoint, name, found)
        return self.checkpoint.values(found, self._narrowed[name] or dtype)


@dataclass(frozen=True)
class ModuleWeights:
    """The parameters of one module (`operations.Weights`)."""

    parameters: Parameters
    recipe: Recipe

    def vector(self, role: str) -> Floats | None:
        return self.parameters.vector(self.recipe, role)

    def table(self) -> NDArray[np.floating]:
        return self.parameters.table(self.recipe)

    def stored(self) -> str:
        found = self.parameters.find(self.recipe.parameters["weight"])
        return "" if found is None else self.parameters.checkpoint.dtype(found)

    def matrix(self) -> Matrix:
        return self.parameters.matrix(self.recipe)


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
        return self._logits_dtype if site == LOGITS else self.sequence.sites[site].dtype

    @cached_property
    def _logits_dtype(self) -> str:
        """That of the program, where it hands its logits over in a wider one and every value of a step is such a
        number: a head in float32 may be rounded behind its product."""
        stored, own = self.sequence.logits_dtype or "float32", self.parameters.trace.config.get("dtype")
        if own not in SIXTEEN_BITS or unit(own) <= unit(stored):
            return stored
        row = self.sequence.logits(0, 1)
        return own if row is not None and np.array_equal(as_stored(row, own), row, equal_nan=True) else stored

    def width(self, recipe: Recipe) -> int:
        """Values a row."""
        if recipe.site != LOGITS:
            data = self.sequence.sites.get(recipe.stored)
            return 1 if data is None else data.width
        logits = self.sequence.logits(0, 1)
        return 1 if logits is None else int(logits.shape[1])

    def windows(self, recipe: Recipe, stop: int) -> list[Window]:
        """Where a site and all its inputs are recorded, below position `stop`, each a run of rows without a gap."""
        if recipe.site == LOGITS:
            steps = min(self.sequence.step_count, max(0, stop - self.first_step))
            ranges = self._shared(recipe.inputs, ((self.first_step, self.first_step + steps),))
            return [Window(first - self.first_step, last - self.first_step) for first, last in ranges]
        data = self.sequence.sites[recipe.stored]
        if data.axis is not None:
            stop = max((last for _, last in data.ranges), default=0)  # an encoder runs before the first step
        if recipe.operation.reads_tokens:
            stop = min(stop, len(self.looked_up(recipe)))
        ranges = tuple((first, min(last, stop)) for first, last in data.ranges)
        same, whole = self._inputs_by_rows(recipe)
        begun = [self._from_start(name) for name in whole]
        ranges = tuple((first, min(last, *begun, last)) for first, last in self._shared(same, ranges))
        return [Window(first, last) for first, last in ranges if first < last]

    def _inputs_by_rows(self, recipe: Recipe) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Inputs that a row reads at its own position, and those that it reads at every position up to it."""
        names, from_start = recipe.inputs, recipe.operation.from_start
        same = tuple(name for index, name in enumerate(names) if not from_start(index))
        return same, tuple(name for index, name in enumerate(names) if from_start(index))

    def _shared(self, sites: tuple[str, ...], ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        """The parts of `ranges` at which all these sites are recorded."""
        ranges = tuple((first, stop) for first, stop in ranges if first < stop)
        for name in sites:
            data = self.sequence.sites.get(name)
            ranges = () if data is None else data.shared(ranges)
        return ranges

    def _from_start(self, site: str) -> int:
        """The first position that did not read all those before it as they are recorded."""
        data = self.sequence.sites.get(site)
        held = next((stop for first, stop in data.ranges if first == 0), 0) if data is not None else 0
        again = recomputed_from(self.sequence)
        # One row alone shows nothing of what is read from others.
        return held if again is None else min(held, again) if again > 1 else 0

    def reads_others(self, recipe: Recipe) -> bool:
        """Whether a site reads earlier positions as a later call computed them again, which is not recorded."""
        return recomputed_from(self.sequence) is not None and bool(self._inputs_by_rows(recipe)[1])

    def covers(self, site: str, window: Window) -> bool:
        """Whether all rows of a window are recorded of a site."""
        data = self.sequence.sites.get(site)
        return data is not None and data.covers(window.first, window.stop)

    def recorded(self, site: str, window: Window) -> Floats:
        """What the run recorded, [rows, width], to be read only."""
        return self._recorded(site, window)

    def _read(self, site: str, window: Window) -> Floats:
        reader = logits_reader(self.sequence) if site == LOGITS else site_reader(self.sequence, site)
        values = reader(window.first, window.stop).astype(np.float64)
        values.flags.writeable = False
        return values

    def finite(self, recipe: Recipe, window: Window) -> list[Window]:
        """The rows of a window whose inputs are finite: of others nothing can be said."""
        inputs = self.inputs(recipe, window)
        bad = np.zeros(len(window.rows), dtype=bool)
        for index, values in enumerate(inputs):
            wrong = ~_finite_rows(values)
            if recipe.operation.from_start(index):  # of every position up to the row's
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
        """The recorded inputs of the same rows, [rows, width] each; from position 0, those that later rows read too."""
        if recipe.site == LOGITS:
            window = Window(window.first + self.first_step, window.stop + self.first_step)
        whole = Window(0, window.stop)
        from_start = recipe.operation.from_start
        rows = [self.recorded(name, whole if from_start(at) else window) for at, name in enumerate(recipe.inputs)]
        cut = zip(rows, recipe.columns, strict=True) if recipe.columns else ()
        parts = [values if part is None else values[:, slice(*part)] for values, part in cut] or rows
        return recipe.operation.prepared(parts)

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

    def given(self, recipe: Recipe, window: Window, inputs: list[Floats], effort: Effort = Effort.QUICK) -> Given:
        """What the operation of a recipe is computed from. Raises TraceError where a token id has no row."""
        weights, tokens = self.parameters.of(recipe), NO_TOKENS
        if recipe.operation.reads_tokens:
            tokens = self.looked_up(recipe)[window.first : window.stop]
            self._check_ids(recipe, tokens, len(weights.table()), window.first)
        return Given(inputs, window.rows, self.computed_in(recipe), weights, tokens, effort, self._cast(recipe))

    def _cast(self, recipe: Recipe) -> str | None:
        """The 16-bit format of a site whose weight the program holds in a finer one."""
        stored = self.dtype(recipe.stored)
        return stored if is_cast(self.parameters.trace, recipe.parameters.get("weight"), stored) else None

    def result(self, recipe: Recipe, window: Window, inputs: list[Floats], effort: Effort = Effort.QUICK) -> Result:
        """What the site should hold, and how far rounding may have moved it."""
        return recipe.operation.result(self.given(recipe, window, inputs, effort))

    def is_multiplied(self, recipe: Recipe, table: Embedding) -> bool | None:
        """Whether an embedding's site holds rows that are multiplied already; None where it holds none to tell by."""
        data = self.sequence.sites.get(recipe.stored)
        windows = [] if data is None else self.windows(recipe, 1 << 62)[:1]
        for window in windows:
            rows = self.parameters.table(recipe)[self.ids[window.first : window.stop]].astype(np.float64)
            return table.multiplied(rows, self.recorded(recipe.stored, window))
        return None

    def computed_in(self, recipe: Recipe) -> str:
        """The coarser format of a site and its inputs: 16-bit logits are often handed over in float32."""
        dtypes = [
            self.parameters.finest,
            recipe.operation.finest,
            *(self.dtype(name) for name in (recipe.stored, *recipe.inputs)),
        ]
        return max(dtypes, key=unit)


def _finite_rows(values: Floats) -> NDArray[np.bool_]:
    """Rows without NaN or infinity; a product is quicker than looking at each element."""
    with np.errstate(over="ignore", invalid="ignore"):
        good = np.isfinite(np.vecdot(values, values))
    return good if good.all() else np.asarray(np.isfinite(values).all(axis=1))
