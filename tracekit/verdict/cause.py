"""The ids of causes."""

from __future__ import annotations

from typing import ClassVar


class Cause(str):
    """The id of a cause, stable and in lower case: `Cause.LAYER == "layer"`.

    Not an enum, since a file of `verdict.causes` may bring one of its own: `Cause("vocabulary")`.
    """

    __slots__ = ()

    CONFIG: ClassVar[Cause]
    WEIGHTS: ClassVar[Cause]
    INPUT: ClassVar[Cause]
    LAYER: ClassVar[Cause]
    FILTER: ClassVar[Cause]
    RNG: ClassVar[Cause]
    SAMPLER: ClassVar[Cause]
    STOP: ClassVar[Cause]
    NEAR_TIE: ClassVar[Cause]
    CAPTURE: ClassVar[Cause]
    PRECISION: ClassVar[Cause]

    def __repr__(self) -> str:
        return f"Cause({str(self)!r})"


IDS = (
    *("config", "weights", "input", "layer", "filter", "rng", "sampler", "stop", "near-tie", "precision", "capture"),
)
for _id in IDS:
    setattr(Cause, _id.replace("-", "_").upper(), Cause(_id))
