"""Objects of the recorded program that live now."""

from __future__ import annotations

import gc
from typing import Any


def instances(base: type) -> list[Any]:
    """Living objects of a class and of those derived from it, among all that the collector knows. Types are told apart
    by their identity: nothing of the program's is called, neither `__class__` of an object nor a metaclass's hash."""
    kinds, left = {id(base)}, [base]
    while left:
        derived: list[type] = [each for each in type.__subclasses__(left.pop()) if id(each) not in kinds]
        kinds |= set(map(id, derived))
        left += derived
    return [item for item in gc.get_objects() if id(type(item)) in kinds]
