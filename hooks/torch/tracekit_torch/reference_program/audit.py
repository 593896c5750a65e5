"""The audit of a trace by a reference program: every recorded site, of any model that PyTorch runs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tracekit.auditing.audit import Audit, Culprit, changed_weights, culprit_of
from tracekit.auditing.drawn_error import drawn_result, judged
from tracekit.auditing.elsewhere import FactorElsewhere
from tracekit.auditing.not_audited import NotAudited
from tracekit.auditing.operations import Result
from tracekit.auditing.own_error import FALSE_ALARMS, Own, tests_of
from tracekit.auditing.routing import OtherExperts
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.dtypes import UNIT_ROUNDOFF, is_float
from tracekit.inspection.known_positions import known_positions, not_known
from tracekit.inspection.losses import LogitsNotJudged, LooksAhead, SequencesNotRun, losses
from tracekit.inspection.non_finite import first_non_finite
from tracekit.inspection.sanity import recomputed_from
from tracekit.inspection.settings import declared_differences
from tracekit.inspection.site_rows import logits_width
from tracekit.mistakes.culprits import ExplainedCulprit, explained_by_recipes
from tracekit.mistakes.explanation import Explanation
from tracekit.trace import INPUT_SUFFIX, LOGITS, Sequence, Trace
from tracekit.trace_view import TraceView
from tracekit_torch.not_run import NotRun
from tracekit_torch.reference_program.chosen_otherwise import Taken, chosen_otherwise, explanation
from tracekit_torch.reference_program.computed_again import ComputedAgain
from tracekit_torch.reference_program.drawn_rounding import DrawnRounding
from tracekit_torch.reference_program.explaining import Tried, explanations
from tracekit_torch.reference_program.first_calls import first_calls, looks_ahead
from tracekit_torch.reference_program.first_positions import FirstPositions
from tracekit_torch.reference_program.kept import kept_rounded
from tracekit_torch.reference_program.loading import forward_of, on_its_tokens
from tracekit_torch.reference_program.replay import Replay, Replayed
from tracekit_torch.reference_program.routing import Choice, Forced
from tracekit_torch.reference_program.sine_tables import sine_tables

FLOAT32 = UNIT_ROUNDOFF["float32"]
DRAWS = 8
"""Runs with drawn roundings."""
MOST_DRAWN = 1 << 28
"""Numbers kept of a site in all runs."""
CLOSE_DRAWS = 64
"""The same where a site looks wrong and may not be: of a few samples the spread is not known well enough."""
CLOSE = 4.0
"""Times its limit up to which a statistic is judged by more samples: eight samples are never off by as much."""
MULTIPLE = 3.0
"""Standard deviations of rounding that a multiple of the reference's values may be off, to be looked into."""


def audit_by(model: nn.Module, trace: Trace, checkpoint: Checkpoint) -> Audit:
    """Run `model` (float64, `reference.load_reference`) over the trace's tokens with the recorded values put in, and
    judge every site by what rounding may do, up to where masks and weights are known. Raises TraceError where the model
    cannot run on them."""
    left = not_known(trace)
    if not left:
        return _audit(model, trace, checkpoint, causal=False)
    known = (FirstPositions(sequence, known_positions(sequence)) for sequence in trace.sequences)
    found = _audit(model, cast(Trace, TraceView(trace, known)), checkpoint, causal=False)
    return replace(found, lost=(*found.lost, *left))


def _of_first_calls(model: nn.Module, trace: Trace, checkpoint: Checkpoint) -> Audit:
    """The audit of a model that looks ahead."""
    seen = first_calls(trace)
    left = [
        LooksAhead(trace.path, whole.index, first.positions, whole.positions)
        for whole, first in zip(trace.sequences, seen.sequences, strict=True)
        if first.positions < whole.positions
    ]
    found = _audit(model, seen, checkpoint, causal=True)
    return replace(found, lost=(*found.lost, *left))


def _audit(model: nn.Module, trace: Trace, checkpoint: Checkpoint, causal: bool) -> Audit:
    """`causal`: whether the model is known not to look ahead, or the trace is of first calls alone; else that is asked
    where the first site is wrong, before anything is explained."""
    dtype = str(trace.config.get("dtype") or "float32")
    unit = UNIT_ROUNDOFF.get(dtype, UNIT_ROUNDOFF["float32"])
    culprits: dict[str, Culprit] = {}
    named: dict[str, ExplainedCulprit] = {}
    clean: set[str] = set()
    unknown: dict[str, NotAudited] = {}
    unjudged: list[LogitsNotJudged] = []
    not_run: list[NotRun] = []
    factors: dict[str, float] = {}
    routed: list[OtherExperts] = []
    values, peak = 0, 0.0
    tests = sum(_tests(sequence) for sequence in trace.sequences)
    for sequence in trace.sequences:
        if not sequence.positions:
            continue
        level = FALSE_ALARMS / max(tests, 1)
        try:
            judge = Judge(model, trace, sequence, unit, level, factors)
            owns = judge.owns()
        except NotRun as error:
            not_run.append(error)
            continue
        wrong = [own for own in owns if own.wrong]
        if wrong and not causal:
            if looks_ahead(model, trace):
                return _of_first_calls(model, trace, checkpoint)
            causal = True
        if judge.multiples:
            judge, owns = multiplied_elsewhere(judge, owns)
            wrong, factors = [own for own in owns if own.wrong], dict(judge.factors)
        taken, by_experts = Taken(), dict[str, Explanation]()
        if wrong and judge.choices:
            taken = chosen_otherwise(judge, sequence, owns, level)
            judge, owns, by_experts = with_experts(judge, owns, taken)
            wrong = [own for own in owns if own.wrong]
            routed += taken.found
        kept = {} if taken.found else kept_rounded(model, trace, sequence, wrong, unit, factors)
        rest = [own for own in wrong if own.recipe.site not in kept]
        new = [culprit_of(trace, sequence, own) for own in rest if own.recipe.site not in culprits]
        named |= explained_by_recipes(trace, checkpoint, new) if new else {}
        why = explanations(model, trace, sequence, rest, unit, factors, taken.near_ties, named)
        why |= {site: Tried(explanation) for site, explanation in kept.items()}
        for own in owns:
            site = own.recipe.site
            values += own.statistics.rows.size * own.statistics.columns.size
            peak = max(peak, *own.over.values())
            if not own.wrong:
                clean.add(site)
            elif site not in culprits:
                tried, chosen = why[site], by_experts.get(site)
                culprits[site] = ExplainedCulprit.of(
                    culprit_of(trace, sequence, own),
                    tried.explanation or chosen,
                    tried.untried if chosen is None else frozenset(),
                    named.get(site),
                )
        unknown |= judge.replay.missed
        unjudged += [] if judge.replay.logits_missed is None else [judge.replay.logits_missed]
    if not_run and not (clean or culprits):
        raise not_run[0]
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
        elsewhere=tuple(FactorElsewhere(site, factor) for site, factor in factors.items()),
        routed=tuple(routed),
        lost=(*losses(trace), *unjudged, *(SequencesNotRun(str(each), len(not_run) - 1) for each in not_run[:1])),
    )


def _tests(sequence: Sequence) -> int:
    """How many tests are made of what a sequence holds, at most: an input that is another module's output is tested
    where the reference gives that module another one."""
    sites, table = sequence.sites, sequence.site_table.values()
    read = [row.input for row in table if row.input is not None and row.name + INPUT_SUFFIX not in sites]
    held = [data for name in (*sites, *read) if (data := sites.get(name)) is not None]
    count = sum(tests_of(data.rows, data.width) for data in held if is_float(data.dtype))
    width = logits_width(sequence) if sequence.step_count else None
    return count + (0 if width is None else tests_of(sequence.step_count, width))


class Judge:
    """Judges the sites of one sequence, each where the replay comes to it: no values are kept."""

    def __init__(
        self,
        model: nn.Module,
        trace: Trace,
        sequence: Sequence,
        unit: float,
        level: float,
        factors: Mapping[str, float] = MappingProxyType({}),
        forced: Forced = MappingProxyType({}),
    ) -> None:
        self.replay = Replay(model, sequence, forward_of(model, trace, sequence), factors, forced)
        self.factors, self.forced = factors, forced
        self.choices: list[Choice] = []
        """Of experts, each with the rounding of its scores."""
        self.made_before: dict[str, int] = {}
        """By site, how many of them were made before it."""
        self.row_errors: dict[str, dict[int, float]] = {}
        """Of wrong sites: the error of each row over its rounding, by position."""
        self._variances: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        self.multiples: dict[str, float] = {}
        """Of sites that are wrong and hold a multiple of what they should: what that is, over what they hold."""
        self._model, self._trace, self._sequence, self._unit, self._level = model, trace, sequence, unit, level
        self._again = recomputed_from(sequence)
        self._tables = tuple(sine_tables(model, trace.weights))

    def with_factors(self, factors: Mapping[str, float]) -> Judge:
        """The same of recorded values that are multiplied first."""
        return Judge(self._model, self._trace, self._sequence, self._unit, self._level, factors, self.forced)

    def with_forced(self, forced: Forced) -> Judge:
        """The same with experts that were chosen otherwise."""
        return Judge(self._model, self._trace, self._sequence, self._unit, self._level, self.factors, forced)

    def errors_with(self, forced: Forced, sites: Collection[str]) -> dict[str, dict[int, float]]:
        """Of wrong sites: the error of each row over its rounding, by position, were these experts chosen."""
        replay = Replay(
            self._model, self._sequence, forward_of(self._model, self._trace, self._sequence), self.factors,
            {**self.forced, **forced},
        )  # fmt: skip
        found: dict[str, dict[int, float]] = {}

        def judge(site: Replayed) -> None:
            rows, variance = self._variances[site.site]
            of = np.isin(site.rows, rows)
            found[site.site] = self._errors(site.site, rows, site.recorded[of] - site.values[of], variance)

        with on_its_tokens(self._trace, self._sequence):
            replay.run(None, judge, sites)
        return found

    def _errors(
        self, site: str, rows: NDArray[np.int64], gap: NDArray[np.float64], variance: NDArray[np.float64]
    ) -> dict[int, float]:
        sizes = np.sqrt((np.square(gap) / variance).mean(axis=1)).tolist()
        places = rows if site != LOGITS else [self._sequence.step(int(row)).position for row in rows]
        return {int(place): size for place, size in zip(places, sizes, strict=True)}

    def owns(self) -> list[Own]:
        """The own error of every site, of those near their limits by more draws."""
        owns: dict[str, Own] = {}
        since: dict[str, int] = {}
        elements = 1

        def judge(site: Replayed) -> None:
            nonlocal elements
            own = self._own(site, site.draws)
            if own is not None:
                owns[site.site] = own
                self.made_before[site.site] = len(self.replay.choices)
                if 1.0 < max(own.over.values()) <= (CLOSE if self._again is None else math.inf):
                    since[site.site] = site.since
                    elements = max(elements, site.values.size)

        self._run(judge, DrawnRounding(self._unit, FLOAT32, 0, DRAWS))
        self.choices = self.replay.choices
        if since:
            owns |= self._closely(since, elements) if self._again is None else self._with_others(since, self._again)
        return list(owns.values())

    def _closely(self, since: dict[str, int], elements: int) -> dict[str, Own]:
        """Sites by more draws, of those operations alone whose roundings reach them."""
        only = 0
        for operations in since.values():
            only |= operations
        sites: dict[str, Replayed] = {}
        draws: dict[str, list[NDArray[np.float32]]] = {name: [] for name in since}

        def keep(site: Replayed) -> None:
            sites[site.site] = site
            draws[site.site].append(site.draws)

        runs = max(DRAWS, min(CLOSE_DRAWS, MOST_DRAWN // elements))
        for first in range(0, CLOSE_DRAWS, runs):
            drawn = DrawnRounding(self._unit, FLOAT32, first + 1, min(runs, CLOSE_DRAWS - first), only)
            self._run(keep, drawn, since.keys())
        return self._owns_of(sites, draws)

    def _with_others(self, doubtful: Collection[str], first: int) -> dict[str, Own]:
        """Sites of a program without a cache, whose positions from `first` on read others than the recorded ones; by
        more draws while one is near its limit."""
        sites: dict[str, Replayed] = {}
        draws: dict[str, list[NDArray[np.float32]]] = {name: [] for name in doubtful}

        def keep(site: Replayed) -> None:
            sites[site.site] = site
            draws[site.site].append(site.draws)

        owns: dict[str, Own] = {}
        for seed in range(CLOSE_DRAWS // DRAWS):
            drawn = ComputedAgain(self._unit, FLOAT32, seed + 1, DRAWS, first, self._sequence.positions)
            self._run(keep, drawn, doubtful)
            owns = self._owns_of(sites, draws)
            if not any(1.0 < max(own.over.values()) <= CLOSE for own in owns.values()):
                break
        return owns

    def _owns_of(self, sites: Mapping[str, Replayed], draws: Mapping[str, list[NDArray[np.float32]]]) -> dict[str, Own]:
        owns = {name: self._own(site, np.concatenate(draws[name])) for name, site in sites.items()}
        return {name: own for name, own in owns.items() if own is not None}

    def _run(self, met: Callable[[Replayed], None], drawn: DrawnRounding, sites: Collection[str] | None = None) -> None:
        drawn.tables(self._tables)
        with on_its_tokens(self._trace, self._sequence):
            self.replay.run(drawn, met, sites)

    def _own(self, site: Replayed, draws: NDArray[np.float32]) -> Own | None:
        """The own error of the rows whose values are finite; None where no row is."""
        finite = np.isfinite(site.recorded).all(axis=1) & np.isfinite(site.values).all(axis=1)
        if not finite.any():
            return None
        values, recorded, rows = site.values, site.recorded, site.rows
        if not finite.all():
            values, recorded, rows, draws = values[finite], recorded[finite], rows[finite], draws[:, finite]
        data = self._sequence.sites.get(site.stored)
        stored = data.dtype if data is not None else self._sequence.logits_dtype or "float32"
        unit = UNIT_ROUNDOFF.get(stored, self._unit)
        result = drawn_result(values, draws, unit)
        own = judged(site.site, rows, recorded, result, self._level, unit)
        gain = _multiple(recorded, result) if own.wrong else None
        if gain is None:
            self.multiples.pop(site.site, None)
        else:
            self.multiples[site.site] = 1.0 / gain
        if own.wrong:
            self._variances[site.site] = rows, result.variance
            self.row_errors[site.site] = self._errors(site.site, rows, recorded - values, result.variance)
        return own


def _multiple(recorded: NDArray[np.float64], result: Result) -> float | None:
    """The number that what was recorded is a multiple of what it should be by; None where it is none."""
    weights = 1.0 / result.variance
    power = float((weights * np.square(result.values)).sum())
    gain = float((weights * result.values * recorded).sum()) / power if power else 0.0
    if not gain or not np.isfinite(gain):
        return None
    left = float(np.mean(np.square(recorded / gain - result.values) * weights)) ** 0.5
    return gain if left <= MULTIPLE else None


def multiplied_elsewhere(judge: Judge, owns: list[Own]) -> tuple[Judge, list[Own]]:
    """The sequence judged with sites that are wrong by a factor alone taken for the reference's values, where that
    makes later sites right: the candidate multiplies there, or has done so before. A factor that is left out makes them
    wrong instead, since they hold what was computed without it. Those of one name in several layers go together."""
    roles: dict[str, dict[str, float]] = {}
    for site, factor in judge.multiples.items():
        roles.setdefault(re.sub(r"\d+", "*", site), {})[site] = factor
    for sites in roles.values():
        other = judge.with_factors({**judge.factors, **sites})
        found = other.owns()
        before = {own.recipe.site for own in owns if own.wrong} - sites.keys()
        if {own.recipe.site for own in found if own.wrong} < before:
            judge, owns = other, found
    return judge, owns


def with_experts(judge: Judge, owns: list[Own], taken: Taken) -> tuple[Judge, list[Own], dict[str, Explanation]]:
    """The sequence judged with the experts that the candidate took. Near-ties are no fault of a site; a site that is
    wrong by other choices alone is explained by them, and one that is wrong besides is judged with them made."""
    if taken.near_ties:
        judge = judge.with_forced(taken.near_ties)
        owns = judge.owns()
    if not taken.others:
        return judge, owns, {}
    rest = {own.recipe.site: own for own in judge.with_forced({**taken.near_ties, **taken.others}).owns()}
    why: dict[str, Explanation] = {}
    out, last = [], 0
    for own in owns:
        site = own.recipe.site
        if own.wrong and site in rest and not rest[site].wrong:
            said = explanation(taken, judge.made_before[site], last)
            why |= {} if said is None else {site: said}
            last = judge.made_before[site]
            out.append(own)
        else:
            out.append(rest.get(site, own))
    return judge, out, why
