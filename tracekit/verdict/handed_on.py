"""Is a difference rounding that was handed on? What each site adds to those of its inputs, one after the other.

The recipe of a site is taken at the inputs that each side recorded. What is left of the two outputs' difference is what
the two sides made of the same inputs, and rounding bounds it, however much of an earlier difference was amplified.
"""

from __future__ import annotations

import numpy as np

from tracekit.align.pair import Pair
from tracekit.align.sites import SequencePair
from tracekit.auditing.estimated import OwnDifferences
from tracekit.auditing.own_error import FALSE_ALARMS, deviations
from tracekit.auditing.rounding import ACCUMULATOR, Floats, unit
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.compare.metrics import RowErrors, row_errors
from tracekit.compare.search import common_ranges, compared_positions
from tracekit.compare.yardstick import logits_readers
from tracekit.inspection.site_rows import row_bytes, site_reader
from tracekit.trace import LOGITS


def added(traces: Pair, pair: SequencePair, checkpoint: Checkpoint) -> dict[str, float]:
    """The most that any site up to this one adds to its inputs' difference, over the most that rounding adds, by the
    reference's name of the site: up to 1 where all of its difference is rounding, handed on."""
    return _Walk(traces, pair, checkpoint).shares()


class _Walk:
    """One pair of sequences, in the order of the computation."""

    def __init__(self, traces: Pair, pair: SequencePair, checkpoint: Checkpoint) -> None:
        self._traces, self._pair = traces, pair
        self._own = OwnDifferences(traces.reference, checkpoint)
        self._names: dict[str, str] = {}
        self._tests = max(1, len(pair.reference.sites) * pair.reference.positions)
        self._relative: dict[str | None, Floats] = {}  # by axis: of each position, the largest difference so far

    def shares(self) -> dict[str, float]:
        one, other = self._pair.reference, self._pair.candidate
        stop, largest, out = compared_positions(self._pair), 0.0, {}
        for site in self._traces.sites.pairs:
            self._names[site.name] = site.candidate
            for first, last in common_ranges(self._pair, site, stop):
                readers = site_reader(one, site.name), site_reader(other, site.candidate)
                error = row_errors(*readers, first, last, row_bytes(one, site.name))
                largest = max(largest, self._share(site.name, one.sites[site.name].axis, (first, last), error))
            out[site.name] = largest
        first_step = one.step(0).position if one.step_count else 0
        steps = min(one.step_count, other.step_count, max(0, stop - first_step))
        logits = logits_readers(self._pair, steps)
        if logits is not None:
            self._names[LOGITS] = LOGITS
            error = row_errors(*logits[:2], 0, steps, 8 * logits[2])
            out[LOGITS] = max(largest, self._share(LOGITS, LOGITS, (0, steps), error))
        return out

    def _unit(self, site: str) -> float:
        """Unit roundoff of the side that is coarser."""
        one, other = self._pair.reference, self._pair.candidate
        if site == LOGITS:
            return max(unit(one.logits_dtype or "float32"), unit(other.logits_dtype or "float32"))
        return max(unit(one.sites[site].dtype), unit(other.sites[self._names[site]].dtype))

    def _share(self, site: str, axis: str | None, rows: tuple[int, int], error: RowErrors) -> float:
        first, stop = rows
        before = self._relative.setdefault(axis, np.zeros(0))
        before = self._relative[axis] = np.pad(before, (0, max(0, stop - len(before))))
        share = 0.0
        if error.difference.any():
            width = self._pair.reference.sites[site].width if site != LOGITS else 1
            beyond = self._own((self._pair.reference, self._pair.candidate), self._names, site, rows, self._tests)
            beyond = np.full(stop - first, np.nan) if beyond is None else beyond
            # Of a site without a recipe only its size is known: an error as large as any before it may be there, or as
            # that of a sum of so many terms.
            least = max(self._unit(site), ACCUMULATOR * width**0.5)
            most = deviations(FALSE_ALARMS / self._tests) * np.maximum(before[first:stop], least)
            share = float(np.where(np.isnan(beyond), error.relative / most, beyond).max())
        before[first:stop] = np.fmax(before[first:stop], error.relative)
        return share
