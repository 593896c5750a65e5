"""What drawn programs do with a model. Each operation is drawn once, and then run on any model of its kind."""

from __future__ import annotations

import contextlib
import inspect
import random
import threading
from collections.abc import Callable
from typing import Any

import torch
import transformers

from benchmarks.drawn_programs.models import Kind, Subject
from tests import tiny_families

LENGTHS = (1, 2, 7, 12)
STOP = tiny_families.SIZES["eos_token_id"]
Run = Callable[[Any], list[list[int]]]
"""What an operation does with a model, and the tokens of each generation that it made."""


class _Fails(transformers.LogitsProcessor):
    """Fails at a step of a generation."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("a processor fails")
        return scores


def _ids(draw: random.Random, batch: int = 1, least: int = 1) -> torch.Tensor:
    length = draw.choice([length for length in LENGTHS if length >= least])
    return torch.tensor([[draw.randrange(3, 150) for _ in range(length)] for _ in range(batch)])


def _padded(draw: random.Random, ids: torch.Tensor, side: str) -> torch.Tensor:
    """Put padding into all rows of `ids` but the last, and give the mask."""
    mask = torch.ones_like(ids)
    batch, time = ids.shape
    if batch > 1 and time > 2:
        for row in range(batch - 1):
            pad = draw.randrange(0, time - 1)
            at = slice(0, pad) if side == "left" else slice(time - pad, time)
            mask[row, at] = 0
            ids[row, at] = 0
    return mask


def _sampling(draw: random.Random) -> dict[str, Any]:
    told: tuple[dict[str, Any], ...] = (
        {},
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[7], [11, 12]]},
        {"suppress_tokens": [5, 6, 9]},
        {"min_new_tokens": 2},
        {"sequence_bias": [[[8], 3.0], [[9, 10], -2.0]]},
        {"exponential_decay_length_penalty": (1, 1.2)},
    )
    if draw.random() < 0.4:
        return {"do_sample": False} | draw.choice(told)
    kinds = (
        *({"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.05}, {"top_k": 0}, {"typical_p": 0.9}, {"epsilon_cutoff": 0.01}),
        *({"top_k": 30, "top_p": 0.9}, {"eta_cutoff": 0.01}, {"top_h": 0.5}, {"renormalize_logits": True}),
    )
    temperature = {"do_sample": True, "temperature": draw.choice([0.7, 1.0, 1.4])}
    return temperature | draw.choice(kinds) | draw.choice([*[told[0]] * 5, *told])


def _until_stop(rows: list[list[int]]) -> list[list[int]]:
    return [row[: row.index(STOP) + 1] if STOP in row else row for row in rows]


def _read(draw: random.Random, subject: Subject, batch: int) -> dict[str, Any]:
    """What an encoder is given."""
    if subject.family == "whisper":
        noise = torch.randn(batch, 16, 40, generator=torch.Generator().manual_seed(draw.randrange(1000)))
        return {"input_features": noise.to(subject.dtype)}
    ids = _ids(draw, batch)
    return {"input_ids": ids, "attention_mask": _padded(draw, ids, draw.choice(["right", "right", "left"]))}


# ---------------------------------------------------------------- generations


def generates(draw: random.Random, subject: Subject) -> Run:
    """`generate`, of one row or several."""
    batch, settings, count = draw.choice([1, 1, 2, 3]), _sampling(draw), draw.randrange(1, 6)
    settings |= draw.choice([{}, {}, {"output_scores": True, "output_hidden_states": True}])
    settings |= draw.choice([{}, {}, {}, {"use_cache": False}, {"cache_implementation": "static"}])
    if settings["do_sample"] and batch == 1:
        settings |= draw.choice([{}, {}, {"num_return_sequences": 2}])
    if subject.kind is Kind.READER:
        given, skipped = _read(draw, subject, batch), 1
        if subject.family == "whisper":
            settings |= {"min_new_tokens": count}
        elif draw.random() < 0.3:
            given["decoder_input_ids"], skipped = torch.cat([torch.full((batch, 1), 3), _ids(draw, batch)], 1), None
    else:
        ids = _ids(draw, batch)
        given, skipped = {"input_ids": ids, "attention_mask": _padded(draw, ids, "left")}, ids.shape[1]
        if draw.random() < 0.1 and batch == 1:
            settings["prefill_chunk_size"] = 3
    if skipped is None:
        skipped = given["decoder_input_ids"].shape[1]

    def run(model: Any) -> list[list[int]]:
        out = model.generate(**given, max_new_tokens=count, return_dict_in_generate=True, pad_token_id=0, **settings)
        rows = out.sequences if hasattr(out, "sequences") else out
        return _until_stop(rows[:, -count if subject.family == "whisper" else skipped :].tolist())

    return run


def generates_from_embeddings(draw: random.Random, subject: Subject) -> Run:
    """`generate`, given embeddings instead of ids."""
    ids, settings = _ids(draw), _sampling(draw)
    settings.pop("no_repeat_ngram_size", None), settings.pop("repetition_penalty", None)

    def run(model: Any) -> list[list[int]]:
        given = model.get_input_embeddings()(ids).detach()
        out = model.generate(inputs_embeds=given, max_new_tokens=3, pad_token_id=0, **settings)
        return _until_stop(out.tolist())

    return run


def generates_after_a_prefill(draw: random.Random, subject: Subject) -> Run:
    """`generate` with the cache of a call before it."""
    ids, settings, left = _ids(draw, least=7), _sampling(draw), draw.randrange(1, 4)

    def run(model: Any) -> list[list[int]]:
        with torch.no_grad():
            cache = _kept(model(ids[:, :-left], use_cache=True))
        out = model.generate(ids, **cache, max_new_tokens=3, pad_token_id=0, **settings)
        return _until_stop(out[:, ids.shape[1] :].tolist())

    return run


def generates_from_what_was_read(draw: random.Random, subject: Subject) -> Run:
    """`generate` with what the encoder gave to a call before it."""
    given, settings = _read(draw, subject, draw.choice([1, 2])), _sampling(draw)

    def run(model: Any) -> list[list[int]]:
        with torch.no_grad():
            read = model.get_encoder()(**given)
        mask = {"attention_mask": given["attention_mask"]} if "attention_mask" in given else {}
        out = model.generate(
            encoder_outputs=read, **mask, max_new_tokens=3, min_new_tokens=3, pad_token_id=0, **settings
        )
        return _until_stop(out[:, -3:].tolist())

    return run


def generates_in_a_thread(draw: random.Random, subject: Subject) -> Run:
    """`generate` in a thread, as servers do."""
    inner = generates(draw, subject)

    def run(model: Any) -> list[list[int]]:
        made: list[list[int]] = []
        failed: list[Exception] = []

        def work() -> None:
            try:
                made.extend(inner(model))
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return made

    return run


def fails(draw: random.Random, subject: Subject) -> Run:
    """A generation that fails, which the program catches."""
    given = _read(draw, subject, 1) if subject.kind is Kind.READER else {"input_ids": _ids(draw)}
    after = draw.randrange(0, 4)

    def run(model: Any) -> list[list[int]]:
        processors = transformers.LogitsProcessorList([_Fails(after)])
        with contextlib.suppress(RuntimeError):
            model.generate(**given, max_new_tokens=6, do_sample=False, pad_token_id=0, logits_processor=processors)
        return []

    return run


def searches(draw: random.Random, subject: Subject) -> Run:
    """Beam search, or the tokens of the prompt as guesses: neither is recorded."""
    given = _read(draw, subject, 1) if subject.kind is Kind.READER else {"input_ids": _ids(draw)}
    how = draw.choice([{"num_beams": 2}, {"num_beams": 3, "do_sample": True}, {"prompt_lookup_num_tokens": 2}])

    def run(model: Any) -> list[list[int]]:
        model.generate(**given, max_new_tokens=3, pad_token_id=0, **({"do_sample": False} | how))
        return []

    return run


# ---------------------------------------------------------------- loops and calls


def _kept(out: Any) -> dict[str, Any]:
    """What a call keeps for the next, under the name by which it is given."""
    for name in ("cache", "past_key_values", "state"):
        held = getattr(out, name, None)
        if held is not None:
            return {name: held}
    return {}


def _chosen(draw: random.Random) -> Callable[[torch.Tensor], torch.Tensor]:
    """How a loop takes tokens `[B, 1]` of logits `[B, V]`."""

    def of_the_largest(logits: torch.Tensor) -> torch.Tensor:
        kept = logits.topk(10).indices
        return kept.gather(-1, torch.multinomial(logits.gather(-1, kept).softmax(-1), 1))

    return draw.choice(
        [
            lambda logits: logits.argmax(-1, keepdim=True),
            lambda logits: torch.multinomial(logits.softmax(-1), 1),
            lambda logits: torch.multinomial((logits.float() / 0.8).softmax(-1), 1),
            of_the_largest,
        ]
    )


def loops(draw: random.Random, subject: Subject) -> Run:
    """A loop of the program's own."""
    batch, count, choose = draw.choice([1, 1, 2]), draw.randrange(2, 6), _chosen(draw)
    ids, cached, chunk = _ids(draw, batch), draw.random() < 0.7, draw.choice([None, None, None, 3])
    mask = _padded(draw, ids, "left") if batch > 1 and draw.random() < 0.6 else None
    told, renamed = draw.random() < 0.5, draw.random() < 0.2

    def call(model: Any, fed: torch.Tensor, seen: torch.Tensor | None, kept: dict[str, Any], **more: Any) -> Any:
        taken = inspect.signature(model.forward).parameters
        if seen is not None and "attention_mask" in taken:
            more["attention_mask"] = seen
            if told and "position_ids" in taken:
                more["position_ids"] = (seen.cumsum(1) - 1).clamp(min=0)[:, -fed.shape[1] :]
        if renamed and "cache" in kept and subject.kind is Kind.DECODER:
            kept = {"past_key_values": kept["cache"]}
        return model(fed, **kept, **more)

    def run(model: Any) -> list[list[int]]:
        fed, seen, kept, tokens = ids, mask, {}, []
        with torch.no_grad():
            if cached and chunk and mask is None:
                for first in range(0, ids.shape[1], chunk):
                    out = call(model, ids[:, first : first + chunk], None, kept, use_cache=True)
                    kept = _kept(out)
            else:
                out = call(model, fed, seen, {}, use_cache=cached)
            for step in range(count):
                kept = _kept(out)
                token = choose(out.logits[:, -1])
                tokens.append(token)
                if step < count - 1:
                    seen = None if seen is None else torch.cat([seen, torch.ones_like(token)], 1)
                    fed = token if cached else torch.cat([fed, token], 1)
                    out = call(model, fed, seen, kept if cached else {}, use_cache=cached)
        return torch.cat(tokens, 1).tolist()

    return run


def loops_after_reading(draw: random.Random, subject: Subject) -> Run:
    """A loop of the program's own over a decoder, which reads what the encoder gave."""
    batch, count, choose = draw.choice([1, 1, 2]), draw.randrange(2, 6), _chosen(draw)
    given, cached, apart = _read(draw, subject, batch), draw.random() < 0.6, draw.random() < 0.6
    first = torch.full((batch, 1), 3) if draw.random() < 0.6 else _ids(draw, batch)

    def run(model: Any) -> list[list[int]]:
        fed, kept, tokens, told = first, {}, [], dict(given)
        with torch.no_grad():
            if apart:
                told = {"encoder_outputs": model.get_encoder()(**given)}
                told |= {"attention_mask": given["attention_mask"]} if "attention_mask" in given else {}
            for _ in range(count):
                out = model(**told, decoder_input_ids=fed, use_cache=cached, **kept)
                tokens.append(choose(out.logits[:, -1]))
                kept = _kept(out) if cached else {}
                fed = tokens[-1] if cached else torch.cat([fed, tokens[-1]], 1)
        return torch.cat(tokens, 1).tolist()

    return run


def calls(draw: random.Random, subject: Subject) -> Run:
    """A call without a step: its logits are looked at, or its loss."""
    batch, labels, gradients = draw.choice([1, 2]), draw.random() < 0.5, draw.random() < 0.5
    ids = _ids(draw, batch, least=2)
    mask = _padded(draw, ids, draw.choice(["left", "right"])) if draw.random() < 0.5 else None
    if subject.kind is Kind.READER:
        given = _read(draw, subject, batch) | ({"labels": ids} if labels else {"decoder_input_ids": ids})
    else:
        given = {"input_ids": ids} | ({"labels": ids} if labels else {})
        given |= {} if mask is None or subject.family == "rwkv" else {"attention_mask": mask}

    def run(model: Any) -> list[list[int]]:
        with contextlib.nullcontext() if gradients else torch.no_grad():
            out = model(**given)
            if labels and gradients:
                out.loss.backward()
        return []

    return run


def calls_a_part(draw: random.Random, subject: Subject) -> Run:
    """A call of the inner model, without its head; of the encoder alone, where there is one."""
    given = _read(draw, subject, 1) if subject.kind is Kind.READER else {"input_ids": _ids(draw)}

    def run(model: Any) -> list[list[int]]:
        with torch.no_grad():
            (model.get_encoder() if subject.kind is Kind.READER else model.base_model)(**given)
        return []

    return run


# ---------------------------------------------------------------- ports


def port_loops(draw: random.Random, subject: Subject) -> Run:
    """The loop that goes with a port, by the model or by its `forward`."""
    batch, count, choose = draw.choice([1, 1, 2]), draw.randrange(2, 6), _chosen(draw)
    ids, directly, alone = _ids(draw, batch), draw.random() < 0.5, draw.random() < 0.3
    mask = _padded(draw, ids, "left") if batch > 1 and draw.random() < 0.6 else None
    chunk = draw.choice([None, None, 3]) if mask is None else None

    def run(model: Any) -> list[list[int]]:
        call = model.forward if directly else model
        fed, seen, cache, start, tokens = ids, mask, None, 0, []
        parts = [ids[:, at : at + chunk] for at in range(0, ids.shape[1], chunk)] if chunk else [ids]
        with torch.no_grad():
            for step in range(count):
                for part in parts:
                    given = {} if seen is None else {"mask": seen}
                    if subject.family == "given":
                        logits, cache = call(part, cache, **given)
                    elif subject.family == "keeps":
                        logits = call(part, start, **given)
                    else:
                        logits = call(ids if step == 0 else fed, **given)
                    start += part.shape[1]
                token = choose(logits[:, -1])
                tokens.append(token)
                seen = None if seen is None else torch.cat([seen, torch.ones_like(token)], 1)
                fed = torch.cat([fed, token], 1)
                parts = [token]
                if alone and step == count - 2:
                    call(ids[:, :2])  # a question in between, of another prompt
                    if subject.family == "keeps":
                        break
        return torch.cat(tokens, 1).tolist()

    return run


def port_calls(draw: random.Random, subject: Subject) -> Run:
    """A call of a port, padded on either side."""
    batch, directly = draw.choice([1, 2]), draw.random() < 0.5
    ids = _ids(draw, batch, least=2)
    mask = _padded(draw, ids, draw.choice(["left", "right"])) if draw.random() < 0.5 else None

    def run(model: Any) -> list[list[int]]:
        with torch.no_grad():
            (model.forward if directly else model)(ids, **({} if mask is None else {"mask": mask}))
        return []

    return run


def port_fails(draw: random.Random, subject: Subject) -> Run:
    """A call with an id that no row of the table is for."""

    def run(model: Any) -> list[list[int]]:
        with contextlib.suppress(IndexError), torch.no_grad():
            model(torch.tensor([[3, 500]]))
        return []

    return run


_ALONE = (*[generates] * 4, *[loops] * 3, *[calls] * 2, generates_from_embeddings, generates_after_a_prefill)
_ANY = (generates_in_a_thread, fails, searches, calls_a_part)
OPERATIONS = {
    Kind.DECODER: (*_ALONE, *_ANY),
    Kind.RECURRENT: (*_ALONE, *_ANY),
    Kind.READER: (*[generates] * 4, *[loops_after_reading] * 3, calls, generates_from_what_was_read, *_ANY),
    Kind.PORT: (*[port_loops] * 4, port_calls, port_fails),
}
