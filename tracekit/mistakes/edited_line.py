"""A line of the reference's source that the port got wrong, and how: found by edits of the reference's operations."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class EditKind(StrEnum):
    """What was changed."""

    LEFT_OUT = "left_out"
    BRANCH = "branch"  # the condition of an `if` taken otherwise
    OTHER_VALUE = "other_value"  # another of the program's values in the place of the result
    SCALED = "scaled"
    OFFSET = "offset"
    CONSTANT = "constant"
    INDEX = "index"  # a whole number: an axis, a bound, an index
    OPERATOR = "operator"
    EXCHANGED = "exchanged"  # operands
    TAKEN_FOR = "taken_for"  # two values for each other
    MOVED = "moved"  # rows, heads or columns rolled by one or turned round
    RESHAPED = "reshaped"  # taken in the order in which they lie
    LOOKED_UP = "looked_up"  # other rows of a table
    NORMALISED = "normalised"  # divided by its sum, mean square or norm
    ROUNDED = "rounded"
    ROUNDED_ONWARDS = "rounded_onwards"  # this result and all after it


@dataclass(frozen=True)
class EditedLine:
    """One edit of the reference that makes of it what was recorded."""

    file: str
    """As it is imported: `transformers/models/gemma2/modeling_gemma2.py`."""
    line: int
    last: int
    """Last line, where the edit covers several."""
    source: str
    """Text of the first line."""
    kind: EditKind
    operation: str
    """What torch calls the changed operation: `tanh`."""
    number: float | None = None
    """That was fitted, or found among a few."""
    stated: float | None = None
    """What the reference has in its place."""
    other: str = ""
    """An operation or format that takes the place of the reference's."""

    @property
    def name(self) -> str:
        """Name of the file alone."""
        return self.file.rpartition("/")[2]
