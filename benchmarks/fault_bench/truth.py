"""Where a faulty run first parts from the healthy one, bit by bit: no tolerance, so nothing that could be wrong.

Both are runs of the same program on the same machine, so what the fault does not touch is equal to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.compare.findings import Stage
from tracekit.dtypes import UNIT_ROUNDOFF, to_float
from tracekit.inspection.positions import prompt_length, step_of
from tracekit.trace import INPUT_SUFFIX, Sequence, Trace, resolve

ROUNDING_UNITS = {"float32": 4.0}
"""In float32, torch's and candle's RMS norms, both correct, lie up to 2.5 units apart (SmolLM2, layer 0). In 16 bits
sums are kept in float32, and only the rounding of the result itself is left: one unit."""


@dataclass(frozen=True)
class Change:
    """The first difference."""

    sequence: int
    stage: str
    step: int
    position: int | None
    site: str
    dtype: str = ""
    units: float | None = None
    """Of a site: the relative change over all of its rows, in units of roundoff of its number format."""

    @property
    def rounds_away(self) -> bool:
        """Smaller than what two correct implementations may differ by: nobody could tell it from rounding."""
        return self.units is not None and self.units < ROUNDING_UNITS.get(self.dtype, 1.0)


def first_change(healthy: Trace, faulty: Trace) -> Change | None:
    """The first difference in the order of the computation; None where all is equal."""
    for one, other in zip(healthy.sequences, faulty.sequences, strict=False):
        found = _change_in_sequence(healthy, faulty, one, other)
        if found is not None:
            return found
    weights = [name for name, weight in healthy.weights.items() if faulty.weights[name].digest != weight.digest]
    return Change(0, "WEIGHTS", 0, None, weights[0]) if weights else None


def _change_in_sequence(healthy: Trace, faulty: Trace, one: Sequence, other: Sequence) -> Change | None:
    for name, values in one.inputs.items():
        if name in other.inputs and not np.array_equal(values, other.inputs[name]):
            return Change(one.index, Stage.INPUT.name, 0, None, f"prompt/{name}")
    prompt = prompt_length(one)
    common = min(one.step_count, other.step_count)
    apart = np.flatnonzero(one.tokens[:common] != other.tokens[:common])
    steps = int(apart[0]) + 1 if apart.size else common
    limit = min(one.positions, other.positions, prompt + max(steps - 1, 0) if steps else one.positions)
    changes = [*_site_changes(healthy, faulty, one, other, prompt, limit), *_step_changes(one, other, steps)]
    if not apart.size and one.step_count != other.step_count:
        changes.append((common, 9, 0, Change(one.index, Stage.STOP.name, common, None, "stop")))
    return min(changes, key=lambda item: item[:3])[3] if changes else None


Ranked = tuple[int, int, float, Change]
"""Step, stage, order of the site, change."""


def _site_changes(
    trace: Trace, against: Trace, one: Sequence, other: Sequence, prompt: int, limit: int
) -> list[Ranked]:
    found = []
    for name in dict.fromkeys([*one.sites, *(name for name in other.sites if name.endswith(INPUT_SUFFIX))]):
        # A value may be a site of its own on one side and, by the wiring, another site's value on the other.
        data, theirs = one.sites.get(resolve(trace, name) or ""), other.sites.get(resolve(against, name) or "")
        if data is None or theirs is None or theirs.width != data.width or theirs.dtype != data.dtype:
            continue
        stop = min(limit, data.ranges[-1][1], theirs.ranges[-1][1])
        first = max(data.ranges[0][0], theirs.ranges[0][0])
        if first >= stop:
            continue
        healthy, faulty = one.read(data.name, first, stop), other.read(theirs.name, first, stop)
        rows = np.flatnonzero((_bits(healthy) != _bits(faulty)).any(axis=1))
        if not rows.size:
            continue
        position = first + int(rows[0])
        step = step_of(position, prompt)
        units = _units(to_float(healthy, data.dtype), to_float(faulty, data.dtype), data.dtype)
        found.append(
            (
                step,
                1,
                _order(trace, name),
                Change(one.index, Stage.SITE.name, step, position, name, data.dtype, units),
            )
        )
    return found


def _order(trace: Trace, name: str) -> float:
    """Where a site stands in the healthy run; an input that is none there, right before its module."""
    site = trace.sites.get(name)
    return site.order if site is not None else trace.sites[name.removesuffix(INPUT_SUFFIX)].order - 0.5


def _bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")


def _units(healthy: np.ndarray, faulty: np.ndarray, dtype: str) -> float:
    with np.errstate(all="ignore"):
        relative = np.linalg.norm(faulty - healthy) / max(float(np.linalg.norm(healthy)), 1e-300)
    return float(relative / UNIT_ROUNDOFF[dtype]) if np.isfinite(relative) else float("inf")


def _step_changes(one: Sequence, other: Sequence, steps: int) -> list[Ranked]:
    found: list[Ranked] = []
    for index in range(steps):
        ours, theirs = one.step(index), other.step(index)
        differences = (
            (Stage.LOGITS, "logits", not _equal(ours.logits, theirs.logits)),
            (
                Stage.SURVIVORS,
                "survivors",
                not (
                    _equal(ours.survivors_id, theirs.survivors_id)
                    and _equal(ours.survivors_prob, theirs.survivors_prob)
                ),
            ),
            (Stage.DRAW, "draws", [_drawn(draw) for draw in ours.draws] != [_drawn(draw) for draw in theirs.draws]),
            (Stage.TOKEN, "token", ours.token != theirs.token),
        )
        for stage, site, differs in differences:
            if differs:
                units = None
                if stage is Stage.LOGITS and ours.logits is not None and theirs.logits is not None:
                    dtype = one.logits_dtype or "float32"
                    units = _units(to_float(ours.logits, dtype), to_float(theirs.logits, dtype), dtype)
                change = Change(one.index, stage.name, index, ours.position, site, one.logits_dtype or "", units)
                found.append((index, 1 + int(stage), 0, change))
        if found:
            break
    return found


def _drawn(draw: object) -> tuple[object, ...]:
    return tuple(getattr(draw, name) for name in ("op", "generator", "seed", "offset", "words"))


def _equal(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return True  # one that draws in its own way does not say what it drew from
    return bool(np.array_equal(one, other))
