"""The callback in C (`follow.c`), compiled once by the machine's own compiler and kept in the user's cache folder.

The package holds no machine code, so that its wheel runs everywhere; where nothing can be compiled, the callback in
Python does the same (`taps.py`), at more of the run's time.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from tracekit_llama_cpp.declarations import declarations

HEADER = files(__package__).joinpath("follow.h").read_text(encoding="utf-8")
SOURCE = files(__package__).joinpath("follow.c").read_text(encoding="utf-8")
INCLUDES = "#include <stdbool.h>\n#include <stddef.h>\n#include <stdint.h>\n#include <string.h>\n"
FLAGS = ("-std=c99", "-O2", "-shared", "-fPIC")
PATIENCE = 60.0
"""Seconds that a compiler may take for a page of C."""


class NotCompiledError(Exception):
    """Why there is no callback in C, in one line."""


def compiled(ffi: Any, build: str) -> Any:
    """`tracekit_follow`, compiled for the structs of a build. Raises NotCompiledError."""
    try:
        # A function of the library keeps it open.
        return ffi.dlopen(str(library_file(build))).tracekit_follow
    except (OSError, RuntimeError, AttributeError) as error:  # RuntimeError: there is no home
        raise NotCompiledError(str(error).splitlines()[0]) from None


def library_file(build: str) -> Path:
    """The shared object, compiled where the cache holds none of this source, build and machine. Raises
    NotCompiledError, or OSError where the cache cannot be written."""
    text = INCLUDES + declarations(build) + HEADER + SOURCE
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    key = "\n".join((text, sys.platform, platform.machine(), *compiler, *FLAGS))
    target = cache_folder() / f"follow-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not target.exists():
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="compile-") as folder:
            source, made = Path(folder, "follow.c"), Path(folder, "follow.so")
            source.write_text(text, encoding="utf-8")
            run([*compiler, *FLAGS, "-o", str(made), str(source)])
            made.replace(target)
    return target


def cache_folder() -> Path:
    """Where this user's programs keep what they can make again (XDG_CACHE_HOME)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tracekit"


def run(command: list[str]) -> None:
    """Raises NotCompiledError where a compiler is not there or does not compile."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=PATIENCE)
    except FileNotFoundError:
        raise NotCompiledError(f"there is no C compiler ({command[0]}; the variable CC names another)") from None
    except subprocess.TimeoutExpired:
        raise NotCompiledError(f"{command[0]} does not end within {PATIENCE:.0f} s") from None
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]
        raise NotCompiledError(f"{command[0]} does not compile it: {said}")
