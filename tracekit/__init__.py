"""tracekit: record a language model on both sides of a port, and name the first step, layer or draw where they
diverge.

Each name is imported when it is asked for: a recorder needs nothing of what compares, and `tracekit --help` no arrays.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tracekit.errors import TraceError

if TYPE_CHECKING:
    from tracekit.api import Audit, Verdict, audit, diff
    from tracekit.formats.opening import open_trace as open
    from tracekit.recording import Recording
    from tracekit.trace import Sequence, Trace
    from tracekit.verdict.cause import Cause

__all__ = ["Audit", "Cause", "Recording", "Sequence", "Trace", "TraceError", "Verdict", "audit", "diff", "open"]

_LATER = {
    "Audit": "tracekit.api.Audit",
    "Cause": "tracekit.verdict.cause.Cause",
    "Recording": "tracekit.recording.Recording",
    "Sequence": "tracekit.trace.Sequence",
    "Trace": "tracekit.trace.Trace",
    "Verdict": "tracekit.api.Verdict",
    "audit": "tracekit.api.audit",
    "diff": "tracekit.api.diff",
    "open": "tracekit.formats.opening.open_trace",
}


def __getattr__(name: str) -> Any:
    """See PEP 562."""
    if name == "__version__":
        return import_module("importlib.metadata").version("tracekit")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _LATER[name].rpartition(".")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LATER])
