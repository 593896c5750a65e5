"""Modules that a program calls by themselves, beside the plain module that is recorded: a library that calls a model's
encoder and then its decoder, or its layers, and never the model, has the first of them recorded and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tracekit_torch.living import instances
from tracekit_torch.patching import Hook
from tracekit_torch.recorder import Recorder
from tracekit_torch.tapped import holds_state

TAKES_ANOTHER_WAY = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)
"""Modules of torch's that compute in another way where a hook is on them or inside them."""


class CalledBeside:
    """Says at the first such call that it is not recorded. It looks at the modules that live when the recorded one is
    called for the first, second, fourth, eighth ... time, and at those that hold the recorded one by what else they
    call: a hook on all modules would be compiled with each."""

    def __init__(self, recorder: Recorder, model: nn.Module) -> None:
        self._recorder = recorder
        self._calls = 0
        self._looked_at: set[int] = set()
        self._handles = [model.register_forward_pre_hook(Hook(recorder.guarded, self._called))]

    def _called(self, model: nn.Module, _: Any) -> None:
        self._calls += 1
        if self._handles and self._calls & (self._calls - 1) == 0:
            self._look(model)

    def _look(self, model: nn.Module) -> None:
        """Hook what is beside the model and was not there before."""
        living = [module for module in instances(nn.Module) if _is_whole(module)]
        left_alone = set(model.modules())
        left_alone |= {part for each in living if isinstance(each, TAKES_ANOTHER_WAY) for part in each.modules()}
        for module in living:
            if id(module) in self._looked_at or module in left_alone:
                continue
            self._looked_at.add(id(module))
            if holds_state(module) and model not in module.modules():
                self._handles.append(module.register_forward_pre_hook(Hook(self._recorder.guarded, self._before)))

    def _before(self, module: nn.Module, _: Any) -> None:
        recorder = self._recorder
        model = recorder.model
        if not recorder.active or model is None or recorder.inside_call or recorder.left_out is not None:
            return
        if torch._C._get_tracing_state() is not None or torch.compiler.is_compiling():
            return
        self.stop()
        recorder.lost(
            f"calls of modules outside of {type(model).__name__} ({type(module).__name__} first), which the program "
            "calls by themselves; choose what to record with --module"
        )

    def stop(self) -> None:
        """Look no more."""
        while self._handles:
            self._handles.pop().remove()


def _is_whole(module: nn.Module) -> bool:
    """Whether a module can be hooked: its own `__init__` has run, and it is not TorchScript's."""
    return (
        "_parameters" in vars(module) and "_modules" in vars(module) and not isinstance(module, torch.jit.ScriptModule)
    )
