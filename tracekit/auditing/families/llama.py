"""Llama."""

from __future__ import annotations

from tracekit.auditing.families.decoder import Decoder


class Llama(Decoder):
    model_types = ("llama",)
