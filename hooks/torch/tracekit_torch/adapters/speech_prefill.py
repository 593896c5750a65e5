"""A speech-token language model run once over all rows of a recorded segment, without a cache and without a mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch

from tracekit.trace import Sequence, Trace
from tracekit_torch.adapters.speech_rows import Vocabulary
from tracekit_torch.not_run import NotRun

Ids: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


class Logits:
    """What the model gives: `logits` [1, positions, speech tokens]."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


def speech_prefill(model: Any, trace: Trace, sequence: Sequence) -> Callable[[], Logits]:
    """What looks the rows up in both tables and runs the Qwen2 inside, and `llm_decoder`, over them. Raises TraceError
    where rows of neither table are among them."""
    ids, tables = _rows(trace, sequence)
    if (tables == Vocabulary.NEITHER).any():
        position = int((tables == Vocabulary.NEITHER).argmax())
        raise NotRun(
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


def _rows(trace: Trace, sequence: Sequence) -> tuple[Ids, Ids]:
    """Token and table of each position, i64 [positions] both: those of the prompt, of the sampled tokens, which are
    speech, and of rows that were put in between."""
    given = sequence.inputs.get("vocabulary")
    if given is None or sequence.prompt_ids is None:
        raise NotRun(f"{trace.path}: sequence {sequence.index}: which table each row is from is not recorded")
    count = sequence.positions
    ids, tables = np.zeros(count, np.int64), np.full(count, Vocabulary.NEITHER, np.int64)

    def fill(first: int, tokens: Any, of: Any) -> None:
        stop = min(first + len(tokens), count)
        ids[first:stop], tables[first:stop] = tokens[: stop - first], of[: stop - first]

    fill(0, sequence.prompt_ids, np.asarray(given))
    for index in range(sequence.step_count):
        step = sequence.step(index)
        fill(step.position + 1, [step.token], [Vocabulary.SPEECH])
    for event in sequence.events:
        if event.kind == "input":
            fill(event.detail["position"], event.detail["token_ids"], event.detail["vocabulary"])
    return ids, tables
