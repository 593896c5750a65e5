"""Arithmetics in which an attention core is computed: exact, with drawn rounding errors, and as engines round."""

from __future__ import annotations

import numpy as np

from tracekit.auditing import sums
from tracekit.auditing.rounding import Floats, accumulator, as_stored, constants, unit


class Rounding:
    """Multiplies by 1 + u * uniform(-1, 1) where an implementation rounds; one draw of a whole run. With `wide` scores,
    they stay in float32 up to the softmax, as fused kernels keep them."""

    def __init__(self, dtype: str, seed: int, wide: bool = False) -> None:
        self.dtype = dtype
        self.stored = unit(dtype)
        self.sums = accumulator(dtype)
        self.wide = wide
        self._random = np.random.default_rng(seed)
        self._rounded = float(self._random.uniform(-1.0, 1.0))  # one error of each constant, in every product

    def constant(self, number: float) -> float:
        """A scalar constant as this run rounds it, or its reciprocal."""
        return number * (1.0 + self._rounded * constants("float32" if self.wide else self.dtype, number))

    def score(self, values: Floats, times: int) -> Floats:
        return self.float32(values) if self.wide else self.store(values)

    def store(self, values: Floats) -> Floats:
        return self._times(values, self.stored)

    def float32(self, values: Floats) -> Floats:
        return self._times(values, self.sums)

    def walk(self, values: Floats, terms: int, size: Floats) -> Floats:
        """A sum of `terms` products whose squares sum to `size` squared."""
        noise = self._random.standard_normal(values.shape, dtype=np.float32)
        noise = noise * np.sqrt(sums.walked(values, np.square(size), terms, self.sums))
        noise += values
        return np.asarray(noise)

    def _times(self, values: Floats, roundoff: float) -> Floats:
        noise = self._random.random(values.shape, dtype=np.float32) - np.float32(0.5)
        out = values * noise
        out *= 2.0 * roundoff
        out += values
        return np.asarray(out)


class Emulated:
    """Rounds to the model's format where an implementation does, in its order."""

    def __init__(self, dtype: str, scores: int) -> None:
        self.dtype = dtype
        self.scores = scores  # how often a score is rounded: not, as a product, or again when it is scaled

    def constant(self, number: float) -> float:
        return number

    def store(self, values: Floats) -> Floats:
        return as_stored(values, self.dtype)

    def score(self, values: Floats, times: int) -> Floats:
        return self.store(values) if times <= self.scores else values

    def float32(self, values: Floats) -> Floats:
        return values

    def walk(self, values: Floats, terms: int, size: Floats) -> Floats:
        return values


class Exact:
    """The same without rounding."""

    def constant(self, number: float) -> float:
        return number

    def score(self, values: Floats, times: int) -> Floats:
        return values

    def store(self, values: Floats) -> Floats:
        return values

    def float32(self, values: Floats) -> Floats:
        return values

    def walk(self, values: Floats, terms: int, size: Floats) -> Floats:
        return values


Arithmetic = Rounding | Emulated | Exact
