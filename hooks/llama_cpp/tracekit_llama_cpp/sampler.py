"""llama.cpp's chain of samplers, run one by one: what each of them left, what was drawn, the token.

Its generator is the C++ library's mt19937; a draw takes two words of 32 bits, the first the lower one, as a number in
[0, 1) of 64 bits. The token is the first at which the running sum of the exponentials reaches that share of their sum.
Source: `llama_sampler_dist_apply` of llama.cpp's src/llama-sampler.cpp; `generate_canonical` of libstdc++.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.torch_rng.generator import TorchGenerator
from tracekit.trace import Json
from tracekit_llama_cpp.library import Library
from tracekit_llama_cpp.options import Options

WORDS = 2
"""Words of 32 bits that a draw takes."""
GENERATOR, OP = "mt19937", "uniform"
CLASSES = {
    "temp": ("TemperatureLogitsWarper", "temperature"),
    "top-k": ("TopKLogitsWarper", "top_k"),
    "top-p": ("TopPLogitsWarper", "top_p"),
    "min-p": ("MinPLogitsWarper", "min_p"),
}
"""llama.cpp's names of samplers: transformers' class that does the same, and its number."""
CANDIDATE = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])


@dataclass(frozen=True)
class Choice:
    """One step. `ids` and `probs` are those that could be drawn, descending; None where none was drawn."""

    token: int
    ids: NDArray[np.int64] | None
    probs: NDArray[np.float32] | None
    draws: list[Json]
    values: list[float]
    events: list[Json]


class Chain:
    """The samplers that options ask for, in llama.cpp's order: top-k, top-p, min-p, temperature, draw."""

    def __init__(self, library: Library, options: Options) -> None:
        self._ffi, self._lib, self._library = library.ffi, library.lib, library
        self._options = options
        self._chain = self._lib.llama_sampler_chain_init(self._lib.llama_sampler_chain_default_params())
        for make in self._asked():
            self._lib.llama_sampler_chain_add(self._chain, make())
        self._generator = TorchGenerator(options.seed)

    def _asked(self) -> list[Callable[[], Any]]:
        lib, options = self._lib, self._options
        if not options.sampled:
            return [lib.llama_sampler_init_greedy]
        asked: list[Callable[[], Any]] = []
        if options.top_k:
            asked.append(lambda: lib.llama_sampler_init_top_k(options.top_k))
        if options.top_p < 1.0:
            asked.append(lambda: lib.llama_sampler_init_top_p(options.top_p, 1))
        if options.min_p:
            asked.append(lambda: lib.llama_sampler_init_min_p(options.min_p, 1))
        asked.append(lambda: lib.llama_sampler_init_temp(options.temperature))
        return [*asked, lambda: lib.llama_sampler_init_dist(options.seed)]

    def choose(self, logits: NDArray[np.float32]) -> Choice:
        """The token of a step, as `llama_sampler_sample` chooses it."""
        candidates = np.zeros(logits.size, CANDIDATE)
        candidates["id"], candidates["logit"] = np.arange(logits.size), logits
        array = self._ffi.new("struct llama_token_data_array *")
        array.data = self._ffi.cast("struct llama_token_data *", self._ffi.from_buffer(candidates))
        array.size, array.selected, array.sorted = logits.size, -1, False
        events = []
        for index in range(self._lib.llama_sampler_chain_n(self._chain)):
            sampler = self._lib.llama_sampler_chain_get(self._chain, index)
            self._lib.llama_sampler_apply(sampler, array)
            event = self._event(sampler, int(array.size))
            events += [] if event is None else [event]
        left = self._left(array)
        token = int(left["id"][array.selected])
        if not self._options.sampled:
            return Choice(token, None, None, [], [], events)
        # What the draw adds up in order of: filters sort the candidates, or leave them by id.
        events.append({"kind": "order", "detail": "probability" if array.sorted else "id"})
        order = np.lexsort((left["id"], -left["p"]))
        ids, probs = left["id"][order].astype(np.int64), left["p"][order].copy()
        place, value = self._drawn()
        return Choice(token, ids, probs, [place | {"op": OP, "result": token}], [value], events)

    def accept(self, token: int) -> None:
        """The step goes on with a token."""
        for index in range(self._lib.llama_sampler_chain_n(self._chain)):
            self._lib.llama_sampler_accept(self._lib.llama_sampler_chain_get(self._chain, index), token)

    def close(self) -> None:
        """Free the samplers."""
        self._lib.llama_sampler_free(self._chain)

    def _left(self, array: Any) -> NDArray[Any]:
        held = self._ffi.buffer(array.data, array.size * CANDIDATE.itemsize)
        return np.frombuffer(held, CANDIDATE).copy()

    def _event(self, sampler: Any, left: int) -> Json | None:
        known = CLASSES.get(self._library.text(self._lib.llama_sampler_name(sampler)))
        if known is None:
            return None
        name, number = known
        settings = {number: getattr(self._options, number)}
        return {"kind": "processor", "detail": {"class": name, "settings": settings, "survivors": left}}

    def _drawn(self) -> tuple[Json, float]:
        """Where in the stream the step's draw lay, and the number in [0, 1) that it gave."""
        offset = self._generator.offset
        low, high = (int(word) for word in self._generator.words(WORDS))
        place = {"generator": GENERATOR, "seed": self._options.seed, "offset": offset, "words": WORDS}
        return place, uniform(low, high)


def uniform(low: int, high: int) -> float:
    """The number in [0, 1) of two words."""
    return min((low + high * 2.0**32) / 2.0**64, float(np.nextafter(1.0, 0.0)))
