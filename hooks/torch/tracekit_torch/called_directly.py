"""Programs that call `model.forward(ids)` where others call `model(ids)`: no hook of the model runs.

That one did is seen when its first module is called. The call that runs then is taken up where it is: what it was given
stands in its frame, and its end is told by the interpreter. From then on the class's `forward` runs the recorder's
hooks, where a call did not come with them. A program that took `model.forward` before that has the one without them:
each of its calls is taken up as the first is.
"""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Callable
from inspect import Parameter
from types import FrameType
from typing import Any

from torch import nn

from tracekit.trace import Json
from tracekit_torch.named_arguments import parameters_of
from tracekit_torch.outermost import CALL, Outermost
from tracekit_torch.patching import Hook, replace

MOST_LOOKS = 64
"""Modules that are called outside of the model's calls, of which it is asked whether its `forward` runs."""
_SETS = ("STORE_FAST", "STORE_DEREF", "DELETE_FAST", "DELETE_DEREF")


def forward_frame(part: nn.Module) -> tuple[FrameType, nn.Module] | None:
    """The outermost `forward` that runs in this thread, of a module that holds `part` and was not called with its
    hooks, and that module; None where there is none."""
    hooked: set[int] = set()
    found: list[tuple[FrameType, nn.Module]] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code is CALL:
            hooked.add(id(frame.f_locals["self"]))
        elif code.co_name == "forward" and code.co_argcount:
            own = frame.f_locals.get(code.co_varnames[0])
            if isinstance(own, nn.Module) and own is not part:
                found.append((frame, own))
        frame = frame.f_back
    holding = (each for each in reversed(found) if id(each[1]) not in hooked)
    return next((each for each in holding if any(part is inner for inner in each[1].modules())), None)


class CalledDirectly:
    """Runs the recorder's hooks of `model` at calls of its `forward` that no hook sees.

    `lost` is told of the call that was taken up too late: it changed its arguments before its first module was called.
    """

    def __init__(self, model: nn.Module, outermost: Outermost, lost: Callable[[str], None]) -> None:
        self._outermost, self._lost = outermost, lost
        self._looks = 0
        self._put_back: Callable[[], None] | None = None
        self._name = type(model).__name__

    def remove(self) -> None:
        """Leave `forward` as it was."""
        if self._put_back is not None:
            self._put_back()
            self._put_back = None

    def outside(self, part: nn.Module, model: nn.Module | None) -> None:
        """`part` of the model is called outside of the model's recorded calls."""
        if self._looks >= MOST_LOOKS or model is None:
            return
        self._looks += 1
        found = forward_frame(part)
        if found is None or found[1] is not model or _has_hooks(found[0]):
            return
        self._looks = 0
        if self._put_back is None:
            self._watch(model)
        self._take_up(model, found[0])

    def _watch(self, model: nn.Module) -> None:
        owner: Any = model if "forward" in vars(model) else type(model)
        original = owner.forward
        whole = id(model)

        def called(given: tuple[Any, ...], kwargs: Json, module: Any) -> Any:
            frame = sys._getframe(1)
            by = frame.f_back
            if id(module) != whole or (by is not None and by.f_code.co_filename == CALL.co_filename):
                return original(*given, **kwargs)
            args = given if owner is module else given[1:]
            self._before(module, frame, args, kwargs)
            try:
                output = original(*given, **kwargs)
            except BaseException:
                self._after(module, frame, args, None, failed=True)
                raise
            self._after(module, frame, args, output)
            return output

        if owner is model:

            @functools.wraps(original)
            def forward(*args: Any, **kwargs: Any) -> Any:
                return called(args, kwargs, model)

        else:

            @functools.wraps(original)
            def forward(*args: Any, **kwargs: Any) -> Any:
                return called(args, kwargs, args[0] if args else None)

        self._put_back = replace(owner, "forward", forward)

    def _take_up(self, model: nn.Module, frame: FrameType) -> None:
        given = _given(frame, model)
        if given is None or sys.gettrace() is not None:
            self._lost(f"one call or more of {self._name}.forward, seen too late; call the model, not its forward")
            return
        self._before(model, frame, (), given)
        failed = False

        def told(_: FrameType, event: str, output: Any) -> Any:
            nonlocal failed
            if event == "exception":
                failed = True
            elif event == "return":
                sys.settrace(None)
                frame.f_trace = None
                self._after(model, frame, (), output, failed=failed and output is None)
            return told

        frame.f_trace_lines = False
        frame.f_trace = told
        sys.settrace(lambda *_: None)

    def _before(self, model: nn.Module, frame: FrameType, args: tuple[Any, ...], kwargs: Json) -> None:
        with self._outermost.called_in(frame):
            for key, hook in list(model._forward_pre_hooks.items()):
                if isinstance(hook, Hook):
                    hook(model, args, kwargs) if key in model._forward_pre_hooks_with_kwargs else hook(model, args)

    def _after(
        self, model: nn.Module, frame: FrameType, args: tuple[Any, ...], output: Any, *, failed: bool = False
    ) -> None:
        with self._outermost.called_in(frame):
            for key, hook in list(model._forward_hooks.items()):
                if not isinstance(hook, Hook) or key in model._forward_hooks_with_kwargs:
                    continue
                if not failed:
                    hook(model, args, output)
                elif key in model._forward_hooks_always_called:
                    try:
                        raise RuntimeError  # hooks ask whether one is being handled
                    except RuntimeError:
                        hook(model, args, None)


def _has_hooks(frame: FrameType) -> bool:
    """Whether the `forward` that runs in `frame` was called with the recorder's hooks."""
    return frame.f_back is not None and frame.f_back.f_code.co_filename == __file__


def _given(frame: FrameType, model: nn.Module) -> Json | None:
    """What the `forward` that runs in `frame` was given, by name; None where it has changed it since."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    done = (each for each in dis.get_instructions(code) if each.offset < frame.f_lasti)
    changed = {each.argval for each in done if each.opname in _SETS}
    parameters, values = parameters_of(model), frame.f_locals
    given: Json = {}
    for name in code.co_varnames[1:count]:
        if name not in changed and name in values:
            given[name] = values[name]
        elif name not in parameters or parameters[name].default is Parameter.empty:
            return None
    rest = [each for each in parameters.values() if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    for each in rest:
        if each.name in changed or each.name not in values:
            return None
        held = values[each.name]
        given |= held if isinstance(held, dict) else {f"{each.name}[{at}]": one for at, one in enumerate(held)}
    return given
