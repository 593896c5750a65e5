"""A fault: what is done wrong, where, and what a verdict must say of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Expected:
    """What the verdict must name. More than one cause or site: names that mean the same place."""

    causes: tuple[str, ...]
    sites: tuple[str, ...]
    step: int | None = 0
    """None: the step at which the faulty run first parts from the healthy one."""
    at_position: bool = False
    """The position is part of what is expected: the fault strikes at a single one, or begins at a certain one."""


@dataclass(frozen=True)
class Fault:
    """One fault on one side, of a run that `setups` describes."""

    side: str
    """`torch`, or `native` for the Rust engine."""
    setup: str
    kind: str
    """The injection's name; for the engine, what follows `--fault`."""
    parameters: Json
    expected: Expected
    twin: Json | None = None
    """Parameters that make the same injection harmless: what the faulty run is compared with, bit by bit. None: the
    run without any injection."""
    name: str = ""
    thread: str | None = field(default=None)
    """The public issue thread that reported it."""

    @property
    def label(self) -> str:
        """As the tables show it."""
        if self.name:
            return self.name
        given = " ".join(f"{key}={value}" for key, value in self.parameters.items())
        return f"{self.kind} {given}".strip()


def layer(*sites: str, step: int | None = 0, at_position: bool = False) -> Expected:
    """Expected of a fault in what a site computes."""
    return Expected(("layer",), sites, step, at_position)
