"""Granite: factors on embeddings, scores, branches and logits."""

from __future__ import annotations

from tracekit.auditing.families.decoder import Decoder
from tracekit.auditing.operations.operation import Operation
from tracekit.auditing.operations.soft_cap import scaled_logits
from tracekit.trace import Json


class Granite(Decoder):
    model_types = ("granite",)
    settings = frozenset({"embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"})

    def residual_factor(self, declared: Json) -> float:
        return float(declared.get("residual_multiplier") or 1.0)

    def scale(self, declared: Json, head_dim: int) -> float:
        return float(declared.get("attention_multiplier") or super().scale(declared, head_dim))

    def logits(self, declared: Json) -> Operation:
        return scaled_logits(1.0 / float(declared.get("logits_scaling") or 1.0))
