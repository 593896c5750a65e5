"""Which commands are Python programs, that are recorded from within their interpreter."""

from __future__ import annotations

import re
import sys
from pathlib import Path

MODULE = ("-m", "tracekit_cli")
"""How an interpreter is asked for tracekit's command."""
PYTHON = re.compile(r"python(3(\.\d+)?)?(\.exe)?$")


def as_python(words: list[str], interpreter: str = sys.executable) -> list[str]:
    """A command of tracekit's own as that of an interpreter, others as they are."""
    return [interpreter, *MODULE, *words[1:]] if words[0] == "tracekit" else words


def is_python(words: list[str]) -> bool:
    """Whether a command is a Python program, which is recorded from within."""
    return bool(PYTHON.match(Path(words[0]).name)) or words[0].endswith(".py")


def interpreter_and_program(words: list[str]) -> tuple[str, list[str]]:
    """A Python command's interpreter, and its script or `-m module` with the arguments.

    Without a path, `python` is the interpreter that runs tracekit: it has what recording needs.
    """
    if words[0].endswith(".py"):
        return sys.executable, words
    bare = Path(words[0]).name == words[0]
    return sys.executable if bare else words[0], words[1:]
