"""A reference model to replay a trace with, in float64: from a folder, a callable, or a run that it was caught in."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tracekit.errors import first_line
from tracekit.trace import INPUT_SUFFIX, LOGITS, Sequence, Trace, TraceError
from tracekit_torch.adapters import ModelKind, kinds
from tracekit_torch.eager import plain_name
from tracekit_torch.not_run import NotRun
from tracekit_torch.patching import replace
from tracekit_torch.precision import cast, run_in


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
        raise TraceError(f"{folder}: transformers cannot load it: {first_line(error)}") from None
    experts: Any = getattr(model, "set_experts_implementation", None)
    if experts is not None:
        experts("eager")
    run_in(model, "float64")
    _in_plain_operations(model)
    return model


def _in_plain_operations(model: nn.Module) -> None:
    """Make a model compute torch's fused attention as products and a softmax: each of them rounds, and has edits."""
    forward = model.forward

    @functools.wraps(forward)
    def plain(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH), _without_inference_mode():
            return forward(*args, **kwargs)

    model.forward = plain


@contextmanager
def _without_inference_mode() -> Iterator[None]:
    """`torch.inference_mode` as `torch.no_grad`: inside it torch shows its composite operations (`linear`, `matmul`)
    whole, not as the products that round. A port may have decorated its `forward` with it."""
    put_back = replace(torch.inference_mode, "__new__", lambda _, mode=True: torch.no_grad())
    try:
        yield
    finally:
        put_back()


def prepared(model: nn.Module, dtype: str) -> nn.Module:
    """`model` as a reference: parameters rounded to `dtype`, as the candidate holds them, arithmetic in float64,
    attention and experts in eager form. It is changed."""
    cast(model, getattr(torch, dtype), buffers=False)
    kind = kind_of(model)
    computing = kind.computing(model)
    for implementation in ("set_attn_implementation", "set_experts_implementation"):
        setting: Any = getattr(computing, implementation, None)
        if setting is not None:
            with suppress(ValueError, NotImplementedError, AttributeError):  # one that has it in no eager form
                setting("eager")
    run_in(model.eval(), "float64", computing)
    _in_plain_operations(computing)
    return model


def recorded_part(model: nn.Module, trace: Trace) -> nn.Module:
    """The part of `model` that has the most modules of the names that a trace has as sites, the outermost of several
    that run: what a program wraps (with adapters, a trainer's class) is recorded by the names that it has by itself."""
    sites = {name for sequence in trace.sequences for name in sequence.site_table}
    names = {re.sub(r"#\d+$", "", name.removesuffix(INPUT_SUFFIX)) for name in sites} - {LOGITS}
    paths: dict[str, nn.Module] = {plain_name(path): module for path, module in model.named_modules()}

    def shared(path: str) -> int:
        return sum((f"{path}.{name}" if path else name) in paths for name in names)

    owners = {"", *(path.removesuffix(f".{name}") for path in paths for name in names if path.endswith(f".{name}"))}
    run = [path for path in owners if not path or type(paths[path]).forward is not nn.Module.forward]
    return paths[max(sorted(run, key=len), key=shared)]


def made_by(factory: str) -> Callable[[str], nn.Module]:
    """What makes the reference from a callable without arguments, `package.module:name`, by the dtype of its
    parameters. Raises TraceError where that gives no module."""
    where, _, name = factory.partition(":")
    if not where or not name:
        raise TraceError(f"{factory}: name the callable that makes the module as package.module:name")
    try:
        made: Any = import_module(where)
        for part in name.split("."):
            made = getattr(made, part)
    except (ImportError, AttributeError) as error:
        raise TraceError(f"{factory}: cannot be found: {error}") from None

    def make(dtype: str) -> nn.Module:
        try:
            model = made()
        except Exception as error:  # whatever a foreign program raises
            raise TraceError(f"{factory}: raises {type(error).__name__}: {error}") from None
        if not isinstance(model, nn.Module):
            raise TraceError(f"{factory}: gives {type(model).__name__}, not a torch.nn.Module")
        return prepared(model, dtype)

    return make


def kind_of(model: nn.Module) -> ModelKind:
    """The kind that knows how `model` is run."""
    return next(kind for kind in kinds(lambda said: None) if kind.knows(model))


def forward_of(model: nn.Module, trace: Trace, sequence: Sequence) -> Callable[[], Any]:
    """What runs the model over everything that a sequence holds, as one prefill. Raises TraceError."""
    return kind_of(model).prefill(model, trace, sequence)


@contextmanager
def on_its_tokens(trace: Trace, sequence: Sequence) -> Iterator[None]:
    """While a reference runs over a sequence: what a foreign program raises there is a NotRun."""
    try:
        yield
    except TraceError:
        raise
    except Exception as error:  # whatever a foreign program raises: an assertion about its dtype, say
        raise NotRun(
            f"{trace.path}: sequence {sequence.index}: the reference does not run on its tokens: {first_line(error)}"
        ) from error
