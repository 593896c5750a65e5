"""Whether two lines that a command printed say the same: numbers that rounding moves are near, all else is equal."""

from __future__ import annotations

import re

import pytest

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?×?")
RESIDUAL = re.compile(r"residual (\d\S*)×")
VERSION = re.compile(r"torch \S+")
NEAR = 0.1
"""Numbers with a point, or times a bound (`382×`), are errors and margins: another processor adds up in
another order, and they move by some percent. Counts, ids, places and offsets are whole and must be the same. A residual
that is within its bound is that processor's own rounding, all of it: any other within the bound says the same."""


def same(line: str, other: str) -> bool:
    """Equal words and whole numbers, near numbers with a point; columns may be wider."""
    line, other = (RESIDUAL.sub(_within, VERSION.sub("torch", each)) for each in (line, other))
    if NUMBER.sub("#", line).split() != NUMBER.sub("#", other).split():
        return False
    pairs = zip(NUMBER.findall(line), NUMBER.findall(other), strict=True)
    return all(one == two or near(one, two) for one, two in pairs)


def _within(residual: re.Match[str]) -> str:
    return "residual within" if float(residual[1]) <= 1.0 else residual[0]


def near(one: str, two: str) -> bool:
    inexact = "." in one or one.endswith("×")
    return inexact and float(one.rstrip("×")) == pytest.approx(float(two.rstrip("×")), rel=NEAR, abs=NEAR)
