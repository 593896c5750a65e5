"""What recording llama.cpp costs: the same generation plain and recorded, step by step side by side.

    python -m benchmarks.llama_cpp_recording .cache/gguf/smollm2-135m.gguf

Every way of running has a context of its own, and all of them make one step in turn, so that a machine that slows down
slows all of them. Processor time is counted, which other programs of the machine do not change much. Printed are the
first two calls, in which the recorder finds the graph's nodes, the median of the later steps, and the median of their
ratios to the plain step beside them; then the whole generation.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tracekit_llama_cpp.library import library
from tracekit_llama_cpp.nodes import Nodes
from tracekit_llama_cpp.options import Options
from tracekit_llama_cpp.recording import Model, _open, _Steps
from tracekit_llama_cpp.sampler import Chain
from tracekit_llama_cpp.taps import Taps

from tracekit.formats.log import LogWriter
from tracekit.programs.levels import LEVELS

PROMPT = "The history of Rome began when"
IN_PYTHON = "all, callback in Python"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = Model(options.model, Options())
    ways = {"plain": None} | {level: level for level in LEVELS} | {IN_PYTHON: "all"}
    measured = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, seconds in side_by_side(model, ways, options.tokens).items():
            measured[name].append(seconds)
    model.close()
    table = {name: np.array(rows) for name, rows in measured.items()}
    for name, seconds in table.items():
        report(name, seconds * 1e3, table["plain"] * 1e3)


def report(name: str, taken: NDArray[np.float64], plain: NDArray[np.float64]) -> None:
    """Milliseconds of each call, [rounds, calls]."""
    first, second = np.median(taken[:, :2], axis=0)
    step, ratio = np.median(taken[:, 2:]), np.median(taken[:, 2:] / plain[:, 2:])
    whole = np.median(taken.sum(axis=1) / plain.sum(axis=1))
    print(
        f"{name:24} prompt {first:6.1f} ms  first step {second:5.1f} ms  later steps {step:5.1f} ms, "
        f"ratio {ratio:.3f}  whole {whole:.3f}",
        flush=True,
    )


def side_by_side(model: Model, ways: dict[str, str | None], tokens: int) -> dict[str, list[float]]:
    """Seconds of processor time of each call, by way. Turning logs into archives comes after a run and is not in it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = {name: started(stack, model, folder / name, name, level, tokens) for name, level in ways.items()}
        out: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(tokens):
            for name, run in runs.items():
                began = time.thread_time()
                next(run)
                out[name].append(time.thread_time() - began)
        return out


def started(stack: ExitStack, model: Model, path: Path, name: str, level: str | None, tokens: int) -> Iterator[int]:
    """A greedy generation, one call of llama.cpp at a time."""
    options = Options(level=level or "tokens", max_new_tokens=tokens)
    writer, taps = None, None
    if level is not None:
        writer = stack.enter_context(LogWriter(path))
        _open(writer, model, options)
    if level in ("layers", "all"):
        make: Callable[..., Taps] = InPython if name == IN_PYTHON else Taps
        nodes = Nodes(library(), model.parameters.architecture, model.parameters.file_names)
        taps = make(library(), nodes, writer, options)
    ids = model.ids(PROMPT)
    context = stack.enter_context(model.context(options, len(ids) + tokens, taps))
    steps = _Steps(model, writer, Chain(library(), options), options, None, 0)
    steps.begin(ids, PROMPT)
    return steps.each(context, ids, taps)


class InPython(Taps):
    """As where there is no C compiler."""

    def _compiled(self) -> None:
        return None


if __name__ == "__main__":
    main()
