"""Factors that a candidate multiplies by at another place than the reference: the same numbers at another stage."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FactorElsewhere:
    """A site that holds a multiple of what the reference holds there, both right: taken for the reference's value,
    later sites are within their bounds, which they are not with the recorded one."""

    site: str
    factor: float
    """What was recorded times this is the reference's value."""
