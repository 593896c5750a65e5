"""How was this token drawn? The ways of ports that are not torch's, tried on the recorded distribution and generator.

Each module of this package declares some, as `MISTAKES`. One is named only if it gives back every recorded token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tracekit.mistakes.draw_mistake import Algorithm, DrawMistake
from tracekit.mistakes.explanation import Explanation
from tracekit.plugins import modules_in
from tracekit.sampling.drawing import ENOUGH, Trial, Tried, tried
from tracekit.trace import Json

SURE = 0.999
"""A token of this probability fits every sampler."""
MISTAKES: tuple[DrawMistake, ...] = tuple(mistake for module in modules_in(__name__) for mistake in module.MISTAKES)

Answer = tuple[DrawMistake, Tried]


def explain(
    among: Sequence[Trial], stated: Json, further: Callable[[], Sequence[Trial]] = lambda: ()
) -> Explanation | None:
    """The way, other than the stated one, that gives back the token of every step; None where none does.

    `further` gives more steps, for ways that these do not tell apart.
    """
    answers = _fitting(among, stated)
    if not answers:
        return None
    if len({one.mistake for one, _ in answers}) > 1:
        answers = _narrowed(answers, further(), stated)
    said = [
        Explanation(one.mistake, {**one.values, "right": result.right, "of": result.of}, steps=result.of)
        for one, result in answers
    ]
    others = {one.mistake.id: one for one in reversed(said[1:]) if one.mistake is not said[0].mistake}
    return replace(said[0], also=tuple(reversed(others.values())))


def mistakes_with(stated: Json) -> list[DrawMistake]:
    """How a side with these settings may draw in truth; what is nearest to what it states first."""
    algorithm = Algorithm.of(stated)
    return sorted((one for one in MISTAKES if algorithm in one.stated), key=lambda one: one.rank)


def _fitting(among: Sequence[Trial], stated: Json) -> list[Answer]:
    if not any(float(trial.chance.probs.max()) < SURE for trial in among):
        return []
    results = [(one, tried(one.way(stated), among)) for one in mistakes_with(stated)]
    return [(one, result) for one, result in results if result.all and result.of >= min(ENOUGH, len(among))]


def _narrowed(answers: list[Answer], among: Sequence[Trial], stated: Json) -> list[Answer]:
    """Of ways that fit some steps, those that fit further ones, too; all of them where none does."""
    further = [(one, right, tried(one.way(stated), among)) for one, right in answers]
    kept = [
        (one, Tried(right.right + more.right, right.of + more.of))
        for one, right, more in further
        if more.right == more.of
    ]
    return kept or answers
