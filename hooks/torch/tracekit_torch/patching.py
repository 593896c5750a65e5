"""Replacing an attribute of a class or a module while a program is recorded, and putting back what was there."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

_ABSENT = object()


class Hook(functools.partial[Any]):
    """A hook of a module that stays with that module: what is copied or pickled with a copy of it does nothing, and
    needs no tracekit to be loaded."""

    def __reduce__(self) -> Any:
        return getattr, (contextlib.nullcontext(), "__exit__")


@contextlib.contextmanager
def without_hooks(module: Any) -> Iterator[None]:
    """`module` without the `Hook`s of this recorder inside the block, for what compiles all hooks that it finds."""
    names = ("_forward_hooks", "_forward_pre_hooks")
    before = {name: getattr(module, name) for name in names}
    for name, hooks in before.items():
        setattr(module, name, type(hooks)((key, hook) for key, hook in hooks.items() if not isinstance(hook, Hook)))
    try:
        yield
    finally:
        for name, hooks in before.items():
            setattr(module, name, hooks)


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
