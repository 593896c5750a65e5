"""Statistics of margins: may a seed that passes have the fault, too?

A token is the winner of a race (TORCH_RNG: `argmax(p / q)`), and the race's margin, in nats, is what a wrong
probability must overcome to change it. A fault that moves every log-probability a little is seen only where a margin
was that small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from statistics import NormalDist

import numpy as np

from tracekit.sampling.chain import RAS
from tracekit.sampling.exponential_race import lead, race_scores
from tracekit.sampling.replay import Streams
from tracekit.trace import Sequence, Step
from tracekit.verdict.outcome import Rate

DIGITS = 5
"""Significant digits that are kept of a margin."""
CONFIDENCE = 0.95
MOST_STEPS = 4096
"""Steps of a run whose margins are kept; the first ones."""


def margins(sequence: Sequence) -> list[float]:
    """Nats by which each step's race was won, where it can be run again; of a greedy step, the gap of the logits."""
    streams, nucleus = Streams(sequence), sequence.sampling.get("sampler") == RAS
    out = []
    for index in range(min(sequence.step_count, MOST_STEPS)):
        margin = _margin(sequence.step(index), streams, nucleus)
        if margin is not None and math.isfinite(margin):
            out.append(float(f"{margin:.{DIGITS}g}"))
    return out


def _margin(step: Step, streams: Streams, nucleus: bool) -> float | None:
    ids, probs = step.survivors_id, step.survivors_prob
    if ids is None or probs is None or ids.size < 2:
        return None
    if not step.draws:
        return lead(np.log(probs.astype(np.float64)))
    scores = race_scores(ids, probs, step.draws, streams, None, nucleus=nucleus)
    return None if scores is None else lead(scores)


def chance(sequence: Sequence) -> float:
    """Nats: log-probability that draws of another generator would give this sequence's tokens; 0 for a greedy one."""
    total = 0.0
    for index in range(sequence.step_count):
        step = sequence.step(index)
        if not step.draws or step.survivors_id is None or step.survivors_prob is None:
            continue
        at = np.flatnonzero(step.survivors_id == step.token)
        if at.size and step.survivors_prob[at[0]] > 0:
            total += math.log(float(step.survivors_prob[at[0]]) / float(step.survivors_prob.sum()))
    return float(f"{total:.{DIGITS}g}")


def pass_probability(margins_of_seeds: Seq[Seq[float]], error: float) -> float:
    """Mean probability that a seed with these margins keeps all of its tokens though log-probabilities are off.

    `error` is the root mean square of their error, nats. The runner-up of a step wins where the difference of two such
    errors is beyond the margin: normal, of sqrt(2) times the size.
    """
    if not margins_of_seeds or error <= 0:
        return 1.0
    spread = NormalDist(0.0, math.sqrt(2.0) * error)
    kept = [math.prod(spread.cdf(margin) for margin in row) for row in margins_of_seeds]
    return sum(kept) / len(kept)


def rate(count: int, of: int) -> Rate:
    """A share with its interval (Wilson 1927)."""
    if of == 0:
        return Rate(count, of, 0.0, 1.0)
    share, beyond = count / of, NormalDist().inv_cdf(0.5 + CONFIDENCE / 2.0) ** 2
    middle = share + beyond / (2.0 * of)
    half = math.sqrt(beyond * (share * (1.0 - share) / of + beyond / (4.0 * of**2)))
    low, high = ((middle + side) / (1.0 + beyond / of) for side in (-half, half))
    return Rate(count, of, round(max(low, 0.0), 6), round(min(high, 1.0), 6))
