"""The PyTorch side of tracekit: records a model while a program of the user's runs it.

with tracekit_torch.record(model, "run.h5"):
    model.generate(...)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeAlias

from torch import nn

from tracekit.auditing.audit import Audit
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.trace import Trace
from tracekit_torch.options import Options
from tracekit_torch.recorder import Recorder
from tracekit_torch.watch import Watch

__all__ = ["Options", "Recorder", "by_reference", "record"]


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

    Raises TraceError for an option that means nothing, a trace to follow that cannot be read, or a path that cannot be
    written. An exception inside the block ends the trace with `error` and goes on.
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
    watch = Watch(recorder, None)
    recorder.leave_to_the_parent()
    watch.found(model)
    try:
        with recorder.watching(), watch.installed():
            yield recorder
    except BaseException as error:
        recorder.close("error", f"{type(error).__name__}: {error}")
        raise
    recorder.close()


Reference: TypeAlias = nn.Module | str | os.PathLike[str] | Callable[[str], nn.Module]


def by_reference(model: Reference) -> Callable[[Trace, Checkpoint], Audit]:
    """An auditor for `tracekit.audit(trace, by=...)`: the reference program, run in float64 over the trace's tokens.

    The recorded values are put in at every site. For any model, without a recipe.

    Args:
        model: a folder that transformers can load, a model that `reference_program.loading.prepared` has put into
            float64, or what makes such a model from the dtype of the trace (`"float32"`).

    Raises:
        TraceError: when it is called, where the model cannot be loaded or does not run on the trace's tokens.
    """
    from tracekit_torch.reference_program.audit import audit_by
    from tracekit_torch.reference_program.loading import load_reference

    @cache
    def of(dtype: str) -> nn.Module:
        if isinstance(model, nn.Module):
            return model
        return load_reference(os.fspath(model), dtype) if isinstance(model, str | os.PathLike) else model(dtype)

    def audited(trace: Trace, checkpoint: Checkpoint) -> Audit:
        return audit_by(of(str(trace.config.get("dtype") or "float32")), trace, checkpoint)

    return audited
