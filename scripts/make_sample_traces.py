"""Make the checked-in traces of `traces/`: a tiny model, recorded in PyTorch and in the native engine.

    python scripts/make_sample_traces.py --native hooks/rust/target/release/tracekit-native

python.h5 and native.h5 agree; oracle.h5 is python.h5 again in float64; faulty.h5 is the native engine with the wrong
rotary theta in one layer. All is run in a folder of its own, so that no path of a real machine ends up in a trace.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRACEKIT = str(Path(sys.executable).parent / "tracekit")
ARGUMENTS = ["--model", "model", "--prompt", "Hello, you", "--max-new-tokens", "12", "--seed", "0"]
SAMPLED = ["--temperature", "0.9", "--top-k", "40", "--top-p", "0.95"]
FAULT = "rope-theta:500000:1"
LIMIT = 2_000_000
"""Bytes that all of them may take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--native", required=True, type=Path)
    native = parser.parse_args().native.resolve()
    folder = Path(tempfile.gettempdir()) / "tracekit-sample"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(ROOT / "hooks/torch/examples/generate.py", folder)
    shutil.copy(native, folder)
    run(folder, sys.executable, ROOT / "scripts/make_tiny_model.py", "llama", "model", "--seed", "1")
    python = ["generate.py", *ARGUMENTS, *SAMPLED]
    engine = ["./tracekit-native", *ARGUMENTS, *SAMPLED]
    run(folder, TRACEKIT, "record", "-o", "python.h5", *python)
    run(folder, TRACEKIT, "oracle", "python.h5", "-o", "oracle.h5")
    run(folder, TRACEKIT, "record", "-o", "native.h5", "--", *engine)
    run(folder, TRACEKIT, "record", "-o", "faulty.h5", "--", *engine, "--fault", FAULT)
    size = 0
    for name in ("python.h5", "oracle.h5", "native.h5", "faulty.h5"):
        size += (folder / name).stat().st_size
        shutil.copy(folder / name, ROOT / "traces" / name)
    shutil.rmtree(folder)
    if size > LIMIT:
        sys.exit(f"the traces take {size} bytes, more than {LIMIT}")
    print(f"traces/: {size / 1e6:.2f} MB")


def run(folder: Path, *words: object) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([str(word) for word in words], cwd=folder, env=environment, check=True)


if __name__ == "__main__":
    main()
