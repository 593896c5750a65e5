"""What one site computes from its recorded inputs and the checkpoint's parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing.matrix import Matrix
from tracekit.auditing.not_audited import Lacks, NotAudited
from tracekit.auditing.rounding import Floats, Result
from tracekit.trace import Json, Sequence

Shape = tuple[int, ...]


class Weights(Protocol):
    """The parameters of one module, by role (`weight`, `bias`), with the values that the engine holds."""

    def vector(self, role: str) -> Floats | None:
        """A parameter as float64; None where the module has none of that role."""

    def table(self) -> NDArray[np.floating]:
        """The weight in the dtype of the file, [rows, width]."""

    def stored(self) -> str:
        """The format of the weight in the file: a program that loads it so may have been cast to a wider one later."""

    def matrix(self) -> Matrix:
        """The weight [outputs, inputs] and the bias [outputs], as float64."""


class Effort(Enum):
    """How well the bounds are worked out."""

    QUICK = "quick"  # a product's sizes as spread evenly, a core's errors drawn at some positions
    FULL = "full"
    MOST_DRAWS = "most_draws"  # as a site near its limit needs: few draws may miss what a value is off by


@dataclass(frozen=True)
class Given:
    """What a window of a site's rows is computed from."""

    inputs: list[Floats]
    """Recorded inputs, [rows, width] each; from position 0 on where the operation reads one so (`from_start`)."""
    rows: NDArray[np.int64]
    """Positions of the rows; of the logits, steps."""
    dtype: str
    """The coarsest format of the site and its inputs."""
    weights: Weights
    tokens: NDArray[np.int64]
    """Token ids of the rows, of an operation that looks them up; empty for others."""
    effort: Effort = Effort.QUICK
    cast: str | None = None
    """The format of the site, where it is coarser than that of the weight which the program holds: both operands of a
    product were rounded to it on the way, as `torch.autocast` does, or its result alone."""


@dataclass(frozen=True)
class Module:
    """A recorded module whose class names no operation: what its parameters allow it to compute."""

    weight: Shape
    width: int  # values in a row that it gives
    inputs: int  # values in a row that it reads
    bias: bool
    eps: float  # 0 where it has none


@dataclass(frozen=True)
class Operation(ABC):
    """An operation with its numbers. Subclasses are found by walking this package: one more is one new file."""

    kind: ClassVar[str]
    """Stable id, in snake case."""
    classes: ClassVar[frozenset[str]] = frozenset()
    """Classes of torch's modules, and of candle's of the same name, that compute it."""
    reads_tokens: ClassVar[bool] = False
    """Whether it looks up token ids."""
    draws_errors: ClassVar[bool] = False
    """Whether its bounds come from drawn roundings, so that more draws make them sharper."""
    finest: ClassVar[str] = "float64"
    """The precision that programs compute it in where their own is finer."""

    @abstractmethod
    def result(self, given: Given) -> Result:
        """The values [rows, width] that the site should hold, and how far rounding may have moved them."""

    @abstractmethod
    def fits(self, shapes: Mapping[str, Shape], inputs: list[int], width: int) -> bool:
        """Whether the parameters' shapes, by role, and the widths of the inputs make rows of `width` values."""

    def values(self, given: Given) -> Floats:
        """The values [rows, width] alone."""
        return self.result(given).values

    def prepared(self, inputs: list[Floats]) -> list[Floats]:
        """The inputs as it reads them: an engine may round them first, and say so (`stated_arithmetic`)."""
        return inputs

    @property
    def reads_minima(self) -> bool:
        """Whether it multiplies the smallest values of its weight's blocks with sums of its inputs, apart from the rest
        (`block_formats`)."""
        return False

    def from_start(self, index: int) -> bool:
        """Whether a row depends on all rows up to it of the input of this index, not on the same row alone."""
        return False

    @property
    def block(self) -> int:
        """Columns that a mistake of rounding moves together: those of a head."""
        return 1

    @property
    def transposed(self) -> bool:
        """Whether its weight is stored as [inputs, outputs]."""
        return False

    def with_eps(self, eps: float) -> Operation:
        """The same with the eps of another module, where it has one."""
        return self

    def within(self, sequence: Sequence) -> Operation:
        """The same as it computes this sequence, whose prompt may have masked positions."""
        return self

    @property
    def in_repro(self) -> bool:
        """Whether the tests of a repro can compute it."""
        return False

    def numbers(self) -> Json:
        """The numbers that the tests of a repro compute with."""
        return {}

    def constants(self) -> Mapping[str, Floats]:
        """Arrays that the tests of a repro compute with, beyond the module's parameters."""
        return {}

    @classmethod
    def of_module(cls, attributes: Mapping[str, object]) -> Operation | NotAudited:
        """The operation of a module of one of `classes`, by its recorded attributes; or why it is not known."""
        return NotAudited(Lacks.KIND, (cls.kind,))

    @classmethod
    def candidates(cls, module: Module) -> Iterator[Operation]:
        """What a module of an unknown class may compute, to be measured on the reference."""
        yield from ()
