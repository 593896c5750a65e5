"""CosyVoice3's language model in PyTorch and in the native engine: equal tokens, stops, draws and fallbacks?

    python scripts/cosyvoice_parity.py --model .cache/cosyvoice3 --native hooks/rust/target/release/tracekit-native

Both sides speak the two texts for each seed and are recorded. Exit code 1 where a seed differs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import tracekit_torch
import transformers
from transformers import AutoTokenizer

import tracekit
from tracekit.trace import Sequence

EXAMPLES = Path(__file__).parent.parent / "hooks/torch/examples"
sys.path.insert(0, str(EXAMPLES))

INNER = "CosyVoice-BlankEN"
"""The folder of the Qwen2 inside."""

import cosyvoice3  # noqa: E402
import cosyvoice3_example as example  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--native", required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--tokens", type=int, help="compare this many speech tokens of each text alone")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    model, tokenizer = cosyvoice3.load(options.model), AutoTokenizer.from_pretrained(options.model / INNER)
    differ = 0
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(options.seeds):
            paths = Path(scratch) / "python.h5", Path(scratch) / "native.tklog"
            record_python(model, tokenizer, options, seed, paths[0])
            record_native(options, seed, paths[1])
            lines = list(compare(*paths, options.tokens))
            differ += any("differ" in line for line in lines)
            for line in lines:
                print(f"seed {seed:3}  {line}", flush=True)
            for path in paths:
                path.unlink()
    print(f"{options.seeds - differ} of {options.seeds} seeds equal, transformers {transformers.__version__}")
    sys.exit(1 if differ else 0)


def record_python(model: Any, tokenizer: Any, options: argparse.Namespace, seed: int, path: Path) -> None:
    """Both texts, one generator."""
    arguments = SimpleNamespace(
        model=options.model, prompt_speech_tokens=None, prompt_text=example.PREFIX, stream=False, seed=seed
    )
    speech = example.prompt_speech(arguments)  # type: ignore[arg-type]
    torch.manual_seed(seed)
    # What the example says of itself is not asked for.
    with contextlib.redirect_stdout(io.StringIO()), tracekit_torch.record(model, path, level="tokens"):
        for text in example.TEXTS:
            spoken = example.speak(model, tokenizer, text, speech, arguments)  # type: ignore[arg-type]
            list(example.limited(spoken, options.tokens, None))


def record_native(options: argparse.Namespace, seed: int, path: Path) -> None:
    words = [options.native, "cosyvoice3", "--model", str(options.model), "--seed", str(seed)]
    words += ["--stop-after", str(options.tokens)] if options.tokens else []
    environment = {**os.environ, "TRACEKIT_LOG": str(path), "TRACEKIT_LEVEL": "tokens"}
    subprocess.run(words, env=environment, check=True, capture_output=True)


def compare(python: Path, native: Path, limit: int | None) -> Iterator[str]:
    """A line for each segment."""
    with tracekit.open(python) as one, tracekit.open(native) as other:
        for ours, theirs in zip(one.sequences, other.sequences, strict=True):
            facts = [of(side, limit or min(ours.step_count, theirs.step_count)) for side in (ours, theirs)]
            whole = limit is not None or ours.step_count == theirs.step_count
            same = facts[0] == facts[1] and whole
            tokens, draws, fallbacks, redraws = facts[0]
            said = f"{len(tokens)} tokens, {len(draws)} draws, {fallbacks} fallbacks, {redraws} redraws"
            yield f"segment {ours.index}: {said}: {'equal' if same else 'differ'}"


def of(sequence: Sequence, steps: int) -> tuple[list[int], list[Any], int, int]:
    """Tokens, draws, fallbacks and redraws of the first steps."""
    seen = [sequence.step(index) for index in range(min(steps, sequence.step_count))]
    draws = [(draw.offset, draw.words, draw.result) for step in seen for draw in step.draws]
    kinds = [event.kind for step in seen for event in step.events]
    return [step.token for step in seen], draws, kinds.count("repetition_fallback"), kinds.count("redraw")


if __name__ == "__main__":
    main()
