"""Arithmetics in which an attention core is computed: exact, with drawn rounding errors, and as engines round."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing import sums
from tracekit.auditing.rounding import ACCUMULATOR, LIBRARY, Floats, accumulator, as_stored, constants, unit


class Rounding:
    """Multiplies by 1 + u * uniform(-1, 1) where an implementation rounds; one draw of a whole run. With `wide` scores,
    they stay in float32 up to the softmax, as fused kernels keep them."""

    def __init__(self, dtype: str, seed: int, wide: bool = False) -> None:
        self.dtype, self.seed = dtype, seed
        self.stored = unit(dtype)
        self.sums = accumulator(dtype)
        self.wide = wide
        self._random = np.random.default_rng(seed)
        self._rounded = float(self._random.uniform(-1.0, 1.0))  # one error of each constant, in every product

    def constant(self, number: float) -> float:
        """A scalar constant as this run rounds it, or its reciprocal."""
        return number * (1.0 + self._rounded * constants("float32" if self.wide else self.dtype, number))

    def frequencies(self, values: Floats) -> Floats:
        """Rotary frequencies. Programs make them in float32 whatever their dtype, and a run in a wider one keeps them:
        one table for all rows, good to one unit in its last place."""
        if self.sums >= ACCUMULATOR:
            return self.float32(values)
        drawn = np.random.default_rng((self.seed, len(values))).uniform(-1.0, 1.0, values.shape)
        return np.asarray(values * (1.0 + LIBRARY * drawn))

    def angles(self, places: Floats, frequencies: Floats) -> Floats:
        """Positions times frequencies, [positions, frequencies]."""
        return self.float32(places[:, None] * self.frequencies(frequencies)[None, :])

    def score(self, values: Floats, times: int) -> Floats:
        return self.float32(values) if self.wide else self.store(values)

    def store(self, values: Floats) -> Floats:
        return self._times(values, self.stored)

    def float32(self, values: Floats) -> Floats:
        return self._times(values, self.sums)

    def product(self, x: Floats, y: Floats) -> Floats:
        """x [..., rows, terms] times y [..., terms, columns]; of the dimensions before these there is one entry."""
        if self.sums == sums.UNIT:
            one = sums.product(x.reshape(x.shape[-2:]), y.reshape(y.shape[-2:]), self._order(y.shape[-2]))
            return one.reshape(*x.shape[:-1], y.shape[-1])
        values = x @ y
        variance = sums.walked(values, np.square(x) @ np.square(y), y.shape[-2], self.sums)
        return np.asarray(values + self._random.standard_normal(values.shape) * np.sqrt(variance))

    def cached(self, values: Floats) -> Floats:
        """Rotated queries or keys as they are multiplied."""
        return values

    def mixed(self, weights: Floats, values: Floats) -> Floats:
        """The output of heads, [heads, rows, head_dim], from weights [heads, rows, positions]."""
        return self.product(weights, values)

    def total(self, x: Floats) -> Floats:
        """The sum of each row, [..., rows, 1]."""
        if self.sums == sums.UNIT:
            return sums.total(x.reshape(-1, x.shape[-1]), self._order(x.shape[-1])).reshape(*x.shape[:-1], 1)
        return self.product(x, np.ones((x.shape[-1], 1)))

    def _order(self, terms: int) -> NDArray[np.int64]:
        """In which this run adds up so many terms, in every row alike: as they come, the other way round, or drawn.
        Rows that are alike are then rounded alike, and small terms are lost on a large one where they come after it."""
        as_they_come = np.arange(terms)
        options = (as_they_come, as_they_come[::-1])
        return options[self.seed] if self.seed < len(options) else np.random.default_rng(self.seed).permutation(terms)

    def _times(self, values: Floats, roundoff: float) -> Floats:
        noise = self._random.random(values.shape, dtype=np.float32) - np.float32(0.5)
        out = values * noise
        out *= 2.0 * roundoff
        out += values
        return np.asarray(out)


class Cached(Rounding):
    """The same of an engine that keeps keys and values in a narrow format, whatever the format of its activations:
    llama.cpp's float16 cache. `weights`: attention's are rounded to it, too."""

    def __init__(self, dtype: str, seed: int, cache: str, weights: bool) -> None:
        super().__init__(dtype, seed)
        self.cache, self.weights = cache, weights

    def cached(self, values: Floats) -> Floats:
        return self._times(values, unit(self.cache))

    def mixed(self, weights: Floats, values: Floats) -> Floats:
        return self.product(self._times(weights, unit(self.cache)) if self.weights else weights, values)


class Emulated:
    """Rounds to the model's format where an implementation does, in its order. `softmax`: each step of the softmax as
    well, its sum added up in that format; `rotary`: positions, rotary frequencies and angles as well; `sums`: the
    values are weighted and added up one by one in that format."""

    def __init__(
        self, dtype: str, scores: int, *, softmax: bool = False, rotary: bool = False, sums: bool = False
    ) -> None:
        self.dtype = dtype
        self.scores = scores  # how often a score is rounded: not, as a product, or again when it is scaled
        self.softmax = softmax
        self.rotary = rotary
        self.sums = sums

    def constant(self, number: float) -> float:
        return number

    def store(self, values: Floats) -> Floats:
        return as_stored(values, self.dtype)

    def score(self, values: Floats, times: int) -> Floats:
        return self.store(values) if times <= self.scores else values

    def angles(self, places: Floats, frequencies: Floats) -> Floats:
        if not self.rotary:
            return np.asarray(places[:, None] * frequencies[None, :])
        return self.store(self.store(places)[:, None] * self.store(frequencies)[None, :])

    def float32(self, values: Floats) -> Floats:
        return values

    def cached(self, values: Floats) -> Floats:
        return values

    def product(self, x: Floats, y: Floats) -> Floats:
        return np.asarray(x @ y)

    def weighted(self, weights: Floats, values: Floats) -> Floats:
        """The output of heads, [heads, rows, head_dim], from weights [heads, rows, positions]: added up from the first
        position on (candle's product of one row in float16)."""
        if not self.sums:
            return self.store(weights @ values)
        total = np.zeros((*weights.shape[:-1], values.shape[-1]))
        for position in range(weights.shape[-1]):
            total = self.store(total + weights[..., position, None] * values[..., None, position, :])
        return total

    def total(self, x: Floats) -> Floats:
        return np.asarray(x.sum(axis=-1, keepdims=True))


class Exact:
    """The same without rounding, but for that of a cache of a stated format."""

    def __init__(self, cache: str | None = None) -> None:
        self.cache = cache

    def cached(self, values: Floats) -> Floats:
        return values if self.cache is None else as_stored(values, self.cache)

    def mixed(self, weights: Floats, values: Floats) -> Floats:
        return np.asarray(weights @ values)

    def constant(self, number: float) -> float:
        return number

    def score(self, values: Floats, times: int) -> Floats:
        return values

    def store(self, values: Floats) -> Floats:
        return values

    def angles(self, places: Floats, frequencies: Floats) -> Floats:
        return np.asarray(places[:, None] * frequencies[None, :])

    def float32(self, values: Floats) -> Floats:
        return values

    def product(self, x: Floats, y: Floats) -> Floats:
        return np.asarray(x @ y)

    def total(self, x: Floats) -> Floats:
        return np.asarray(x.sum(axis=-1, keepdims=True))


class AddedUp(Exact):
    """In the place of a head's output the variance of what is lost where it is added up, one position after the other,
    in a narrow format."""

    def __init__(self, cache: str | None, added: str) -> None:
        super().__init__(cache)
        self.added = added

    def mixed(self, weights: Floats, values: Floats) -> Floats:
        terms = np.count_nonzero(weights, axis=-1, keepdims=True)
        squares = np.square(weights) @ np.square(values)
        return np.asarray(sums.walked(weights @ values, squares, 1, unit(self.added)) * terms)


Arithmetic = Rounding | Emulated | Exact
