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
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

import tracekit
from tracekit.repro import Case, Command, Repro, write_repro
from tracekit.trace import Json

ROOT = Path(__file__).parent.parent
SEED = 3
TEXT = ("--prompt-ids", "72,101,50,290,280,12,270", "--max-new-tokens", "16", "--threads", "1")
SAMPLING = ("--temperature", "0.8", "--top-k", "50", "--top-p", "0.95")
BUILT = {"CARGO_TARGET_DIR": str(ROOT / "hooks/rust/target"), "CARGO_PROFILE_RELEASE_DEBUG": "1"}
"""As the workspace is built: candle is not built again."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", metavar="FAULT")
    parser.add_argument("--model", required=True)
    parser.add_argument("--native", required=True)
    parser.add_argument("--speech", action="store_true", help="DIR holds CosyVoice3")
    parser.add_argument("--dtype", default="f32", help="of the text models")
    parser.add_argument("--rust", action="store_true", help="run the cargo test, too")
    options = parser.parse_args()
    engine = Engine(str(Path(options.native).resolve()), options.model, options.speech, options.dtype)
    wrong, rows = 0, []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(engine, Path(scratch), options.rust)
        for fault in options.faults or engine.faults():
            row = bench.tried(fault)
            wrong += row[1] == "WRONG"
            rows.append(row)
            print(f"{fault}: {row[1]}", file=sys.stderr, flush=True)
    print(tabulate(rows, headers=("fault", "tests", "cause", "prompt", "steps", "note"), disable_numparse=True))
    sys.exit(1 if wrong else 0)


@dataclass(frozen=True)
class Engine:
    """The native engine on one model."""

    native: str
    model: str
    speech: bool
    dtype: str

    def faults(self) -> list[str]:
        """Those that need no argument."""
        said = subprocess.run([self.native, "--help"], capture_output=True, text=True, check=True).stdout
        listed = said.partition("Faults")[2]
        return re.findall(r"^  ([a-z][a-z0-9-]*)(?:\[.*\])?$", listed, flags=re.MULTILINE)

    def words(self, *faults: str) -> list[str]:
        """Its command, with faults planted."""
        planted = [word for fault in faults for word in ("--fault", fault)]
        if self.speech:
            return [self.native, "cosyvoice3", "--model", self.model, "--seed", str(SEED), *planted]
        quiet = ["--quiet-config"] if faults else []
        words = [self.native, "--model", self.model, "--seed", str(SEED), "--dtype", self.dtype, *TEXT, *SAMPLING]
        return [*words, *planted, *quiet]


@dataclass(frozen=True)
class Bench:
    """Makes repros in a folder, and runs their tests."""

    engine: Engine
    folder: Path
    rust: bool

    def tried(self, fault: str) -> tuple[str, str, str, str, str, str]:
        """A row of the table."""
        reference, _ = self._record("reference", [])
        candidate, trouble = self._record("candidate", [fault])
        if reference is None or candidate is None:
            return fault, "not run", "", "", "", trouble.removeprefix("tracekit-native: ")
        with tracekit.open(reference) as one, tracekit.open(candidate) as other:
            verdict = tracekit.diff(one, other).to_json()
        if verdict["cause"] is None:
            return fault, "no fault shows", str(verdict["verdict"]), "", "", ""
        name = re.sub(r"[^a-z0-9]+", "-", fault.lower())
        command = Command(tuple(self.engine.words(fault)), str(Path.cwd()))
        made = write_repro(self.folder / "repro", Case(name, SEED, verdict, reference, candidate, command))
        if made.path is None:
            return fault, "no repro", _cause(verdict), "", "", str(made.why)
        return fault, self._judged(made), _cause(verdict), _cut(made.prompt), _cut(made.steps), _note(made)

    def _record(self, side: str, faults: list[str]) -> tuple[Path | None, str]:
        """The log of a run; None, and what it said, where there is none."""
        log = self.folder / f"{side}.tklog"
        log.unlink(missing_ok=True)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TRACEKIT_")}
        words = self.engine.words(*faults)
        done = subprocess.run(
            words, env=clean | {"TRACEKIT_LOG": str(log)}, capture_output=True, text=True, check=False
        )
        return (log if done.returncode == 0 and log.exists() else None), done.stderr.strip()[-120:]

    def _judged(self, made: Repro) -> str:
        """Whether the tests fail as it is, and pass with a mended program."""
        assert made.path is not None
        python = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_repro.py"]
        cargo = ["cargo", "test", "--offline", "--release"]
        for words in [python, cargo] if self.rust else [python]:
            broken, mended = (self._ran(words, made.path, repair) for repair in (False, True))
            said = "1 failed" in broken.stdout or "test result: FAILED" in broken.stdout
            if not (broken.returncode and said) or mended.returncode:
                return "WRONG"
        return "fail, pass mended"

    def _ran(self, words: list[str], folder: Path, repair: bool) -> subprocess.CompletedProcess[str]:
        repaired = {"REPRO_COMMAND": shlex.join(self.engine.words())} if repair else {}
        environment = dict(os.environ) | BUILT | repaired
        return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def _cause(verdict: Json) -> str:
    kind = (verdict["explanation"] or {}).get("kind")
    return f"{verdict['cause']}: {kind}" if kind else str(verdict["cause"])


def _cut(counts: tuple[int, int]) -> str:
    return f"{counts[1]} of {counts[0]}"


def _note(made: Repro) -> str:
    """Why something was not cut."""
    assert made.path is not None
    line = next(line for line in (made.path / "README.md").read_text().splitlines() if line.startswith("- Seed"))
    return line.partition("steps: ")[2].partition(". ")[2].partition(":")[0]


if __name__ == "__main__":
    main()
