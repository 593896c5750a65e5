"""What the steps of a run did with the parts of its sampler, and so what they did not show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

Value: TypeAlias = "int | float | str | bool | tuple[Value, ...] | None"


@dataclass
class Exercise:
    """What the steps of a run did with the sampler's parts."""

    steps: int = 0
    filtered: int = 0  # steps whose processors could be recomputed
    removed: dict[str, int] = field(default_factory=dict)  # processor -> tokens removed
    ties_at_cut: int = 0
    ties_at_top: int = 0
    repeats: int = 0  # steps whose history holds a token twice
    sure: int = 0  # steps with one survivor
    drawn: int = 0
    recorded: bool = False  # events, draws or survivors of any step
    events: set[str] = field(default_factory=set)
    sizes: set[int] = field(default_factory=set)  # numbers of survivors
    ends: tuple[str | None, ...] = ()  # why each sequence ended


@dataclass(frozen=True)
class SettingOff:
    """A processor that is not in the chain."""

    setting: str
    number: Value = None  # of one that is off by its number: temperature 1


@dataclass(frozen=True)
class RemovedNothing:
    """A filter that was set and left every token."""

    setting: str
    number: Value
    steps: int


@dataclass(frozen=True)
class NoRepeats:
    """A penalty on tokens that never stood twice in a history."""

    setting: str
    steps: int


@dataclass(frozen=True)
class NothingRecorded:
    """A sampler of which neither survivors nor draws nor events are recorded."""


@dataclass(frozen=True)
class NoRedraw:
    """CosyVoice's sampler: no stop token was drawn before `min_len`."""

    steps: int


@dataclass(frozen=True)
class NoRepetitionFallback:
    """CosyVoice's sampler: no token repeated too often."""

    steps: int


@dataclass(frozen=True)
class FilterNotReached:
    """One of two limits that the other one always reached first."""

    setting: str
    number: Value
    other: str
    steps: int
