"""Rotary position embedding: the frequencies that a `config.json` declares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracekit.auditing.rounding import Floats


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding (Su et al. 2021) as `config.json` declares it."""

    theta: float
    width: int  # dimensions of a head that are rotated
    scaling: tuple[tuple[str, Any], ...] = ()

    @property
    def kind(self) -> str:
        """`default`, `linear`, `llama3` ..."""
        scaling = dict(self.scaling)
        return str(scaling.get("rope_type", scaling.get("type")) or "default")

    def frequencies(self) -> tuple[Floats, float]:
        """Inverse frequencies [width / 2], and the factor on cos and sin (1 but for yarn).

        Source: transformers `modeling_rope_utils.py`. Raises KeyError for a scaling that is not known here.
        """
        inverse = self.theta ** (-np.arange(0, self.width, 2, dtype=np.float64) / self.width)
        scaling, kind = dict(self.scaling), self.kind
        if kind in ("default", "dynamic"):  # dynamic changes nothing within the trained length
            return inverse, 1.0
        if kind == "linear":
            return inverse / float(scaling["factor"]), 1.0
        if kind == "llama3":
            return _llama3(inverse, scaling), 1.0
        raise KeyError(kind)


def _llama3(inverse: Floats, scaling: dict[str, Any]) -> Floats:
    factor, original = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    length = 2.0 * math.pi / inverse
    smooth = (original / length - low) / (high - low)
    between = (1.0 - smooth) * inverse / factor + smooth * inverse
    out = np.where(length > original / low, inverse / factor, inverse)
    return np.where((length <= original / low) & (length >= original / high), between, out)
