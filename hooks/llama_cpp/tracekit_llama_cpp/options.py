"""How a model is run by llama.cpp, and how much of the run is recorded."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from tracekit.programs.levels import LEVELS, keeps
from tracekit.trace import Json, Trace, TraceError

CACHE_TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2}
"""Formats of cached keys and values, by ggml's number of each."""
FLASH = {"auto": -1, "off": 0, "on": 1}


@dataclass(frozen=True)
class Options:
    """How a generation is run and recorded. Raises TraceError for a value that is not valid."""

    max_new_tokens: int = 32
    seed: int = 0
    temperature: float = 0.0
    """0: greedy decoding."""
    top_k: int = 0
    """0: all tokens."""
    top_p: float = 1.0
    min_p: float = 0.0
    level: str = "all"
    """`tokens`, `logits`, `layers` or `all`."""
    sites: str | None = None
    """Regular expression; only sites whose name it finds are kept."""
    follow: str | None = None
    """Path of the trace whose tokens are forced."""
    threads: int = 1
    context: int = 0
    """Positions; 0: as many as the prompt and the new tokens need."""
    batch: int = 2048
    """Tokens of one `llama_decode`; `micro_batch`: of one run of the graph."""
    micro_batch: int = 512
    flash_attention: str = "auto"
    """`auto`, `on` or `off`."""
    cache_type: str = "f16"
    """Format of cached keys and values: `f32`, `f16`, `bf16`, `q8_0` or `q4_0`."""
    repack: bool = True
    """Whether llama.cpp may reorder weights for its vector kernels."""
    requests: int = 1
    """How often the generation is made, one after the other in one context."""
    keep_prefix: int = 0
    """Positions of the cache that a later request keeps, at most all but the prompt's last."""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("level", self.level, LEVELS),
            ("flash-attention", self.flash_attention, FLASH),
            ("cache-type", self.cache_type, CACHE_TYPES),
        ):
            if value not in allowed:
                raise TraceError(f"--{name} {value}: give one of {', '.join(allowed)}")
        for name, number, least in (
            ("max-new-tokens", self.max_new_tokens, 1),
            ("threads", self.threads, 1),
            ("batch", self.batch, 1),
            ("micro-batch", self.micro_batch, 1),
            ("context", self.context, 0),
            ("requests", self.requests, 1),
            ("keep-prefix", self.keep_prefix, 0),
            ("top-k", self.top_k, 0),
            ("temperature", self.temperature, 0),
        ):
            if not least <= number < 1 << 31:
                raise TraceError(f"--{name} {number}: give {least} or more")
        for name, share in (("top-p", self.top_p), ("min-p", self.min_p)):
            if not 0.0 <= share <= 1.0:
                raise TraceError(f"--{name} {share}: give a probability")
        if not 0 <= self.seed < (1 << 32) - 1:
            raise TraceError(f"--seed {self.seed}: give a number of 32 bits; llama.cpp's generator takes no other")
        try:
            re.compile(self.sites or "")
        except re.error as error:
            raise TraceError(f"--sites {self.sites}: not a regular expression: {error}") from None

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn."""
        return self.temperature > 0.0

    def keeps(self, name: str) -> bool:
        """Whether the level and the pattern want the site of this name."""
        return keeps(self.level, self.sites, name)

    def sampling(self, stops: list[int]) -> Json:
        """As a sequence's `sampling` says it, by the names of transformers' GenerationConfig."""
        settings: Json = {"do_sample": self.sampled, "max_new_tokens": self.max_new_tokens, "eos_token_id": stops}
        if not self.sampled:
            return settings
        asked = {"top_k": self.top_k or None, "min_p": self.min_p or None}
        asked |= {"top_p": self.top_p if self.top_p < 1.0 else None, "temperature": self.temperature}
        return settings | {name: value for name, value in asked.items() if value is not None}

    @classmethod
    def of(cls, trace: Trace) -> Options:
        """Those of a recorded run, all of it recorded. Raises TraceError where a trace does not state them."""
        said = trace.config.get("recorder")
        engine = said.get("engine") if isinstance(said, dict) else None
        sampling, seed = trace.sequences[0].sampling, trace.sequences[0].seed
        drawn = {name: sampling[name] for name in ("temperature", "top_k", "top_p", "min_p") if name in sampling}
        given: dict[str, Any] = {"max_new_tokens": sampling.get("max_new_tokens"), "seed": seed} | drawn
        given |= engine if isinstance(engine, dict) else {}
        for each in fields(cls):
            value, default = given.get(each.name, each.default), each.default
            if type(value) is not type(default) and not (type(default) is float and type(value) is int):
                raise TraceError(f"{trace.path}: does not say with what {each.name} llama.cpp ran; record it again")
        names = {each.name for each in fields(cls)} - {"level", "sites", "follow"}
        return cls(**{name: value for name, value in given.items() if name in names})

    def as_json(self) -> Json:
        """As the trace's `recorder` object holds it."""
        how: Json = {"threads": self.threads, "batch": self.batch, "micro_batch": self.micro_batch}
        how |= {"context": self.context} if self.context else {}
        how |= {"flash_attention": self.flash_attention, "cache_type": self.cache_type, "repack": self.repack}
        how |= {"requests": self.requests, "keep_prefix": self.keep_prefix} if self.requests > 1 else {}
        return {"level": self.level, "sites": self.sites, "follow": self.follow, "engine": how}
