"""A command with places for what varies: `./engine --threads {threads} --prompt-ids {prompt_ids}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path

from tracekit.errors import TraceError
from tracekit.programs.recorded import recorded
from tracekit.selfcheck.variation import Settings

PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Command:
    """`words` with a place for each setting of `given`, whose values are the base run's; `values`: others to try."""

    words: tuple[str, ...]
    given: Mapping[str, str]
    values: Mapping[str, Seq[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        places = {name for word in self.words for name in PLACE.findall(word)}
        for name in sorted(places - set(self.given)):
            raise TraceError(f"{{{name}}} has no value in the command; give --vary {name}=BASE,OTHER,...")
        for name in sorted(set(self.given) - places):
            raise TraceError(f"--vary {name}: the command has no place {{{name}}}; write it where the value goes")

    @property
    def base(self) -> str:
        """As `Varied`."""
        return " ".join(self._words({}))

    @property
    def settings(self) -> frozenset[str]:
        """As `Varied`."""
        return frozenset(self.given)

    def record(self, settings: Settings, folder: Path) -> Path:
        """As `Varied`."""
        return recorded(self._words(settings), folder)

    def _words(self, settings: Settings) -> list[str]:
        values = {**self.given, **settings}
        return [PLACE.sub(lambda place: values[place[1]], word) for word in self.words]
