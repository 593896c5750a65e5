"""A reference model to replay a trace with: loaded from a folder as transformers writes it, in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tracekit.trace import ENCODER_PREFIX, Sequence, Trace, TraceError
from tracekit_torch.precision import run_in

TOKENS = "token_ids"


def load_reference(folder: str, dtype: str) -> nn.Module:
    """The model of a Hugging Face folder: parameters rounded to `dtype`, as the candidate holds them, arithmetic in
    float64, attention and experts in eager form. Raises TraceError."""
    import transformers

    try:
        declared = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        names = declared.get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise TraceError(f"{folder}: is no model folder: config.json cannot be read ({error})") from None
    kind = next((getattr(transformers, name) for name in names if hasattr(transformers, str(name))), None)
    if kind is None:
        raise TraceError(f"{folder}: config.json: transformers has none of the architectures {names}")
    try:
        model: nn.Module = kind.from_pretrained(
            folder, attn_implementation="eager", dtype=getattr(torch, dtype), local_files_only=True
        ).eval()
    except Exception as error:  # whatever a foreign loader raises
        raise TraceError(f"{folder}: transformers cannot load it: {str(error).splitlines()[0]}") from None
    experts: Any = getattr(model, "set_experts_implementation", None)
    if experts is not None:
        experts("eager")
    run_in(model, "float64")
    return model


def known_tokens(trace: Trace, sequence: Sequence) -> np.ndarray[Any, np.dtype[np.int64]]:
    """i64 [positions]: the prompt's tokens and the sampled ones. Raises TraceError where they are not recorded."""
    prompt = sequence.prompt_ids
    ids = np.concatenate([np.zeros(0, np.int64) if prompt is None else prompt, sequence.tokens]).astype(np.int64)
    if prompt is None or len(ids) < sequence.positions:
        raise TraceError(
            f"{trace.path}: sequence {sequence.index}: {sequence.positions} positions, but the token ids of only "
            f"{len(ids)} are recorded: the reference cannot be run on it"
        )
    return ids[: sequence.positions]


def inputs_of(model: nn.Module, trace: Trace, sequence: Sequence) -> dict[str, Any]:
    """What the model's forward is called with: one prefill of everything that the sequence holds. Raises TraceError."""
    ids = torch.from_numpy(known_tokens(trace, sequence))[None]
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return {"input_ids": ids}
    given = sequence.inputs.get(ENCODER_PREFIX + TOKENS)
    if given is None:
        raise TraceError(f"{trace.path}: sequence {sequence.index}: what the encoder was given is not recorded")
    return {"input_ids": torch.from_numpy(np.asarray(given, dtype=np.int64))[None], "decoder_input_ids": ids}
