"""What to record, and how: the options that the command line, `record(...)` and the trace's own config share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tracekit.programs.levels import LEVELS, keeps
from tracekit.trace import TraceError

RNG_MODES = ("fast", "thorough", "cpu")
DTYPES = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Options:
    """How much of a run is recorded. Raises TraceError for a value that means nothing."""

    level: str = "all"
    """`tokens`, `logits`, `layers` or `all`; each holds what those before it hold."""
    sites: str | None = None
    """Regular expression; only sites whose name it finds are kept."""
    logits: str = "full"
    """`full`, or how many of the largest log-probabilities of each step are kept."""
    module: str | None = None
    """Regular expression for the class name or the path of the module to record."""
    rng: str = "fast"
    """`fast`, `thorough` (every operator is watched) or `cpu` (draws are made on the CPU generator)."""
    follow: str | None = None
    """Path of the trace whose tokens are forced."""
    follow_draws: bool = False
    """Force its random numbers, too."""
    dtype: str | None = None
    """Run the model in this precision instead of its own."""
    seed: int | None = None
    """Of torch, numpy and random; None: the program's own."""
    keep_log: bool = False
    """Keep the log after the archive is made."""

    def __post_init__(self) -> None:
        _one_of("level", self.level, LEVELS)
        _one_of("rng", self.rng, RNG_MODES)
        if self.dtype is not None:
            _one_of("dtype", self.dtype, DTYPES)
        if self.logits != "full" and not (self.logits.isdecimal() and int(self.logits) > 0):
            raise TraceError(f"--logits {self.logits}: give `full` or a count of at least 1")
        for name, pattern in (("sites", self.sites), ("module", self.module)):
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise TraceError(f"--{name} {pattern}: not a regular expression: {error}") from None

    @property
    def top_logits(self) -> int | None:
        """How many log-probabilities a step keeps; None: the whole vector."""
        return None if self.logits == "full" else int(self.logits)

    def keeps_site(self, name: str) -> bool:
        """Whether the level and the pattern want the site of this name."""
        return keeps(self.level, self.sites, name)

    def as_json(self) -> dict[str, Any]:
        """As the trace's `recorder` object holds it."""
        return {
            "level": self.level,
            "sites": self.sites,
            "logits": self.logits,
            "module": self.module,
            "rng": self.rng,
            "follow": self.follow,
            "follow_draws": self.follow_draws,
            "dtype": self.dtype,
        }


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise TraceError(f"--{option} {value}: give one of {', '.join(allowed)}")
