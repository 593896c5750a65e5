"""What a model of transformers is given beside its tokens: an image, the kinds of its tokens.

A reference is given the same, over the prompt and what was generated after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from tracekit.inspection.masked import MASK, PLACES
from tracekit.inspection.positions import prompt_length
from tracekit.trace import Json, Sequence
from tracekit_torch.adapters.causal_calls import CACHE_NAMES
from tracekit_torch.adapters.port_arguments import ARGUMENTS, Told
from tracekit_torch.contained_tensors import tensors_in
from tracekit_torch.named_arguments import parameters_of

INPUT_BYTES = 64 << 20
"""Inputs larger than this are not copied into the trace."""
KNOWN = {"input_ids", "inputs_embeds", "token_ids", MASK, PLACES, *CACHE_NAMES, "cache_position", "labels"}
KNOWN |= {"logits_to_keep", "num_logits_to_keep"}
"""What is recorded by itself, or says nothing of the values of a position."""
GOES_ON = "token_type_ids"
"""Of tokens that are generated, the kind is the last one's; other numbers of a position (kinds of what is seen or
heard) are 0 there."""
ENDS = ("cu_seq_lens_q", "cu_seq_lens_k")
"""Where each of the sequences in one row ends."""
_STANDS_FOR = re.compile(r"_token_(id|index)$")
"""Numbers of a configuration: the tokens in whose places an image or a sound is put."""


class GivenBeside:
    """The arguments of a model's call, or of its `generate`, beside those that are recorded by themselves.

    `rows`: of each row of the batch, its part of each tensor by name, with the batch's dimension; `unknown`: names of
    what is not kept, or is not known to be of which row.
    """

    def __init__(self, model: nn.Module, arguments: Json, ids: torch.Tensor, first: int = 0, times: int = 1) -> None:
        """`ids` [batch, time], or embeddings [batch, time, width], the first at position `first`; each row of the
        arguments is for `times` of them."""
        batch = len(ids)
        given = max(1, batch // times)
        self.rows: list[dict[str, torch.Tensor]] = [{} for _ in range(batch)]
        self.unknown = [PLACES] if _stand_elsewhere(arguments, first) else []
        alike = given == 1 or _alike(model, ids)
        for name, value in _others(model, arguments):
            if not isinstance(value, torch.Tensor):
                self.unknown.append(name)
                continue
            of_tokens = value.shape == (given, ids.shape[1])
            parts = value.shape[0] // given if value.dim() else 0
            whole = value.dim() > 0 and parts * given == value.shape[0] and (alike or of_tokens)
            if not whole or value.numel() * value.element_size() > INPUT_BYTES or value.is_complex():
                self.unknown.append(name)
                continue
            for index, row in enumerate(self.rows):
                first = index // times * parts
                row[name] = value[first : first + parts].detach().to("cpu", copy=True)

    def of_row(self, index: int, padding: int, length: int) -> dict[str, torch.Tensor]:
        """What one row was given, its numbers of `length` positions without those of its padding."""
        return {
            name: value[:, padding:] if value.dim() == 2 and value.shape == (1, length) else value
            for name, value in self.rows[index].items()
        }

    @property
    def metadata(self) -> Json:
        """What a sequence says of them."""
        told = {name: Told.INPUT for name in self.rows[0]} | dict.fromkeys(self.unknown, Told.UNKNOWN)
        return {ARGUMENTS: {name: {"is": each.value} for name, each in told.items()}} if told else {}


def given_again(model: nn.Module, sequence: Sequence) -> dict[str, torch.Tensor]:
    """The same for one call over all positions of a recorded sequence."""
    taken = parameters_of(model)
    length, out = prompt_length(sequence), {}
    for name in inputs_kept(sequence) & taken.keys():
        tensor = torch.tensor(sequence.inputs[name])
        if tensor.shape == (1, length) and not tensor.is_floating_point():
            after = tensor[:, -1:] if name == GOES_ON else torch.zeros_like(tensor[:, -1:])
            more = max(0, sequence.positions - length)
            tensor = torch.cat([tensor, after.expand(1, more)], dim=1)[:, : sequence.positions]
        out[name] = tensor.double() if tensor.is_floating_point() else tensor
    return out


def inputs_kept(sequence: Sequence) -> set[str]:
    """Names of the inputs that are whole arguments."""
    told = sequence.info.get(ARGUMENTS) or {}
    return {name for name in sequence.inputs if told.get(name, {}).get("is") == Told.INPUT.value}


def _others(model: nn.Module, arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    taken = parameters_of(model)
    for name, value in arguments.items():
        if name in taken and name not in KNOWN and next(iter(tensors_in(value)), None) is not None:
            yield name, value


def _stand_elsewhere(arguments: Mapping[str, Any], first: int) -> bool:
    """Whether the positions that a call is given are not those that a reference works out, where no mask says why."""
    stands, mask = arguments.get(PLACES), arguments.get(MASK)
    if not isinstance(stands, torch.Tensor) or stands.dim() != 2 or not (mask is None or _hides_nothing(mask)):
        return False
    return not bool((stands == torch.arange(first, first + stands.shape[1], device=stands.device)).all())


def _hides_nothing(mask: Any) -> bool:
    return isinstance(mask, torch.Tensor) and mask.dim() == 2 and bool(mask.all())


def packs(arguments: Mapping[str, Any]) -> bool:
    """Whether a row of a call holds several sequences: it is told where each ends, or its positions begin again."""
    if any(arguments.get(name) is not None for name in ENDS):
        return True
    stands = arguments.get(PLACES)
    if not isinstance(stands, torch.Tensor) or stands.dim() != 2 or arguments.get(MASK) is not None:
        return False
    return bool((stands[:, 1:] < stands[:, :-1]).any())


def _alike(model: nn.Module, ids: torch.Tensor) -> bool:
    """Whether each row of `ids` has as many places of an image or a sound as the others."""
    if ids.is_floating_point():
        return False
    config = getattr(model, "config", None)
    numbers = vars(config).items() if config is not None else ()
    places = [number for name, number in numbers if _STANDS_FOR.search(name) and type(number) is int]
    counts = torch.isin(ids, torch.tensor(places, device=ids.device)).sum(1)
    return bool((counts == counts[0]).all())
