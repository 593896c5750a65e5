"""The smallest input that still shows a fault: steps up to the first that shows it, the prompt by doubling and halving.

Each try is a run of the candidate. A prompt is shortened to one, two, four ... entries of each of its parts until the
fault shows, then its parts are left out one by one, and what is left is halved towards the last length that was too
short. Where a fault shows is no monotonous function of the prompt; what is found is small, not proven smallest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from tracekit.repro.failing_run import Fed, Input, Uncut
from tracekit.repro.fault import Fault, NoRepro
from tracekit.repro.rerun import Rerun
from tracekit.trace import Array, Trace

LAST_RUN = 1
"""Runs kept back: what is found is run again, for its tensors."""

Shorten = Callable[[Array, int], Array]


def _first(part: Array, count: int) -> Array:
    return part[:count]


def _last(part: Array, count: int) -> Array:
    return part[len(part) - min(count, len(part)) :]


@dataclass(frozen=True)
class Cut:
    """An input that shows the fault, and a run of it."""

    fed: Input
    trace: Trace
    uncut: Uncut | None  # None where everything was cut


def cut(fault: Fault, rerun: Rerun, whole: Input) -> Cut:
    """Raises NoRepro where the fault does not show again."""
    search = _Search(fault, rerun, whole)
    if search.begins():
        uncut = search.shorten_prompt()
        found = search.best
    else:
        uncut = Uncut.ON_ITS_OWN if search.obeyed else Uncut.FOLLOWS_NOTHING
        found = replace(whole, tokens=False, prompts=False, draws=False)
    trace = rerun.run(found, fault.recording)
    if trace is None:
        raise NoRepro("the candidate recorded nothing when it was run again")
    if not search.began:
        fault.trusts(trace, found)
    if fault.shown(trace, found) is None:
        raise NoRepro("the fault did not show when the candidate was run again")
    return Cut(found, trace, uncut)


class _Search:
    """Tries, and the best input so far."""

    def __init__(self, fault: Fault, rerun: Rerun, whole: Input) -> None:
        self.fault, self.rerun, self.best = fault, rerun, whole
        self.began = False
        self.obeyed = False
        self.trusted = False
        self.followed = True

    def begins(self) -> bool:
        """Whether the fault shows on the whole prompt, with the steps cut."""
        trace = self.rerun.run(self.best, self.fault.recording)
        self.obeyed = trace is not None and _followed(trace, self.best) and self._obeys(trace)
        if trace is None or not self.obeyed:
            return False
        self.trusted = self.fault.trusts(trace, self.best)
        self.began = self._keep(self.best, trace)
        return self.began

    def _obeys(self, trace: Trace) -> bool:
        """Whether another token is taken, too: a run that ended before it was fed all may have made its own ones."""
        fed = self.best.fed
        if trace.sequences[self.best.sequence].step_count == len(fed.tokens):
            return True
        first, others = fed.tokens[:1], fed.tokens[1:-1]
        another = others[others != first][:1]
        swapped = np.concatenate([another if another.size else first ^ 1, fed.tokens[1:]])
        other = replace(self.best, fed=replace(fed, tokens=swapped))
        probe = self.rerun.run(other, self.fault.recording)
        return probe is not None and _followed(probe, other)

    def _keep(self, fed: Input, trace: Trace) -> bool:
        steps = self.fault.shown(trace, fed)
        if steps is not None:
            self.best = replace(fed, fed=fed.fed.cut(steps))
        return steps is not None

    def _shows(self, fed: Fed) -> bool:
        """Whether it shows on another prompt, which is then the best. No more runs: no."""
        if self.rerun.runs >= self.rerun.most - LAST_RUN:
            return False
        other = replace(self.best, fed=fed)
        trace = self.rerun.run(other, self.fault.recording)
        self.followed = trace is not None and _followed(trace, other)
        return trace is not None and self.followed and self._keep(other, trace)

    def shorten_prompt(self) -> Uncut | None:
        """Keep its beginning, or else its end; then leave out parts; then halve. If it is left whole, says why."""
        if not self.rerun.command.native:
            return Uncut.OWN_PROMPT
        if not self.best.prompts:
            return Uncut.PROMPT_AT_FAULT
        if not self.trusted:
            return Uncut.KNOWN_FOR_IT_ALONE
        whole = self.best.fed
        for shorten in (_first, _last):
            tried = ((count, _short(whole, count, shorten)) for count in _doubling(_longest(whole)))
            found = next((count for count, fed in tried if self._shows(fed)), None)
            if found is not None:
                self._leave_out_parts()
                self._halve(whole, found, shorten)
                return None
            if not self.followed:
                return Uncut.OTHER_PROMPT_NOT_FOLLOWED
        return Uncut.WHOLE_PROMPT_NEEDED

    def _leave_out_parts(self) -> None:
        """Of a prompt of several parts, those that the fault does not need."""
        parts = self.best.fed.prompt
        for name in parts if len(parts) > 1 else ():
            if len(parts[name]):
                self._shows(self.best.fed.with_part(name, parts[name][:0]))

    def _halve(self, whole: Fed, enough: int, shorten: Shorten) -> None:
        """Between the length that was too short and the one that is enough."""
        short = enough // 2
        gone = {name for name, part in self.best.fed.prompt.items() if not len(part)}
        while enough - short > 1:
            count = (short + enough) // 2
            fed = _short(whole, count, shorten)
            for name in gone:
                fed = fed.with_part(name, fed.prompt[name][:0])
            if self._shows(fed):
                enough = count
            else:
                short = count


def _followed(trace: Trace, fed: Input) -> bool:
    """Whether a run took the tokens that it was fed, no more of them, and the prompt."""
    if fed.sequence >= len(trace.sequences):
        return False
    sequence, forced = trace.sequences[fed.sequence], fed.fed.tokens
    if sequence.step_count > len(forced) or not np.array_equal(sequence.tokens, forced[: sequence.step_count]):
        return False
    prompt = fed.fed.prompt if fed.prompts else {}
    return all(np.array_equal(sequence.inputs.get(name, ()), part) for name, part in prompt.items())


def _longest(fed: Fed) -> int:
    return max((len(part) for part in fed.prompt.values()), default=0)


def _doubling(most: int) -> Iterator[int]:
    count = 1
    while count < most:
        yield count
        count *= 2


def _short(fed: Fed, count: int, shorten: Shorten) -> Fed:
    """A prompt of at most so many entries of each part."""
    for name, part in fed.prompt.items():
        fed = fed.with_part(name, shorten(part, count))
    return fed
