"""Lines of a file that run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def lines_run(path: str, run: Callable[[], Any]) -> set[int]:
    """Numbers of the lines of the file `path` that are executed while `run` runs."""
    lines: set[int] = set()

    def within(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            lines.add(frame.f_lineno)
        return within

    def entered(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != path:
            return None
        lines.add(frame.f_code.co_firstlineno)
        return within

    before = sys.gettrace()
    sys.settrace(entered)
    try:
        run()
    finally:
        sys.settrace(before)
    return lines
