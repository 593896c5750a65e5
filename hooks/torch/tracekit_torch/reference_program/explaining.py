"""Which line of the reference the candidate got wrong: edits of the operations before a culprit, tried one by one.

An edit explains a culprit where the reference with it gives what was recorded, judged as the audit judges the reference
itself: by runs of the edited operations with drawn roundings. Edits of other lines that leave as little are named with
it, since these values do not tell them apart.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tracekit.auditing.drawn_error import drawn_result, judged
from tracekit.auditing.operations import Result as Drawn
from tracekit.auditing.own_error import Own
from tracekit.dtypes import UNIT_ROUNDOFF
from tracekit.inspection.positions import prompt_length
from tracekit.mistakes.culprits import ExplainedCulprit, is_precise, same_mistake
from tracekit.mistakes.edited_line import EditedLine
from tracekit.mistakes.explanation import EDITED_LINE, EVERYWHERE, Explanation, Extent, Untried, Where
from tracekit.trace import LOGITS, Sequence, Trace
from tracekit_torch.reference_program.captured_calls import CallSegments
from tracekit_torch.reference_program.capturing import Capturing
from tracekit_torch.reference_program.conditions import Condition, Conditions
from tracekit_torch.reference_program.drawn_rounding import DrawnRounding
from tracekit_torch.reference_program.edits import Change, Edit, Freedom, all_edits
from tracekit_torch.reference_program.first_segments import FirstSegments
from tracekit_torch.reference_program.fitting import Fit, deviation, fit, fitted
from tracekit_torch.reference_program.loading import forward_of
from tracekit_torch.reference_program.replay import Replayed
from tracekit_torch.reference_program.routing import Forced
from tracekit_torch.reference_program.segment import Changed, Given, Result, Segment
from tracekit_torch.reference_program.source_lines import Lines, in_a_loop, lines_of, passed_over

Floats = NDArray[np.float64]
WORK, ALL_WORK = 1e10, 4e10
"""Numbers computed for one culprit, and for all of a sequence together: what a core does in some ten seconds. Not time:
what is found must not depend on the machine."""
OF_THE_FIRST = 0.5
"""Share of it that the first positions may take: what they do not refute has to be tried."""
DRAWS, CLOSE_DRAWS = 8, 32
CLOSE = 4.0
"""Times its limit up to which a statistic is judged by more draws."""
NEAR = 30.0
"""Standard deviations of the reference's rounding up to which an edit is judged by its own."""
SURELY = 1.0 + 1e-6
"""Sums in another order are off by less."""
ROUNDED_OFTEN = 4.0
"""Roundoffs of itself that a value may be off by, before its own rounding is drawn."""
FIT, ROUNDS = 40.0, 16.0
"""Runs that the fit of a number takes at most but for those that it begins with, next to always, and how often it asks
for some."""
FINALISTS = 24
"""Edits that are judged by their own rounding, those that leave least."""
NOT_REFUTED = 48
"""Edits that the first positions leave to be tried at all of them, those that leave least there."""
NEARLY = 1.3
"""Times the least residual up to which an edit holds as well."""
ROUNDED_AWAY = 0.05
"""Residuals below this are the same: next to nothing."""
SAME = 1e-9
"""Relative distance of values that two edits give below which they are the same."""
MEANT = 4.0
"""Standard deviations of a fitted number within which one with fewer digits is taken as meant."""
ROUNDED_TWICE = 4.0
"""Roundoffs that a constant and what it goes into may be off by."""
DIGITS = (1, 2, 3, 4, 5, 6)
"""A number may be meant to so many."""


def explanations(
    model: nn.Module,
    trace: Trace,
    sequence: Sequence,
    wrong: list[Own],
    unit: float,
    factors: Mapping[str, float],
    forced: Forced,
    named: Mapping[str, ExplainedCulprit],
) -> dict[str, Tried]:
    """By site, of the culprits of a sequence: the edit of the reference that explains it, and what was left untried.
    `unit`: unit roundoff of the dtype that the candidate computes in; `factors`, `forced`: as `Replay` takes them;
    `named`: culprits that a recipe explains. Of a choice of precision no line is wrong, and a mistake that has no line
    in one layer is not looked for in the next."""
    found = {site: Tried(None) for site, one in named.items() if is_precise(one)}
    wrong = [own for own in wrong if own.recipe.site not in found]
    if not wrong:
        return found
    names = [own.recipe.site for own in wrong]
    replay = Capturing(model, sequence, forward_of(model, trace, sequence), factors, forced)
    sites = replay.sites_with_segments(names)
    firsts = FirstSegments(model, trace, sequence, names, factors, forced)
    calls = CallSegments(model, trace, sequence, names, factors)
    met = [(own, sites[own.recipe.site][0]) for own in wrong if own.recipe.site in sites]
    until = max([_first_wrong(own, site, sequence) for own, site in met], default=0)
    conditions = Conditions(model, trace, sequence, sites, factors, max(until, prompt_length(sequence)) + 1, unit)
    known: list[Held] = []
    known_in_calls: list[Held] = []
    in_vain: set[str] = set()
    no_line: list[ExplainedCulprit] = []
    left = ALL_WORK
    for own in wrong:
        name = own.recipe.site
        found[name] = Tried(None, frozenset({Untried.EDITS}))
        if name not in sites or left <= 0.0:
            continue
        if name in named and any(same_mistake(named[name], other) for other in no_line):
            found[name] = Tried(None)
            continue
        site, segment = sites[name]
        data = sequence.sites.get(site.stored)
        stored = data.dtype if data is not None else sequence.logits_dtype or "float32"
        units, prompt = (unit, UNIT_ROUNDOFF.get(stored, unit)), prompt_length(sequence)
        wrong_rows = _wrong_rows(own, site)
        suspect = Suspect(site, own, wrong_rows, segment, units, prompt)
        if suspect.faithful:
            first = firsts.of(site, wrong_rows)
            brief = None if first is None else Suspect(first[0], own, wrong_rows, first[1], units, prompt)
            budget = Budget(min(WORK, left), (segment,) if first is None else (segment, first[1]))
            explanation, inverted = None, suspect.inverted(conditions)
            called = CalledSuspect.of(calls, site, own, wrong_rows, units, prompt) if known_in_calls else None
            if called is not None:
                held = called.again(known_in_calls, budget)
                explanation = called.explanation(held, inverted if held else [])
            if explanation is None:
                held = suspect.held(known, brief if brief is not None and brief.faithful else None, budget)
                explanation = suspect.explanation(held, inverted if held else [])
                known = known if explanation is None else held
            if explanation is None and not held and not budget.spent and _in_any_layer(name) not in in_vain:
                called = called or CalledSuspect.of(calls, site, own, wrong_rows, units, prompt)
                if called is not None:
                    budget.also(called.segment)
                    held = called.held([], None, budget)
                    explanation = called.explanation(held, inverted if held else [])
                    if explanation is None:
                        in_vain.add(_in_any_layer(name))
                    else:
                        known_in_calls = held
            explanation = explanation or suspect.explanation([], inverted)
            left -= budget.used
            if explanation is None and name in named:
                no_line.append(named[name])
            left_out = {Untried.EDITS: budget.spent, Untried.CONDITIONS: conditions.too_dear}
            found[name] = Tried(explanation, frozenset(each for each in Untried if left_out[each]))
    return found


def _wrong_rows(own: Own, site: Replayed) -> NDArray[np.int64]:
    return site.rows[_finite(site)][own.wrong_rows()]


def _first_wrong(own: Own, site: Replayed, sequence: Sequence) -> int:
    """The first position that a site is wrong at."""
    row = int(_wrong_rows(own, site).min(initial=int(site.rows[-1])))
    return row if site.site != LOGITS else sequence.step(row).position


def _in_any_layer(site: str) -> str:
    """A site's name without its numbers: what no call explains in one layer, none will in the next."""
    return re.sub(r"\d+", "#", site)


@dataclass(frozen=True)
class Tried:
    """What trying edits at a culprit gave."""

    explanation: Explanation | None
    untried: frozenset[Untried] = frozenset()


class Budget:
    """Numbers that may be computed for a culprit, by some segments together."""

    def __init__(self, most: float, segments: tuple[Segment, ...]) -> None:
        self._most, self.segments = most, list(segments)
        self.spent = False
        """Whether something was left undone."""

    def also(self, segment: Segment) -> None:
        """What is computed of a segment counts from now on."""
        self.segments.append(segment)

    @property
    def used(self) -> float:
        return sum(segment.work for segment in self.segments)

    def room(self, share: float = 1.0) -> float:
        """What may still be computed of a share of it."""
        return share * self._most - self.used

    def left(self, share: float = 1.0) -> bool:
        """Whether more of a share of it may be computed; what asks leaves something undone where not."""
        enough = self.used <= share * self._most
        self.spent = self.spent or not enough
        return enough


@dataclass(frozen=True)
class Start:
    """What is known of an edit before it is tried."""

    number: float | None = None
    meant: bool = False
    """Whether it is the number of the same edit elsewhere; else the fit begins with it."""


@dataclass(frozen=True)
class Trial:
    """An edit at a node of a segment."""

    edit: Edit
    place: int
    change: Change
    others: tuple[tuple[int, Change], ...] = ()
    """The same at the other nodes of this operation of the source, which a loop or several calls run more than once."""

    @property
    def freedom(self) -> int:
        return self.edit.freedom

    @property
    def at(self) -> tuple[tuple[int, Change], ...]:
        """All nodes that it is made at."""
        return ((self.place, self.change), *self.others)


@dataclass(frozen=True)
class Try:
    """What an edit gives with one number."""

    left: float
    """What it leaves, in standard deviations of the reference's rounding."""
    number: float | None
    values: Floats


@dataclass(frozen=True)
class Held:
    """A trial that leaves no more than rounding."""

    trial: Trial
    segment: Segment
    number: float | None
    values: Floats
    residual: float
    """What it leaves, in standard deviations of its own rounding."""
    left: float = 0.0
    """The same in those of the reference's."""
    determined: bool = True
    """Whether the values tell the number from the one with which nothing changes. Where any number beyond some does the
    same, it stands for another edit: what it goes into is as good as left out."""

    @property
    def size(self) -> tuple[int, int, int]:
        """Of the change to the source: its freedom, the digits of its number, and how many operations it changes:
        one, or all that a run of them passes over."""
        passed = passed_over(self.segment, self.trial.place, self.trial.change.source)
        return self.trial.freedom, _digits(self.number), len(passed)

    @property
    def key(self) -> Hashable:
        """The same for the same edit of the same line in another layer."""
        node = self.segment.nodes[self.trial.place]
        return self.trial.edit.kind, node.place[-1:], node.name, self.trial.change.label


@dataclass(frozen=True)
class Inverted:
    """A condition that leaves no more than rounding where it is inverted."""

    condition: Condition
    residual: float
    left: float


Fits = TypeVar("Fits", "Held", "Held | Inverted")


class Suspect:
    """A culprit with its segment, on which edits are tried."""

    def __init__(
        self,
        site: Replayed,
        own: Own,
        wrong: NDArray[np.int64],
        segment: Segment,
        units: tuple[float, float],
        prompt: int,
    ) -> None:
        self._site, self._own, self._wrong, self.segment, self._prompt = site, own, wrong, segment, prompt
        self._unit, self._stored = units
        self._where, self._acts = EVERYWHERE, np.ones(len(site.rows), dtype=bool)
        self._rows = _finite(site)
        self._recorded = site.recorded[self._rows]
        self._right = self._drawn(site.values, self._off({}, 0, DRAWS))
        self._scale = 1.0 / np.sqrt(self._right.variance)
        self._signal = float(np.abs(site.values[self._rows] * self._scale).max())

    @cached_property
    def faithful(self) -> bool:
        """Whether the segment computes what the replay did."""
        values = self.segment.run({})
        return values is not None and np.allclose(values, self._site.values, rtol=1e-9, atol=1e-12, equal_nan=True)

    def held(self, known: list[Held], first: Suspect | None, budget: Budget) -> list[Held]:
        """Edits that leave no more than rounding, of which the first is to be named.

        Args:
            known: edits that explained another culprit: they are tried first.
            first: the same culprit at the first positions alone; what is refuted there is not tried.
            budget: what may be computed.
        """
        found = self.again(known, budget)
        if found:
            return found
        narrow = self._narrow()
        starts = None if first is None else first._not_refuted(budget)
        found = self._judged(self._all(starts), budget)
        return self._everywhere(found, budget) if narrow else found

    def _everywhere(self, held: list[Held], budget: Budget) -> list[Held]:
        """Of edits that hold in the prompt or in decoding alone, those that hold without that condition; all if none
        does."""
        part = self._where, self._acts
        self._where, self._acts = EVERYWHERE, np.ones_like(self._acts)
        found = self._judged(self._again({one.key: Start(one.number) for one in held}), budget) if held else []
        if not found:
            self._where, self._acts = part
        return found or held

    def again(self, known: list[Held], budget: Budget) -> list[Held]:
        """Of edits that explained another culprit, those that explain this one."""
        return self._judged(self._again({one.key: Start(one.number, meant=True) for one in known}), budget)

    def _again(self, starts: Mapping[Hashable, Start]) -> Iterator[tuple[Trial, Start]]:
        for trial in self._trials({key[0] for key in starts}):  # type: ignore[index]
            if (key := self._key(trial)) in starts:
                yield trial, starts[key]

    def _all(self, starts: Mapping[Hashable, Start] | None) -> Iterator[tuple[Trial, Start]]:
        """Every edit; where the first positions were asked, those that they do not refute, and those of which they tell
        nothing."""
        if starts is None:
            yield from ((trial, Start()) for trial in self._trials())
            return
        yield from self._again(starts)
        count = int(self._site.rows.max()) + 1
        yield from ((trial, Start()) for trial in self._trials() if trial.change.along == count)

    def _not_refuted(self, budget: Budget) -> dict[Hashable, Start]:
        """Edits that leave little, and the numbers that fit best."""
        left: list[tuple[float, Hashable, Start]] = []
        self._narrow()
        for trial, start in self._worth(((trial, Start()) for trial in self._trials()), budget, OF_THE_FIRST):
            if not budget.left(OF_THE_FIRST):
                break
            tried = self._tried(trial, start)
            if tried and tried[-1].left <= NEAR:
                left.append((tried[-1].left, self._key(trial), Start(tried[-1].number)))
        left.sort(key=lambda each: each[0])
        near = max(NEARLY * left[0][0], ROUNDED_AWAY) if left else 0.0
        last = max(NOT_REFUTED, sum(each[0] <= near for each in left))
        return {key: start for _, key, start in reversed(left[:last])}

    def _narrow(self) -> bool:
        """From now on an edit acts in the prompt alone, or in decoding alone, where nothing else is wrong: what is left
        of one that acts everywhere is no less."""
        rows = self._site.rows[self._rows]
        wrong = np.isin(rows, self._wrong)
        if self._site.site == LOGITS or not wrong.any():
            return False
        for extent, part in ((Extent.PROMPT, rows < self._prompt), (Extent.DECODING, rows >= self._prompt)):
            if extent is Extent.DECODING and self.segment.mixes_positions(self._site.rows):
                continue  # lines that keep and read a cache are not run, and so not among what is tried
            if part.any() and not part.all() and not wrong[~part].any():
                self._where, self._acts = Where(extent), np.zeros(len(self._site.rows), bool)
                self._acts[self._rows] = part
                return True
        return False

    def inverted(self, conditions: Conditions) -> list[Inverted]:
        """Conditions that leave no more than rounding where they are inverted."""
        tried = [(self._left(values), condition, values) for condition, values in conditions.values(self._site)]
        held: list[Inverted] = []
        for left, condition, values in sorted((each for each in tried if each[0] <= NEAR), key=lambda each: each[0]):
            draws = conditions.draws(condition, self._site, DRAWS)
            own = None if draws is None else self._own_by(values, draws)
            if own is not None and not own.wrong:
                held.append(Inverted(condition, own.statistics.size, left))
        return held

    def explanation(self, held: list[Held], inverted: list[Inverted]) -> Explanation | None:
        """The first of them, the others of other lines as alternatives; None where no line of the source is all of an
        edit."""
        if held and not held[0].determined and not inverted:
            return None
        both: list[Held | Inverted] = [*(one for one in held if one.determined), *inverted]
        both = _nearest(both)
        both.sort(key=lambda one: one.trial.freedom if isinstance(one, Held) else Freedom.NONE)
        made: list[Explanation] = []
        seen: set[tuple[str, int, int]] = set()
        for one in both:
            for line in self._lines(one) if isinstance(one, Held) else one.condition.lines:
                if (line.file, line.line, line.last) not in seen:
                    seen.add((line.file, line.line, line.last))
                    made.append(Explanation(EDITED_LINE, residual=one.residual, where=self._where, edit=line))
        return replace(made[0], also=tuple(made[1:])) if made else None

    def _key(self, trial: Trial) -> Hashable:
        return Held(trial, self.segment, None, self._recorded, 0.0).key

    def _lines(self, held: Held) -> list[EditedLine]:
        change, node = held.trial.change, self.segment.nodes[held.trial.place]
        return [
            EditedLine(
                lines.name,
                lines.line,
                lines.last,
                lines.text,
                change.kind or held.trial.edit.kind,
                node.name,
                held.number if held.number is not None else change.number,
                change.stated,
                change.other,
            )
            for lines in self._lines_of_all(held.trial)
        ]

    def _lines_of_all(self, trial: Trial) -> list[Lines]:
        """The lines that all nodes of an edit have in common: a call that led to one of them is not the mistake."""
        nodes = {self.segment.nodes[place].place: (place, change) for place, change in reversed(trial.at)}
        together = self._together(trial)
        found = [lines_of(self.segment, place, change, together) for place, change in reversed(nodes.values())]
        return [lines for lines in found[0] if all(lines in others for others in found[1:])]

    def _together(self, trial: Trial) -> tuple[tuple[int, Change], ...]:
        """The nodes that an edit of the source changes, with what it makes of them."""
        return trial.at

    def _trials(self, kinds: set[object] | None = None) -> Iterator[Trial]:
        """Those that ports make most first, of each kind the nodes from the last on: a large segment may not leave time
        for all of them."""
        for edit in all_edits():
            if kinds is not None and edit.kind not in kinds:
                continue
            yield from self._at_every_run(edit)
            yield from self._at_each(edit)

    def _at_each(self, edit: Edit) -> Iterator[Trial]:
        """Edits of one node."""
        for place in range(len(self.segment.nodes) - 1, -1, -1):
            forms = edit.of_calls if place in self._rounds else edit.changes
            if self.segment.nodes[place].frames and forms is not None:
                yield from (Trial(edit, place, change) for change in forms(self.segment, place))

    def _at_every_run(self, edit: Edit) -> Iterator[Trial]:
        """Edits of the operations that the source has once and that run more than once, made at all of their nodes."""
        for places in self._repeated:
            yield from (trial for trial in self._at_all(edit, places) if trial.others)

    def _at_all(self, edit: Edit, places: tuple[int, ...]) -> Iterator[Trial]:
        """Edits that are made at several nodes at once, at those of them where they can be made."""
        forms = [{change.label: change for change in edit.changes(self.segment, place)} for place in places]
        for label in dict.fromkeys(label for form in forms for label in form):
            at = [(place, form[label]) for place, form in zip(places, forms, strict=True) if label in form]
            yield Trial(edit, *at[0], tuple(at[1:]))

    @cached_property
    def _repeated(self) -> list[tuple[int, ...]]:
        """Positions of the nodes that one operation of the source is, the last first; of those that are several."""
        runs: dict[Hashable, list[int]] = {}
        for place in range(len(self.segment.nodes) - 1, -1, -1):
            node = self.segment.nodes[place]
            if node.frames:
                runs.setdefault((node.place[-1:], node.name), []).append(place)
        return [tuple(places) for places in runs.values() if len(places) > 1]

    @cached_property
    def _rounds(self) -> frozenset[int]:
        """Positions of the nodes that one of several rounds of a loop runs: no line of the source is that round's."""
        looped = [places for places in self._repeated if in_a_loop(self.segment.nodes[places[0]].frames[-1])]
        return frozenset(place for places in looped for place in places)

    def _judged(self, trials: Iterable[tuple[Trial, Start]], budget: Budget) -> list[Held]:
        tried: list[tuple[float, Trial, list[Try]]] = []
        for trial, start in self._worth(trials, budget):
            if not budget.left():
                break
            options = self._tried(trial, start)
            if options and options[-1].left <= NEAR:
                tried.append((options[-1].left, trial, options))
        tried.sort(key=lambda each: each[0])
        made = (self._first_that_holds(trial, options) for _, trial, options in tried[:FINALISTS])
        held = [one for one in made if one is not None]
        others = (self._as_another(held, trial, options[-1]) for _, trial, options in tried[FINALISTS:])
        held += [one for one in others if one is not None]
        near = _nearest(held)
        # What each leaves is rounding, and no order before the size of the change.
        return sorted(near, key=lambda one: (not one.determined, *one.size, one.residual))

    def _worth(
        self, trials: Iterable[tuple[Trial, Start]], budget: Budget, share: float = 1.0
    ) -> Iterator[tuple[Trial, Start]]:
        """Trials without those that leave more than is near. Edits of the same nodes run beside each other, where there
        is budget for all."""
        groups: dict[frozenset[int], list[int]] = {}
        asked: dict[frozenset[int], float] = {}
        met: list[tuple[Trial, Start]] = []
        room, trials = budget.room(share), iter(trials)
        for trial, start in trials:
            met.append((trial, start))
            changed = self._changed(trial, 0.0)
            fits = trial.change.neutral is not None and not start.meant
            together, each = self.segment.cost(changed, FIT + len(trial.change.starts) if fits else 1.0)
            groups.setdefault(frozenset(changed), []).append(len(met) - 1)
            rounds = ROUNDS if fits else 1.0
            room -= each + together * max(rounds - asked.get(frozenset(changed), 0.0), 0.0)
            asked[frozenset(changed)] = max(rounds, asked.get(frozenset(changed), 0.0))
            if room < 0.0:
                yield from met
                yield from trials
                return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operations that run one by one all the same
            worth = {index for members in groups.values() for index in self._near([(i, *met[i]) for i in members])}
        yield from (each for index, each in enumerate(met) if index in worth)

    def _near(self, trials: list[tuple[int, Trial, Start]]) -> Iterator[int]:
        """Of edits of the same nodes, by their index, those that may leave no more than is near."""
        numbers: dict[int, float] = {}
        fits: dict[int, Fit] = {}
        edits = {index: trial for index, trial, _ in trials}
        base = self._base()
        for index, trial, start in trials:
            change = trial.change
            if change.neutral is None or start.meant:
                numbers[index] = start.number or 0.0
            elif start.number is not None:
                fits[index] = fit(None, None, (start.number,), self._signal)
            else:
                fits[index] = fit(base, change.neutral, change.starts, self._signal)
        fitted_ = self._fitted_beside(edits, fits)
        yield from fits.keys() - fitted_.keys()
        lanes = list((numbers | {index: number for index, number in fitted_.items() if number is not None}).items())
        told = self._run_beside(edits, lanes, self._refuted)
        for at, (index, _) in enumerate(lanes):
            values = self._acted(told[at]) if at in told else None
            if at not in told or (values is not None and self._left(values) <= SURELY * NEAR):
                yield index

    def _run_beside(
        self,
        edits: Mapping[int, Trial],
        lanes: list[tuple[int, float]],
        refuted: Callable[[Floats], bool] | None = None,
    ) -> dict[int, Floats | None]:
        changes = [self._changed(edits[index], number) for index, number in lanes]
        return self.segment.run_beside(changes, refuted) if changes else {}

    def _fitted_beside(self, edits: Mapping[int, Trial], fits: Mapping[int, Fit]) -> dict[int, float | None]:
        """The numbers that fit best, of those that can be fitted beside each other."""
        found: dict[int, float | None] = {}
        asked = {index: next(each) for index, each in fits.items()}
        while asked:
            lanes = [(index, number) for index, all_ in asked.items() for each in all_ for number in each.numbers]
            told = self._run_beside(edits, lanes)
            at = 0
            for index, all_ in list(asked.items()):
                del asked[index]
                first, at = at, at + sum(len(each.numbers) for each in all_)
                if any(lane not in told for lane in range(first, at)):
                    continue
                left = iter([self._error_of(self._acted(told[lane])) for lane in range(first, at)])
                try:
                    asked[index] = fits[index].send([[next(left) for _ in each.numbers] for each in all_])
                except StopIteration as done:
                    found[index] = done.value
        return found

    def _as_another(self, held: list[Held], trial: Trial, best: Try) -> Held | None:
        """An edit that gives what one gives that holds: it leaves as much."""
        for one in held:
            if np.allclose(best.values, one.values, rtol=SAME, atol=0.0, equal_nan=True):
                return Held(trial, self.segment, best.number, best.values, one.residual, one.left, one.determined)
        return None

    def _first_that_holds(self, trial: Trial, options: list[Try]) -> Held | None:
        for one in options:
            own = self._own_of(trial, one.number, one.values)
            if not own.wrong:
                sizes = own.statistics.size, one.left
                return Held(trial, self.segment, one.number, one.values, *sizes, self._determined(trial, one.number))
        return None

    def _determined(self, trial: Trial, number: float | None) -> bool:
        neutral = trial.change.neutral
        if neutral is None or number is None:
            return True
        spread = deviation(partial(self._error, trial), number)
        return spread < abs(number - neutral)

    def _tried(self, trial: Trial, start: Start) -> list[Try]:
        """What comes of an edit; with a number that may be meant where there is one, before the one that fits best."""
        change = trial.change
        if change.neutral is None:
            return self._with(trial, None)
        if start.meant:
            number = start.number
        elif start.number is not None:
            number = fitted(partial(self._error, trial), None, None, (start.number,), self._signal)
        else:
            number = fitted(partial(self._error, trial), self._base(), change.neutral, change.starts, self._signal)
        best = [] if number is None else self._with(trial, number)
        if not best or number is None or best[0].left > NEAR:
            return best
        for nice in (0.0, *(float(f"{number:.{digits}g}") for digits in DIGITS)):
            rounds_to = abs(nice - number) <= ROUNDED_TWICE * self._unit * abs(number)
            for other in self._with(trial, nice) if nice not in (change.neutral, number) else ():
                if rounds_to or self._as_good(other.left, best[0].left):
                    return [other, *best]
        return best

    def _with(self, trial: Trial, number: float | None) -> list[Try]:
        values = self._values(trial, 0.0 if number is None else number, self._refuted)
        return [] if values is None else [Try(self._left(values), number, values)]

    def _changed(self, trial: Trial, number: float) -> Changed:
        changed: dict[int, Callable[[Given], Result]] = {}
        for place, change in trial.at:
            onwards = self.segment.after(place) if change.onwards else (place,)
            for each in change.places or onwards:
                changed.setdefault(each, partial(_made, change, number))
        return changed

    def _values(self, trial: Trial, number: float, refuted: Callable[[Floats], bool] | None = None) -> Floats | None:
        """None where it cannot go on, or where the first calls refute it."""
        return self._acted(self.segment.run(self._changed(trial, number), refuted))

    def _acted(self, values: Floats | None) -> Floats | None:
        """Values of an edit that acts at some rows alone."""
        return self._acted_first(values) if values is not None and values.shape == self._site.values.shape else None

    def _acted_first(self, values: Floats) -> Floats:
        """The same of the first rows."""
        count = len(values)
        return values if self._acts.all() else np.where(self._acts[:count, None], values, self._site.values[:count])

    def _base(self) -> Floats | None:
        """The error that is left where nothing is edited."""
        return self._error_of(self._acted(self.segment.run({})))

    def _error(self, trial: Trial, number: float) -> Floats | None:
        return self._error_of(self._values(trial, number))

    def _error_of(self, values: Floats | None) -> Floats | None:
        if values is None:
            return None
        with np.errstate(all="ignore"):
            return np.asarray((self._recorded - values[self._rows]) * self._scale).ravel()

    def _left(self, values: Floats) -> float:
        with np.errstate(all="ignore"):
            left = float(np.sqrt(np.mean(self._squares(values[self._rows]))))
        return left if math.isfinite(left) else math.inf

    def _refuted(self, values: Floats) -> bool:
        """Whether the values of the first rows alone leave more than is near, whatever the others leave."""
        if len(values) > len(self._rows) or values.shape[1:] != self._site.values.shape[1:]:
            return False  # of another shape, which `_acted` passes over once all of it is there
        with np.errstate(all="ignore"):
            values = self._acted_first(values)[self._rows[: len(values)]]
            return not float(np.sum(self._squares(values))) <= SURELY * NEAR**2 * self._recorded.size

    def _squares(self, values: Floats) -> Floats:
        """Squares of the errors of the first rows, in variances."""
        # An edit may make large values, which are rounded by as much more: so large that their squares overflow.
        deviation = np.hypot(np.sqrt(self._right.variance[: len(values)]), ROUNDED_OFTEN * self._unit * values)
        return np.asarray(np.square((self._recorded[: len(values)] - values) / deviation))

    def _as_good(self, other: float, left: float) -> bool:
        """Whether a number that leaves `other` is within what the fit of one that leaves `left` may be off."""
        return self._recorded.size * (other**2 - left**2) <= MEANT**2 * left**2

    def _own_of(self, trial: Trial, number: float | None, values: Floats) -> Own:
        """What an edit leaves, judged by its own rounding."""
        changed = self._changed(trial, 0.0 if number is None else number)
        draws = self._off(changed, 0, DRAWS)
        own = self._own_by(values, draws)
        if 1.0 < max(own.over.values()) <= CLOSE:
            own = self._own_by(values, np.concatenate([draws, self._off(changed, 1, CLOSE_DRAWS - DRAWS)]))
        return own

    def _own_by(self, values: Floats, draws: NDArray[np.float32]) -> Own:
        rows = self._site.rows[self._rows]
        drawn = self._drawn(values, draws)
        return judged(self._site.site, rows, self._recorded, drawn, self._own.level, self._stored)

    def _off(self, changed: Changed, seed: int, runs: int) -> NDArray[np.float32]:
        made = self.segment.off(changed, DrawnRounding(self._unit, UNIT_ROUNDOFF["float32"], seed, runs))
        if made is None:
            return np.zeros((1, *self._site.values.shape), np.float32)
        if changed and not self._acts.all():
            made[:, ~self._acts] = self._off({}, seed, runs)[:, ~self._acts]
        return made

    def _drawn(self, values: Floats, draws: NDArray[np.float32]) -> Drawn:
        return drawn_result(values[self._rows], draws[:, self._rows], self._stored)


class CalledSuspect(Suspect):
    """A culprit with what feeds it in every call of the model: an edit is made in all of them. Where every call runs
    what it changes, one with a number acts on each position alone, in a prefill as well, and is not tried again."""

    @classmethod
    def of(
        cls,
        calls: CallSegments,
        site: Replayed,
        own: Own,
        wrong: NDArray[np.int64],
        units: tuple[float, float],
        prompt: int,
    ) -> CalledSuspect | None:
        """None where the reference's own decoding is not its prefill, or is not captured."""
        found = calls.of(site)
        made = None if found is None else cls(found[0], own, wrong, found[1], units, prompt)
        return made if made is not None and made.faithful else None

    def _at_every_run(self, edit: Edit) -> Iterator[Trial]:
        """Those of one node as well: a call of one position may give the same with the edit and without it."""
        for places in self._repeated:
            yield from self._at_all(edit, places)

    def _at_each(self, edit: Edit) -> Iterator[Trial]:
        done = set(self._repeated)
        for places in self.segment.alike:
            if self.segment.nodes[places[0]].frames and self._rounds.isdisjoint(places) and places not in done:
                yield from self._at_all(edit, places)

    def _together(self, trial: Trial) -> tuple[tuple[int, Change], ...]:
        made = dict(trial.at)
        groups = (places for places in (*self._repeated, *self.segment.alike) if trial.place in places)
        same = replace(trial.change, source=None)  # in these calls, nothing changes with it
        return (*trial.at, *((place, same) for places in groups for place in places if place not in made))

    def _trials(self, kinds: set[object] | None = None) -> Iterator[Trial]:
        return (trial for trial in super()._trials(kinds) if trial.change.neutral is None or self._in_some_calls(trial))

    def _in_some_calls(self, trial: Trial) -> bool:
        """Whether a call does not run what is edited, as a prompt may be read by another function than the rest."""
        return len({self.segment.call_of(place) for place, _ in trial.at}) < len(self.segment.targets)

    def _narrow(self) -> bool:
        return False


def _nearest(held: list[Fits]) -> list[Fits]:
    """Those that leave next to the least: in their own rounding, or in the reference's, since one that computes more
    than another is rounded by more and leaves the less of it."""
    residual = max(NEARLY * min((one.residual for one in held), default=0.0), ROUNDED_AWAY)
    left = NEARLY * min((one.left for one in held), default=0.0)
    return [one for one in held if one.residual <= residual or one.left <= left]


def _made(change: Change, number: float, given: Given) -> Result:
    return change.make(given, number)


def _finite(site: Replayed) -> NDArray[np.bool_]:
    """The rows whose values are."""
    return np.asarray(np.isfinite(site.recorded).all(axis=1) & np.isfinite(site.values).all(axis=1))


def _digits(number: float | None) -> int:
    """Digits that a number is said with: of edits that do the same, the one with the fewest is meant."""
    return 0 if number is None else len(f"{number:.9e}".partition("e")[0].lstrip("-").rstrip("0"))
