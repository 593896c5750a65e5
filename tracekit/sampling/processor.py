"""What is known of a logits processor, in one object: `Processor`. A processor in a chain, with its numbers: `Applied`.

A file of `sampling/processors/` defines one, with everything that tracekit does with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np

from tracekit.sampling.exercise import Exercise, RemovedNothing, Value
from tracekit.sampling.observed import Context, Observed
from tracekit.sampling.scores import GONE, Floats, Rounded, working
from tracekit.trace import Json

Apply = Callable[[Floats, Context], Floats]
"""(scores [vocabulary], context) -> scores [vocabulary]; a token that is removed gets minus infinity."""
Change = Callable[[Any], Apply]
"""A setting's number -> what is done with it."""


class Unit(StrEnum):
    """What a distance to a cut is measured in."""

    NATS = "nats"
    MASS = "probability mass"


@dataclass(frozen=True)
class Applied:
    """A processor of a chain, with its numbers."""

    kind: Processor
    settings: Json  # by the names of its class' arguments
    apply: Apply

    @property
    def name(self) -> str:
        """transformers' class."""
        return self.kind.name

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={_short(value)}" for name, value in self.settings.items())
        return f"{self.name}({shown})"


def _short(value: Any) -> str:
    return f"[{len(value)} tokens]" if isinstance(value, list) and len(value) > 4 else str(value)


def run(processors: Iterable[Applied], logits: Floats, context: Context) -> Floats:
    """Scores after a chain, [vocabulary]."""
    values = working(logits)
    for each in processors:
        values = each.apply(values, context)
    return values


# -------------------------------------------------------------------- mistakes with it


@dataclass(frozen=True)
class Stated:
    """The settings that a side states, and the chain that they ask for."""

    settings: Json
    chain: tuple[Applied, ...]
    rebuild: Callable[[Json], tuple[Applied, ...]]
    """The chain of other settings."""

    def has(self, processor: str) -> bool:
        """Whether a class runs."""
        return any(each.name == processor for each in self.chain)

    def replaced(self, processor: str, apply: Apply) -> tuple[Applied, ...]:
        """The chain with another function in one processor's place."""
        return tuple(
            Applied(each.kind, each.settings, apply) if each.name == processor else each for each in self.chain
        )

    def before(self, place: int) -> list[Applied]:
        """The processors that run before a place of transformers' order."""
        return [each for each in self.chain if each.kind.place < place]

    def changed(self, **settings: Any) -> Stated:
        """The same with other settings."""
        new = self.settings | settings
        return Stated(new, self.rebuild(new), self.rebuild)

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn; greedy decoding runs no warper."""
        return bool(self.settings.get("do_sample", True))

    @property
    def stops(self) -> list[int]:
        """The stop tokens."""
        return stop_tokens(self.settings)


def stop_tokens(settings: Json) -> list[int]:
    """The stop tokens that settings state in transformers' name."""
    eos = settings.get("eos_token_id")
    return [int(token) for token in eos] if isinstance(eos, list) else [] if eos is None else [int(eos)]


@dataclass(frozen=True)
class Steps:
    """Recorded steps: the one at fault, and all that are at hand. Every one has logits and survivors."""

    first: Observed
    all: Sequence[Observed]


@dataclass(frozen=True)
class Variant:
    """A chain as it may have run, and what fills the mistake's words."""

    chain: tuple[Applied, ...]
    values: Mapping[str, Value]


Variants = Callable[[Stated, Steps | None], Iterator[Variant]]
"""(what is stated, recorded steps) -> chains that may have run. Without steps, those that need none."""


class Rank(IntEnum):
    """Which of several mistakes that fit is named: the simplest."""

    LOST = 0  # a setting does not arrive
    RULE = 1  # one processor does something else
    ORDER = 2  # processors act on each other otherwise
    NUMBER = 3  # another number, read off the recorded survivors
    TWO_NUMBERS = 4


@dataclass(frozen=True, eq=False)
class FilterMistake:
    """A mistake that ports make with a filter: how it is told, and the chains that it may leave."""

    id: str  # snake_case, stable
    words: str  # template over a variant's values
    variants: Variants
    main: str | None = None  # the value that stands for the mistake
    about: tuple[str, ...] = ()
    """Settings that it is a mistake with."""
    rank: Rank = Rank.RULE


def instead(
    identity: str,
    words: str,
    place: tuple[str, str, str],
    change: Change,
    kind: Callable[[Any], Any] = float,
    value: Callable[[Any], Value] | None = None,
) -> FilterMistake:
    """Something else is done with the stated number. `place`: the processor's class, its setting, and what the words
    call the number; `value`: what stands for the mistake, where that is not the number itself."""
    processor, setting, called = place

    def variants(stated: Stated, steps: Steps | None) -> Iterator[Variant]:
        number = kind(stated.settings[setting])
        told = {called: number} | ({} if value is None else {"value": value(number)})
        yield Variant(stated.replaced(processor, change(number)), told)

    return FilterMistake(identity, words, variants, called if value is None else "value", (setting,))


# -------------------------------------------------------------------- the processor itself


def by_number(change: Change, kind: Callable[[Any], Any] = float) -> Callable[[Json, Json], Apply]:
    """What a processor of one number does, as `Processor.make`."""
    return lambda numbers, settings: change(kind(*numbers.values()))


def _nothing(each: Applied, done: Exercise) -> Iterator[object]:
    return iter(())


def removed_nothing(each: Applied, done: Exercise) -> Iterator[object]:
    """What every filter must show: a token that it removed."""
    if done.filtered and not done.removed.get(each.name):
        yield RemovedNothing(each.kind.setting, next(iter(each.settings.values())), done.filtered)


Measure = Callable[[Json, Floats], tuple[Floats, Unit]]
"""(its numbers, scores that reach it [vocabulary]) -> distances to the cut, f64 [vocabulary], and unit."""


Rounds = Callable[[Json, Floats, Rounded], Floats]
"""(its numbers, scores that reach it, how far rounding may put them) -> distances to the cut up to which rounding may
decide, f64 [vocabulary]; below zero where it never does."""


@dataclass(frozen=True, eq=False)
class Processor:
    """All that tracekit knows of a logits processor."""

    name: str  # transformers' class, or the function of a program's own sampler
    setting: str  # that asks for it, by GenerationConfig's name
    words: str  # for a person: `top-k`
    place: int  # in the order of transformers' `GenerationMixin._get_logits_processor`
    arguments: tuple[str, ...]  # its class' names of its numbers
    make: Callable[[Json, Json], Apply]
    """(its numbers, all settings) -> what it does."""
    accepts: Callable[[Any], bool]
    """Whether a value of the setting is of its kind: files may hold anything."""
    neutral: tuple[Any, ...] = ()  # values that do nothing
    sampled: bool = False  # a warper: greedy decoding does not run it
    sampler: str | None = None  # the program's own sampler that it belongs to; None: transformers' `generate`
    reads: Callable[[Json], Json] | None = None
    """(all settings) -> its numbers, of one that takes several."""
    common: bool = False
    """Whether most samplers have it, so that a run without it leaves something unshown."""
    cut: Measure | None = None
    stretch: Callable[[Json], float] = lambda numbers: 1.0
    """(its numbers) -> most by which it stretches the difference of two scores."""
    rounds: Rounds | None = None
    """How far from its cut rounding may decide either way; with every `cut`."""
    mistakes: tuple[FilterMistake, ...] = ()
    unexercised: Callable[[Applied, Exercise], Iterator[object]] = _nothing
    """(it, what was done) -> findings: what these steps did not show of it."""

    def off(self, settings: Json) -> bool:
        """Whether these settings leave it out, by its own number."""
        number = settings.get(self.setting)
        return number is None or number in self.neutral or not self.accepts(number)

    def asked(self, settings: Json) -> Applied | None:
        """It as these settings ask for it, or None."""
        if self.reads is not None:
            return self.with_numbers(self.reads(settings), settings)
        if self.off(settings) or (self.sampled and not settings.get("do_sample", True)):
            return None
        return self.with_numbers({self.arguments[0]: settings[self.setting]}, settings)

    def with_numbers(self, numbers: Json, settings: Json) -> Applied:
        """It with these numbers."""
        return Applied(self, numbers, self.make(numbers, settings))

    def of(self, number: Any, settings: Json) -> Applied:
        """It with one number."""
        return self.with_numbers({self.arguments[0]: number}, settings)


@dataclass(frozen=True)
class Cut:
    """How far tokens are from what one processor cuts at."""

    processor: Applied
    distances: Floats  # f64 [vocabulary]; infinite for tokens that came removed
    unit: Unit

    @property
    def nearest(self) -> tuple[float, int]:
        """The smallest distance, and its token."""
        token = int(np.argmin(self.distances))
        return float(self.distances[token]), token


def cut_of(each: Applied, values: Floats) -> Cut | None:
    """The cut of a processor on the scores that reach it."""
    if each.kind.cut is None:
        return None
    measured, unit = each.kind.cut(each.settings, values)
    return Cut(each, np.where(values > GONE, np.abs(measured), np.inf), unit)


_FUNCTION = Processor(
    name="function",
    setting="",
    words="a function of its own",
    place=0,
    arguments=(),
    make=lambda numbers, settings: lambda values, context: values,
    accepts=lambda value: False,
)


def function(apply: Apply) -> Applied:
    """A function in a chain that is no processor of the registry, and has no cut that is known."""
    return Applied(_FUNCTION, {}, apply)
