"""A module of a class that names no operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tracekit.auditing.operations.operation import Given, Operation, Shape
from tracekit.auditing.rounding import Result


@dataclass(frozen=True)
class Unmeasured(Operation):
    """Stands for the operation that `measured` finds on the reference; it computes nothing."""

    kind = "unmeasured"

    module_class: str = ""
    """Where the class is defined, and its name."""
    eps: float = 0.0

    def result(self, given: Given) -> Result:
        raise NotImplementedError(f"what the class {self.module_class} computes is not measured")

    def fits(self, shapes: Mapping[str, Shape], inputs: list[int], width: int) -> bool:
        return False
