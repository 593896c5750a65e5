"""Objects of the recorded program that live now."""

from __future__ import annotations

import gc
from typing import Any


def instances(base: type) -> list[Any]:
    """Living objects of a class and of those derived from it, among all that the collector knows. Types are told apart
    by their identity: nothing of the program's is called, neither `__class__` of an object nor a metaclass's hash."""
    kinds: dict[int, type] = {}
    left: list[type] = [base]
    while left:
        kind = left.pop()
        if id(kind) not in kinds:
            kinds[id(kind)] = kind
            left += type.__subclasses__(kind)
    return [item for item in gc.get_objects() if id(type(item)) in kinds]
