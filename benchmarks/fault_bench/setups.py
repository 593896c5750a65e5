"""The runs that faults are planted in: a model, its number format, a prompt, how tokens are chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SAMPLED = {"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.95}
GREEDY = {"do_sample": False}
HOT = {"do_sample": True, "temperature": 1.5, "top_k": 0}


@dataclass(frozen=True)
class Shape:
    """What places a model has."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    inner: int
    eps: float
    theta: float = 10000.0


SHAPES = {
    "smollm2": Shape(30, 9, 3, 64, 576, 1536, 1e-5, 100000.0),
    "qwen2": Shape(3, 4, 2, 16, 64, 160, 1e-5),
    "mistral": Shape(3, 4, 2, 16, 64, 160, 1e-5),
    "encoder": Shape(3, 4, 4, 16, 64, 160, 1e-12),
}


NATIVE = ("smollm2", "qwen2", "llama-8-heads", "llama3-rope", "llama-linear")
"""Models that the Rust engine runs."""


@dataclass(frozen=True)
class Setup:
    """One run. `settings` are arguments of `generate`; an encoder is called once instead."""

    name: str
    model: str
    dtype: str = "float32"
    tokens: int = 12
    settings: dict[str, Any] = field(default_factory=lambda: dict(SAMPLED))
    prompts: tuple[tuple[int, ...], ...] = ()
    """Token ids, one row each; empty: the model's own prompt."""
    prompt: str = ""
    """For a model with a real tokenizer."""
    copies: int = 1
    """How often the batch holds the prompt."""
    stop_at: int | None = None
    """The stop ids are 318 and the token that the run without them has at the first step from this one that is new."""
    beside: tuple[int, ...] = ()
    """A shorter prompt that shares the batch."""

    @property
    def native(self) -> bool:
        """Whether the engine can run it."""
        can = self.model in NATIVE and len(self.prompts) < 2 and self.stop_at is None
        return can and "no_repeat_ngram_size" not in self.settings


ENCODERS = ("encoder", "roberta")
"""Models that are called once, without steps."""

ROME = "The history of Rome began when two brothers"
CHAT = "<|im_start|>user\nName three rivers of Italy.<|im_end|>\n<|im_start|>assistant\n"
TINY_PROMPT = (72, 101, 50, 290, 280, 12, 270, 33, 101, 50)

ALL = [
    Setup("smollm2", "smollm2", prompt=ROME),
    Setup("smollm2-greedy", "smollm2", settings=GREEDY, prompt=ROME),
    Setup("smollm2-bf16", "smollm2", dtype="bfloat16", prompt=ROME),
    Setup("qwen2", "qwen2", tokens=24, prompts=(TINY_PROMPT,)),
    Setup(
        "qwen2-penalty",
        "qwen2",
        tokens=24,
        settings={**SAMPLED, "repetition_penalty": 1.3, "temperature": 1.3, "top_p": 0.8},
        prompts=(TINY_PROMPT,),
    ),
    Setup(
        "smollm2-hot-bf16",
        "smollm2",
        "bfloat16",
        settings={"do_sample": True, "temperature": 1.5, "top_k": 0},
        prompt=ROME,
    ),
    Setup("smollm2-ties-bf16", "smollm2", "bfloat16", settings={"do_sample": True, "top_k": 4}, prompt=ROME),
    Setup("qwen2-long", "qwen2", tokens=80, settings=GREEDY, prompts=(TINY_PROMPT,)),
    Setup("mistral", "mistral", tokens=24, prompts=(TINY_PROMPT,)),
    Setup("smollm2-top-k", "smollm2", settings={"do_sample": True, "temperature": 0.8, "top_k": 5}, prompt=ROME),
    Setup("qwen2-open", "qwen2", tokens=24, settings={"do_sample": True, "top_k": 0}, prompts=(TINY_PROMPT,)),
    Setup(
        "qwen2-penalty-open", "qwen2", tokens=24, settings={**HOT, "repetition_penalty": 1.3}, prompts=(TINY_PROMPT,)
    ),
    Setup("qwen2-min-p", "qwen2", tokens=24, settings={**HOT, "min_p": 0.1}, prompts=(TINY_PROMPT,)),
    Setup("qwen2-greedy", "qwen2", tokens=24, settings=GREEDY, prompts=(TINY_PROMPT,)),
    Setup("qwen2-stops", "qwen2", tokens=24, stop_at=9, prompts=(TINY_PROMPT,)),
    Setup(
        "qwen2-minimum",
        "qwen2",
        tokens=24,
        settings={**SAMPLED, "min_new_tokens": 16},
        stop_at=4,
        prompts=(TINY_PROMPT,),
    ),
    Setup("qwen2-ngram", "qwen2", tokens=60, settings={**GREEDY, "no_repeat_ngram_size": 2}, prompts=(TINY_PROMPT,)),
    Setup(
        "qwen2-batch",
        "qwen2",
        tokens=16,
        settings={**HOT, "repetition_penalty": 1.3},
        prompts=(TINY_PROMPT, tuple(reversed(TINY_PROMPT))),
    ),
    Setup("smollm2-chat", "smollm2", prompt=CHAT),
    Setup("gemma2", "gemma2", tokens=16, prompts=(TINY_PROMPT,)),
    Setup("qwen3", "qwen3", tokens=16, prompts=(TINY_PROMPT,)),
    Setup("stablelm", "stablelm", tokens=16, prompts=(TINY_PROMPT,)),
    Setup("gpt2", "gpt2", settings=GREEDY, prompts=(TINY_PROMPT, TINY_PROMPT[:6])),
    Setup("bloom", "bloom", tokens=16, prompts=(TINY_PROMPT,)),
    Setup("roberta", "roberta", prompts=(TINY_PROMPT,)),
    Setup("llama-8-heads", "llama-8-heads", tokens=16, prompts=(TINY_PROMPT,)),
    Setup("llama3-rope", "llama3-rope", tokens=16, prompts=(TINY_PROMPT,)),
    Setup("llama-linear", "llama-linear", tokens=16, prompts=(TINY_PROMPT,)),
    Setup("llama-longrope", "llama-longrope", tokens=16, prompts=(TINY_PROMPT,)),
    Setup("encoder", "encoder", prompts=(TINY_PROMPT, tuple(reversed(TINY_PROMPT)))),
]
SETUPS = {setup.name: setup for setup in ALL}
