"""Compiled code has no modules left to tap: while a program is recorded, its compiled regions run eagerly.

torch asks `_callback_from_stance` at every entry of a compiled region what is to become of it; None runs it as it is
written, as `torch.compiler.set_stance("force_eager")` does.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import nn

DYNAMO = "torch._dynamo.eval_frame"
"""The module that runs compiled regions; imported by whatever compiles."""
SAID = "what torch.compile computes: its regions ran eagerly, and the tokens are those of the eager run"


def run_eagerly(module: ModuleType, compiled: Callable[[], None], undo: list[Callable[[], None]]) -> None:
    """Run compiled regions eagerly from now on; `compiled` is called at each of them, `undo` gets what ends it."""
    original = getattr(module, "_callback_from_stance", None)
    if original is None:
        stance = torch.compiler.set_stance("force_eager")
        undo.append(lambda: stance.__exit__(None, None, None))
        return

    def eager(callback: Any) -> None:
        if callback not in (None, False):
            compiled()

    module._callback_from_stance = eager  # type: ignore[attr-defined]
    undo.append(lambda: setattr(module, "_callback_from_stance", original))


def uncompiled(model: nn.Module) -> nn.Module:
    """The model that `torch.compile` was given, by which its modules are named."""
    while type(model).__name__ == "OptimizedModule":
        model = model._orig_mod  # type: ignore[assignment]
    return model


def plain_name(path: str) -> str:
    """The path of a module or parameter as it is without `torch.compile`."""
    return ".".join(part for part in path.split(".") if part != "_orig_mod")
