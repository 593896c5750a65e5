"""Token parity: transformers' `generate` against the native engine, many seeds on the real checkpoint.

Prints one line a run that differs, and a summary. Exit code 0 if all are equal, 1 if not.
A run that is not equal is recorded on both sides and handed to `tracekit diff`, which says whether it is a near-tie.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.progress import track

SAMPLING = ["--temperature", "0.8", "--top-k", "50", "--top-p", "0.95"]
EXAMPLE = Path(__file__).parent.parent / "hooks/torch/examples/generate.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--native", required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--prompt", default="The history of Rome began when")
    options = parser.parse_args()
    reference = Reference(options.model, options.prompt, options.tokens)
    runs = [["--greedy"], *([*SAMPLING, "--seed", str(seed)] for seed in range(options.seeds))]
    unequal = []
    for run in track(runs, description="parity", total=len(runs)):
        if reference.tokens(run) != native_tokens(options, run):
            unequal.append(run)
    total = len(runs)
    print(
        f"{total - len(unequal)} of {total} runs of {options.tokens} tokens equal "
        f"({options.seeds} seeds {' '.join(SAMPLING)}, and greedy)"
    )
    for run in unequal:
        print(f"not equal: {' '.join(run)}")
        print(explain(options, run))
    sys.exit(bool(unequal))


class Reference:
    """transformers' side: the model is loaded once for all runs."""

    def __init__(self, model: str, prompt: str, tokens: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model: Any = AutoModelForCausalLM.from_pretrained(model)
        self.inputs: Any = AutoTokenizer.from_pretrained(model)(prompt, return_tensors="pt")
        self.limit = tokens

    def tokens(self, run: list[str]) -> list[int]:
        """The new token ids of one run."""
        import torch

        settings: dict[str, Any] = {"do_sample": False}
        if "--seed" in run:
            torch.manual_seed(int(run[-1]))
            settings = {"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.95}
        out = self.model.generate(**self.inputs, max_new_tokens=self.limit, **settings)
        new: list[int] = out[0, self.inputs["input_ids"].shape[1] :].tolist()
        return new


def arguments(options: argparse.Namespace, run: list[str]) -> list[str]:
    return ["--model", options.model, "--prompt", options.prompt, "--max-new-tokens", str(options.tokens), *run]


def native_tokens(options: argparse.Namespace, run: list[str]) -> list[int]:
    command = [options.native, *arguments(options, run), "--show-ids"]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return [int(word) for word in out.split()]


def explain(options: argparse.Namespace, run: list[str]) -> str:
    """The verdict on two recordings of a run whose tokens differ."""
    with tempfile.TemporaryDirectory() as folder:
        python, native = f"{folder}/python.h5", f"{folder}/native.h5"
        tracekit = str(Path(sys.executable).parent / "tracekit")
        subprocess.run([tracekit, "record", "-o", python, str(EXAMPLE), *arguments(options, run)], check=True)
        subprocess.run([tracekit, "record", "-o", native, "--", options.native, *arguments(options, run)], check=True)
        return subprocess.run([tracekit, "diff", python, native], check=False, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
