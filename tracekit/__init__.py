"""tracekit: record a language model on both sides of a port, and name the first step, layer or draw where they part."""

from tracekit.opening import open_trace as open
from tracekit.trace import Trace, TraceError
from tracekit.verdict import Verdict, diff

__all__ = ["Trace", "TraceError", "Verdict", "diff", "open"]
