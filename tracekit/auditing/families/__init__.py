"""Families of models: which operations lie between the modules of a layer, with which numbers of `config.json`.

One file a family, or a close kin of them. They are found by walking this package.
Source of the families: their `modeling_*.py` in transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from types import ModuleType

from tracekit.auditing.families.family import Family
from tracekit.plugins import by_id, modules_in
from tracekit.trace import Json

__all__ = ["Family", "all_families", "family_of"]


@cache
def all_families() -> dict[str, Family]:
    """All families by `model_type`. Raises ValueError where two have the same one."""
    found = [one for module in modules_in(__name__) for one in _declared(module)]
    named = by_id((name, one) for one in found for name in one.model_types)
    return {name: one() for name, one in named.items()}


def family_of(declared: Json) -> Family | None:
    """The family that a `config.json` names; None where it names none, or none that is known."""
    return all_families().get(str(declared.get("model_type")))


def _declared(module: ModuleType) -> Iterator[type[Family]]:
    """The families of a file."""
    for one in vars(module).values():
        if isinstance(one, type) and issubclass(one, Family) and one.model_types:
            yield one
