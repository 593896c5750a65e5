"""What other packages bring: objects found by entry points, tracekit's own among them.

A group of entry points is a kind of thing (`tracekit.generations`, `tracekit.importers`, `tracekit.adapters`). An
installed package declares its own in its metadata. tracekit's own are there in a source tree that was never installed:
a package in `tracekit/extra/` declares them in `ENTRY_POINTS` of its `__init__`, and a registry with a folder has one
in each module of it. All are loaded alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, TypeVar

from tracekit.errors import TraceError

EXTRAS = "tracekit.extra"
T = TypeVar("T")


def plugins(group: str, folder: str | None = None, attribute: str = "") -> tuple[Any, ...]:
    """The objects of a group. A registry may have its own in modules of a package `folder`, each called `attribute`.
    Those of installed packages come first: they were installed to be used.

    Raises TraceError where one cannot be loaded.
    """
    objects, errors = loaded(group, folder, attribute)
    if errors:
        raise TraceError(str(errors[0]))
    return objects


def modules_in(package: str) -> list[ModuleType]:
    """The modules of a package, by name: a registry has a file for each of its things."""
    return [import_module(f"{package}.{module.name}") for module in iter_modules(import_module(package).__path__)]


def by_id(things: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Things of a registry by their ids, in their order. Raises ValueError where two have the same one."""
    found: dict[str, T] = {}
    for name, thing in things:
        if found.setdefault(name, thing) is not thing:
            raise ValueError(f"two things are called {name}: {found[name]} and {thing}")
    return found


@cache
def loaded(
    group: str, folder: str | None = None, attribute: str = ""
) -> tuple[tuple[Any, ...], tuple[TraceError, ...]]:
    """As `plugins`, for a caller that does without what cannot be loaded: the objects, and why others are missing."""
    own = [] if folder is None else _modules(group, folder, attribute)
    objects: list[Any] = []
    errors: list[TraceError] = []
    for point in (*_installed(group), *own, *_extras(group)):
        try:
            objects.append(_loaded(point))
        except TraceError as error:
            errors.append(error)
    return tuple(objects), tuple(errors)


def _modules(group: str, folder: str, attribute: str) -> Iterator[EntryPoint]:
    for module in modules_in(folder):
        if hasattr(module, attribute):
            yield EntryPoint(module.__name__.rpartition(".")[2], f"{module.__name__}:{attribute}", group)


def _extras(group: str) -> Iterator[EntryPoint]:
    for module in modules_in(EXTRAS):
        declared = getattr(module, "ENTRY_POINTS", {})
        yield from (EntryPoint(name, value, group) for name, value in declared.get(group, {}).items())


def _installed(group: str) -> list[EntryPoint]:
    return sorted(entry_points(group=group), key=lambda point: point.name)


def _loaded(point: EntryPoint) -> Any:
    try:
        return point.load()
    except (Exception, SystemExit) as error:  # whatever another package's import raises
        package = "" if point.dist is None else f" of the package {point.dist.name}"
        why = f"{type(error).__name__}: {error}"
        raise TraceError(
            f"{point.group}: {point.name}{package} cannot be loaded: {why}; update or uninstall it"
        ) from None
