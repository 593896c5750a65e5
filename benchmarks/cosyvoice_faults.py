"""The faults of real CosyVoice ports, on both texts: is each one's cause named, and its place?

    python benchmarks/cosyvoice_faults.py --model .cache/cosyvoice3 --native hooks/rust/target/release/tracekit-native

The reference is the PyTorch program, the candidate the native engine with one fault. Exit code 1 where one is missed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

import tracekit

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "hooks/torch/examples"))


@dataclass(frozen=True)
class Case:
    """What is planted, and what must be said of it."""

    name: str
    faults: tuple[str, ...]
    causes: tuple[str, ...]
    site: str
    said: str = ""
    """What the explanation or the evidence must hold."""


CORE = "llm.model.model.layers.0.self_attn.o_proj:in"
CASES = (
    Case("rotary table in float16", ("rope-f16",), ("layer",), CORE, "rotary table"),
    Case("inverse CDF, unseeded", ("inverse-cdf", "unseeded"), ("sampler", "rng"), "draws"),
    Case("inverse CDF", ("inverse-cdf",), ("sampler",), "draws", "cumulative sum"),
    Case("unseeded", ("unseeded",), ("rng",), "draws", "seed"),
    Case("stop tokens masked", ("stop-masked",), ("filter",), "survivors"),
    Case("top_p 0.7 for 0.8", ("top-p:0.7",), ("filter",), "survivors", "0.7"),
    Case("speaker row", ("speaker-row",), ("input",), "prompt/token_ids", "first difference at entry 1"),
    Case("prompt prefix missing", ("no-prompt-prefix",), ("input",), "prompt/token_ids", "You are a helpful"),
    Case("special tokens not parsed", ("specials-not-parsed",), ("input",), "prompt/token_ids"),
    Case("another text", ("other-text",), ("input",), "prompt/token_ids", "tts_text"),
    Case("fewer prompt speech tokens", ("fewer-speech-tokens",), ("input",), "prompt/token_ids", "speech_token_ids"),
    Case("more prompt speech tokens", ("more-speech-tokens",), ("input",), "prompt/token_ids", "speech_token_ids"),
    Case("lengths counted with the prompt", ("length-with-prompt",), ("config",), "", "min_len"),
    Case("stop on eos only", ("stop-on-eos-only",), ("stop", "filter", "rng", "sampler"), "", "stop"),
    Case("window from the wrong end", ("window-from-start",), ("rng", "sampler"), "draws", "window"),
    Case("> for >= in the repetition rule", ("repetition-strict",), ("rng", "sampler"), "draws", ">"),
    Case("quantised decoder", ("quantised-decoder",), ("layer",), "logits"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--native", required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    from cosyvoice3_example import TEXTS

    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, text in enumerate(TEXTS):
            reference = Path(scratch) / f"{number}.h5"
            example = ROOT / "hooks/torch/examples/cosyvoice3_example.py"
            words = ["--model", str(options.model), "--text", text, "--seed", str(options.seed)]
            record(reference, [str(example), *words])
            for case in CASES:
                candidate = Path(scratch) / "candidate.h5"
                faults = [word for fault in case.faults for word in ("--fault", fault)]
                record(candidate, ["--", options.native, "cosyvoice3", *words, *faults])
                rows.append([number, case.name, *judged(case, reference, candidate)])
                print(" | ".join(map(str, rows[-1])), file=sys.stderr, flush=True)
    print(tabulate(rows, headers=["text", "fault", "verdict", "explanation or first evidence", "right"]))
    right = sum(row[-1] == "yes" for row in rows)
    print(f"{right} of {len(rows)} named")
    sys.exit(0 if right == len(rows) else 1)


def record(out: Path, words: list[str]) -> None:
    command = [sys.executable, "-m", "tracekit_cli.main", "record", "-o", str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)


def judged(case: Case, reference: Path, candidate: Path) -> tuple[str, str, str]:
    """The verdict, what it says, and whether that is right."""
    with tracekit.open(reference) as one, tracekit.open(candidate) as other:
        verdict = tracekit.diff(one, other)
    explanation = verdict.explanation or {}
    text = explanation.get("text") or (verdict.evidence[0] if verdict.evidence else "")
    whole = " ".join([*verdict.evidence, str(explanation.get("text"))])
    said = case.said in whole
    right = verdict.cause in case.causes and case.site in (verdict.site or "") and said
    return f"{verdict.cause} at step {verdict.step}, {verdict.site}", text, "yes" if right else "NO"


if __name__ == "__main__":
    main()
