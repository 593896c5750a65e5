"""Every fault of the native engine: do its repro's tests fail with the fault, and pass without it?

    python benchmarks/repros.py --model DIR --native hooks/rust/target/release/tracekit-native [--rust] [FAULT ...]

DIR is a small Llama (`scripts/make_tiny_model.py`) or, with --speech, CosyVoice3's folder. Without FAULT, those are
tried that the engine's help lists and that need no argument. `--rust` runs the cargo test, too. A fault that changes
nothing, that rounding may have made, or that the model has no place for is said to be so. Exit code 1 where a test says
the wrong thing.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tabulate import tabulate

import tracekit
from tracekit.report.json import record_of
from tracekit.repro import Case, Command, Repro, write_repro
from tracekit.verdict.record import VerdictRecord

ROOT = Path(__file__).parent.parent
SEED = 3
TEXT = ("--prompt-ids", "72,101,50,290,280,12,270", "--max-new-tokens", "16", "--threads", "1")
SAMPLING = ("--temperature", "0.8", "--top-k", "50", "--top-p", "0.95")
BUILT = {"CARGO_TARGET_DIR": str(ROOT / "hooks/rust/target"), "CARGO_PROFILE_RELEASE_DEBUG": "1"}
"""As the workspace is built: candle is not built again."""
FEATURES = """
[build-dependencies]
syn = { version = "3", features = ["full"] }

[dev-dependencies.aho-corasick]
version = "1"

[dev-dependencies.getrandom]
version = "0.4"
features = ["std", "sys_rng"]
"""
"""Of what candle is built with, those that the workspace's other packages ask for: without them all of it is built
again. Where they are others one day, that is so, and nothing else."""
PLAIN = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
"""The plugins that are installed here take seconds to import, and a repro uses none."""
WRONG = "WRONG"
Test = Callable[[Path, list[str] | None], subprocess.CompletedProcess[str]]
"""(repro, command of a mended program or None) -> what came of its test."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", metavar="FAULT")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--native", type=Path, required=True)
    parser.add_argument("--speech", action="store_true", help="DIR holds CosyVoice3")
    parser.add_argument("--dtype", default="f32", help="of the text models")
    parser.add_argument("--rust", action="store_true", help="run the cargo test, too")
    options = parser.parse_args()
    engine = Engine(options.native.resolve(), options.model.resolve(), options.speech, options.dtype)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(engine, Path(scratch))
        for fault in options.faults or engine.faults():
            rows.append(tried(bench, fault, [run_pytest, run_cargo] if options.rust else [run_pytest]))
            print(f"{fault}: {rows[-1][1]}", file=sys.stderr, flush=True)
    print(tabulate(rows, headers=("fault", "tests", "cause", "prompt", "steps", "note"), disable_numparse=True))
    sys.exit(1 if any(row[1] == WRONG for row in rows) else 0)


# -------------------------------------------------------------------- repros of planted faults


@dataclass(frozen=True)
class Engine:
    """The native engine on one model."""

    native: Path
    model: Path
    speech: bool = False
    dtype: str = "f32"

    def faults(self) -> list[str]:
        """Those that need no argument."""
        said = subprocess.run([self.native, "--help"], capture_output=True, text=True, check=True).stdout
        listed = said.partition("Faults")[2]
        return re.findall(r"^  ([a-z][a-z0-9-]*)(?:\[.*\])?$", listed, flags=re.MULTILINE)

    def words(self, *faults: str) -> list[str]:
        """Its command, with faults planted."""
        planted = [word for fault in faults for word in ("--fault", fault)]
        always = ["--model", str(self.model), "--seed", str(SEED)]
        if self.speech:
            return [str(self.native), "cosyvoice3", *always, *planted]
        quiet = ["--quiet-config"] if faults else []
        return [str(self.native), *always, "--dtype", self.dtype, *TEXT, *SAMPLING, *planted, *quiet]


@dataclass(frozen=True)
class Bench:
    """Makes repros in a folder, `repro/FAULT`."""

    engine: Engine
    folder: Path

    @cached_property
    def reference(self) -> Path:
        """The log of a run without a fault."""
        return self.record("reference", self.engine.words())

    def record(self, name: str, words: list[str]) -> Path:
        """The log of a run. Raises CalledProcessError."""
        log = self.folder / f"{name}.tklog"
        log.unlink(missing_ok=True)
        told = {name: value for name, value in os.environ.items() if not name.startswith("TRACEKIT_")}
        subprocess.run(words, env=told | {"TRACEKIT_LOG": str(log)}, check=True, capture_output=True, text=True)
        return log

    def repro(self, fault: str) -> tuple[VerdictRecord, Repro | None]:
        """The verdict on a fault, and its repro if it shows. Raises CalledProcessError where it cannot be planted."""
        words = self.engine.words(fault)
        candidate = self.record("candidate", words)
        with tracekit.open(self.reference) as one, tracekit.open(candidate) as other:
            verdict = record_of(tracekit.diff(one, other))
        if verdict.cause is None:
            return verdict, None
        name = re.sub(r"[^a-z0-9]+", "-", fault.lower())
        command = Command(tuple(words), str(self.folder))
        case = Case(name, SEED, verdict, self.reference, candidate, command)
        return verdict, write_repro(self.folder / "repro", case)


def run_pytest(path: Path, mended: list[str] | None) -> subprocess.CompletedProcess[str]:
    """A repro's test in Python: on the program that it was cut for, or on a mended one."""
    return _ran([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_repro.py"], path, mended)


def run_cargo(path: Path, mended: list[str] | None) -> subprocess.CompletedProcess[str]:
    """The same in Rust."""
    manifest = path / "Cargo.toml"
    if FEATURES not in (stated := manifest.read_text()):
        manifest.write_text(stated + FEATURES)
    return _ran(["cargo", "test", "--offline", "--release"], path, mended)


def _ran(words: list[str], folder: Path, mended: list[str] | None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ) | BUILT | PLAIN | ({} if mended is None else {"REPRO_COMMAND": shlex.join(mended)})
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


# -------------------------------------------------------------------- the table


def tried(bench: Bench, fault: str, tests: list[Test]) -> tuple[str, str, str, str, str, str]:
    """A row of the table."""
    try:
        verdict, made = bench.repro(fault)
    except subprocess.CalledProcessError as error:
        return fault, "not run", "", "", "", error.stderr.strip()[-120:]
    if made is None:
        return fault, "no fault shows", verdict.decision.value, "", "", ""
    if made.path is None:
        return fault, "no repro", _cause(verdict), "", "", str(made.why)
    right = all(_judges(test, made.path, bench.engine.words()) for test in tests)
    said = "fail, pass mended" if right else WRONG
    return fault, said, _cause(verdict), _cut(made.prompt), _cut(made.steps), made.uncut or ""


def _judges(test: Test, path: Path, mended: list[str]) -> bool:
    """Whether a test fails as it is, and passes with a mended program."""
    broken = test(path, None)
    said = "1 failed" in broken.stdout or "test result: FAILED" in broken.stdout
    return bool(broken.returncode) and said and test(path, mended).returncode == 0


def _cause(verdict: VerdictRecord) -> str:
    mistake = "" if verdict.explanation is None else f": {verdict.explanation.mistake}"
    return f"{verdict.cause}{mistake}"


def _cut(counts: tuple[int, int]) -> str:
    return f"{counts[1]} of {counts[0]}"


if __name__ == "__main__":
    main()
