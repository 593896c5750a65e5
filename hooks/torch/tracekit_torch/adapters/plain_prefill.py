"""A model run once, without a cache, over everything that a recorded sequence holds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from tracekit.errors import first_line
from tracekit.inspection.masked import MASK, PLACES, places, sees, unmasked
from tracekit.inspection.site_rows import logits_width
from tracekit.trace import ENCODER_PREFIX, NO_TOKEN, Sequence, Trace
from tracekit_torch.adapters.given_beside import KNOWN, given_again, inputs_kept
from tracekit_torch.adapters.port_arguments import ARGUMENTS, arguments_again, unknown_arguments
from tracekit_torch.contained_tensors import tensors_in
from tracekit_torch.named_arguments import accepted, in_place, parameters_of
from tracekit_torch.not_run import NotRun

_OF_TORCH = frozenset(vars(nn.Module()))
"""What every module has: hooks, parameters, modules."""
TOKENS, EMBEDDED, IDS = "token_ids", "inputs_embeds", "input_ids"


def plain_prefill(model: nn.Module, trace: Trace, sequence: Sequence) -> Callable[[], Any]:
    """What calls `model` on the token ids, or on the other inputs, of a sequence. Raises TraceError where they are not
    recorded."""
    parameters = parameters_of(model)
    if sequence.prompt_ids is None and sequence.step_count and EMBEDDED in sequence.inputs and EMBEDDED in parameters:
        part, masks = fed(model, trace, sequence), masks_of(model, sequence)
        _refuse_unknown(trace, model, sequence)
        beside = given_again(model, sequence)
        return lambda: model(**part(0, sequence.positions), **masks, **beside, use_cache=False)
    given = _arguments(model, trace, sequence)
    if "use_cache" in parameters:
        given["use_cache"] = False
    if IDS not in given or (IDS in parameters and _of_transformers(model)):
        _refuse_unknown(trace, model, sequence)
        return lambda: model(**given)
    # A port calls its ids as it likes; they come first.
    ids = given.pop(IDS)
    given = _others(trace, model, sequence, ids.shape[1]) | given
    width = logits_width(sequence) if sequence.step_count else None
    args, kwargs = in_place(list(parameters.values()), given, skipped=1)

    def answer() -> Any:
        with _as_it_was(model), _logits_of_all(model, ids.shape[1], width):
            return _Answer.of(model(ids, *args, **kwargs), width)

    return answer


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """A port may keep a cache in its modules, which the next run would go on with: what they held is put back. Tensors
    that are written to stay so: of those, a run from position 0 reads what it has written itself."""
    held: list[tuple[Any, Any]] = []
    for part in model.modules():
        own = {name: value for name, value in vars(part).items() if name not in _OF_TORCH}
        held += [(part._buffers, dict(part._buffers)), (vars(part), own)]
        held += [(value, copy.copy(value)) for value in own.values() if type(value) in (list, dict)]
    try:
        yield
    finally:
        for now, before in held:
            if isinstance(now, list):
                now[:] = before
            else:
                for name in [name for name in now if name not in before and name not in _OF_TORCH]:
                    del now[name]
                now.update(before)


@contextmanager
def _logits_of_all(model: nn.Module, time: int, width: int | None) -> Iterator[None]:
    """A port may give its head the last position alone, since generation needs no other logits. The head is given the
    rows of all `time` positions: those of the last module before it, where the head's row is the last of them."""
    whole: list[torch.Tensor] = []

    def after(_: nn.Module, __: Any, output: Any) -> None:
        if type(output) is torch.Tensor and output.dim() == 3 and output.shape[:2] == (1, time):
            whole[:] = [output]

    def before(_: nn.Module, args: Any) -> Any:
        if not whole or len(args) != 1 or type(args[0]) is not torch.Tensor:
            return None
        row, rows = args[0], whole[0]
        if row.shape not in ((1, 1, rows.shape[2]), (1, rows.shape[2])):
            return None
        with _disable_current_modes():
            return (rows,) if torch.equal(row.reshape(-1), rows[0, -1]) else None

    handles = []
    for module in model.modules() if width is not None and time > 1 else ():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        if isinstance(module, nn.Linear) and module.out_features == width:
            # First: whoever looks at the head's input is to see all rows.
            handles.append(module.register_forward_pre_hook(before, prepend=True))
        handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _Answer:
    """What a port gives, as models of transformers give it."""

    logits: torch.Tensor | None

    @classmethod
    def of(cls, output: Any, width: int | None) -> Any:
        """`output` itself, where it names its logits or none of `width` are looked for."""
        if width is None or hasattr(output, "logits"):
            return output
        found = (value for value in tensors_in(output) if value.is_floating_point() and value.dim() == 3)
        return cls(next((value for value in found if value.shape[-1] == width), None))


def _of_transformers(model: nn.Module) -> bool:
    return any(each.__module__.startswith("transformers.") for each in type(model).__mro__)


def _others(trace: Trace, model: nn.Module, sequence: Sequence, time: int) -> dict[str, Any]:
    """What a port is given besides its ids, over `time` positions. Raises NotRun where that is not recorded."""
    taken = list(parameters_of(model).values())[1:]
    told = {name: each for name, each in sequence.info.get(ARGUMENTS, {}).items() if accepted(taken, name)}
    try:
        given = _required(model, sequence) | arguments_again(told, time)
        unknown = [name for name in unknown_arguments(told) if name not in given]
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise NotRun(
            f"{trace.path}: sequence {sequence.index}: arguments: cannot be read: {first_line(error)}"
        ) from None
    _refuse(trace, sequence, unknown)
    return given


def _refuse_unknown(trace: Trace, model: nn.Module, sequence: Sequence) -> None:
    """Raises NotRun where a model of transformers was given what is not recorded, and is no mask."""
    taken = parameters_of(model).keys() - (KNOWN - {PLACES})
    unknown = unknown_arguments(sequence.info.get(ARGUMENTS) or {})
    _refuse(trace, sequence, [name for name in unknown if name in taken])


def _refuse(trace: Trace, sequence: Sequence, unknown: list[str]) -> None:
    if unknown:
        raise NotRun(
            f"{trace.path}: sequence {sequence.index}: what the calls were given as {unknown[0]} is not recorded: the "
            "reference cannot be run on it"
        )


def _required(model: nn.Module, sequence: Sequence) -> dict[str, Any]:
    """What a port must be given besides its ids, [1, ...]: as it was recorded; position 0 for a number that was not,
    since a prefill begins there."""
    rest = list(parameters_of(model).values())[1:]
    needed = [
        each
        for each in rest
        if each.default is each.empty and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]
    recorded = _batch({each.name: sequence.inputs[each.name] for each in needed if each.name in sequence.inputs})
    return {each.name: 0 for each in needed if each.annotation in (int, "int")} | recorded


def known_tokens(trace: Trace, sequence: Sequence) -> np.ndarray[Any, np.dtype[np.int64]]:
    """i64 [positions]: the prompt's tokens and the sampled ones. Raises TraceError where they are not recorded."""
    prompt = sequence.prompt_ids
    ids = np.concatenate([np.zeros(0, np.int64) if prompt is None else prompt, sequence.tokens]).astype(np.int64)
    if prompt is None or len(ids) < sequence.positions:
        raise NotRun(
            f"{trace.path}: sequence {sequence.index}: {sequence.positions} positions, but the token ids of only "
            f"{len(ids)} are recorded: the reference cannot be run on it"
        )
    return ids[: sequence.positions]


def fed(model: Any, trace: Trace, sequence: Sequence) -> Callable[[int, int], dict[str, torch.Tensor]]:
    """What gives a model of transformers the positions [first, stop) of a sequence, [1, positions] ids or, where the
    prompt was given as such, [1, positions, width] embeddings. Raises NotRun where they are not recorded."""
    prompt = sequence.inputs.get(EMBEDDED)
    if sequence.prompt_ids is not None or prompt is None or prompt.ndim != 2:
        tokens = torch.from_numpy(known_tokens(trace, sequence))[None]
        return lambda first, stop: {IDS: tokens[:, first:stop]}
    count, sampled = len(prompt), sequence.tokens
    if count + len(sampled) < sequence.positions:
        raise NotRun(
            f"{trace.path}: sequence {sequence.index}: {sequence.positions} positions, but the embeddings of only "
            f"{count} and {len(sampled)} tokens are recorded: the reference cannot be run on it"
        )
    ids = torch.from_numpy(np.concatenate([np.zeros(count, np.int64), sampled.astype(np.int64)]))
    given = torch.zeros(len(ids), prompt.shape[1], dtype=torch.float64)
    given[:count] = torch.from_numpy(prompt)
    own = (torch.arange(len(ids)) < count)[:, None]

    def embedded(first: int, stop: int) -> dict[str, torch.Tensor]:
        # Looked up at all positions, since a position of the sequence is a row of what the table gives.
        looked_up = model.get_input_embeddings()(ids[None, first:stop])
        return {EMBEDDED: given[None, first:stop].where(own[first:stop], looked_up)}

    return embedded


def _arguments(model: nn.Module, trace: Trace, sequence: Sequence) -> dict[str, Any]:
    inputs = sequence.inputs
    encoder = {name.removeprefix(ENCODER_PREFIX): value for name, value in inputs.items() if _of_encoder(name)}
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        if not encoder:
            raise NotRun(f"{trace.path}: sequence {sequence.index}: what the encoder was given is not recorded")
        decoded = torch.from_numpy(known_tokens(trace, sequence))[None]
        return _batch(encoder) | {"decoder_input_ids": decoded} | masks_of(model, sequence, "decoder_")
    others = {name: value for name, value in inputs.items() if not _of_encoder(name)}
    if sequence.prompt_ids is None and not sequence.step_count and others:
        return _batch(others)
    ids = known_tokens(trace, sequence)
    if not sequence.step_count and EMBEDDED not in others:  # one call, whose masks and types are part of what it gives
        taken = list(parameters_of(model).values())
        whole = inputs_kept(sequence)
        more = {name: value for name, value in others.items() if accepted(taken, name) and name not in whole}
        given = _batch({name: _first(value, sequence) for name, value in more.items()} | {TOKENS: ids})
        given |= given_again(model, sequence)
        return given if sees(sequence) is None else given | masks_of(model, sequence)
    if (ids == NO_TOKEN).any():
        raise NotRun(
            f"{trace.path}: sequence {sequence.index}: position {int((ids == NO_TOKEN).argmax())} of its input is no "
            "token's embedding: the reference cannot be run on it"
        )
    return {IDS: torch.from_numpy(ids)[None]} | masks_of(model, sequence) | given_again(model, sequence)


def masks_of(model: nn.Module, sequence: Sequence, prefix: str = "") -> dict[str, torch.Tensor]:
    """What tells `model` which positions of a sequence are masked and where they stand, [1, positions] by the names of
    its arguments, which begin with `prefix`, a mask of each position float64 [1, 1, positions, positions]; nothing
    where no position is masked."""
    taken = parameters_of(model)
    each = sees(sequence)
    told = {MASK: unmasked(sequence), PLACES: places(sequence)}
    named = {prefix + name: value for name, value in told.items() if value is not None}
    out = {name: torch.from_numpy(value.astype(np.int64))[None] for name, value in named.items() if name in taken}
    if each is not None and prefix + MASK in taken:
        hidden = torch.from_numpy(~each)[None, None]
        out[prefix + MASK] = hidden.double().masked_fill_(hidden, torch.finfo(torch.float64).min)
    return out


def _of_encoder(name: str) -> bool:
    return name.startswith(ENCODER_PREFIX)


def _first(value: np.ndarray[Any, Any], sequence: Sequence) -> np.ndarray[Any, Any]:
    """An input at the positions of a sequence, of which more may have been recorded."""
    whole = sequence.prompt_ids
    of_positions = whole is not None and value.ndim > 0 and len(value) == len(whole)
    return value[: sequence.positions] if of_positions else value


def _batch(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs by the arguments' names, as a batch of one."""
    out = {}
    for name, value in inputs.items():
        tensor = torch.tensor(np.asarray(value))[None]
        out[IDS if name == TOKENS else name] = tensor.double() if tensor.is_floating_point() else tensor.long()
    return out
