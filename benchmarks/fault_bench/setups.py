"""The runs that faults are planted in: a model, its number format, a prompt, how tokens are chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SAMPLED = {"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.95}
GREEDY = {"do_sample": False}


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
    beside: tuple[int, ...] = ()
    """A shorter prompt that shares the batch."""

    @property
    def native(self) -> bool:
        """Whether the engine can run it."""
        return self.model in ("smollm2", "qwen2") and len(self.prompts) < 2


ROME = "The history of Rome began when two brothers"
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
    Setup("encoder", "encoder", prompts=(TINY_PROMPT, tuple(reversed(TINY_PROMPT)))),
]
SETUPS = {setup.name: setup for setup in ALL}
