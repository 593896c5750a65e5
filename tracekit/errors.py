"""What tracekit raises: one sentence for a person, never a traceback of a library's."""

from __future__ import annotations


class TraceError(Exception):
    """What is wrong with a file, in one sentence that says how to mend it. The CLI prints it and exits 2. Characters
    that would break the line or move a terminal's cursor, as names in a damaged file may hold, are escaped."""

    def __init__(self, said: str) -> None:
        super().__init__(printable(said))


class UnknownName(TraceError, KeyError):
    """A name that a trace does not have; its sentence proposes those that are near. Also a `KeyError`."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, a sentence in quotes.
        return str(self.args[0])


def printable(text: str) -> str:
    """A text without what breaks a line or moves a terminal's cursor."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def first_line(error: BaseException) -> str:
    """The first line of what a library's exception says; the name of its type where it says nothing."""
    return next((line for line in str(error).strip().splitlines() if line), type(error).__name__)
