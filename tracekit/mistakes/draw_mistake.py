"""A mistake that ports make with the way in which a token is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto

from tracekit.mistakes.explanation import Mistake, Value
from tracekit.sampling.chain import RAS
from tracekit.sampling.drawing import Choose, Trial, Way
from tracekit.trace import Json


class Algorithm(Enum):
    """How a side states that it draws."""

    RACE = auto()  # torch.multinomial of one sample: the exponential race
    GREEDY = auto()
    RAS = auto()  # CosyVoice's repetition-aware sampling

    @classmethod
    def of(cls, stated: Json) -> Algorithm:
        """That of these settings."""
        if stated.get("do_sample") is False:
            return cls.GREEDY
        return cls.RAS if stated.get("sampler") == RAS else cls.RACE


SAMPLED = (Algorithm.RACE, Algorithm.RAS)


class Rank(IntEnum):
    """Which of several ways that fit is named."""

    SAME = 0  # the stated algorithm with one thing wrong
    PLAIN = 1  # the exponential race
    OTHER = 2  # another algorithm
    SOMETIMES = 3  # one that takes either of two tokens, and so fits more easily


@dataclass(frozen=True, eq=False)
class DrawMistake:
    """A way of drawing that is not the stated one."""

    mistake: Mistake
    way: Callable[[Json], Way]
    """(stated settings) -> the way."""
    stated: tuple[Algorithm, ...] = SAMPLED
    values: Mapping[str, Value] = field(default_factory=dict)
    rank: Rank = Rank.OTHER


def always(
    choose: Choose, *, whole: bool = False, undrawn: Callable[[Trial], bool] = lambda trial: False
) -> Callable[[Json], Way]:
    """A way that no setting changes."""
    way = Way(choose, whole, undrawn)
    return lambda stated: way
