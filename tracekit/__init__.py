"""tracekit: record a language model on both sides of a port, and name the first step, layer or draw where they part.

What compares traces is imported when it is asked for: a recorder needs none of it, and should start at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tracekit.trace import Trace, TraceError

if TYPE_CHECKING:
    from tracekit.formats.opening import open_trace as open
    from tracekit.verdict.decide import Verdict, diff

__all__ = ["Trace", "TraceError", "Verdict", "diff", "open"]

_LATER = {
    "open": ("tracekit.formats.opening", "open_trace"),
    "Verdict": ("tracekit.verdict.decide", "Verdict"),
    "diff": ("tracekit.verdict.decide", "diff"),
}


def __getattr__(name: str) -> Any:
    """See PEP 562."""
    if name == "__version__":
        return import_module("importlib.metadata").version("tracekit")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LATER[name]
    return getattr(import_module(module), attribute)
