"""Whether the probabilities of a seed are off by more than rounding: its tokens may agree all the same."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tracekit.verdict.outcome import Seed

APART_LIMIT = 1e-3
"""Nats by which the log-probabilities of float32 runs may be apart, in the median, whatever other seeds do. Candle and
PyTorch are 2e-6 apart (CosyVoice3), a rotary table in float16 puts them 1.4e-4 apart."""
APART_FACTOR = 8.0
"""How many times further than the quietest quarter of the seeds a seed's probabilities are apart to be suspicious.
Healthy seeds differ from one another by a factor of 2."""
LEAST_APART = 1e-6
"""Nats below which nothing is suspicious: a few roundoff units of a float32 probability."""


def quietest(seeds: Iterable[Seed]) -> float:
    """Nats that log-probabilities of healthy seeds are apart: of the quietest quarter, by their median."""
    found = [seed.apart for seed in seeds if seed.apart is not None]
    usual = float(np.quantile(found, 0.25)) if found else 0.0
    return max(min(usual, APART_LIMIT / APART_FACTOR), LEAST_APART / APART_FACTOR)


def is_suspicious(seed: Seed, quiet: float) -> bool:
    """Whether a seed's probabilities are off by more than rounding: a layer is at fault."""
    return seed.apart is not None and seed.apart > APART_FACTOR * quiet
