"""Runs Python programs, recorded and not, and commands in forks of one process that has imported what they need.

A fork ends as a process of its own does: exit code, signals, stdout and stderr are its own. Importing torch for each of
a hundred programs takes minutes; a fork takes milliseconds.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

PROGRAMS = (
    "tracekit_torch.running",
    "transformers.generation.utils",
    "transformers.models.llama.modeling_llama",
    "tracekit_cli.import_log",
    "tracekit_cli.record",
)
"""What recorded programs import."""
READING = ("tracekit_cli.diff", "tracekit_cli.show", "tracekit_cli.import_log")
"""What commands import that read traces; torch is not among it."""
SECONDS = 120
"""After which a program hangs."""


@dataclass(frozen=True)
class Done:
    """How a program ended: its exit code as `subprocess` has it, its stdout and stderr."""

    code: int
    out: str
    err: str


class Forks:
    """The process that is forked. Close it."""

    def __init__(self, imports: tuple[str, ...] = PROGRAMS) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TRACEKIT_")}
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked", *imports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parent.parent,
        )

    def python(self, script: str, *words: str, cwd: Path, **limits: int) -> Done:
        """`python script words` in `cwd`. `limits`: RLIMIT_<name> in its unit."""
        return self._run({"script": script, "words": words}, cwd, limits)

    def tracekit(self, *words: str, cwd: Path, **limits: int) -> Done:
        """`tracekit words` in `cwd`."""
        return self._run({"words": words}, cwd, limits)

    def _run(self, what: dict[str, object], cwd: Path, limits: dict[str, int]) -> Done:
        assert self._process.stdin is not None and self._process.stdout is not None
        out, err = cwd / ".stdout", cwd / ".stderr"
        asked = what | {"cwd": str(cwd), "out": str(out), "err": str(err), "limits": limits}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        texts = [path.read_text(errors="backslashreplace") for path in (out, err)]
        out.unlink()
        err.unlink()
        return Done(code, *texts)

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def load(imports: Sequence[str] = PROGRAMS) -> None:
    """Import what the programs need."""
    for name in imports:
        importlib.import_module(name)
    gc.freeze()


def serve() -> None:
    """Fork for each line of stdin."""
    load(sys.argv[1:])
    lines, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    for line in lines:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            lines.close()
            answers.close()
            become(asked)
        answers.write(f"{_waited(child)}\n")
        answers.flush()


def _waited(child: int) -> int:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -999


def _ended(program: Callable[[], None]) -> NoReturn:
    """Run a program and end as the interpreter does, but for tearing down all of torch, which takes seconds."""
    code: object = 0
    try:
        program()
    except SystemExit as error:
        code = error.code
        if not isinstance(code, int | None):
            print(code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt as error:
        sys.excepthook(type(error), error, error.__traceback__)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()
        except (OSError, ValueError):
            code = 120 if stream is sys.stdout else code
    os._exit(int(code or 0) & 0xFF)  # type: ignore[call-overload]


def become(asked: dict[str, object]) -> NoReturn:
    """Turn this fork into the program that is asked for, run it, and end as it does.

    asked: `words` of a command of tracekit's, or a `script` and its `words`; `cwd`; files for `out` and `err`; `limits`
    by name.
    """
    import resource

    for number, name in ((1, "out"), (2, "err")):
        file = os.open(str(asked[name]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.chdir(str(asked["cwd"]))
    limits = asked["limits"]
    assert isinstance(limits, dict)
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    _ended(functools.partial(_program, asked))


def _program(asked: dict[str, object]) -> None:
    words = asked["words"]
    assert isinstance(words, list)
    if "script" in asked:
        script = str(asked["script"])
        sys.argv = [script, *words]
        sys.path[0] = str(Path(script).resolve().parent)
        runpy.run_path(script, run_name="__main__")
    else:
        from tracekit_cli.main import main

        sys.argv = ["tracekit", *words]
        main()


if __name__ == "__main__":
    serve()
