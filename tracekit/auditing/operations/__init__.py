"""What modules and the code between them compute, in float64, and how far correct arithmetic may be off.

One file an operation, or a close kin of them. They are found by walking this package.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from types import ModuleType

from tracekit.auditing.activations import ACTIVATIONS, cancelled, gelu, gelu_tanh, relu, silu
from tracekit.auditing.arithmetic import Emulated, Rounding
from tracekit.auditing.matrix import Matrix, linear
from tracekit.auditing.operations.attention_core import Attention, Core, attend
from tracekit.auditing.operations.norms import layer_norm, rms_norm
from tracekit.auditing.operations.operation import Given, Module, Operation, Weights
from tracekit.auditing.operations.soft_cap import capped
from tracekit.auditing.rotary import Rotary
from tracekit.auditing.rounding import (
    ACCUMULATOR,
    Floats,
    Result,
    as_stored,
    in_16_bits,
    rounding,
    typical,
    unit,
)
from tracekit.plugins import by_id, modules_in

__all__ = [
    "ACCUMULATOR",
    "ACTIVATIONS",
    "Attention",
    "Core",
    "Emulated",
    "Floats",
    "Given",
    "Matrix",
    "Module",
    "Operation",
    "Result",
    "Rotary",
    "Rounding",
    "Weights",
    "all_operations",
    "as_stored",
    "attend",
    "cancelled",
    "capped",
    "gelu",
    "gelu_tanh",
    "in_16_bits",
    "layer_norm",
    "linear",
    "operation_of_class",
    "relu",
    "rms_norm",
    "rounding",
    "silu",
    "typical",
    "unit",
]


@cache
def all_operations() -> tuple[type[Operation], ...]:
    """All operations, in the order of their ids. Raises ValueError where two have the same id."""
    found = by_id((one.kind, one) for module in modules_in(__name__) for one in _declared(module))
    return tuple(found[kind] for kind in sorted(found))


def operation_of_class(name: str) -> type[Operation] | None:
    """The operation that modules of a class of torch, or of candle, compute; None where the class names none."""
    return next((one for one in all_operations() if name in one.classes), None)


def _declared(module: ModuleType) -> Iterator[type[Operation]]:
    """The operations of a file."""
    for one in vars(module).values():
        if isinstance(one, type) and issubclass(one, Operation) and hasattr(one, "kind"):
            yield one
