"""Ways to get a line of the reference wrong, one file each: `EDIT`. They are found by walking this package."""

from __future__ import annotations

from functools import cache

from tracekit.plugins import modules_in
from tracekit_torch.reference_program.edits.edit import Change, Edit, Freedom

__all__ = ["Change", "Edit", "Freedom", "all_edits"]


@cache
def all_edits() -> tuple[Edit, ...]:
    """All of them, those that are made most often first."""
    found = [edit for module in modules_in(__name__) if isinstance(edit := getattr(module, "EDIT", None), Edit)]
    return tuple(sorted(found, key=lambda edit: edit.often))
