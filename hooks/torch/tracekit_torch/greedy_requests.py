"""Greedy generation with a causal model of transformers, in the ways in which an engine serves a request.

The same request may be read in chunks, made again in the same process, on a kept prefix of the cache, or beside others
in a batch: what `tracekit check --engine transformers` compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import tracekit_torch
from tracekit.errors import first_line
from tracekit.trace import TraceError
from tracekit_torch.named_arguments import parameters_of


@dataclass(frozen=True)
class Request:
    """A prompt's ids, and how it is served. `chunk`: tokens of a prefill call, 0 for all; `keep_prefix`: positions of
    the cache that a later request keeps; `batch`: rows of a call, of which the request's is the second."""

    ids: tuple[int, ...]
    max_new_tokens: int = 16
    chunk: int = 0
    requests: int = 1
    keep_prefix: int = 0
    batch: int = 1


def load(folder: str, dtype: str | None, attention: str | None) -> Any:
    """A model of transformers, of a folder or a GGUF file, in the dtype that its folder states where none is given; a
    file's blocks as the float32 numbers that they stand for. Raises TraceError."""
    try:
        import transformers
    except ImportError:
        raise TraceError("--engine transformers needs transformers: pip install transformers") from None
    if dtype is not None and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise TraceError(f"--dtype {dtype}: give float64, float32, bfloat16 or float16")
    where, how = _place(folder)
    held = ("float32" if how else "auto") if dtype is None else getattr(torch, dtype)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            where, dtype=held, attn_implementation=attention, **how
        )
    except Exception as error:  # of a damaged GGUF file it may be any
        raise TraceError(f"{folder}: cannot be loaded: {first_line(error)}") from None
    model.config._name_or_path = folder  # of a GGUF file, transformers keeps the folder that it is in
    return model.eval()


def _place(path: str) -> tuple[str, dict[str, str]]:
    """What transformers is given for a folder or the name of a model, and for a GGUF file."""
    if not path.endswith(".gguf"):
        return path, {}
    return str(Path(path).parent), {"gguf_file": Path(path).name}


def ids_of(folder: str, text: str | None, listed: str | None) -> tuple[int, ...]:
    """Token ids of a text, by the folder's tokenizer, or those that are listed. Raises TraceError."""
    if text is None:
        words = [word.strip() for word in (listed or "").split(",")]
        if not all(word.isdecimal() for word in words):
            raise TraceError("--prompt-ids: give numbers with commas between them")
        return tuple(map(int, words))
    import transformers

    where, how = _place(folder)
    try:
        ids = transformers.AutoTokenizer.from_pretrained(where, **how)(text)["input_ids"]
    except Exception as error:  # the tokenizers library raises no other of a damaged vocabulary
        raise TraceError(f"{folder}: has no tokenizer: {first_line(error)}; give --prompt-ids") from None
    if not ids:
        raise TraceError("--prompt: makes no token; give a longer one")
    return tuple(ids)


def record(model: Any, out: Path, request: Request) -> list[list[int]]:
    """Serve a request and record it into `out`: the tokens of each sequence."""
    tokens: list[list[int]] = []
    with tracekit_torch.record(model, out), torch.no_grad():
        cache: Any = None
        for _ in range(request.requests):
            kept = 0 if cache is None else min(request.keep_prefix, len(request.ids) - 1)
            cache = _kept(cache, kept)
            tokens += _served(model, request, cache, kept)
    return tokens


def _kept(cache: Any, rows: int) -> Any:
    """A cache that holds the first rows of another one."""
    from transformers import DynamicCache

    if not rows:
        return DynamicCache()
    cache.crop(rows - cache.get_seq_length())  # how many are taken off the end: other versions do not take a length
    return cache


def _served(model: Any, request: Request, cache: Any, kept: int) -> list[list[int]]:
    ids, mask = _rows(request)
    named = "cache" if "cache" in parameters_of(model) else "past_key_values"
    chunk = request.chunk or ids.shape[1]
    places = (mask.cumsum(1) - 1).clamp(min=0)
    chosen: list[torch.Tensor] = []
    logits = torch.empty(0)

    def call(part: torch.Tensor, stop: int, places: torch.Tensor) -> torch.Tensor:
        more = {} if request.batch == 1 else {"attention_mask": mask[:, :stop], "position_ids": places}
        out: torch.Tensor = model(input_ids=part, use_cache=True, **{named: cache}, **more).logits[:, -1]
        return out

    for first in range(kept, ids.shape[1], chunk):
        part = ids[:, first : first + chunk]
        stop = first + part.shape[1]
        logits = call(part, stop, places[:, first:stop])
    for step in range(request.max_new_tokens):
        token = logits.argmax(-1, keepdim=True)
        chosen.append(token)
        mask = torch.cat([mask, torch.ones_like(token)], dim=1)
        if step + 1 < request.max_new_tokens:
            logits = call(token, mask.shape[1], mask.sum(1, keepdim=True) - 1)
    rows: list[list[int]] = torch.cat(chosen, dim=1).tolist()
    return rows


def _rows(request: Request) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, padded on the left: the request, and beside it the beginnings of it."""
    ids = list(request.ids)
    beside = [ids[: max(1, len(ids) * (row + 1) // (request.batch + 1))] for row in range(request.batch - 1)]
    prompts = [*beside[:1], ids, *beside[1:]]
    longest = max(map(len, prompts))
    padded = [[ids[0]] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(padded), torch.tensor(mask)
