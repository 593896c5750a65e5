"""OLMo 2 and 3: norms after each block; OLMo 3 with a window in three layers of four."""

from __future__ import annotations

from tracekit.auditing.families.decoder import WINDOWED, Decoder, Norms, full_every
from tracekit.trace import Json


class Olmo2(Decoder):
    model_types = ("olmo2",)
    norms = Norms.AFTER
    normed_heads = True


class Olmo3(Olmo2):
    model_types = ("olmo3",)
    settings = WINDOWED

    def usual_kind(self, declared: Json, layer: int) -> str | None:
        return full_every(4, declared, layer)
