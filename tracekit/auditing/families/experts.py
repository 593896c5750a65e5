"""Mixtral, Qwen2-MoE and Qwen3-MoE: decoders whose feed-forward blocks are experts, which are taken as recorded."""

from __future__ import annotations

from tracekit.auditing.families.decoder import EXPERTS, WINDOWED, Decoder
from tracekit.auditing.families.mistral import Mistral


class Mixtral(Mistral):
    model_types = ("mixtral",)
    settings = WINDOWED | EXPERTS


class Qwen2Moe(Decoder):
    model_types = ("qwen2_moe",)
    settings = WINDOWED | EXPERTS


class Qwen3Moe(Decoder):
    model_types = ("qwen3_moe",)
    normed_heads = True
    settings = WINDOWED | EXPERTS
