"""What speaks against a site: which statistic of its local error is beyond its limit, and by how much."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Statistic(StrEnum):
    """What a site's local error is judged by."""

    SIZE = "size"  # root mean square over all rows
    ROW = "row"
    COLUMN = "column"
    GAIN = "gain"
    ROW_GAIN = "row_gain"
    COLUMN_OFFSET = "column_offset"
    COLUMN_GAIN = "column_gain"


@dataclass(frozen=True)
class ErrorTooLarge:
    """The error, over all rows or of the worst one, over its rounding bound."""

    ratio: float
    wrong: int  # rows
    rows: int


@dataclass(frozen=True)
class ColumnTooLarge:
    """The error of a column over its rounding bound."""

    column: int
    ratio: float


@dataclass(frozen=True)
class GainOff:
    """The output is a multiple of what it should be."""

    gain: float
    deviations: float  # standard deviations from 1


@dataclass(frozen=True)
class StatisticOff:
    """A gain or an offset of single rows or columns, in standard deviations of what rounding does."""

    statistic: Statistic
    deviations: float
    wrong: int  # rows
    rows: int


@dataclass(frozen=True)
class OutlierBySize:
    """Within its bound, but the same site of other layers is exact."""

    ratio: float


@dataclass(frozen=True)
class OutlierColumns:
    """Columns that are off at more positions than ties account for, of a site that is exact otherwise."""

    columns: tuple[int, ...]
    share: float  # of the positions, of the first one


Outlier = OutlierBySize | OutlierColumns
ErrorEvidence = ErrorTooLarge | ColumnTooLarge | GainOff | StatisticOff | Outlier
