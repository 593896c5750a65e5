"""Mistakes with the random generator: its seed, and where in its stream a draw begins."""

from __future__ import annotations

from tracekit.mistakes.explanation import Explanation, Mistake

SEED = Mistake("seed", "the generator is seeded with {found} instead of {stated}", "difference")
UNSEEDED = Mistake(
    "unseeded",
    "the candidate draws from {generator}, an unseeded generator: its draws cannot be reproduced; "
    "seed it, or draw with tracekit::rng::TorchRng",
    "generator",
)
RESEEDED = Mistake("reseeded", "the generator is re-seeded at step {step}", "seed")
RESEEDED_EVERY_STEP = Mistake(
    "reseeded_every_step", "the generator is re-seeded at every step from step {step} on", "seed"
)
EXTRA_DRAW = Mistake("extra_draw", "32-bit words drawn before step {step}: {words} more than in the reference", "shift")
MISSING_DRAW = Mistake(
    "missing_draw", "32-bit words drawn before step {step}: {words} fewer than in the reference", "shift"
)


def other_seed(stated: int, found: int) -> Explanation:
    """A seed in place of another; the difference is one of 64 bits, since a negative seed is taken mod 2^64."""
    difference = (found - stated + 2**63) % 2**64 - 2**63
    return Explanation(SEED, {"found": found, "stated": stated, "difference": difference})
