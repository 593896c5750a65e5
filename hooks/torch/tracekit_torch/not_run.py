"""A sequence that a reference program cannot be run on: it is not judged, the others of its trace are."""

from __future__ import annotations

from tracekit.trace import TraceError


class NotRun(TraceError):
    """Why not, in one sentence that names the sequence."""
