"""The same tokens, of which one side has more: why did the other one end, or this one not?"""

from __future__ import annotations

from tracekit.align.pair import Pair, Side
from tracekit.align.sites import SequencePair
from tracekit.compare.findings import StopDiffers
from tracekit.mistakes import stops
from tracekit.mistakes.explanation import Explanation
from tracekit.sampling.chain import RAS
from tracekit.trace import Sequence, Trace
from tracekit.verdict.cause import Cause
from tracekit.verdict.counterfactual.evidence import Ends
from tracekit.verdict.counterfactual.filter import as_evidence
from tracekit.verdict.counterfactual.sides import both, of, sequences_of
from tracekit.verdict.ruling import Ruling


def rule_stop(traces: Pair, first: StopDiffers) -> Ruling:
    """The end of a generation."""
    pair = sequences_of(traces, first)
    explanation = _explained(traces, pair)
    evidence = (Ends(first.steps, first.reasons), *as_evidence(explanation))
    return Ruling(Cause.STOP, first, evidence, explanation)


def _explained(traces: Pair, pair: SequencePair) -> Explanation | None:
    counts = {side: of(pair, side).step_count for side in Side}
    shorter = Side.REFERENCE if counts[Side.REFERENCE] < counts[Side.CANDIDATE] else Side.CANDIDATE
    longer = shorter.other
    listed = {side: _stop_list(trace, of(pair, side)) for side, trace in zip(Side, traces.traces, strict=True)}
    ended = of(pair, shorter).end_reason
    last = int(of(pair, shorter).tokens[-1]) if counts[shorter] else None
    following = int(of(pair, longer).tokens[counts[shorter]])
    if ended == "stop" and last is not None and last in listed[shorter]:
        mistake = stops.IGNORED if last in listed[longer] else stops.LIST
        return Explanation(mistake, {"side": longer.value, "token": last, "stops": tuple(listed[longer])})
    if counts[longer] == counts[shorter] + 1 and ended != "length" and following in listed[shorter]:
        return Explanation(stops.LAST_OMITTED, {"side": shorter.value, "token": following, "tokens": -1})
    if counts[longer] == counts[shorter] + 1 and ended == "length":
        found = _one_apart(pair, counts, shorter)
        if found is not None:
            return found
    if ended == "stop" and last is not None:
        return _unlisted(shorter, last, listed[shorter], of(pair, shorter))
    return next((found for side in reversed(Side) if (found := _other_limit(side, of(pair, side)))), None)


def _stop_list(trace: Trace, sequence: Sequence) -> list[int]:
    if sequence.sampling.get("sampler") == RAS:
        return [int(token) for token in sequence.sampling.get("stop_token_ids") or ()]
    eos = sequence.sampling.get("eos_token_id", (trace.config.get("model") or {}).get("eos_token_id"))
    return [int(token) for token in eos] if isinstance(eos, list) else [] if eos is None else [int(eos)]


def _one_apart(pair: SequencePair, counts: dict[Side, int], shorter: Side) -> Explanation | None:
    """One token more or fewer than the limit that both state, where one side reaches just that."""
    limits = [side.sampling.get("max_new_tokens") for side in both(pair)]
    limit = limits[0]
    if limit is None or limit != limits[1] or int(limit) not in counts.values():
        return None
    wrong = shorter if int(limit) == counts[shorter.other] else shorter.other
    return _length(wrong, counts[wrong], int(limit))


def _other_limit(side: Side, sequence: Sequence) -> Explanation | None:
    limit = sequence.sampling.get("max_new_tokens")
    if limit is None or sequence.end_reason != "length" or sequence.step_count == limit:
        return None
    return _length(side, sequence.step_count, int(limit))


def _length(side: Side, tokens: int, limit: int) -> Explanation:
    values = {"side": side.value, "tokens": tokens, "limit": limit, "difference": tokens - limit}
    return Explanation(stops.LENGTH, values)


def _unlisted(side: Side, token: int, its: list[int], sequence: Sequence) -> Explanation:
    earlier = int((sequence.tokens[:-1] == token).sum())
    if earlier:
        values = {"side": side.value, "token": token, "tokens": sequence.step_count, "before": earlier}
        return Explanation(stops.EARLY, values)
    return Explanation(stops.OTHER_TOKEN, {"side": side.value, "token": token, "stops": tuple(its)})
