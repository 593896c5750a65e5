"""Running a Python program under the recorder, in this process, as `python script.py` would run it.

Its stdout, its exit code and its exceptions stay its own. Signals are left alone: whatever ends the process, the log
holds every step that was complete, and reads as a trace.
"""

from __future__ import annotations

import builtins
import concurrent.futures.thread
import contextlib
import importlib.util
import os
import random
import runpy
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NoReturn

import torch
from torch import nn

from tracekit.trace import Json, TraceError
from tracekit_torch.eager import uncompiled
from tracekit_torch.options import Options
from tracekit_torch.recorder import Recorder, say
from tracekit_torch.watch import Watch


@dataclass(frozen=True)
class Program:
    """A script, or a module with `-m`, and its arguments."""

    name: str
    arguments: tuple[str, ...]
    is_module: bool = False

    def as_json(self) -> Json:
        """As a trace's `command` holds it: enough to run it again."""
        argv = ["-m", self.name] if self.is_module else [self.name]
        kind = {"module": self.name} if self.is_module else {"script": str(Path(self.name).resolve())}
        try:
            folder = str(Path.cwd())
        except OSError:
            folder = ""  # it is gone
        return {"argv": [*argv, *self.arguments], "cwd": folder, **kind}


def run(program: Program, out: Path, options: Options, strict: bool = False) -> NoReturn:
    """Run and record `program`, then exit as it does; with 2 where it succeeds but nothing could be recorded, or, if
    `strict`, where it did not follow what it was told to.

    Raises TraceError where the program cannot be found or the trace cannot be written.
    """
    _check(program, out)
    limit = sys.getrecursionlimit()
    recorder = Recorder(out, options, program.as_json())
    recorder.leave_to_the_parent()
    recorder.begin()
    watch = Watch(recorder, options.module)
    if options.seed is not None:
        seed(options.seed)
    error: BaseException | None = None
    with recorder.watching(), watch.installed():
        try:
            _execute(program)
        except BaseException as raised:
            error = raised
        _join_threads()
    code = _exit_code(error)
    if recorder.in_child:
        _exit(error, code)
    # The program is over: how deep it let itself go says nothing of what is left to do.
    sys.setrecursionlimit(max(limit, sys.getrecursionlimit()))
    try:
        trouble = _close(recorder, watch, error) or (strict and bool(recorder.not_followed))
    except TraceError as failed:
        say(str(failed))
        trouble = True
    _exit(error, 2 if code == 0 and trouble else code)


def _exit(error: BaseException | None, code: int) -> NoReturn:
    """End as the program did."""
    if isinstance(error, KeyboardInterrupt):
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    if isinstance(error, SystemExit) and code != 0:
        raise SystemExit(error.code)
    sys.exit(code)


class Caught(SystemExit):
    """Ends a program where it calls its model."""


WAKES = signal.SIGURG
"""Ends a main thread that waits for what another thread, which ended, was to give it; by default it does nothing."""


class Catch(Watch):
    """Finds the model as a recording does, and ends the program there."""

    model: nn.Module | None = None

    def __init__(self, recorder: Recorder, module_pattern: str | None) -> None:
        super().__init__(recorder, module_pattern)
        self.ended = threading.Event()

    def found(self, model: nn.Module, sampling: Json | None = None) -> None:
        self.model = uncompiled(model)
        main = threading.main_thread()
        if threading.current_thread() is main:
            raise Caught
        signal.pthread_kill(main.ident or 0, WAKES)
        # Where the exception comes may be a place that swallows it (a finaliser), or that waits for this thread.
        while not self.ended.wait(timeout=1):
            signal.pthread_kill(main.ident or 0, WAKES)
        raise SystemExit  # no other exception ends a thread without a word

    @contextmanager
    def waking(self) -> Iterator[None]:
        """Inside the block, a model that is found in another thread ends what the main thread waits for."""
        if threading.current_thread() is not threading.main_thread():
            self.ended.set()  # no signal comes here
            yield
            return

        def wake(*_: Any) -> None:
            if self.model is not None and not self.ended.is_set():
                raise Caught

        before = signal.signal(WAKES, wake)
        try:
            yield
        finally:
            self.ended.set()
            signal.signal(WAKES, before)


def caught(program: Program, folder: str, options: Options) -> nn.Module:
    """The model that `program` builds, as it is when it is called first; the program, run in `folder`, ends there, and
    what it prints goes to stderr.

    Raises TraceError where it cannot run, or calls no model.
    """
    before = Path.cwd(), sys.argv, list(sys.path), sys.modules["__main__"]
    try:
        os.chdir(folder)
    except OSError as error:
        raise TraceError(f"its folder {folder} cannot be entered: {error.strerror}") from None
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        out = Path(scratch) / "run.h5"
        watch = Catch(Recorder(out, options), options.module)
        try:
            _check(program, out)
            if options.seed is not None:
                seed(options.seed)
            with watch.waking(), watch.installed(), _left_behind() as threads:
                _execute(program)
                _join_threads(threads)
        except Caught:
            pass
        except (Exception, SystemExit) as error:
            if watch.model is None:
                said = str(error) if isinstance(error, TraceError) else f"it ends with {type(error).__name__}: {error}"
                raise TraceError(f"{program.name}: {said}") from None
        finally:
            # Its end was the end of every pool of threads; this process goes on.
            setattr(concurrent.futures.thread, "_shutdown", False)  # noqa: B010
            os.chdir(before[0])
            sys.argv, sys.path[:], sys.modules["__main__"] = before[1], before[2], before[3]
    if watch.model is None:
        raise TraceError(f"{program.name}: {watch.why_nothing}")
    return watch.model


def seed(number: int) -> None:
    """Seed torch, random and, where the program can have it, numpy."""
    torch.manual_seed(number)
    random.seed(number)
    if importlib.util.find_spec("numpy") is not None:
        import numpy as np

        np.random.seed(number % 2**32)


def _check(program: Program, out: Path) -> None:
    if program.is_module:
        sys.path[0] = str(Path.cwd())
        try:
            missing = importlib.util.find_spec(program.name) is None
        except (ImportError, ValueError):
            missing = True
        if missing:
            raise TraceError(f"-m {program.name}: there is no such module")
    elif not Path(program.name).is_file():
        raise TraceError(f"{program.name}: there is no such script; native programs go after `--`")
    if out.is_dir():
        raise TraceError(f"{out}: is a folder; give the trace a file name with -o")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TraceError(f"{out}: cannot be written: {error.strerror}") from None
    if not os.access(out.parent, os.W_OK):
        raise TraceError(f"{out}: its folder cannot be written to")


def _execute(program: Program) -> None:
    """Run the program as `__main__`; what it raises is printed as Python would and raised on."""
    try:
        if program.is_module:
            sys.argv = [program.name, *program.arguments]
            runpy.run_module(program.name, run_name="__main__", alter_sys=True)
        else:
            _execute_script(program)
    except SystemExit:
        raise
    except BaseException as error:
        error.__traceback__ = _own_frames(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        raise


def _execute_script(program: Program) -> None:
    path = Path(program.name)
    sys.argv = [program.name, *program.arguments]
    sys.path[0] = str(path.resolve().parent)
    main = ModuleType("__main__")
    main.__file__ = program.name
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    code = compile(path.read_bytes(), program.name, "exec", dont_inherit=True)
    exec(code, main.__dict__)


def _own_frames(traceback: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames of the recorder that started the program."""
    ours = (__file__, runpy.__file__, "<frozen runpy>")
    while traceback is not None and traceback.tb_frame.f_code.co_filename in ours:
        traceback = traceback.tb_next
    return traceback


def _join_threads(started: Collection[threading.Thread] = ()) -> None:
    """Wait for the program's threads, as the interpreter would at its end, and for those that are `started`; they may
    still generate. What it runs before it waits is run as well: it tells the workers of a `ThreadPoolExecutor` to
    end."""
    at_exit: list[Callable[[], object]] = getattr(threading, "_threading_atexits", [])
    for tell in reversed(at_exit):
        tell()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and (thread in started or not thread.daemon):
            thread.join()


@contextmanager
def _left_behind() -> Iterator[set[threading.Thread]]:
    """Inside the block, the threads that start are ones that this process does not wait for when it ends, and those
    that it would have waited for are given. A program that ends where it calls its model leaves threads that wait for
    what only its own end would have told them."""
    start = threading.Thread.start
    waited_for: set[threading.Thread] = set()

    def start_as_daemon(thread: threading.Thread) -> None:
        if not thread.daemon and not thread.is_alive():
            waited_for.add(thread)
            thread.daemon = True
        start(thread)

    setattr(threading.Thread, "start", start_as_daemon)  # noqa: B010
    try:
        yield waited_for
    finally:
        setattr(threading.Thread, "start", start)  # noqa: B010


def _exit_code(error: BaseException | None) -> int:
    if error is None:
        return 0
    if not isinstance(error, SystemExit):
        return 1
    code: Any = error.code
    return code if isinstance(code, int) else 0 if code is None else 1


def _close(recorder: Recorder, watch: Watch, error: BaseException | None) -> bool:
    """Make the archive and say what became of the recording. True where it is not what was asked for."""
    failed = error is not None and not isinstance(error, SystemExit)
    recorder.close("error" if failed else "done", f"{type(error).__name__}: {error}" if failed else None)
    if recorder.sequences == 0:
        recorder.discard()
        if recorder.broken is None:
            say(watch.why_nothing if recorder.model is None else "the model was found, but no call of it was recorded")
        return True
    if recorder.unwritten:
        return True
    say(f"wrote {recorder.named}: {recorder.written or 'nothing that can be read'}")
    return recorder.broken is not None or recorder.incomplete
