"""Did the sampler do it? Filter, draw, token and stop, worked out again from what was recorded."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tracekit.align import align_sequences
from tracekit.divergence import Finding, Search
from tracekit.rng import TorchGenerator
from tracekit.trace import Json, Sequence, Step, Trace

NEAR = 2.0
"""A margin is crossed by rounding if it is at most this many times the measured error: both tokens may move."""


@dataclass
class Ruling:
    """Cause and evidence, while they are being worked out."""

    cause: str
    evidence: list[str]
    finding: Finding | None
    margins: Json = field(default_factory=dict)
    explanation: Json | None = None


def rule_filter(reference: Trace, candidate: Trace, found: Search, first: Finding) -> Ruling:
    counts, lost, gained = first.facts["counts"], first.facts["lost"], first.facts["gained"]
    evidence = [f"{counts[0]} tokens survive in the reference, {counts[1]} in the candidate"]
    for ids, side in ((lost, "reference"), (gained, "candidate")):
        if ids:
            shown = ", ".join(str(token) for token in ids[:5])
            evidence.append(f"only in the {side}: {shown}" + (f" and {len(ids) - 5} more" if len(ids) > 5 else ""))
    if "cut_distance" in first.facts:
        distance, error = first.facts["cut_distance"], first.facts["logit_error"]
        evidence.append(f"distance to the cut {distance:.2g}, logit error {error:.1e}: rounding cannot have moved them")
    margins: Json = {key: first.facts[key] for key in ("cut_distance", "logit_error") if key in first.facts}
    return Ruling("filter", evidence, first, margins)


def rule_draw(reference: Trace, candidate: Trace, found: Search, first: Finding) -> Ruling:
    name, values = first.facts["field"], first.facts["values"]
    said = f"{name} {values[0]} in the reference, {values[1]} in the candidate"
    if name == "op":
        return Ruling("sampler", [f"same generator, seed and offset, another draw: {said}"], first)
    return Ruling("rng", [f"same survivors, another draw: {said}"], first)


def rule_token(reference: Trace, candidate: Trace, found: Search, first: Finding) -> Ruling:
    one, other = _steps(reference, candidate, found, first)
    margins = token_margins(_sequence(reference, first), one, other)
    margin, error = margins.get("margin"), margins.get("error")
    if margin is not None and error is not None and margin <= NEAR * error:
        said = f"margin {margin:.2g} nats, measured error {error:.2g}: rounding decided"
        return Ruling("near-tie", [said], first, margins)
    evidence = ["same survivors and draws, another token"]
    if margin is not None and error is not None:
        evidence.append(f"margin {margin:.2g} nats, measured error only {error:.1e}: not a near-tie")
    return Ruling("sampler", evidence, first, margins)


def rule_stop(reference: Trace, candidate: Trace, found: Search, first: Finding) -> Ruling:
    steps, reasons = first.facts["steps"], first.facts["reasons"]
    said = [f"{count} tokens, end: {reason or 'none recorded'}" for count, reason in zip(steps, reasons, strict=True)]
    return Ruling("stop", [f"all common tokens agree; reference {said[0]} | candidate {said[1]}"], first)


def _sequence(trace: Trace, finding: Finding) -> Sequence:
    return trace.sequences[finding.sequence]


def _steps(reference: Trace, candidate: Trace, found: Search, finding: Finding) -> tuple[Step, Step]:
    pairs, _ = align_sequences(reference, candidate)
    pair = next(pair for pair in pairs if pair.index == finding.sequence)
    return pair.reference.step(finding.step or 0), pair.candidate.step(finding.step or 0)


def token_margins(sequence: Sequence, one: Step, other: Step) -> Json:
    """How narrowly the reference chose its token over the candidate's, in nats, and how far the sides are apart.

    Greedy: the gap of the two logits. Sampled: the gap of the two in the exponential race, its draws made again from
    seed and offset. `error` is how far the sides' log-probabilities of the two tokens are apart, added up.
    """
    if one.survivors_id is None or one.survivors_prob is None:
        return _greedy_margins(one, other)
    draw = one.draws[0] if one.draws else None
    size = one.logits.size if one.logits is not None else None
    if draw is None or draw.op != "multinomial" or draw.seed is None or draw.offset is None or size is None:
        return {}
    if other.survivors_id is None or other.survivors_prob is None:
        return {}
    ours = dict(zip(one.survivors_id.tolist(), one.survivors_prob.tolist(), strict=True))
    theirs = dict(zip(other.survivors_id.tolist(), other.survivors_prob.tolist(), strict=True))
    if not all(token in side for token in (one.token, other.token) for side in (ours, theirs)):
        return {}
    generator = TorchGenerator(draw.seed)
    generator.skip(draw.offset)
    draws = generator.exponential(size)
    winner, runner = (np.log(ours[token]) - np.log(draws[token]) for token in (one.token, other.token))
    error = sum(abs(np.log(ours[token]) - np.log(theirs[token])) for token in (one.token, other.token))
    return {"kind": "race", "margin": float(winner - runner), "error": float(error)}


def _greedy_margins(one: Step, other: Step) -> Json:
    if one.logits is None or other.logits is None or one.logits.shape != other.logits.shape:
        return {}
    ours, theirs = one.logits.astype(np.float64), other.logits.astype(np.float64)
    tokens = [one.token, other.token]
    error = float(np.abs(ours[tokens] - theirs[tokens]).sum())
    return {"kind": "logits", "margin": float(ours[one.token] - ours[other.token]), "error": error}
