"""tracekit-native: its command line as it is, and the options by which it computes the same in other ways."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path

from tracekit.programs.recorded import recorded
from tracekit.selfcheck.variation import (
    CHUNK,
    DTYPE,
    KEEP_PREFIX,
    PROMPT_IDS,
    REQUESTS,
    THREADS,
    Settings,
)

OPTIONS = {
    PROMPT_IDS: "--prompt-ids",
    CHUNK: "--prefill-chunk",
    THREADS: "--threads",
    DTYPE: "--dtype",
    REQUESTS: "--requests",
    KEEP_PREFIX: "--keep-prefix",
}
PROMPT = "--prompt"
DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class NativeEngine:
    """The engine of this repository, or one with its options."""

    words: tuple[str, ...]

    @property
    def settings(self) -> frozenset[str]:
        """As `Varied`."""
        return frozenset(OPTIONS)

    @property
    def values(self) -> Mapping[str, Seq[str]]:
        """As `Varied`."""
        return {THREADS: ("1", "2"), CHUNK: ("1", "3"), DTYPE: ("float32",)}

    @property
    def base(self) -> str:
        """As `Varied`."""
        return " ".join(self.words)

    def record(self, settings: Settings, folder: Path) -> Path:
        """As `Varied`."""
        words = list(self.words)
        for name, value in settings.items():
            words = _without(words, OPTIONS[name])
            if name == PROMPT_IDS:
                words = _without(words, PROMPT)
            words += [OPTIONS[name], DTYPES.get(value, value) if name == DTYPE else value]
        return recorded(words, folder)


def _without(words: list[str], option: str) -> list[str]:
    """The words without an option and its value."""
    out: list[str] = []
    skip = False
    for word in words:
        if not skip and word != option and not word.startswith(f"{option}="):
            out.append(word)
        skip = word == option and not skip
    return out
