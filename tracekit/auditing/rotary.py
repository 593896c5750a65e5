"""Rotary position embedding: the frequencies that a `config.json` declares."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    long: bool = False  # of `longrope`: whether the run is longer than what the model was trained on first

    @property
    def kind(self) -> str:
        """`default`, `linear`, `llama3` ..."""
        scaling = dict(self.scaling)
        if "short_factor" in scaling:
            return "longrope"  # called `su` and `yarn` in the first checkpoints of Phi-3
        return str(scaling.get("rope_type", scaling.get("type")) or "default")

    def frequencies(self) -> tuple[Floats, float]:
        """Inverse frequencies [width / 2], and the factor on cos and sin (1 but for yarn and longrope).

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
        if kind == "yarn":
            return _yarn(inverse, self.theta, scaling), _yarn_factor(scaling)
        if kind == "longrope":
            divisors = np.array(scaling["long_factor" if self.long else "short_factor"], np.float64)
            if divisors.shape != inverse.shape:
                raise KeyError(kind)
            return inverse / divisors, _longrope_factor(scaling)
        if kind == "proportional":
            turned = int(float(scaling.get("partial_rotary_factor") or 1.0) * self.width // 2)
            return np.where(np.arange(len(inverse)) < turned, inverse / float(scaling.get("factor") or 1.0), 0.0), 1.0
        raise KeyError(kind)


def _llama3(inverse: Floats, scaling: Mapping[str, Any]) -> Floats:
    factor, original = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    length = 2.0 * math.pi / inverse
    smooth = (original / length - low) / (high - low)
    between = (1.0 - smooth) * inverse / factor + smooth * inverse
    out = np.where(length > original / low, inverse / factor, inverse)
    return np.where((length <= original / low) & (length >= original / high), between, out)


def _yarn(inverse: Floats, theta: float, scaling: Mapping[str, Any]) -> Floats:
    """Peng et al. 2023: slow dimensions are divided by the factor, fast ones are not, with a ramp between."""
    width, original = 2 * len(inverse), float(scaling["original_max_position_embeddings"])

    def dimension(turns: float) -> float:
        return width * math.log(original / (turns * 2.0 * math.pi)) / (2.0 * math.log(theta))

    first, last = dimension(float(scaling.get("beta_fast") or 32)), dimension(float(scaling.get("beta_slow") or 1))
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    ramp = np.clip((np.arange(len(inverse)) - first) / ((last - first) or 0.001), 0.0, 1.0)
    return np.asarray(inverse / float(scaling["factor"]) * ramp + inverse * (1.0 - ramp))


def _yarn_factor(scaling: Mapping[str, Any]) -> float:
    stated = scaling.get("attention_factor")
    if stated is not None:
        return float(stated)
    factor, scale, over = float(scaling["factor"]), scaling.get("mscale"), scaling.get("mscale_all_dim")

    def of(scale: float) -> float:
        return 1.0 if factor <= 1.0 else 0.1 * scale * math.log(factor) + 1.0

    return of(float(scale)) / of(float(over)) if scale and over else of(1.0)


def _longrope_factor(scaling: Mapping[str, Any]) -> float:
    """Ding et al. 2024."""
    stated, factor = scaling.get("attention_factor"), float(scaling["factor"])
    if stated is not None:
        return float(stated)
    original = float(scaling["original_max_position_embeddings"])
    return 1.0 if factor <= 1.0 else math.sqrt(1.0 + math.log(factor) / math.log(original))


def scaling_of(declared: Mapping[str, Any], scaling: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The scaling of a `config.json` with what it leaves to other settings filled in."""
    longest = declared.get("max_position_embeddings")
    original = declared.get("original_max_position_embeddings")
    kind = Rotary(1.0, 0, tuple(scaling.items())).kind
    if kind in ("llama3", "yarn", "longrope"):
        if original is not None:
            scaling["original_max_position_embeddings"] = original
        scaling.setdefault("original_max_position_embeddings", longest)
    if kind in ("yarn", "longrope") and not scaling.get("factor"):
        scaling["factor"] = float(longest or 0.0) / float(scaling["original_max_position_embeddings"])
    lists = {name: tuple(value) for name, value in scaling.items() if isinstance(value, list)}
    return tuple(sorted({**scaling, **lists}.items()))
