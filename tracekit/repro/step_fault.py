"""A fault of the sampler or of the generation's end, in any run of the candidate: what its own record should give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from tracekit.align.sites import SequencePair
from tracekit.formats.log import TensorLike
from tracekit.repro.failing_run import Input
from tracekit.repro.fault import Evidence
from tracekit.repro.rerun import Recording
from tracekit.sampling.chain import chain
from tracekit.sampling.drawing import gives, own_way, trials
from tracekit.sampling.fit import departs, fit, misfit, shares
from tracekit.sampling.processor import run
from tracekit.sampling.replay import Streams, observe
from tracekit.sampling.scores import survivors
from tracekit.trace import Array, Draw, Json, Sequence, Step, Trace

LOGITS_APART = 1e-2
"""Nats by which the reference's probabilities may differ from what the candidate's logits give by the stated rule: its
logits are off by rounding. A wrong rule is off by more, or leaves other tokens."""
DRAW_NUMBERS = ("seed", "offset", "words")
LENGTHS = ("min_len", "max_len", "min_new_tokens", "max_new_tokens", "min_length", "max_length")
"""Settings that a program may make from the prompt: those of a cut one are not the reference's."""
FURTHER_STEPS = 64
"""Steps that a candidate is fed after the one at which the tokens differ: with the reference's draws forced, a
different sampling algorithm may give the right token there, and another one soon."""


def chosen(step: Step) -> int:
    """What a run chose by itself, also where another token was forced on it."""
    results = [draw.result for draw in step.draws if draw.result is not None]
    forced = [event.detail for event in step.events if event.kind == "forced" and isinstance(event.detail, dict)]
    if results:
        return results[-1]
    return int(forced[-1].get("instead_of", step.token)) if forced else step.token


def _record(step: Step) -> dict[str, Array]:
    """What a step says, as tensors."""
    out: dict[str, Array] = {"token": np.array([chosen(step)], dtype=np.int64)}
    if step.survivors_id is not None and step.survivors_prob is not None:
        out["survivors/id"] = step.survivors_id
        out["survivors/prob"] = shares(step.survivors_prob)
    out["draws/count"] = np.array([len(step.draws)], dtype=np.uint64)
    for name in DRAW_NUMBERS:
        numbers = [getattr(draw, name) for draw in step.draws]
        if numbers and None not in numbers:
            out[f"draws/{name}"] = np.array([number % 2**64 for number in numbers], dtype=np.uint64)
    return out


@dataclass
class StepFault:
    """A fault that shows at a step, not in a layer."""

    pair: SequencePair
    last: int
    """The reference's step at which the sides part."""
    by_rule: bool = field(default=False)

    compares = ""

    @property
    def steps(self) -> int:
        return self.last + 1

    @property
    def stated(self) -> Json:
        """What the sampler should do."""
        return self.pair.reference.sampling or self.pair.candidate.sampling

    def stated_of(self, sequence: Sequence) -> Json:
        """What it should do in a run whose prompt may be another one."""
        return self.stated | {name: value for name, value in sequence.sampling.items() if name in LENGTHS}


class RuleFault(StepFault, ABC):
    """What is right at a step is the stated rule on the candidate's own record, where that rule gives the reference's
    own answers; else it is the reference's record."""

    @property
    def recording(self) -> Recording:
        return Recording("logits")

    def trusts(self, trace: Trace, fed: Input) -> bool:
        """Whether the rule gives the reference's answers at all steps up to the one at fault. If so, it is used."""
        sequence = trace.sequences[fed.sequence]
        reached = fed.tokens and sequence.step_count > self.last
        self.by_rule = reached and all(self._agrees(sequence, index) for index in range(self.last + 1))
        return self.by_rule

    def shown(self, trace: Trace, fed: Input) -> int | None:
        if fed.sequence >= len(trace.sequences):
            return None
        sequence = trace.sequences[fed.sequence]
        indexes = range(sequence.step_count) if self.by_rule else range(self.last, min(self.steps, sequence.step_count))
        return next((index + 1 for index in indexes if self._wrong(sequence, index)), None)

    def evidence(self, trace: Trace, fed: Input) -> Evidence:
        sequence = trace.sequences[fed.sequence]
        shown = self.shown(trace, fed)
        index = (sequence.step_count if shown is None else shown) - 1
        seen = observe(sequence, index)
        inputs: dict[str, TensorLike] = {"context": np.array(seen.context.history, dtype=np.int64)}
        if seen.logits is not None:
            inputs["logits"] = seen.logits
        actual = _record(sequence.step(index))
        inputs |= {name: value for name, value in actual.items() if name.startswith("draws/")}
        check: Json = {"kind": self.compares, "step": index}
        if self.compares == FilterFault.compares:
            check["tolerance"] = fit(chain(self.stated_of(sequence)), seen).allowed
        return Evidence(check, inputs, {}, self._expected(sequence, index), actual, settings=self.stated_of(sequence))

    @abstractmethod
    def _agrees(self, sequence: Sequence, index: int) -> bool:
        """Whether the rule, on the candidate's record, gives what the reference has."""

    @abstractmethod
    def _wrong(self, sequence: Sequence, index: int) -> bool:
        """Whether the candidate's step is not what it should be."""

    @abstractmethod
    def _expected(self, sequence: Sequence, index: int) -> Mapping[str, TensorLike]:
        """What the step should have been, by name of tensor."""


class FilterFault(RuleFault):
    """Other survivors."""

    compares = "survivors"

    def _agrees(self, sequence: Sequence, index: int) -> bool:
        theirs = self.pair.reference.step(index)
        if theirs.survivors_id is None or theirs.survivors_prob is None:
            return False
        seen = replace(observe(sequence, index), ids=theirs.survivors_id, probs=theirs.survivors_prob)
        return seen.logits is not None and misfit(chain(self.stated_of(sequence)), seen) <= LOGITS_APART

    def _wrong(self, sequence: Sequence, index: int) -> bool:
        seen = observe(sequence, index)
        if self.by_rule:
            return departs(chain(self.stated_of(sequence)), seen) is True
        theirs = self.pair.reference.step(index)
        return seen.ids is None or theirs.survivors_id is None or set(seen.ids) != set(theirs.survivors_id)

    def _expected(self, sequence: Sequence, index: int) -> Mapping[str, TensorLike]:
        seen = observe(sequence, index)
        if not self.by_rule or seen.logits is None:
            return _record(self.pair.reference.step(index))
        processors = chain(self.stated_of(sequence))
        ids, probs = survivors(run(processors, seen.logits, seen.context))
        return {"survivors/id": ids, "survivors/prob": probs}


class SamplerFault(RuleFault):
    """Another token from the same survivors and draws."""

    compares = "token"

    @property
    def steps(self) -> int:
        return min(self.last + 1 + FURTHER_STEPS, self.pair.reference.step_count)

    def _rule(self, sequence: Sequence, index: int) -> int | None:
        stated = self.stated_of(sequence)
        among = trials([observe(sequence, index)], stated, Streams(sequence))
        return gives(own_way(stated), among[0]) if among else None

    def _agrees(self, sequence: Sequence, index: int) -> bool:
        return self._rule(sequence, index) == chosen(self.pair.reference.step(index))

    def _right(self, sequence: Sequence, index: int) -> int | None:
        return self._rule(sequence, index) if self.by_rule else chosen(self.pair.reference.step(index))

    def _wrong(self, sequence: Sequence, index: int) -> bool:
        return chosen(sequence.step(index)) != self._right(sequence, index)

    def _expected(self, sequence: Sequence, index: int) -> Mapping[str, TensorLike]:
        return {"token": np.array([self._right(sequence, index)], dtype=np.int64)}


class RandomFault(RuleFault):
    """Draws from another place of the generator's stream, or from another stream, or of another number."""

    compares = "draws"

    def _agrees(self, sequence: Sequence, index: int) -> bool:
        """At the step at fault the candidate differs; before it, and by its own words up to it, it agrees."""
        theirs = self.pair.reference.step(index).draws
        return len(theirs) == len(sequence.step(index).draws) and self._place(sequence, index) == _first(theirs)

    def _place(self, sequence: Sequence, index: int) -> tuple[int | None, int | None]:
        """Seed and offset at which a step's first draw should be: the reference's, and after the draw before it."""
        seed, offset = _first(self.pair.reference.step(0).draws)
        if index and sequence.step(index - 1).draws:
            last = sequence.step(index - 1).draws[-1]
            offset = None if last.offset is None or last.words is None else last.offset + last.words
        return seed, offset

    def _wrong(self, sequence: Sequence, index: int) -> bool:
        if self.by_rule:
            return _first(sequence.step(index).draws) != self._place(sequence, index)
        ours, theirs = _record(sequence.step(index)), _record(self.pair.reference.step(index))
        return any(not np.array_equal(ours[name], theirs[name]) for name in _numbers(ours) & _numbers(theirs))

    def _expected(self, sequence: Sequence, index: int) -> Mapping[str, TensorLike]:
        if not self.by_rule:
            theirs = _record(self.pair.reference.step(index))
            return {name: theirs[name] for name in sorted(_numbers(theirs))}
        numbers = zip(DRAW_NUMBERS, self._place(sequence, index), strict=False)
        return {
            f"draws/{name}": np.array([number % 2**64], dtype=np.uint64)
            for name, number in numbers
            if number is not None
        }


def _first(draws: tuple[Draw, ...]) -> tuple[int | None, int | None]:
    return (draws[0].seed, draws[0].offset) if draws else (None, None)


def _numbers(record: Mapping[str, Array]) -> set[str]:
    return {name for name in record if name.startswith("draws/")}


# -------------------------------------------------------------------- the end


class StopFault(StepFault):
    """A generation that ends too early or too late. It is fed one token more than the shorter side has."""

    compares = "steps"

    @property
    def recording(self) -> Recording:
        return Recording("tokens")

    def trusts(self, trace: Trace, fed: Input) -> bool:
        right = min(len(fed.fed.tokens), self.pair.reference.step_count)
        self.by_rule = fed.tokens and self._rule(trace.sequences[fed.sequence], fed) == right
        return self.by_rule

    def _rule(self, sequence: Sequence, fed: Input) -> int:
        """Steps that the forced tokens make by the run's own stop tokens and limit."""
        stated = self.stated | sequence.sampling
        stops = {int(token) for name in ("eos_token_id", "stop_token_ids") for token in _listed(stated.get(name))}
        limits = [int(stated[name]) for name in ("max_new_tokens", "max_len") if stated.get(name) is not None]
        tokens = fed.fed.tokens.tolist()
        at = next((index for index, token in enumerate(tokens) if token in stops), len(tokens) - 1)
        return min(at + 1, *limits) if limits else at + 1

    def _right(self, sequence: Sequence, fed: Input) -> int:
        if self.by_rule:
            return self._rule(sequence, fed)
        whole = self.pair.reference.step_count
        return min(len(fed.fed.tokens), whole) if fed.tokens else whole

    def shown(self, trace: Trace, fed: Input) -> int | None:
        if fed.sequence >= len(trace.sequences):
            return None
        sequence = trace.sequences[fed.sequence]
        right = self._right(sequence, fed)
        return None if sequence.step_count == right else max(min(sequence.step_count, right) + 1, 1)

    def evidence(self, trace: Trace, fed: Input) -> Evidence:
        sequence = trace.sequences[fed.sequence]
        right = self._right(sequence, fed)
        counts: list[NDArray[np.int64]] = [np.array([count], dtype=np.int64) for count in (right, sequence.step_count)]
        settings = self.stated | sequence.sampling
        check = {"kind": self.compares}
        return Evidence(check, {"tokens": fed.fed.tokens}, {}, {"steps": counts[0]}, {"steps": counts[1]}, settings)


def _listed(value: object) -> list[int]:
    return list(value) if isinstance(value, list) else [] if value is None else [int(str(value))]


# -------------------------------------------------------------------- the prompt


@dataclass
class InputFault:
    """Another prompt than the reference's, made by the candidate itself."""

    pair: SequencePair

    steps = 1

    @property
    def recording(self) -> Recording:
        return Recording("tokens")

    def trusts(self, trace: Trace, fed: Input) -> bool:
        return False

    def _parts(self, sequence: Sequence) -> tuple[Mapping[str, NDArray[np.int64]], Mapping[str, NDArray[np.int64]]]:
        """Those that both have, of the reference and of a run."""
        ours, theirs = self.pair.reference.inputs, sequence.inputs
        names = [name for name in ours if name in theirs]
        # The sides may count in integers of other sizes.
        sides = [{f"prompt/{name}": np.asarray(side[name], np.int64) for name in names} for side in (ours, theirs)]
        return sides[0], sides[1]

    def shown(self, trace: Trace, fed: Input) -> int | None:
        if fed.sequence >= len(trace.sequences):
            return None
        ours, theirs = self._parts(trace.sequences[fed.sequence])
        return 1 if any(not np.array_equal(ours[name], theirs[name]) for name in ours) else None

    def evidence(self, trace: Trace, fed: Input) -> Evidence:
        ours, theirs = self._parts(trace.sequences[fed.sequence])
        return Evidence({"kind": "prompt"}, ours, {}, ours, theirs, settings=self.pair.reference.sampling)
