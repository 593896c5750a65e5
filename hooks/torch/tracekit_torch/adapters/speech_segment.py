"""One generation of speech tokens, as far as it has come."""

from __future__ import annotations

import torch

from tracekit.trace import Json
from tracekit_torch.adapter import Row
from tracekit_torch.adapters.ras_step import RasStep
from tracekit_torch.adapters.speech_rows import KnownRows


class Segment:
    """One generation of speech tokens. `arguments` are those of the call that began it, by name."""

    def __init__(self, arguments: Json) -> None:
        self.parts = _parts(arguments)
        self.streams = "tts_text_token_ids" not in self.parts
        """Text comes in pieces while speech tokens are generated."""
        self.given = 0
        """Tokens that the caller got."""
        self.min_len, self.max_len = _limits(arguments, self.parts)
        self.known = KnownRows()
        self.row: Row | None = None
        self.first = 0
        """Position of the first row of the call that goes on."""
        self.logits: torch.Tensor | None = None  # [V] on the host
        self.answered = False
        """The model has answered, and no token was chosen since."""
        self.fed: Json | None = None
        """Rows that were put in after the prompt, other than the last token."""
        self.step: RasStep | None = None
        self.last: int | None = None


def _parts(arguments: Json) -> dict[str, list[int]]:
    """The token ids that the input is made of, by the names of the trace's `prompt/` tensors."""
    names = {
        "prompt_text": "prompt_text_token_ids",
        "text": "tts_text_token_ids",
        "prompt_speech_token": "speech_token_ids",
    }
    out = {}
    for argument, name in names.items():
        value = arguments.get(argument)
        if isinstance(value, torch.Tensor) and not value.is_floating_point():
            out[name] = [int(token) for token in value.reshape(-1).tolist()]
    return out


def _limits(arguments: Json, parts: dict[str, list[int]]) -> tuple[int | None, int | None]:
    """min_len and max_len: as given, else as the model works them out from the length of the text."""
    out = []
    for name, ratio in (("min_len", "min_token_text_ratio"), ("max_len", "max_token_text_ratio")):
        value, factor = arguments.get(name), arguments.get(ratio)
        if not isinstance(value, int) and isinstance(factor, (int, float)) and "tts_text_token_ids" in parts:
            value = int(len(parts["tts_text_token_ids"]) * factor)
        out.append(value if isinstance(value, int) else None)
    return out[0], out[1]
