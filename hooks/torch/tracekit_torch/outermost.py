"""Which of the model's calls that run at the same time is the recorded one: the outermost of the thread that was first.

A program may call the model inside one of the model's own calls (from a hook, say), and in several threads. Such calls
have no place in the sequence that is being recorded.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from types import FrameType

from torch import nn

CALL = nn.Module._call_impl.__code__
"""What runs a module and its hooks."""


class Standing(Enum):
    """How a call of the model stands to the recorded one."""

    RECORDED = "recorded"
    INSIDE = "inside"
    BESIDE = "beside"


class Outermost:
    """Told of every call of the model, by a hook before and a hook after it.

    A call that ended with what is no `Exception` (an exit, an interrupt) is not said to be over: whether it still runs
    is seen from the stack of its thread.
    """

    def __init__(self) -> None:
        self.owner: int | None = None
        """The thread whose calls alone are recorded now; None for any."""
        self._thread = 0
        self._frames: list[FrameType] = []
        """The recorded call, and those inside it."""
        self._lock = threading.Lock()
        self._told: dict[int, FrameType] = {}
        """By thread, the call whose hooks run now, where it is not the one that calls them."""

    @contextmanager
    def called_in(self, frame: FrameType) -> Iterator[None]:
        """The hooks that run inside the block are those of the call that runs in `frame`."""
        thread = threading.get_ident()
        self._told[thread] = frame
        try:
            yield
        finally:
            del self._told[thread]

    @property
    def depth(self) -> int:
        """How many calls run: the recorded one and those inside it."""
        return len(self._frames)

    def begins(self) -> Standing:
        """A call of the model begins in this thread."""
        frame = self._told.get(threading.get_ident()) or _call_frame()
        with self._lock:
            if self.owner not in (None, threading.get_ident()):
                return Standing.BESIDE
            if self._frames:
                running = _frames_of(self._thread)
                self._frames = [each for each in self._frames if each in running]
            if not self._frames:
                self._thread = threading.get_ident()
            elif self._thread != threading.get_ident():
                return Standing.BESIDE
            if frame is not None:
                self._frames.append(frame)
            return Standing.RECORDED if len(self._frames) == 1 else Standing.INSIDE

    def ends(self) -> Standing:
        """A call of the model is over in this thread."""
        frame = self._told.get(threading.get_ident()) or _call_frame()
        with self._lock:
            if self._thread != threading.get_ident() or frame not in self._frames:
                return Standing.BESIDE
            self._frames = self._frames[: self._frames.index(frame)]
            return Standing.INSIDE if self._frames else Standing.RECORDED


def _call_frame() -> FrameType | None:
    """The call of a module that calls a hook."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code is not CALL:
        frame = frame.f_back
    return frame


def _frames_of(thread: int) -> list[FrameType]:
    """Everything that a thread is running."""
    frames = []
    frame = sys._current_frames().get(thread)
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames
