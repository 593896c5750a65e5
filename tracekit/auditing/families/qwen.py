"""Qwen2, Qwen3, and CosyVoice3's speech-token language model, which is a Qwen2."""

from __future__ import annotations

from typing import ClassVar

from tracekit.auditing.families.decoder import WINDOWED, Decoder
from tracekit.trace import Json


class Qwen2(Decoder):
    model_types: ClassVar[tuple[str, ...]] = ("qwen2", "cosyvoice3")
    settings = WINDOWED

    def unlisted_window(self, declared: Json, layer: int) -> int | None:
        if not declared.get("use_sliding_window"):
            return None
        return int(declared["sliding_window"]) if layer >= int(declared["max_window_layers"]) else None


class Qwen3(Qwen2):
    model_types: ClassVar[tuple[str, ...]] = ("qwen3",)
    normed_heads = True
