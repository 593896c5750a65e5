"""What a forward call of a causal model covers: its positions, its padding, its logits."""

from __future__ import annotations

from typing import Any

import torch

from tracekit.inspection.masked import MASK, PLACES
from tracekit.trace import ENCODER, Json
from tracekit_torch.adapter import Row
from tracekit_torch.recorder import Recorder, survivors


def left_padding(mask: torch.Tensor | None, batch: int) -> list[int]:
    """Leading zeros of each row of an attention mask [batch, length]; none without such a mask."""
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or mask.shape[0] != batch or not mask.shape[1]:
        return [0] * batch
    return [int(row.argmax()) if bool(row.any()) else 0 for row in mask.ne(0).int().cpu()]


def spans(mask: torch.Tensor | None, batch: int, length: int) -> list[tuple[int, int]]:
    """[first, stop) of what an attention mask [batch, length] does not hide, for each row; all of it without one."""
    if not isinstance(mask, torch.Tensor) or mask.shape != (batch, length) or not length:
        return [(0, length)] * batch
    seen = mask.ne(0).int().cpu()
    last = length - seen.flip(1).argmax(1)
    return [(int(row.argmax()), int(stop)) if bool(row.any()) else (0, 0) for row, stop in zip(seen, last, strict=True)]


def masked_prompt(
    mask: torch.Tensor | None, places: torch.Tensor | None, index: int, padding: int
) -> dict[str, torch.Tensor]:
    """Of one row of a batch whose prompt has masked positions after its `padding`: its mask and, where the program
    gives them, its positions, by their names in a trace; nothing of others. Both are [batch, positions], or the mask
    says what each of them attends to, [batch, positions, positions]."""
    if not isinstance(mask, torch.Tensor) or mask.dim() not in (2, 3):
        return {}
    seen = (mask[index, padding:] if mask.dim() == 2 else mask[index, padding:, padding:]).ne(0).cpu()
    if bool(seen.all()):
        return {}
    told = isinstance(places, torch.Tensor) and places.dim() == 2 and places.shape[1] == mask.shape[1]
    stands = {PLACES: places[index % len(places), padding:].long().cpu()} if told and places is not None else {}
    return {MASK: seen.long()} | stands


HIDDEN = -1e4
"""What a mask adds to a score that is not to count is no more than that, in whatever format: old programs add -1e4."""


def seen_by_each(mask: torch.Tensor, batch: int, first: int, time: int) -> torch.Tensor | None:
    """bool [batch, time, first + time]: what each position that a call feeds attends to, by a mask of four dimensions
    that is yes or no for each pair, the same in all heads; None of another one."""
    fed = first + time
    if mask.dim() != 4 or mask.shape[0] not in (1, batch) or mask.shape[2] != time or mask.shape[3] < fed:
        return None
    hidden = ~mask if mask.dtype == torch.bool else mask <= HIDDEN
    if not (mask.dtype == torch.bool or (mask.is_floating_point() and bool(((mask == 0) | hidden).all()))):
        return None
    alike = mask.shape[1] == 1 or bool((hidden == hidden[:, :1]).all())
    if not alike or not bool(hidden[..., fed:].all()):
        return None
    return (~hidden[:, 0, :, :fed]).expand(batch, -1, -1).cpu()


def as_padding(seen: torch.Tensor) -> torch.Tensor | None:
    """i64 [batch, positions]: which positions are no padding, where the rows `seen` [batch, positions, positions] are
    those of a causal mask with padding; None of another mask. What padding on the left attends to is nothing to the
    others, and is not looked at."""
    count = seen.shape[1]
    causal = torch.ones(count, count, dtype=torch.bool).tril()
    found = (seen & causal.tril(-1)).any(1)
    for rows, shown in zip(seen, found, strict=True):
        for last in (True, False):  # what nothing comes after
            shown[-1] = last
            first = int(shown.int().argmax())
            if torch.equal(rows[first:], (shown & causal)[first:]):
                break
        else:
            return None
    return found.long()


CACHE_NAMES = ("cache", "past_key_values", "cache_params", "state")
"""What the argument that holds the cache is called: from transformers 5.24 on, and before; the old ones still work."""


def cache_of(arguments: Any) -> Any:
    """The cache among the arguments, or in the output, of a call; None without one."""
    get = arguments.get if isinstance(arguments, dict) else lambda name: getattr(arguments, name, None)
    return next((found for found in map(get, CACHE_NAMES) if found is not None), None)


def cache_length(arguments: Json) -> int | None:
    """Positions that the cache of a call holds before it; 0 without one; None where the cache does not say it, which a
    recurrent model's does not."""
    cache = cache_of(arguments)
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        try:
            return int(cache.get_seq_length())
        except (ValueError, TypeError, IndexError, AttributeError):
            return None
    try:
        keys = cache[0][0]
        return int(keys.shape[-2]) if keys.dim() == 4 else None
    except (TypeError, IndexError, KeyError, AttributeError):
        return None


def fed_to(arguments: Json, decoder: bool = False) -> torch.Tensor | None:
    """What a call of the model feeds: token ids [batch, time] or embeddings [batch, time, width], of an encoder-decoder
    the decoder's."""
    prefix = "decoder_" if decoder else ""
    value = arguments.get(f"{prefix}input_ids")
    value = arguments.get(f"{prefix}inputs_embeds") if value is None else value
    return value if isinstance(value, torch.Tensor) and value.dim() >= 2 else None


NOT_DRAWN = "nothing was drawn through torch for this token"


def is_largest(scores: torch.Tensor | None, row: int, token: int) -> bool:
    """Whether `token` has the largest of the scores [batch, V] of its row: greedy search needs no draw. True where the
    scores are not known."""
    if scores is None or not 0 <= token < scores.shape[-1]:
        return True
    values = scores[row]
    return bool(values[token] >= values.max())


SAME_ORDER = 0.75
"""Of neighbours in the order of the logits, how many are in that order in the scores made of them: all but next to
those few that processors change. In scores of another position it is half of them: between 1 and 1/2."""


def ordered_alike(scores: torch.Tensor, logits: torch.Tensor) -> bool:
    """Whether scores [batch, V] may be made of these logits [batch, V], whatever scales, normalises or filters them."""
    in_order = scores.to(logits.device).gather(-1, logits.argsort(-1))
    return bool(((in_order[:, 1:] >= in_order[:, :-1]).double().mean(-1) > SAME_ORDER).all())


def processed_survivors(scores: torch.Tensor, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What logits processors left of one row of their scores [batch, V], as `survivors` gives it: of a greedy choice,
    which draws from nothing, all that says what they did."""
    return survivors(torch.softmax(scores[row], dim=-1, dtype=torch.float32))


def output_logits(output: Any) -> torch.Tensor | None:
    """The logits [batch, time, vocabulary] of a model's output object or tuple."""
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, tuple):
        logits = next((item for item in output if isinstance(item, torch.Tensor) and item.dim() == 3), None)
    return logits if isinstance(logits, torch.Tensor) and logits.dim() == 3 else None


def write_call(
    recorder: Recorder,
    rows: list[Row],
    first: int,
    time: int,
    encoder: list[tuple[int, int]] | None = None,
    *,
    again: bool = True,
) -> None:
    """Write a call over the batch's positions [first, first + time): a frame for each row, without its padding and
    without positions that it had already (a loop without a cache computes them again). `encoder`: for each row, which
    rows of the encoder's input are no padding; `again`: whether what later positions read of them is what this call
    computed of them."""
    recorder.write_sites()
    for index, row in enumerate(rows):
        if encoder is not None and row.reason is None:
            begin, stop = encoder[index]
            tensors = recorder.encoder_tensors(index, begin, stop)
            if tensors:
                recorder.writer.call(row.sequence, 0, stop - begin, tensors, ENCODER)
        skipped = max(0, row.next_position + row.padding - first, row.padding - first)
        if row.reason is not None or skipped >= time:
            continue
        position = first + skipped - row.padding
        before = position - max(0, first - row.padding) if again else 0
        recorder.write_call(row, position, skipped, index, before)
