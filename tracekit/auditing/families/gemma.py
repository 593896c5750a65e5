"""Gemma 1, 2 and 3: scaled embeddings, norms that multiply by 1 + weight, soft caps."""

from __future__ import annotations

import math

from tracekit.auditing.families.decoder import WINDOWED, Decoder, Norms, full_every
from tracekit.auditing.operations.operation import Operation
from tracekit.auditing.operations.soft_cap import scaled_logits
from tracekit.trace import Json

CAPPED = frozenset({"query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"})


class Gemma(Decoder):
    model_types = ("gemma",)
    plus_one = True
    usual_activation = "gelu_pytorch_tanh"

    def is_table(self, last: str) -> bool:
        return last == "embed_tokens"

    def embedding_factor(self, declared: Json) -> float:
        return math.sqrt(float(declared.get("hidden_size") or 1.0))

    def activation(self, declared: Json) -> str | None:
        said = super().activation(declared)
        return "gelu_pytorch_tanh" if said == "gelu" else said  # the first checkpoints say gelu and mean this


class Gemma2(Gemma):
    model_types = ("gemma2",)
    norms = Norms.AROUND
    settings = WINDOWED | CAPPED
    needed = CAPPED

    def activation(self, declared: Json) -> str | None:
        return Decoder.activation(self, declared)

    def scale(self, declared: Json, head_dim: int) -> float:
        return float(float(declared.get("query_pre_attn_scalar") or head_dim) ** -0.5)

    def score_cap(self, declared: Json) -> float | None:
        return float(declared.get("attn_logit_softcapping") or 0.0) or None

    def logits(self, declared: Json) -> Operation:
        return scaled_logits(1.0, float(declared.get("final_logit_softcapping") or 0.0) or None)

    def usual_kind(self, declared: Json, layer: int) -> str | None:
        return full_every(2, {}, layer)


class Gemma3(Gemma2):
    model_types = ("gemma3_text",)
    normed_heads = True
    settings = Gemma2.settings | {"sliding_window_pattern", "_sliding_window_pattern", "rope_local_base_freq"}

    def usual_kind(self, declared: Json, layer: int) -> str | None:
        return full_every(6, declared, layer)

    def local_theta(self, declared: Json) -> float | None:
        return float(declared.get("rope_local_base_freq") or 0.0) or None
