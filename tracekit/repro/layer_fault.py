"""A site with an error of its own, in any run of the candidate: by the audit, or against the reference's record."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracekit.align.sites import SequencePair
from tracekit.auditing import operations
from tracekit.auditing.audit import Culprit, audit
from tracekit.auditing.operations import Result
from tracekit.auditing.operations.operation import Effort
from tracekit.auditing.own_error import Own
from tracekit.auditing.recipe import Recipe
from tracekit.auditing.recompute import Parameters, Recomputation, Window, joined
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.compare.yardstick import allowed_units
from tracekit.dtypes import UNIT_ROUNDOFF, is_float, round_to, to_float
from tracekit.formats.log import Tensor, TensorLike
from tracekit.inspection.positions import prompt_length, step_of
from tracekit.mistakes.culprits import explained_audit
from tracekit.repro.failing_run import Input
from tracekit.repro.fault import Evidence
from tracekit.repro.rerun import Recording
from tracekit.trace import LOGITS, Json, Sequence, Trace, TraceError, resolve

BLOCK = re.compile(r"(?P<block>(?:.*\.)?\d+)\.")
SMALL_NORM = 0.1
"""Rows of smaller norm than this share of the median row carry the error of their neighbours; as in `rounding`."""


@dataclass
class AuditedFault:
    """A culprit of the audit."""

    site: str  # as the candidate calls it
    position: int
    mechanism: str | None  # id of the mistake
    checkpoint: Checkpoint
    pair: SequencePair
    reference: Trace
    inputs: tuple[str, ...] = ()

    @property
    def recording(self) -> Recording:
        """The culprit's block and what goes into it: enough for the recipe, and small."""
        return Recording("all", _pattern((self.site, *self.inputs)))

    @property
    def steps(self) -> int:
        return step_of(self.position, prompt_length(self.pair.reference)) + 1

    def trusts(self, trace: Trace, fed: Input) -> bool:
        return True

    def shown(self, trace: Trace, fed: Input) -> int | None:
        found = self._culprit(trace, fed)
        return None if found is None else found.step + 1

    def _culprit(self, trace: Trace, fed: Input) -> Culprit | None:
        """The same site with the same mistake."""
        stops = {sequence.index: 0 for sequence in trace.sequences if sequence.index != fed.sequence}
        if not fed.tokens:
            # Behind the fault a mended program chooses other tokens, and may choose fewer.
            stops[fed.sequence] = self.position + 1
        found = audit(trace, self.checkpoint, stops=stops, only={self.site}, wiring=self.reference)
        if not found.culprits or self.mechanism is None:
            return next(iter(found.culprits), None)
        culprits = explained_audit(trace, self.checkpoint, found).culprits
        named = ((each, each.explanation) for each in culprits)
        return next((each for each, said in named if said is not None and said.mistake.id == self.mechanism), None)

    def evidence(self, trace: Trace, fed: Input) -> Evidence:
        culprit = self._culprit(trace, fed)
        if culprit is None:
            raise TraceError(f"{trace.path}: does not show the fault a second time; is the program deterministic?")
        run = Recomputation(trace.sequences[fed.sequence], Parameters(trace, self.checkpoint))
        return _evidence(run, culprit, self.checkpoint)


def _pattern(names: tuple[str, ...]) -> str:
    """Sites of these names and of the first one's block."""
    wanted = [f"^{re.escape(name)}$" for name in names]
    block = BLOCK.match(names[0])
    return "|".join(wanted + ([f"^{re.escape(block['block'])}\\."] if block else []))


def _evidence(run: Recomputation, culprit: Culprit, checkpoint: Checkpoint) -> Evidence:
    own, recipe = culprit.own, culprit.own.recipe
    shown = culprit.position - (run.first_step if recipe.site == LOGITS else 0)
    window = joined(own.windows, shown)
    inputs = run.inputs(recipe, window)
    recorded = run.recorded(recipe.stored, window)
    right = run.result(recipe, window, inputs, Effort.FULL)
    if not right.scales:  # the repro sums in no engine's order
        right = right.closest(recorded)
    dtype = run.dtype(recipe.stored)
    rows = window.rows + (run.first_step if recipe.site == LOGITS else 0)
    expected: dict[str, TensorLike] = {
        "expected": as_tensor(right.values, dtype),
        "bound": np.sqrt(right.variance),
        "positions": rows,
    }
    check = _check(run, own, right)
    check |= {"first": window.first, "stop": window.stop, "first_step": run.first_step}
    stored = dict(zip(recipe.inputs, inputs, strict=True))
    return Evidence(
        check,
        {name: as_tensor(values, run.dtype(name)) for name, values in stored.items()} or {"ids": _ids(run, window)},
        _parameters(run, recipe, window),
        expected,
        {"actual": as_tensor(recorded, dtype)},
        declared=checkpoint.config,
    )


def _ids(run: Recomputation, window: Window) -> NDArray[np.int64]:
    return run.ids[window.first : window.stop]


def _check(run: Recomputation, own: Own, right: Result) -> Json:
    """What the tests compare: the operation, its numbers, and the statistic that is beyond its limit."""
    recipe, dtype = own.recipe, run.computed_in(own.recipe)
    kind = own.statistic
    check: Json = {
        "kind": "site",
        "operation": recipe.kind,
        "site": recipe.site,
        "inputs": list(recipe.inputs),
        "roles": {role: run.parameters.checkpoint.find(name) for role, name in recipe.parameters.items()},
        "dtype": dtype,
        "statistic": kind,
        "limit": own.limits[kind],
        "shared": right.shared,
        "bias": right.bias,
    }
    return check | recipe.operation.numbers()


def _parameters(run: Recomputation, recipe: Recipe, window: Window) -> dict[str, TensorLike]:
    """The weights that the site uses, as the engine holds them; of a table, the rows that were looked up; and what else
    the operation computes with."""
    checkpoint, trace = run.parameters.checkpoint, run.parameters.trace
    out: dict[str, TensorLike] = dict(recipe.operation.constants())
    for name in recipe.parameters.values():
        found = checkpoint.find(name)
        assert found is not None
        held = trace.weights.get(name)
        dtype = held.dtype if held is not None and is_float(held.dtype) else checkpoint.dtype(found)
        values = checkpoint.values(found, dtype)
        if recipe.operation.reads_tokens:
            out[found] = as_tensor(values[_ids(run, window)], dtype)
        else:
            out[found] = as_tensor(values, dtype)
    return out


def as_tensor(values: NDArray[np.floating], dtype: str) -> TensorLike:
    """Values rounded to a dtype, as a file holds them."""
    if dtype not in UNIT_ROUNDOFF or dtype.startswith("float8"):
        dtype = "float32"
    bits = np.ascontiguousarray(round_to(np.asarray(values), dtype))
    return Tensor(dtype, bits.shape, bits.reshape(-1).view(np.uint8).data)


# -------------------------------------------------------------------- without a checkpoint


@dataclass
class ComparedFault:
    """A site that differs from the reference's record, where no recipe says what is right."""

    site: str  # as the reference calls it
    candidate_site: str
    stored: str  # the candidate's site that holds its values
    order: int
    position: int
    pair: SequencePair
    reference: Trace

    @property
    def recording(self) -> Recording:
        if self.site == LOGITS:
            return Recording("logits")
        return Recording("all", _pattern((self.candidate_site, self.stored)))

    @property
    def steps(self) -> int:
        return step_of(self.position, prompt_length(self.pair.reference)) + 1

    def trusts(self, trace: Trace, fed: Input) -> bool:
        return False

    def shown(self, trace: Trace, fed: Input) -> int | None:
        compared = self._compared(trace, fed)
        if compared is None:
            return None
        positions, expected, actual, bound = compared
        wrong = np.flatnonzero(np.linalg.norm(actual - expected, axis=1) > bound)
        return step_of(int(positions[wrong[0]]), prompt_length(self.pair.reference)) + 1 if wrong.size else None

    def evidence(self, trace: Trace, fed: Input) -> Evidence:
        compared = self._compared(trace, fed)
        assert compared is not None
        positions, expected, actual, bound = compared
        first = prompt_length(self.pair.reference) - 1 if self.site == LOGITS else 0
        check: Json = {
            "kind": "recorded",
            "site": LOGITS if self.site == LOGITS else self.candidate_site,
            "first": int(positions[0]) - first,
            "stop": int(positions[-1]) + 1 - first,
        }
        tensors: Mapping[str, TensorLike] = {"expected": expected, "bound": bound, "positions": positions}
        return Evidence(check, {"prompt": positions}, {}, tensors, {"actual": actual})

    def _compared(
        self, trace: Trace, fed: Input
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None:
        """Positions, the reference's rows, the candidate's, and how far each may be apart."""
        one, other = self.pair.reference, trace.sequences[fed.sequence]
        if self.site == LOGITS:
            count, first = min(one.step_count, other.step_count), prompt_length(one) - 1
            logits = one.logits(0, count), other.logits(0, count)
            if not count or logits[0] is None or logits[1] is None:
                return None
            rows = [logits[0], logits[1]]
            dtypes = one.logits_dtype or "float32", other.logits_dtype or "float32"
            stop = first + count
        else:
            stored = resolve(trace, self.candidate_site)
            data = other.sites.get(stored or "")
            if data is None or self.site not in one.sites:
                return None
            first, stop = _shared(one, self.site, other, data.name, self.position)
            if first >= stop:
                return None
            rows = [one.read(self.site, first, stop), other.read(data.name, first, stop)]
            dtypes = one.sites[self.site].dtype, data.dtype
        expected, actual = (to_float(rows[at], dtypes[at]).astype(np.float64) for at in (0, 1))
        unit = max(operations.unit(dtype) for dtype in dtypes)
        norms = np.linalg.norm(expected, axis=1)
        bound = allowed_units(unit, self.order) * unit * np.maximum(norms, SMALL_NORM * float(np.median(norms)))
        return np.arange(first, stop), expected, actual, bound


def _shared(one: Sequence, site: str, other: Sequence, name: str, position: int) -> tuple[int, int]:
    """The range of positions that both recorded which holds `position`; the first one where none does."""
    ranges = other.sites[name].shared(one.sites[site].ranges)
    return next((each for each in ranges if each[0] <= position < each[1]), ranges[0] if ranges else (0, 0))
