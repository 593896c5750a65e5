"""What a run passes on as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tracekit.auditing.operations.operation import Given, Operation, Shape
from tracekit.auditing.rounding import Floats, Result, rounding


def identity(x: Floats, dtype: str) -> Result:
    """What is passed on as it is, at most in a narrower format."""
    return Result(x, rounding(x, dtype), rounded=(x,))


@dataclass(frozen=True)
class PassedOn(Operation):
    """The input itself."""

    kind = "identity"

    @property
    def in_repro(self) -> bool:
        return True

    def result(self, given: Given) -> Result:
        return identity(given.inputs[0], given.dtype)

    def fits(self, shapes: Mapping[str, Shape], inputs: list[int], width: int) -> bool:
        return all(source == width for source in inputs)
