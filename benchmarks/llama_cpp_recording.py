"""What recording llama.cpp costs: the same generation of a model that is loaded, plain and recorded, side by side.

    python -m benchmarks.llama_cpp_recording .cache/gguf/smollm2-135m.gguf

The runs alternate, so that a machine that slows down slows all of them. Processor time of the process is counted, which
other programs of the machine do not change much; medians and ratios of medians are printed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import tracekit_llama_cpp as llama_cpp
from tracekit_llama_cpp.options import Options
from tracekit_llama_cpp.recording import Model

from benchmarks.recording import report
from tracekit.programs.levels import LEVELS

PROMPT = "The history of Rome began when"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    model = Model(options.model, Options())
    with tempfile.TemporaryDirectory() as folder:
        runs = {"plain": timed(lambda: llama_cpp.generate(model, prompt=PROMPT, max_new_tokens=options.tokens))}
        runs |= {f"recorded, {level}": recorded(model, Path(folder), level, options.tokens) for level in LEVELS}
        report("llama.cpp", runs, options.rounds)
    model.close()


def recorded(model: Model, folder: Path, level: str, tokens: int) -> Callable[[], float]:
    # A log, as it is written while the program runs; turning it into an archive comes after the run.
    target = folder / f"{level}.tklog"
    return timed(lambda: llama_cpp.record(model, target, prompt=PROMPT, max_new_tokens=tokens, level=level))


def timed(run: Callable[[], object]) -> Callable[[], float]:
    def measured() -> float:
        began = time.process_time()
        run()
        return time.process_time() - began

    return measured


if __name__ == "__main__":
    main()
