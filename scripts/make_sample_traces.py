"""Make the checked-in traces of `traces/`: a tiny model, recorded in PyTorch and in the native engine.

    python scripts/make_sample_traces.py --native hooks/rust/target/release/tracekit-native

python.h5 and native.h5 agree; oracle.h5 is python.h5 again in float64; model/ is the checkpoint. The other traces are
of the native engine with one mistake each: in a layer, the filter, the generator's seed, the rule for stopping. All is
run in a folder of its own, so that no path of a real machine ends up in a trace.
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
FAULTS = {
    "layer": ["--fault", "rope-theta:500000:1"],
    "filter": ["--fault", "top-p-drops-crossing"],
    "rng": ["--fault", "extra-draw:3"],
    "stop": ["--fault", "stop-early:8"],
}
"""Name of the trace, and the mistake that is made in it. Layers are kept of the first alone: the others need none."""
MODEL = ("config.json", "model.safetensors")
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
    run(
        folder,
        sys.executable,
        ROOT / "scripts/make_tiny_model.py",
        "llama",
        "model",
        "--seed",
        "1",
        "--layers",
        "2",
        "--tied",
    )
    python = ["generate.py", *ARGUMENTS, *SAMPLED]
    engine = ["./tracekit-native", *ARGUMENTS, *SAMPLED]
    run(folder, TRACEKIT, "record", "-o", "python.h5", *python)
    run(folder, TRACEKIT, "oracle", "python.h5", "-o", "oracle.h5")
    run(folder, TRACEKIT, "record", "-o", "native.h5", "--", *engine)
    for name, fault in FAULTS.items():
        level = "all" if name == "layer" else "logits"
        run(folder, TRACEKIT, "record", "-o", f"{name}.h5", "--level", level, "--", *engine, *fault)
    size = 0
    (ROOT / "traces/model").mkdir(exist_ok=True)
    made = [f"{name}.h5" for name in ("python", "oracle", "native", *FAULTS)] + [f"model/{name}" for name in MODEL]
    for name in made:
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
