"""A postmortem of traces that exist: a folder, its traces paired by seed."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from tracekit.formats.opening import is_trace, open_trace
from tracekit.postmortem.examine import compare
from tracekit.postmortem.program import counted
from tracekit.trace import Trace, TraceError
from tracekit.verdict.outcome import Run, Seed, State

ENDINGS = (".h5", ".tklog")
REFERENCE = ("python", "reference", "ref")
"""What the implementation of a trace, or its file's name, says of the side that is taken as right."""


@dataclass(frozen=True)
class Pair:
    """Two traces of one seed."""

    seed: int
    reference: Path
    candidate: Path


def pairs(folder: Path) -> list[Pair]:
    """The pairs in a folder and the folders in it, by seed. Raises TraceError where traces cannot be paired."""
    if not folder.is_dir():
        raise TraceError(f"{folder}: is no folder; give one with traces of both programs, or --ref, --cand and --seeds")
    found: dict[int, list[tuple[bool, Path]]] = {}
    for path in traces(folder):
        with open_trace(path) as trace:
            if (trace.config.get("recorder") or {}).get("follow") is not None:
                continue  # an oracle, or a run that was forced: none of the pair
            seed = _seed(trace, path)
            found.setdefault(seed, []).append((_is_reference(trace, path), path))
    if not found:
        raise TraceError(
            f"{folder}: holds no traces; record some with `tracekit record`, or give --ref, --cand, --seeds"
        )
    return [_pair(folder, seed, sides) for seed, sides in sorted(found.items()) if len(sides) > 1]


def traces(folder: Path) -> list[Path]:
    """Every trace in a folder and the folders in it."""
    return sorted(path for path in folder.rglob("*") if path.suffix in ENDINGS and is_trace(path))


def _seed(trace: Trace, path: Path) -> int:
    """The seed that a trace says, else the last number of its name."""
    said = next((sequence.seed for sequence in trace.sequences if sequence.seed is not None), trace.config.get("seed"))
    if isinstance(said, int):
        return said
    number = re.findall(r"\d+", path.stem) or re.findall(r"\d+", path.parent.name)
    if not number:
        raise TraceError(f"{path}: says no seed, and neither does its name; name it as in seed-7-native.h5")
    return int(number[-1])


def _is_reference(trace: Trace, path: Path) -> bool:
    if any(word in path.stem.lower().split(".")[0] for word in ("cand", "native")):
        return False
    named = any(word in path.stem.lower() for word in REFERENCE)
    return named or trace.implementation in REFERENCE


def _pair(folder: Path, seed: int, sides: list[tuple[bool, Path]]) -> Pair:
    # Of a side that was recorded twice, the one in full has the longer name.
    ours = sorted((path for is_reference, path in sides if is_reference), key=lambda path: (len(path.name), path))
    theirs = sorted((path for is_reference, path in sides if not is_reference), key=lambda path: (len(path.name), path))
    if not ours or not theirs:
        names = ", ".join(path.name for _, path in sides[:3])
        raise TraceError(
            f"{folder}: of seed {seed} every trace is of the same side ({names}); say which is the reference by their "
            "names, as in reference-7.h5 and candidate-7.h5"
        )
    return Pair(seed, ours[-1], theirs[-1])


def examined(pair: Pair, folder: Path, fail: str) -> Seed:
    """What a pair says."""
    names = [str(path.relative_to(folder)) for path in (pair.reference, pair.candidate)]
    try:
        with open_trace(pair.reference) as one, open_trace(pair.candidate) as other:
            runs = [
                replace(counted(trace, 0, None), trace=name) for trace, name in zip((one, other), names, strict=True)
            ]
            full = any(sequence.sites for sequence in other.sequences)
            seed = compare(Seed(pair.seed, State.PASS, runs[0], runs[1]), one, other, fail, in_full=full)
            text = (seed.text or "").replace(f"{folder}/", "")
            return replace(seed, text=text or None)
    except TraceError as error:
        nothing = [Run(None, 0, trace=name) for name in names]
        return Seed(pair.seed, State.TROUBLE, nothing[0], nothing[1], note=str(error))
