"""The models that drawn programs run: tiny and at random, of every way in which a model keeps what it has read."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tracekit_torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from tracekit_torch.reference_program.loading import prepared

from tests import tiny_families


class Kind(Enum):
    """How a model is fed, and what it keeps."""

    DECODER = "decoder"
    RECURRENT = "recurrent"
    READER = "encoder and decoder"
    PORT = "port"


FAMILIES = {
    Kind.DECODER: (
        *("llama", "gemma3", "qwen3", "gpt2", "mistral", "phi3", "gptneox", "olmo2", "cohere2", "opt", "bloom"),
        *("mixtral", "qwen3moe", "deepseekv3", "gptoss"),
    ),
    Kind.RECURRENT: (*tiny_families.RECURRENT, "qwen3next"),
    Kind.READER: tuple(tiny_families.ENCODER_DECODERS),
    Kind.PORT: ("keeps", "given", "whole"),
}
"""None of `tiny_families.UNTUNED`: what these programs find is mended."""
WIDTH, HEADS = 32, 4
Kept = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one block, `[batch, heads, time, width]`."""
Cache = list[Kept]


class Block(nn.Module):
    """Attention over what is kept, and a gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.RMSNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(
        self, x: torch.Tensor, kept: tuple[torch.Tensor, torch.Tensor] | None, mask: torch.Tensor | None
    ) -> Any:
        """What it gives, and the keys and values so far `[batch, heads, time, width]`."""
        batch, time, _ = x.shape
        split = self.qkv(self.before(x)).view(batch, time, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        if kept is not None:
            key, value = torch.cat([kept[0], key], 2), torch.cat([kept[1], value], 2)
        past = key.shape[2] - time
        seen = torch.ones(time, key.shape[2], dtype=torch.bool).tril(past)[None, None]
        if mask is not None:
            seen = seen & mask[:, None, None, : key.shape[2]].bool() | torch.eye(time, key.shape[2]).bool().roll(
                past, 1
            )
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, time, WIDTH))
        gate, up = self.up(self.between(x)).chunk(2, -1)
        return x + self.down(functional.silu(gate) * up), (key, value)


class Port(nn.Module):
    """A decoder of one's own. `keeps`: the cache is its own, and it is told where a call starts; `given`: it is given
    one and gives it back; `whole`: it reads all tokens again."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.table, self.places = nn.Embedding(160, WIDTH), nn.Embedding(128, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm, self.lm_head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 160, bias=False)
        self.kept: Cache = []

    def forward(self, ids: torch.Tensor, *given: Any, **named: Any) -> Any:
        """Logits `[batch, time, 160]`; with `given`, the cache too."""
        return getattr(self, f"_{self.way}")(ids, *given, **named)

    def _keeps(self, ids: torch.Tensor, start: int = 0, mask: torch.Tensor | None = None) -> torch.Tensor:
        logits, self.kept = self._run(ids, start, self.kept if start else [], mask)
        return logits

    def _given(self, ids: torch.Tensor, cache: Cache | None = None, mask: torch.Tensor | None = None) -> Any:
        return self._run(ids, cache[0][0].shape[2] if cache else 0, cache or [], mask)

    def _whole(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self._run(ids, 0, [], mask)[0]

    def _run(
        self, ids: torch.Tensor, start: int, cache: Cache, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, Cache]:
        at = torch.arange(start, start + ids.shape[1])[None]
        if mask is not None:
            at = (mask.long().cumsum(1) - 1).clamp(min=0)[:, start : start + ids.shape[1]]
        x, kept = self.table(ids) + self.places(at), []
        for index, block in enumerate(self.blocks):
            x, held = block(x, cache[index] if cache else None, mask)
            kept.append(held)
        return self.lm_head(self.norm(x)), kept


@dataclass(frozen=True)
class Subject:
    """A model that programs run."""

    kind: Kind
    family: str
    attention: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.family}, {self.attention}, {str(self.dtype).removeprefix('torch.')}"

    def checkpoint(self, folders: Path) -> Path:
        """Its weights: a folder of transformers, or a file."""
        path = folders / (f"{self.family}.safetensors" if self.kind is Kind.PORT else self.family)
        if path.exists():
            return path
        if self.kind is Kind.PORT:
            torch.manual_seed(12)
            save_file({name: value * 2 for name, value in Port(self.family).state_dict().items()}, path)
        else:
            tiny_families.make(self.family, path)
        return path

    def model(self, folders: Path) -> Any:
        """A model of it, as a program loads it."""
        path = self.checkpoint(folders)
        if self.kind is not Kind.PORT:
            attention = None if self.family in ("rwkv",) else self.attention
            return tiny_families.load(path, attention, name=self.family).to(self.dtype)
        model = Port(self.family)
        model.load_state_dict(load_file(path))
        return model.eval().to(self.dtype)

    def reference(self, folders: Path) -> Any:
        """What judges its traces."""
        if self.kind is not Kind.PORT:
            return tracekit_torch.by_reference(str(self.checkpoint(folders)))
        return tracekit_torch.by_reference(partial(self._prepared, folders), "the port")

    def _prepared(self, folders: Path, dtype: str) -> Any:
        return prepared(Subject(self.kind, self.family, self.attention, torch.float32).model(folders), dtype)


def subject(draw: random.Random) -> Subject:
    """Any."""
    kind = draw.choice([Kind.DECODER, Kind.DECODER, Kind.RECURRENT, Kind.RECURRENT, Kind.READER, Kind.PORT])
    dtype = draw.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16])
    return Subject(kind, draw.choice(FAMILIES[kind]), draw.choice(["eager", "sdpa"]), dtype)
