"""Replacing an attribute of a class or a module while a program is recorded, and putting back what was there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_ABSENT = object()


def replace(owner: Any, name: str, replacement: Any) -> Callable[[], None]:
    """Set `owner.name`; what is returned undoes it.

    An attribute that `owner` only inherits is deleted again, so that its base's shows as before. Where the program has
    put something else in its place since, that stays.
    """
    own = vars(owner).get(name, _ABSENT)
    setattr(owner, name, replacement)
    # Whether a class stores what it was given (a staticmethod, say) is asked of the class.
    placed = vars(owner).get(name, _ABSENT)

    def undo() -> None:
        if vars(owner).get(name, _ABSENT) is not placed:
            return
        if own is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, own)

    return undo
