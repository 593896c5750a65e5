"""SmolLM3: some layers have no rotary embedding."""

from __future__ import annotations

from tracekit.auditing.families.decoder import WINDOWED, Decoder
from tracekit.trace import Json


class SmolLM3(Decoder):
    model_types = ("smollm3",)
    settings = WINDOWED | {"no_rope_layers", "no_rope_layer_interval"}

    def is_rotated(self, declared: Json, layer: int) -> bool:
        rotated = declared.get("no_rope_layers")
        if isinstance(rotated, list) and layer < len(rotated):
            return bool(rotated[layer])
        return (layer + 1) % int(declared.get("no_rope_layer_interval") or 4) != 0
