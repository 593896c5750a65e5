"""`weights`: a parameter's bytes differ."""

from __future__ import annotations

from tracekit.align.pair import Pair
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.checkpoints.compare import relation_of
from tracekit.checkpoints.relations import Relation
from tracekit.checkpoints.stated import find_checkpoint
from tracekit.compare.findings import Stage
from tracekit.trace import TraceError
from tracekit.verdict.cause import Cause
from tracekit.verdict.evidence import ParameterDiffers, ParameterRelated
from tracekit.verdict.rule import Case, CauseRule, Grouping, Luck, ReproNeeds
from tracekit.verdict.ruling import Ruling


def _holds(case: Case, ruling: Ruling | None) -> Ruling | None:
    first = case.first
    if not case.weights or (first is not None and first.stage is Stage.INPUT):
        return None
    evidence: list[object] = [ParameterDiffers(case.weights[0], len(case.weights) - 1)]
    relation = _relation(case.pair, case.weights[0])
    if relation is not None:
        evidence.append(ParameterRelated(relation))
    return Ruling(Cause.WEIGHTS, first, tuple(evidence))


def _relation(pair: Pair, parameter: str) -> Relation | None:
    """How the candidate's parameter came from the reference's, where each side's own checkpoint is at hand."""
    paths = [find_checkpoint(trace) for trace in pair.traces]
    if paths[0] is None or paths[1] is None or paths[0] == paths[1]:
        return None
    try:
        return relation_of(Checkpoint(paths[0]), Checkpoint(paths[1]), parameter)
    except TraceError:
        return None  # of another format, or damaged


RULE = CauseRule(
    Cause.WEIGHTS,
    order=10,
    holds=_holds,
    headline="A parameter has other bytes",
    grouping=Grouping(Luck.VALUES),
    repro=ReproNeeds(why_none="the two sides hold other parameters; `tracekit weights` compares them"),
)
