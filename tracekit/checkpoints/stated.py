"""The checkpoint that a trace states: where its weights came from, and where that is here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.checkpoints.other_names import other_names
from tracekit.checkpoints.parameters import Parameters
from tracekit.trace import Trace

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""`organisation/model`, as the Hugging Face hub names a model."""
SNAPSHOT = re.compile(r".*models--(?P<owner>[^/]+?)--(?P<model>[^/]+)/snapshots/(?P<revision>\w+)/?")
"""A folder of the hub's cache."""


@dataclass(frozen=True)
class NoCheckpoint:
    """There is none to audit a trace against: it states none, or what it states is not here. `beside`: the trace's
    folder; `on_hub`: it may be in the hub's cache, and is not."""

    stated: str | None
    beside: str
    on_hub: bool


@dataclass(frozen=True)
class SettingsOfTrace:
    """Nothing declares a checkpoint's settings: it is judged by those that the trace itself states."""

    checkpoint: str


def stated_checkpoint(trace: Trace) -> str | None:
    """What a trace says: a path, or the name of a model on the Hugging Face hub; None where it says nothing."""
    said = trace.config.get("checkpoint")
    return said if isinstance(said, str) and said else None


def find_checkpoint(trace: Trace) -> str | None:
    """Where the checkpoint that a trace states is here; None where it states none, or none is there."""
    said = stated_checkpoint(trace)
    if said is None:
        return None
    for path in _places(trace, said):
        if path.is_absolute() and path.exists():
            return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
    return None


def open_checkpoint(held: str | os.PathLike[str] | Parameters, *traces: Trace) -> Checkpoint:
    """A checkpoint of any kind, which knows its parameters by the names of these traces, too. Where nothing declares
    its settings, they are those that the first trace states. Raises TraceError where it is none."""
    found = Checkpoint(held)
    if not found.config:
        said = (trace.config.get("model") for trace in traces)
        found.config = next((dict(model) for model in said if isinstance(model, dict)), {})
    found.other_names = {ours: theirs for trace in traces for ours, theirs in other_names(trace, found).items()}
    return found


def borrowed_settings(checkpoint: Checkpoint) -> list[SettingsOfTrace]:
    """What there is to say of a checkpoint's settings."""
    borrowed = bool(checkpoint.config) and not checkpoint.file.config
    return [SettingsOfTrace(checkpoint.path)] if borrowed else []


def no_checkpoint(trace: Trace) -> NoCheckpoint:
    """Where the checkpoint of a trace was looked for in vain."""
    said = stated_checkpoint(trace)
    on_hub = said is not None and bool(HUB_ID.fullmatch(said) or SNAPSHOT.fullmatch(said))
    return NoCheckpoint(said, str(Path(trace.path).resolve().parent), on_hub)


def _places(trace: Trace, said: str) -> Iterator[Path]:
    """Where it may be: as stated, by the folder that the program ran in or the trace lies in, beside the trace where
    both were moved, in the hub's cache."""
    beside = Path(trace.path).resolve().parent
    command = trace.config.get("command")
    cwd = command.get("cwd") if isinstance(command, dict) else None
    yield from (Path(said), Path(str(cwd or beside)) / said, beside / said)
    if Path(said).is_absolute():
        yield beside / Path(said).name
    found = SNAPSHOT.fullmatch(said)
    if found is not None:
        yield _cache() / f"models--{found['owner']}--{found['model']}" / "snapshots" / found["revision"]
    elif HUB_ID.fullmatch(said):
        yield from _snapshots(_cache() / f"models--{said.replace('/', '--')}")


def _cache() -> Path:
    """The hub's cache folder. Source: huggingface_hub `constants.py`."""
    home = os.environ.get("HF_HOME") or str(Path.home() / ".cache/huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub")


def _snapshots(folder: Path) -> Iterator[Path]:
    """The snapshot of the main branch, else the only one: which revision ran is not stated."""
    try:
        revision = (folder / "refs/main").read_text().strip()
    except (OSError, ValueError):
        revision = ""
    if re.fullmatch(r"\w+", revision):
        yield folder / "snapshots" / revision
    others = sorted((folder / "snapshots").glob("*"))
    if len(others) == 1:
        yield others[0]
