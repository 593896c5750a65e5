"""Families of models: which operations lie between the modules of a layer, with which numbers of `config.json`.

One file a family, or a close kin of them. They are found by walking this package.
Source of the families: their `modeling_*.py` in transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from tracekit.auditing.families.family import Family
from tracekit.trace import Json

__all__ = ["Family", "all_families", "family_of"]


@cache
def all_families() -> dict[str, Family]:
    """All families by `model_type`. Raises ValueError where two have the same one."""
    found: dict[str, type[Family]] = {}
    for module in iter_modules(__path__):
        for one in _declared(import_module(f"{__name__}.{module.name}")):
            for name in one.model_types:
                if found.setdefault(name, one) is not one:
                    raise ValueError(f"two families are called {name}")
    return {name: one() for name, one in found.items()}


def family_of(declared: Json) -> Family | None:
    """The family that a `config.json` names; None where it names none, or none that is known."""
    return all_families().get(str(declared.get("model_type")))


def _declared(module: ModuleType) -> Iterator[type[Family]]:
    """The families of a file."""
    for one in vars(module).values():
        if isinstance(one, type) and issubclass(one, Family) and one.model_types:
            yield one
