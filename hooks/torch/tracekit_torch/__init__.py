"""The PyTorch side of tracekit: records a model while a program of the user's runs it.

with tracekit_torch.record(model, "run.h5"):
    model.generate(...)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from tracekit_torch.options import Options
from tracekit_torch.recorder import Recorder
from tracekit_torch.watch import Watch

__all__ = ["Options", "Recorder", "record"]


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
    os.register_at_fork(after_in_child=recorder.forked)
    watch.found(model)
    try:
        with recorder.watching(), watch.installed():
            yield recorder
    except BaseException as error:
        recorder.close("error", f"{type(error).__name__}: {error}")
        raise
    recorder.close()
