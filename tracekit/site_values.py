"""The values of one site in one sequence as numpy arrays, with the position and the token of each row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from tracekit.errors import TraceError

if TYPE_CHECKING:
    import pandas
    import xarray


@dataclass(frozen=True, eq=False)
class SiteValues:
    """One site of one sequence; `Sequence.site` returns it. Values are read when they are asked for, then kept."""

    name: str
    """The name that was asked for."""
    stored_as: str
    """The site that holds its values: another one for an alias, or for the input of a module that another site fed."""
    dtype: str
    """What was recorded, in torch's word: `float32`, `bfloat16`."""
    positions: NDArray[Any]
    """i64 [rows], ascending: the position of each row in its sequence, or in the encoder's input."""
    tokens: NDArray[Any]
    """i64 [rows]: the token at each of these positions, -1 where the row stands for none or it is not recorded."""
    path: str
    """The file."""
    sequence: int
    """Index of the sequence in it."""
    width: int
    """Elements of a row."""
    read: Callable[[], NDArray[Any]] = field(repr=False)
    """Reads all rows; `values` calls it once."""

    @cached_property
    def values(self) -> NDArray[Any]:
        """[rows, width]: float32 and float64 as they were recorded, bfloat16, float16 and float8 as float32. It may be
        a read-only view into the file."""
        return self.read()

    def to_pandas(self) -> pandas.DataFrame:
        """A row a position, a column an element; the index has `position` and `token`. Raises TraceError where pandas
        is not installed."""
        frames = library("pandas")
        index = frames.MultiIndex.from_arrays([self.positions, self.tokens], names=["position", "token"])
        frame: pandas.DataFrame = frames.DataFrame(self.values, index=index)
        return frame

    def to_xarray(self) -> xarray.DataArray:
        """Dimensions `position` and `channel`, with `token` beside the positions. Raises TraceError where xarray is not
        installed."""
        about = {"path": self.path, "sequence": self.sequence, "dtype": self.dtype, "stored_as": self.stored_as}
        coordinates = {"position": self.positions, "token": ("position", self.tokens)}
        dims = ("position", "channel")
        array: xarray.DataArray = library("xarray").DataArray(self.values, coordinates, dims, self.name, about)
        return array

    def __repr__(self) -> str:
        where = f"positions {self.positions[0]} to {self.positions[-1]}" if self.positions.size else "no position"
        stored = "" if self.stored_as == self.name else f", stored as {self.stored_as!r}"
        shape = f"[{self.positions.size}, {self.width}]"
        return f"<SiteValues {self.name!r}  {self.dtype} {shape}  {where}{stored}>"


def library(name: str) -> Any:
    """pandas or xarray. Raises TraceError where it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        raise TraceError(f"this export needs {name}: pip install 'tracekit[export]'") from None
