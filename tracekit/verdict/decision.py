"""What a diff decides."""

from __future__ import annotations

from enum import StrEnum


class Decision(StrEnum):
    """What a diff decides."""

    PARITY = "parity"
    DIVERGENCE = "divergence"
    WITHHELD = "withheld"
