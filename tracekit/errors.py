"""What tracekit raises: one sentence for a person, never a traceback of a library's."""

from __future__ import annotations


class TraceError(Exception):
    """What is wrong with a file, in one sentence that says how to mend it. The CLI prints it and exits 2."""


class UnknownName(TraceError, KeyError):
    """A name that a trace does not have; its sentence proposes those that are near. Also a `KeyError`."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, a sentence in quotes.
        return str(self.args[0])
