"""Run the commands that a guide shows, in the order of the page, and put what they print below them.

    python scripts/run_guide.py docs/cosyvoice3.md --native hooks/rust/target/release/tracekit-native

A command is a line `    $ ...`; what follows it, indented alike, is its standard output. Commands run in a folder of
their own, in which `model`, `examples` and `tracekit-native` are links.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INDENT = "    "
PROMPT = f"{INDENT}$ "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("guide", type=Path)
    parser.add_argument("--native", type=Path, required=True)
    options = parser.parse_args()
    text = options.guide.read_text()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepare(place, options.native)
        outputs = [run(command, place) for command, _ in shown(text)]
    options.guide.write_text(filled(text, outputs))


def shown(text: str) -> list[tuple[str, str]]:
    """(command, what the page shows below it)."""
    found: list[tuple[str, list[str]]] = []
    below = False
    for line in text.splitlines():
        if line.startswith(PROMPT):
            found.append((line.removeprefix(PROMPT), []))
        elif below and (line.startswith(INDENT) or not line):
            found[-1][1].append(line.removeprefix(INDENT))
        below = line.startswith(PROMPT) or (below and (line.startswith(INDENT) or not line))
    return [(command, "\n".join(lines).rstrip("\n")) for command, lines in found]


def prepare(folder: Path, native: Path) -> None:
    """The links that the commands go by."""
    links = {"model": ROOT / ".cache/cosyvoice3", "examples": ROOT / "hooks/torch/examples", "tracekit-native": native}
    for name, target in links.items():
        (folder / name).symlink_to(target.resolve())


def run(command: str, folder: Path) -> str:
    """Standard output of a command, without this checkout's own place. Exit code 1 is an answer, 2 is trouble."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{command}\n{done.stderr}")
    return done.stdout.replace(f"{ROOT}{os.sep}", "")


def filled(text: str, outputs: list[str]) -> str:
    """The page with other outputs, one for each command."""
    page: list[str] = []
    left = iter(outputs)
    below = False
    for line in text.splitlines():
        if line.startswith(PROMPT):
            printed = next(left).rstrip("\n")
            page += [line, *(f"{INDENT}{each}".rstrip() for each in printed.splitlines())]
            below = True
        elif not below or (line and not line.startswith(INDENT)):
            page += [""] * below + [line]
            below = False
    return "\n".join(page) + "\n"


if __name__ == "__main__":
    main()
