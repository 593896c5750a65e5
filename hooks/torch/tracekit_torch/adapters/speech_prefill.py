"""A speech-token language model run once over all rows of a recorded segment, without a cache and without a mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tracekit.trace import Sequence, Trace, TraceError
from tracekit_torch.adapters.plain_prefill import known_tokens
from tracekit_torch.adapters.speech_rows import Vocabulary


class Logits:
    """What the model gives: `logits` [1, positions, speech tokens]."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


def speech_prefill(model: Any, trace: Trace, sequence: Sequence) -> Callable[[], Logits]:
    """What looks the rows up in both tables and runs the Qwen2 inside, and `llm_decoder`, over them. Raises TraceError
    where rows of neither table are among them."""
    ids, tables = known_tokens(trace, sequence), _vocabulary(trace, sequence)
    if (tables == Vocabulary.NEITHER).any():
        position = int((tables == Vocabulary.NEITHER).argmax())
        raise TraceError(
            f"{trace.path}: sequence {sequence.index}: the row at position {position} is no token's embedding: the "
            "reference cannot be run on it"
        )
    text = torch.from_numpy(tables == Vocabulary.TEXT)[None]
    tokens = torch.from_numpy(ids)[None]

    def run() -> Logits:
        inner = model.llm.model
        # Each table over all rows: a position of the sequence is a row of what it gives.
        words = inner.get_input_embeddings()(tokens.where(text, 0))
        speech = model.speech_embedding(tokens.where(~text, 0))
        out = inner(inputs_embeds=words.where(text[..., None], speech), output_hidden_states=True, use_cache=False)
        return Logits(model.llm_decoder(out.hidden_states[-1]))

    return run


def _vocabulary(trace: Trace, sequence: Sequence) -> np.ndarray[Any, np.dtype[np.int64]]:
    """i64 [positions]: the table of each row. Sampled tokens are speech, but for those that were fed instead."""
    given = sequence.inputs.get("vocabulary")
    if given is None:
        raise TraceError(f"{trace.path}: sequence {sequence.index}: which table each row is from is not recorded")
    tables = np.full(sequence.positions, Vocabulary.SPEECH, np.int64)
    tables[: len(given)] = np.asarray(given)[: sequence.positions]
    return tables
