"""One run of the benchmark by itself: a program that is wrong, to be recorded like any other.

    tracekit record -o out.h5 benchmarks/fault_bench/faulty_generate.py --model .cache/smollm2-135m \\
        --fault gain --with '{"site": "model.layers.3.mlp.up_proj", "factor": 1.001}'

Without `--fault` it is the healthy run: record that as the reference, and give `tracekit oracle` its trace.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.fault_bench import benign, inject_sampler, models  # noqa: E402
from benchmarks.fault_bench.inject_torch import INJECTIONS  # noqa: E402
from benchmarks.fault_bench.setups import SETUPS  # noqa: E402
from benchmarks.fault_bench.studio import Studio, generate  # noqa: E402

assert benign and inject_sampler  # register their injections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / ".cache/smollm2-135m", help="SmolLM2's folder")
    parser.add_argument("--setup", choices=sorted(SETUPS), default="smollm2", help="the run; default smollm2")
    parser.add_argument("--scratch", type=Path, default=ROOT / "out/fault-bench", help="where small models are made")
    parser.add_argument("--fault", choices=sorted(INJECTIONS), metavar="NAME", help=", ".join(sorted(INJECTIONS)))
    parser.add_argument("--with", dest="parameters", type=json.loads, default={}, metavar="JSON", help="its parameters")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    setup = SETUPS[options.setup]
    studio = Studio(options.scratch, options.model, Path("-"), options.seed)
    if setup.model != "smollm2" and not studio.folder(setup.model).exists():
        models.make(setup.model, studio.folder(setup.model))
    model, run = models.load(studio.folder(setup.model), setup.dtype), studio.run(setup)
    with ExitStack() as stack:
        if options.fault:
            stack.enter_context(INJECTIONS[options.fault](model, run, **options.parameters))
        torch.manual_seed(run.seed)
        for enter in run.inside:
            stack.enter_context(enter())
        generate(model, setup, run)


if __name__ == "__main__":
    main()
