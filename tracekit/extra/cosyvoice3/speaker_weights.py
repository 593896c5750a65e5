"""Weights of a CosyVoice checkpoint that its language model does not use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

PART = "spk_embed_affine_layer"


@dataclass(frozen=True)
class SpeakerProjection:
    """One of two checkpoints holds the layer that projects a speaker's embedding."""

    part: str


def speaker_projection(names: Iterable[str]) -> list[SpeakerProjection]:
    """Said where it is among parameters that only one side has."""
    return [SpeakerProjection(PART)] if any(PART in name.split(".") for name in names) else []
