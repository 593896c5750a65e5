"""A program whose options are known: its command line, and the options by which it computes the same otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path

from tracekit.programs.recorded import recorded
from tracekit.selfcheck.variation import PROMPT_IDS, Settings


@dataclass(frozen=True)
class WithOptions:
    """`words`, and `options`: setting -> the option that sets it; `values`: what to try of them; `run`: records words
    into a file in this process, where they are no program; `prompt`: an option that gives way to the prompt's ids;
    `words_of`: the program's word for a value."""

    words: tuple[str, ...]
    options: Mapping[str, str]
    values: Mapping[str, Seq[str]]
    run: Callable[[list[str], Path], None] | None = None
    prompt: str = "--prompt"
    words_of: Mapping[str, str] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """As `Varied`."""
        return " ".join(self.words)

    @property
    def settings(self) -> frozenset[str]:
        """As `Varied`."""
        return frozenset(self.options)

    def record(self, settings: Settings, folder: Path) -> Path:
        """As `Varied`."""
        words = list(self.words)
        for name, value in settings.items():
            words = _without(words, self.options[name])
            if name == PROMPT_IDS:
                words = _without(words, self.prompt)
            words += [self.options[name], self.words_of.get(value, value)]
        if self.run is None:
            return recorded(words, folder)
        out = folder / "run.h5"
        self.run(words, out)
        return out


def _without(words: list[str], option: str) -> list[str]:
    """The words without an option and its value."""
    out: list[str] = []
    skip = False
    for word in words:
        if not skip and word != option and not word.startswith(f"{option}="):
            out.append(word)
        skip = word == option and not skip
    return out
