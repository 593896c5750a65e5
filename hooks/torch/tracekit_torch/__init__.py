"""The PyTorch side of tracekit: records a model while a program of the user's runs it.

with tracekit_torch.record(model, "run.h5"):
    model.generate(...)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from torch import nn

from tracekit.auditing.audit import Audit
from tracekit.auditing.consequence import Weigher
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.checkpoints.parameters import Parameters
from tracekit.inspection.cast_products import cast_products
from tracekit.trace import Trace, TraceError
from tracekit_torch.options import Options
from tracekit_torch.recorder import Recorder
from tracekit_torch.scripted import record_script
from tracekit_torch.watch import Watch

__all__ = ["Options", "Recorder", "by_reference", "record", "record_script"]


@contextmanager
def record(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    level: str = "all",
    sites: str | None = None,
    logits: str | int = "full",
    rng: str = "fast",
    follow: str | os.PathLike[str] | None = None,
    follow_draws: bool = False,
    dtype: str | None = None,
    keep_log: bool = False,
) -> Iterator[Recorder]:
    """Record every call of `model` inside the block into the archive `path`, with the options of `tracekit record`.

    An exception inside the block ends the trace with the reason `error` and is raised again. An error of the recording
    ends the recording with one line on stderr; the program continues.

    Args:
        model: the module that is called, with its parameters where they are used.
        path: the archive (`.h5`); it is made at the end of the block, from a log beside it.
        level: `tokens`, `logits`, `layers` (outputs of whole layers) or `all` (every module's input and output).
        sites: a regular expression; only sites whose name it matches are kept.
        logits: `full`, or the number of largest log-probabilities that are kept at each step.
        rng: `fast` (the operators that draw are watched), `thorough` (every operator is) or `cpu` (draws are made on
            the CPU generator, so that a native port can reproduce them).
        follow: a trace whose tokens are forced; `follow_draws` forces its random numbers as well.
        dtype: run the model in this precision instead of its own: `float64`, `float32`, `bfloat16` or `float16`.
        keep_log: keep the log after the archive is made.

    Raises:
        TraceError: an option is not valid, the trace to follow cannot be read, or `path` cannot be written.
    """
    options = Options(
        level=level,
        sites=sites,
        logits=str(logits),
        rng=rng,
        follow=None if follow is None else os.fspath(follow),
        follow_draws=follow_draws,
        dtype=dtype,
        keep_log=keep_log,
    )
    recorder = Recorder(Path(path), options)
    recorder.begin()
    watch = Watch(recorder, None)
    recorder.leave_to_the_parent()
    watch.found(model)
    name = type(model).__name__
    del model  # the program may do so, too
    try:
        with recorder.watching(), watch.installed():
            yield recorder
    except BaseException as error:
        recorder.close("error", f"{type(error).__name__}: {error}")
        raise
    recorder.close()
    if not recorder.sequences and recorder.broken is None and not recorder.in_child:
        recorder.discard()
        recorder.note(
            f"{name} was not called inside the block, so nothing is recorded; if its parts are called "
            "by themselves, record the one that makes the logits"
        )


Reference: TypeAlias = nn.Module | str | os.PathLike[str] | Callable[[str], nn.Module]


class ByReference:
    """An auditor that runs the reference program in float64 over a trace's tokens; it says what culprits do to the
    logits as well (`tracekit.auditing.consequence.Weighing`)."""

    def __init__(self, model: Reference, name: str | None = None) -> None:
        self._model = model
        self._name = name or str(getattr(model, "__qualname__", type(model).__name__))
        self._loaded: dict[str, nn.Module] = {}
        self._parts: dict[int, nn.Module] = {}
        """Those that were made ready, by their identity."""

    def __call__(self, trace: Trace, checkpoint: Checkpoint) -> Audit:
        """Every recorded site, judged. Raises TraceError."""
        from tracekit_torch.reference_program.audit import audit_by

        cast = next(cast_products(trace), None)
        if cast is not None:
            raise TraceError(
                f"{trace.path}: {cast} is in 16 bits and its weight is not, as under torch.autocast, which the "
                "reference is not run with; judge it by its checkpoint alone (--weights), or record it without autocast"
            )
        return audit_by(self._of(trace), trace, checkpoint)

    def weigher(self, trace: Trace, found: Audit) -> Weigher:
        """What the culprits of a trace do to its logits; `found` is its audit. Raises TraceError."""
        from tracekit_torch.reference_program.consequence import weigher

        return weigher(self._of(trace), trace, found)

    def parameters(self, trace: Trace) -> Parameters:
        """What the reference holds, for a trace that states no checkpoint. Raises TraceError."""
        from tracekit_torch.reference_program.held import held_parameters

        return held_parameters(self._of(trace), trace, self._name)

    def _of(self, trace: Trace) -> nn.Module:
        """The model for the dtype that a trace declares, or the part of it that the trace is of."""
        from tracekit_torch.reference_program.loading import prepared, recorded_part

        dtype = str(trace.config.get("dtype") or "float32")
        model = self._whole(dtype)
        part = recorded_part(model, trace)
        if part is not model and id(part) not in self._parts:
            self._parts[id(part)] = prepared(part, dtype)
        return part

    def _whole(self, dtype: str) -> nn.Module:
        from tracekit_torch.reference_program.loading import load_reference

        if isinstance(self._model, nn.Module):
            return self._model
        if dtype not in self._loaded:
            given = self._model
            self._loaded[dtype] = (
                load_reference(os.fspath(given), dtype) if isinstance(given, str | os.PathLike) else given(dtype)
            )
        return self._loaded[dtype]


def by_reference(model: Reference, name: str | None = None) -> ByReference:
    """An auditor for `tracekit.audit(trace, by=...)`: the reference program, run in float64 over the trace's tokens.

    The recorded values are put in at every site. For any model, without a recipe.

    Args:
        model: a folder that transformers can load, a model that `reference_program.loading.prepared` has put into
            float64, or what makes such a model from the dtype of the trace (`"float32"`).
        name: what the audit calls it where the trace states no checkpoint, and it is judged by what the model holds.

    Raises:
        TraceError: when it is called, where the model cannot be loaded or does not run on the trace's tokens.
    """
    return ByReference(model, name)
