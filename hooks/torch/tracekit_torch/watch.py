"""Finding the model that a program runs, and the kind of model that it is.

The program is not edited and may not have imported anything yet. So the first call of any module is watched for until
the model is found (and never after). A kind of model may watch more: a library, as soon as the program imports it.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

from torch import nn

from tracekit.trace import Json, TraceError
from tracekit_torch.adapters import LAST, ModelKind, failed, kinds
from tracekit_torch.called_beside import CalledBeside
from tracekit_torch.called_directly import forward_frame
from tracekit_torch.eager import DYNAMO, SAID, run_eagerly, uncompiled
from tracekit_torch.patching import replace, without_hooks
from tracekit_torch.recorder import Recorder
from tracekit_torch.texts import TOKENIZER_MODULE

Answer = TypeVar("Answer")


class Watch:
    """Attaches the recorder to the first model that fits. `found` may be called with a model that is known already."""

    def __init__(self, recorder: Recorder, module_pattern: str | None) -> None:
        self._recorder = recorder
        self._pattern = re.compile(module_pattern) if module_pattern else None
        self._undo: list[Callable[[], None]] = []
        self._waits_for: str | None = None
        self._passed: set[str] = set()
        self._named: set[int] = set()
        self._put_back_call: Callable[[], None] | None = None
        self._looked_at: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._awaited: str | None = None
        self._after_import: dict[str, list[Callable[[ModuleType], None]]] = {}
        self._kinds = kinds(recorder.note)
        self._finding = threading.RLock()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Watch inside the block; leave everything as it was after it."""
        for kind in list(self._kinds):
            self._ask(kind, kind.watch, self)
        self._watch_imports()
        if self._recorder.model is None:
            self._watch_modules()
        self._watch_scripting()
        try:
            yield
        finally:
            while self._undo:
                self._undo.pop()()

    @property
    def why_nothing(self) -> str:
        """What to tell a user whose program gave no trace."""
        if self._pattern is not None:
            called = ", ".join(sorted(self._passed)[:8]) or "none"
            return f"no module that --module {self._pattern.pattern} names was called (called: {called})"
        if self._waits_for is not None:
            called = ", ".join(sorted(self._passed)[:8])
            return f"{self._waits_for} was never called, only {called}; name what to record with --module REGEX"
        return (
            "the program never called a torch module with parameters; there is nothing to record: a program that "
            "computes without modules gives its values to a tracekit.Recording (docs/python_engines.md)"
        )

    # ---------------------------------------------------------------- as `adapters.Watching`

    @property
    def recorder(self) -> Recorder:
        return self._recorder

    @property
    def by_name(self) -> bool:
        return self._pattern is not None

    def allows(self, model: nn.Module) -> bool:
        return self._pattern is None or self._matches(model, self._pattern)

    def found(self, model: nn.Module, sampling: Json | None = None) -> None:
        """Record `model` from now on."""
        with self._finding:
            if self._recorder.model is None and self._recorder.broken is None:
                try:
                    self._attach(uncompiled(model), sampling)
                finally:
                    # Not before: another thread's call would pass by what is not hooked yet.
                    self._release_modules()

    def _attach(self, model: nn.Module, sampling: Json | None) -> None:
        recorder = self._recorder
        kind = next(kind for kind in self._kinds if self._ask(kind, kind.knows, model))
        try:
            kind.attach(recorder, model, sampling)
            if kind.priority == LAST and self._pattern is None and recorder.active:
                self._undo.append(CalledBeside(recorder, model).stop)
        except TraceError:
            raise
        except Exception as error:
            recorder.fail(failed(kind, error))

    def wait_for(self, method: str) -> None:
        self._awaited = method

    def replace(self, owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        original = getattr(owner, name)
        self._undo.append(replace(owner, name, functools.wraps(original)(make(original))))

    def until_end(self, undo: Callable[[], None]) -> None:
        self._undo.append(undo)

    def after_import(self, module: str, action: Callable[[ModuleType], None]) -> None:
        if module in sys.modules:
            action(sys.modules[module])
        else:
            self._after_import.setdefault(module, []).append(functools.partial(self._recorder.guarded, action))

    def _ask(self, kind: ModelKind, question: Callable[..., Answer], *args: Any) -> Answer | None:
        """What a kind answers; None where it fails, and from then on it is not asked."""
        try:
            return question(*args)
        except Exception as error:
            self._recorder.note(f"{failed(kind, error)}; it is not used")
            self._kinds = [other for other in self._kinds if other is not kind]
            return None

    def _known(self, module: nn.Module) -> bool:
        """Whether a kind knows `module`, but for the one that takes any."""
        return any(kind.priority > LAST and self._ask(kind, kind.knows, module) for kind in self._kinds)

    def _first(self, ask: Callable[[ModelKind], nn.Module | None]) -> nn.Module | None:
        """The first model that a kind answers."""
        answers = (self._ask(kind, ask, kind) for kind in self._kinds)
        return next((answer for answer in answers if answer is not None), None)

    # ---------------------------------------------------------------- any module's call, until the model is found

    def _watch_modules(self) -> None:
        original = nn.Module.__call__

        @functools.wraps(original)
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._recorder.model is None and self._recorder.broken is None:
                try:
                    self._runs(module)
                except Exception as error:
                    self._recorder.fail(error)
            return original(module, *args, **kwargs)

        self._put_back_call = replace(nn.Module, "__call__", call)
        self._undo.append(self._release_modules)

    def _release_modules(self) -> None:
        if self._put_back_call is not None:
            self._put_back_call()
            self._put_back_call = None

    def _runs(self, module: nn.Module) -> None:
        """A module is called; its owner's `forward` may run, which was not."""
        found = forward_frame(module)
        if found is not None:
            self._called(found[1])
            if self._recorder.model is found[1]:
                self._recorder.called_outside(module)
        if self._recorder.model is None:
            self._called(module)

    def _called(self, module: nn.Module) -> None:
        if self._pattern is not None:
            self._passed.add(type(module).__name__)
            if self._matches(module, self._pattern):
                self.found(module)
            return
        if self._awaited is not None:
            self._waits_for = self._awaited
            self._passed.add(type(module).__name__)
            return
        if self._known(module):
            self.found(module)
            return
        if next(module.parameters(), None) is None:
            return
        owner = None if module in self._looked_at else self._first(lambda kind: kind.owner(module))
        self._looked_at.add(module)
        if owner is not None:
            self.found(owner)
            return
        if self._waits_for is None:
            inner = next((item for item in module.modules() if self._known(item)), None)
            known = inner or self._first(lambda kind: kind.living())
            if known is None:
                self.found(module)
                return
            self._waits_for = type(known).__name__
        if not self._passed:
            self._passed.add(type(module).__name__)

    def _matches(self, module: nn.Module, pattern: re.Pattern[str]) -> bool:
        if pattern.search(type(module).__name__) or id(module) in self._named:
            return True
        for path, item in module.named_modules():
            if path and pattern.fullmatch(path):
                self._named.add(id(item))
        return False

    # ---------------------------------------------------------------- what the program imports

    def _watch_imports(self) -> None:
        self.after_import(TOKENIZER_MODULE, self._watch_tokenizers)
        self.after_import(DYNAMO, self._watch_compiler)
        if self._after_import:
            finder = _AfterImport(self._after_import)
            sys.meta_path.insert(0, finder)
            self._undo.append(lambda: sys.meta_path.remove(finder))

    def _watch_scripting(self) -> None:
        """TorchScript compiles the hooks of a module with it, and these cannot be."""
        from torch.jit import _recursive

        original = getattr(_recursive, "get_hook_stubs", None)
        if original is None:
            return

        def stubs(module: nn.Module) -> Any:
            with without_hooks(module):
                return original(module)

        self._undo.append(replace(_recursive, "get_hook_stubs", stubs))

    def _watch_compiler(self, module: ModuleType) -> None:
        run_eagerly(module, functools.partial(self._recorder.lost, SAID), self._undo)

    def _watch_tokenizers(self, module: ModuleType) -> None:
        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def init(tokenizer: Any, *args: Any, **kwargs: Any) -> None:
                original(tokenizer, *args, **kwargs)
                self._recorder.guarded(self._recorder.texts.made, tokenizer)

            return init

        self.replace(module.PreTrainedTokenizerBase, "__init__", make)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls actions with a module right after the program has imported it."""

    def __init__(self, actions: dict[str, list[Callable[[ModuleType], None]]]) -> None:
        self._actions = actions

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        actions = self._actions.get(fullname)
        if actions is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, actions)
        return spec


class _Loader(importlib.abc.Loader):
    """Another loader, and actions after it."""

    def __init__(self, loader: Any, actions: Sequence[Callable[[ModuleType], None]]) -> None:
        self._loader = loader
        self._actions = actions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        for action in self._actions:
            action(module)
