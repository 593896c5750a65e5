"""Mistral: all layers have the declared window."""

from __future__ import annotations

from tracekit.auditing.families.decoder import WINDOWED, Decoder
from tracekit.trace import Json


class Mistral(Decoder):
    model_types = ("mistral",)
    settings = WINDOWED

    def unlisted_window(self, declared: Json, layer: int) -> int | None:
        return int(declared["sliding_window"])
