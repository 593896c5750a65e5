"""Numbers as sentences have them."""

from __future__ import annotations

import math
from collections.abc import Iterable

MANY = 8
"""Numbers of a list that are shown one by one."""


def times(ratio: float, digits: int = 3) -> str:
    """A ratio: `0.9×`, `214×`, `6.6e5×`."""
    return f"{number(ratio, digits)}×"


def number(value: float, digits: int = 3) -> str:
    """`digits` significant digits, two where the number needs an exponent: `214`, `6.6e5`, `1e-7`."""
    plain = f"{value:.{digits}g}"
    if not math.isfinite(value) or (value == 0.0 or 1e-4 <= abs(value) < 1e4):
        return f"{float(plain):g}" if math.isfinite(value) else plain
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def ranges(numbers: Iterable[int]) -> str:
    """A list in its order, numbers that follow each other as a range: `200, 6561 to 6760`."""
    runs: list[list[int]] = []
    for each in numbers:
        if runs and each == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], each]
        else:
            runs.append([each])
    return ", ".join(" to ".join(map(str, run)) for run in runs)


def percent(share: float) -> str:
    """A share: `98 %`, `0.3 %`, `-2 %`; `< 0.1 %` where it is less to either side."""
    if abs(share) < 0.001:
        return "< 0.1 %"
    return f"{share * 100.0:.1f} %" if abs(share) < 0.01 else f"{share * 100.0:.0f} %"
