"""Objects of the recorded program that live now."""

from __future__ import annotations

import gc
from typing import Any


def instances(base: type) -> list[Any]:
    """Living objects of a class and of those derived from it: an object refers to its class, and the collector finds
    what does, in C, among hundreds of thousands of objects; nothing of theirs is called."""
    kinds: list[type] = [base]
    for kind in kinds:
        derived: list[type] = type.__subclasses__(kind)
        kinds += (each for each in derived if each not in kinds)
    return [item for item in gc.get_referrers(*kinds) if type(item) in kinds]
