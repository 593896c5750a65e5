"""Which models speak: recognised by the names of class and methods, wherever they are defined."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from torch import nn

from tracekit.trace import NOT_THE_LOGITS
from tracekit_torch import describe
from tracekit_torch.adapter import About

MODEL_NAMES = ("CosyVoice3LM", "Qwen2LM")
PARTS = ("llm", "llm_decoder", "speech_embedding", "sampling_ids", "sampling", "speech_token_size", "inference")
"""What such a model has."""
BLANK = "CosyVoice-Blank"
"""How the Qwen2's own folder inside a model folder begins."""


def is_speech_class(kind: type) -> bool:
    """Whether a class is such a model, or derived from one."""
    return any(base.__name__ in MODEL_NAMES for base in kind.__mro__)


def knows(module: nn.Module) -> bool:
    """Whether `module` is a speech-token language model that can be recorded."""
    if not is_speech_class(type(module)) or not all(hasattr(module, part) for part in PARTS):
        return False
    return isinstance(getattr(module.llm, "model", None), nn.Module)


def silent_tokens(model: Any) -> list[int] | None:
    """The speech tokens of which the object that runs `model` drops those after the fifth in a row (upstream's
    `CosyVoice3Model.llm_job`); None where nothing holds the model in that way."""
    for holder in gc.get_referrers(model):
        held = holder if isinstance(holder, dict) else getattr(holder, "__dict__", {})
        tokens = held.get("silent_tokens") if held.get("llm") is model else None
        if isinstance(tokens, list | tuple) and all(isinstance(token, int) for token in tokens):
            return list(tokens)
    return None


def about(model: Any) -> About:
    """What the trace says of the model, and which of its modules do not count."""
    inner = model.llm.model
    third = any(base.__name__ == "CosyVoice3LM" for base in type(model).__mro__)
    told = describe.model_config(inner) | {
        "model_type": "cosyvoice3" if third else "cosyvoice2",
        "class": type(model).__name__,
        "speech_token_size": int(model.speech_token_size),
    }
    unused: dict[nn.Module, str] = {inner: NOT_THE_LOGITS}
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if isinstance(head, nn.Module):
        unused[head] = NOT_THE_LOGITS
    return About(told, _folder(inner), inner, unused)


def _folder(inner: nn.Module) -> str | None:
    """The model folder: the Qwen2 inside comes from a folder in it."""
    name = describe.checkpoint(inner)
    if name is None or not Path(name).is_dir():
        return name
    path = Path(name).resolve()
    return str(path.parent if path.name.startswith(BLANK) else path)
