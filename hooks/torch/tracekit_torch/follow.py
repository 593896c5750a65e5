"""Tokens of another trace that a run is forced onto."""

from __future__ import annotations

import tracekit


class Follow:
    """The tokens of every sequence of a trace. Raises TraceError where the trace cannot be read."""

    def __init__(self, path: str) -> None:
        with tracekit.open(path) as trace:
            self._tokens = [[int(token) for token in sequence.tokens] for sequence in trace.sequences]

    def token(self, sequence: int, step: int) -> int | None:
        """The token to force, or None where the trace has no more."""
        tokens = self._tokens[sequence] if sequence < len(self._tokens) else []
        return tokens[step] if step < len(tokens) else None
