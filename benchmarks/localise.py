"""Are planted faults named, and harmless rewrites called parity? Twelve faults at three places each, on real models.

    python benchmarks/localise.py --model .cache/smollm2-135m --native hooks/rust/target/release/tracekit-native

The reference is transformers; the candidate is the native engine with a fault. A fault counts as named if step, site
and cause are right, with the oracle and without. Exit code 1 if one is missed or a rewrite is called a divergence.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

import tracekit
from tracekit.report.words import sentence
from tracekit.sampling.chain import scores
from tracekit.sampling.scores import survivors
from tracekit.trace import Trace

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "hooks/torch/examples/generate.py"
TRACEKIT = str(Path(sys.executable).parent / "tracekit")
PROMPT = "The history of Rome began when"
SAMPLED = ["--temperature", "0.8", "--top-k", "50", "--top-p", "0.95"]


@dataclass(frozen=True)
class Expected:
    """What the verdict must say; a step of None is worked out from the reference's logits."""

    cause: str
    site: str
    step: int | None = 0


@dataclass(frozen=True)
class Case:
    fault: str
    expected: Expected
    seed: int = 0
    biased: bool = False
    """On the small Qwen2 with biases instead of SmolLM2."""


def core(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.o_proj:in"


def layer_case(fault: str, site: str, cause: str = "layer", step: int = 0, biased: bool = False) -> Case:
    return Case(fault, Expected(cause, site, step), biased=biased)


CASES = [
    layer_case("rope-theta:10000", core(0), "config"),
    layer_case("rope-theta:500000:4", core(4)),
    layer_case("rope-theta:10000:20", core(20)),
    layer_case("rope-f16", core(0)),
    layer_case("rope-f16:7", core(7)),
    layer_case("rope-f16:22", core(22)),
    layer_case("norm-eps:1e-6", "model.layers.0.input_layernorm", "config"),
    layer_case("norm-eps:1e-3:model.layers.1.input_layernorm", "model.layers.1.input_layernorm"),
    layer_case("norm-eps:1e-3:model.layers.3.post_attention_layernorm", "model.layers.3.post_attention_layernorm"),
    layer_case("attention-scale:1.01", core(0)),
    layer_case("attention-scale:1.01:5", core(5)),
    layer_case("attention-scale:0.99:21", core(21)),
    layer_case("gain:model.layers.12.mlp.down_proj:1.01", "model.layers.12.mlp.down_proj"),
    layer_case("gain:model.layers.3:1.01", "model.layers.3"),
    layer_case("gain:model.layers.9.self_attn.o_proj:in:1.01", core(9)),
    layer_case("swap-gate-up", "model.layers.0.mlp.down_proj:in"),
    layer_case("swap-gate-up:2", "model.layers.2.mlp.down_proj:in"),
    layer_case("swap-gate-up:17", "model.layers.17.mlp.down_proj:in"),
    layer_case("missing-bias:model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj", biased=True),
    layer_case("missing-bias:model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.k_proj", biased=True),
    layer_case("missing-bias:model.layers.2.self_attn.v_proj", "model.layers.2.self_attn.v_proj", biased=True),
    layer_case("stale-cache-row:2:0", core(0), step=2),
    layer_case("stale-cache-row:6:3", core(3), step=6),
    layer_case("stale-cache-row:9:15", core(15), step=9),
    Case("top-p:0.8", Expected("filter", "survivors", None)),
    Case("top-p:0.9", Expected("filter", "survivors", None)),
    Case("top-p:0.99", Expected("filter", "survivors", None)),
    *(Case("inverse-cdf", Expected("sampler", "draws"), seed) for seed in (0, 1, 2)),
    *(Case(f"seed:{delta}", Expected("rng", "draws")) for delta in (1, 5, -1)),
    *(Case(f"stop-early:{step}", Expected("stop", "stop", step + 1)) for step in (2, 5, 9)),
]
"""Twelve faults, three places each."""

SENSITIVE = ["gain:model.layers.12.mlp.down_proj:1.0001", "gain:model.layers.28.mlp.gate_proj:1.0001"]
"""Too small to be seen without an oracle: named with it."""


class Bench:
    """Runs both sides and keeps their traces in a scratch folder."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options = options
        self.scratch = scratch
        self.biased_model = scratch / "qwen2"
        quiet(sys.executable, ROOT / "scripts/make_tiny_model.py", "qwen2", self.biased_model)

    def arguments(self, seed: int | None, biased: bool, tokens: int) -> list[str]:
        model = str(self.biased_model if biased else self.options.model)
        drawn = ["--greedy"] if seed is None else [*SAMPLED, "--seed", str(seed)]
        return ["--model", model, "--prompt", PROMPT, "--max-new-tokens", str(tokens), *drawn]

    def python(self, name: str, seed: int | None, *more: str, biased: bool = False) -> str:
        out = self.scratch / f"{name}.h5"
        if not out.exists():
            words = [*self.arguments(seed, biased, self.options.tokens), *more]
            quiet(TRACEKIT, "record", "-o", out, EXAMPLE, *words)
        return str(out)

    def oracle(self, reference: str) -> str:
        out = reference.replace(".h5", ".oracle.h5")
        if not Path(out).exists():
            quiet(TRACEKIT, "oracle", reference, "-o", out)
        return out

    def native(self, name: str, seed: int | None, *more: str, biased: bool = False) -> str:
        out = self.scratch / f"{name.replace('/', '-')}.h5"
        words = [*self.arguments(seed, biased, self.options.tokens), *more]
        quiet(TRACEKIT, "record", "-o", out, "--", self.options.native, *words)
        return str(out)


def quiet(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(str(word) for word in words)}: exit code {done.returncode}\n{done.stderr}")


def verdict(reference: str, candidate: str, oracle: str | None) -> tracekit.Verdict:
    with tracekit.open(reference) as one, tracekit.open(candidate) as other:
        if oracle is None:
            return tracekit.diff(one, other)
        with tracekit.open(oracle) as truth:
            return tracekit.diff(one, other, truth)


def first_step_cut_differently(reference: str, top_p: float) -> int:
    """The first step at which another top-p leaves other tokens, worked out from the reference's logits."""
    with tracekit.open(reference) as trace:
        return _first_cut(trace, top_p)


def _first_cut(trace: Trace, top_p: float) -> int:
    sequence = trace.sequences[0]
    for index in range(sequence.step_count):
        step = sequence.step(index)
        if step.logits is None or step.survivors_id is None:
            continue
        kept, _ = survivors(scores(step.logits, {**sequence.sampling, "top_p": top_p}))
        if set(kept.tolist()) != set(step.survivors_id.tolist()):
            return index
    raise SystemExit(f"top-p {top_p} changes no step; give more --tokens")


def named(found: tracekit.Verdict, case: Case, step: int) -> bool:
    return (found.cause, found.site, found.step) == (case.expected.cause, case.expected.site, step)


def run_faults(bench: Bench) -> tuple[list[list[str]], int, int]:
    rows, right, right_alone = [], 0, 0
    for case in CASES:
        reference = bench.python(f"python-{case.seed}-{case.biased}", case.seed, biased=case.biased)
        oracle = bench.oracle(reference)
        candidate = bench.native("fault", case.seed, "--fault", case.fault, biased=case.biased)
        step = case.expected.step
        if step is None:
            step = first_step_cut_differently(reference, float(case.fault.split(":")[1]))
        found, alone = verdict(reference, candidate, oracle), verdict(reference, candidate, None)
        good, good_alone = named(found, case, step), named(alone, case, step)
        right, right_alone = right + good, right_alone + good_alone
        said = f"{found.cause} at step {found.step}, {found.site}"
        rows.append([case.fault, said, "named" if good else "MISSED", "named" if good_alone else "missed"])
        print(f"  {case.fault}: {'named' if good else 'MISSED: ' + said}", file=sys.stderr, flush=True)
    return rows, right, right_alone


def run_sensitive(bench: Bench) -> list[list[str]]:
    rows = []
    reference = bench.python("python-0-False", 0)
    for fault in SENSITIVE:
        found = verdict(reference, bench.native("fault", 0, "--fault", fault), bench.oracle(reference))
        good = found.site == fault.split(":")[1] and found.cause == "layer"
        rows.append([fault, f"{found.cause} at {found.site}", "named" if good else "MISSED", ""])
    return rows


def run_benign(bench: Bench) -> tuple[list[list[str]], int]:
    greedy, sampled = bench.python("python-greedy", None), bench.python("python-0-False", 0)
    candidates = [
        ("transformers, eager attention", sampled, bench.python("eager", 0, "--attn", "eager")),
        ("transformers, prefill in chunks of 2", sampled, bench.python("chunks", 0, "--prefill-chunk", "2")),
        ("transformers, token by token", sampled, bench.python("singly", 0, "--prefill-chunk", "1")),
        ("transformers, 1 thread", sampled, bench.python("thread", 0, "--threads", "1")),
        ("transformers, batch of 4", greedy, bench.python("batch", None, *["--prompt", PROMPT] * 3)),
        ("transformers, batch of 2, left padding", greedy, bench.python("padded", None, "--prompt", "Hi")),
        ("native", sampled, bench.native("native", 0)),
        ("native, greedy", greedy, bench.native("native-greedy", None)),
        ("native, prefill in chunks of 2", sampled, bench.native("native-chunks", 0, "--prefill-chunk", "2")),
        ("native, token by token", sampled, bench.native("native-singly", 0, "--prefill-chunk", "1")),
        ("native, 1 thread", sampled, bench.native("native-thread", 0, "--threads", "1")),
    ]
    rows, parities = [], 0
    for name, reference, candidate in candidates:
        found, alone = verdict(reference, candidate, bench.oracle(reference)), verdict(reference, candidate, None)
        both = [one.verdict for one in (found, alone)]
        parities += both == ["parity", "parity"]
        rows.append([name, sentence(found.evidence[0]), *both])
        print(f"  {name}: {both[0]}", file=sys.stderr, flush=True)
    return rows, parities


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--native", required=True)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        faults, right, right_alone = run_faults(bench)
        sensitive = run_sensitive(bench)
        benign, parities = run_benign(bench)
    print(tabulate(faults + sensitive, headers=["fault", "verdict", "with oracle", "without"]))
    print()
    print(tabulate(benign, headers=["harmless rewrite", "evidence", "with oracle", "without"]))
    print()
    print(f"faults named: {right} of {len(CASES)} with the oracle, {right_alone} without")
    print(f"gains of 1.0001 named with the oracle: {sum(row[2] == 'named' for row in sensitive)} of {len(sensitive)}")
    print(f"harmless rewrites called parity: {parities} of {len(benign)}")
    if options.json:
        figures = {"faults": faults, "sensitive": sensitive, "benign": benign, "named": right, "parities": parities}
        options.json.write_text(json.dumps(figures, indent=2))
    sys.exit(right < len(CASES) or parities < len(benign))


if __name__ == "__main__":
    main()
