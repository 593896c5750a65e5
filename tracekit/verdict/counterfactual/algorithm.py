"""Another sampling algorithm of the candidate, and a filter that is wrong beside it.

A token is drawn from the survivors that the candidate recorded, whatever filter left them. So either of two mistakes is
found beside the other.
"""

from __future__ import annotations

from dataclasses import replace

from tracekit.align.sites import SequencePair
from tracekit.mistakes import draws as draw_mistakes
from tracekit.mistakes import filters as filter_mistakes
from tracekit.mistakes.explanation import Explanation, Mistake
from tracekit.sampling.chain import RAS, chain
from tracekit.sampling.drawing import Trial, as_stated, ras_way, trials, tried
from tracekit.sampling.fit import departs
from tracekit.sampling.observed import Observed
from tracekit.sampling.ras import Ras
from tracekit.sampling.replay import Streams, observations, other_observations
from tracekit.trace import Json
from tracekit.verdict.counterfactual.combinations import vocabulary
from tracekit.verdict.counterfactual.sides import stated_by

FILTER_AND_DRAW = Mistake("filter_and_draw", "{parts[0]}; and {parts[1]}")


def other_algorithm(pair: SequencePair, step: int) -> Explanation | None:
    """A way of drawing, other than the stated one, that gives every token of the candidate."""
    stated, size = stated_by(pair), vocabulary(pair, step)
    steps, streams = observations(pair.candidate, step), Streams(pair.candidate)
    among = trials(steps, stated, streams, size)
    if as_stated(among, stated) or _removes_stops(among, stated):
        return None

    def further() -> list[Trial]:
        return trials(other_observations(pair.candidate, steps), stated, Streams(pair.candidate), size)

    return draw_mistakes.explain(among, stated, further)


def with_filter(pair: SequencePair, step: int, algorithm: Explanation) -> Explanation:
    """Another algorithm; with the filter's mistake, where the candidate's survivors are not what its logits give."""
    stated = pair.candidate.sampling or stated_by(pair)
    steps = observations(pair.candidate, step)
    first = next((seen for seen in steps if _departs(stated, seen)), None)
    found = None if first is None else filter_mistakes.explain(stated, steps, first)
    return algorithm if found is None else _both(found, algorithm)


def with_algorithm(pair: SequencePair, step: int, found: Explanation | None) -> Explanation | None:
    """A filter's mistake; with the algorithm that drew from what it left, where that is not the stated one."""
    algorithm = other_algorithm(pair, step)
    return found if algorithm is None or found is None else _both(found, algorithm)


def _both(found: Explanation, algorithm: Explanation) -> Explanation:
    """`also` holds what fits as well as one of the two."""
    parts = (replace(found, also=()), replace(algorithm, also=()))
    return Explanation(
        FILTER_AND_DRAW,
        residual=found.residual,
        steps=min(part.steps or 0 for part in parts),
        also=(*found.also, *algorithm.also),
        parts=parts,
    )


def _departs(stated: Json, seen: Observed) -> bool:
    return departs(chain(stated), seen) is True


def _removes_stops(among: list[Trial], stated: Json) -> bool:
    """Whether the stated way gives every token from survivors without stop tokens: that is the filter's mistake."""
    if stated.get("sampler") != RAS or not any(_departs(stated, trial.seen) for trial in among):
        return False
    return tried(ras_way(Ras(removes=True), stated), among).all
