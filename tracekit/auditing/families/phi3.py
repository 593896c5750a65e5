"""Phi-3: Mistral's layers with fused projections."""

from __future__ import annotations

from tracekit.auditing.families.decoder import WINDOWED
from tracekit.auditing.families.mistral import Mistral


class Phi3(Mistral):
    model_types = ("phi3",)
    settings = WINDOWED | {"original_max_position_embeddings"}
