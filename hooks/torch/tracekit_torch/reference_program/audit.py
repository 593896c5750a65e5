"""The audit of a trace by a reference program: every recorded site, of any model that PyTorch runs."""

from __future__ import annotations

import numpy as np
from torch import nn

from tracekit.auditing.audit import Audit, Culprit, changed_weights, culprit_of
from tracekit.auditing.drawn_error import drawn_result, judged
from tracekit.auditing.own_error import FALSE_ALARMS, Own, tests_of
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.dtypes import UNIT_ROUNDOFF
from tracekit.inspection.non_finite import first_non_finite
from tracekit.inspection.sanity import losses
from tracekit.inspection.settings import declared_differences
from tracekit.trace import Sequence, Trace, TraceError
from tracekit_torch.reference_program.consequence import weigher
from tracekit_torch.reference_program.drawn_rounding import DrawnRounding
from tracekit_torch.reference_program.loading import inputs_of
from tracekit_torch.reference_program.replay import Replay, Replayed

DRAWS = 8
"""Runs with drawn roundings."""
CLOSE_DRAWS = 64
"""The same where a site looks wrong and may not be: of a few samples the spread is not known well enough."""
CLOSE = 4.0
"""Times its limit up to which a statistic is judged by more samples: eight samples are never off by as much."""


def audit_by(model: nn.Module, trace: Trace, checkpoint: Checkpoint) -> Audit:
    """Run `model` (float64, `reference.load_reference`) over the trace's tokens with the recorded values put in, and
    judge every site by what rounding may do. Raises TraceError where the model cannot run on them."""
    dtype = str(trace.config.get("dtype") or "float32")
    unit = UNIT_ROUNDOFF.get(dtype, UNIT_ROUNDOFF["float32"])
    culprits: dict[str, Culprit] = {}
    clean: set[str] = set()
    unknown: dict[str, str] = {}
    values = tests = 0
    peak = 0.0
    for sequence in trace.sequences:
        replay = _replayed(model, trace, sequence, unit)
        made = sum(tests_of(*site.values.shape) for site in replay.sites.values())
        tests += made
        for own in _judged(replay, sequence, unit, FALSE_ALARMS / max(made * len(trace.sequences), 1)):
            site = own.recipe.site
            values += own.statistics.rows.size * own.statistics.columns.size
            peak = max(peak, *own.over.values())
            if not own.wrong:
                clean.add(site)
            elif site not in culprits:
                culprits[site] = culprit_of(trace, sequence, own)
        unknown |= replay.missed
    ranked = sorted(culprits.values(), key=lambda one: (one.sequence, one.step, one.order))
    return Audit(
        tuple(ranked),
        frozenset(clean - culprits.keys()),
        {site: why for site, why in unknown.items() if site not in clean and site not in culprits},
        tuple(changed_weights(trace, checkpoint)),
        tuple(declared_differences(checkpoint.config, trace)),
        values,
        non_finite=first_non_finite(trace),
        tests=tests,
        peak=peak,
        lost=tuple(losses(trace)),
        weigh=weigher(model, trace),
    )


def _replayed(model: nn.Module, trace: Trace, sequence: Sequence, unit: float) -> Replay:
    given = inputs_of(model, trace, sequence)
    replay = Replay(model, sequence, lambda: model(**given, use_cache=False))
    try:
        replay.run()
        for seed in range(DRAWS):
            replay.draw(_rounding(unit, seed))
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TraceError(
            f"{trace.path}: sequence {sequence.index}: the reference does not run on its tokens: {said}"
        ) from error
    return replay


def _rounding(unit: float, seed: int) -> DrawnRounding:
    return DrawnRounding(unit, UNIT_ROUNDOFF["float32"], seed)


def _judged(replay: Replay, sequence: Sequence, unit: float, level: float) -> list[Own]:
    """Every site, those near their limits by more samples."""
    owns = {name: _own(site, sequence, unit, level) for name, site in replay.sites.items()}
    near = {name for name, own in owns.items() if own is not None and 1.0 < max(own.over.values()) <= CLOSE}
    for seed in range(DRAWS, CLOSE_DRAWS if near else 0):
        replay.draw(_rounding(unit, seed), near)
    owns |= {name: _own(replay.sites[name], sequence, unit, level) for name in near}
    return [own for own in owns.values() if own is not None]


def _own(site: Replayed, sequence: Sequence, unit: float, level: float) -> Own | None:
    """The own error of the rows whose values are finite; None where no row is."""
    finite = np.isfinite(site.recorded).all(axis=1) & np.isfinite(site.values).all(axis=1)
    if not finite.any():
        return None
    data = sequence.sites.get(site.site)
    stored = data.dtype if data is not None else sequence.logits_dtype or "float32"
    result = drawn_result(site.values[finite], [draw[finite] for draw in site.draws], UNIT_ROUNDOFF.get(stored, unit))
    return judged(site.site, site.rows[finite], site.recorded[finite], result, level)
