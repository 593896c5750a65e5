"""Finding the model that a program runs, and watching the calls inside transformers' `generate`.

The program is not edited and may not have imported anything yet. So the first call of any module is watched for until
the model is found (and never after), and transformers' classes are watched as soon as the program imports them.
"""

from __future__ import annotations

import functools
import gc
import importlib.abc
import importlib.machinery
import inspect
import re
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

from tracekit.trace import Json
from tracekit_torch import describe
from tracekit_torch.adapters import speech_models, transformers_causal
from tracekit_torch.adapters.any_module import AnyModule
from tracekit_torch.adapters.cosyvoice import CosyVoice
from tracekit_torch.adapters.processors import watched_chain
from tracekit_torch.adapters.transformers_causal import TransformersCausal
from tracekit_torch.eager import DYNAMO, SAID, run_eagerly, uncompiled
from tracekit_torch.patching import replace
from tracekit_torch.recorder import Recorder
from tracekit_torch.speech_watch import SpeechWatch
from tracekit_torch.texts import TOKENIZER_MODULE

GENERATION_MODULE = "transformers.generation.utils"
STEPWISE = "_sample"
"""The decoding method that greedy search and sampling share."""
NOT_STEPWISE = {
    "_beam_search": "beam search",
    "_group_beam_search": "group beam search",
    "_constrained_beam_search": "constrained beam search",
    "_assisted_decoding": "assisted decoding",
    "_contrastive_search": "contrastive search",
    "_dola_decoding": "DoLa decoding",
}
"""Decoding methods whose forward calls are not one step each."""


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
        self._speech = SpeechWatch(recorder, self._speaks)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Watch inside the block; leave everything as it was after it."""
        self._speech.install(self._undo)
        self._watch_transformers()
        if self._recorder.model is None:
            self._watch_modules()
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
        return "the program never called a torch module with parameters; there is nothing to record"

    def found(self, model: nn.Module, sampling: Json | None = None) -> None:
        """Record `model` from now on."""
        recorder = self._recorder
        if recorder.model is not None:
            return
        model = uncompiled(model)
        self._release_modules()
        if speech_models.knows(model):
            speech = CosyVoice(recorder, model)
            recorder.attach(model, speech, speech.head, sampling, speech_models.about(model))
            speech.listen()
            return
        if transformers_causal.knows(model):
            causal = TransformersCausal(recorder, model)
            head = transformers_causal.head_of(model)
            recorder.attach(
                model, causal, head, sampling, transformers_causal.about(model, replayable=recorder.command is not None)
            )
            causal.listen()
            return
        recorder.attach(model, AnyModule(recorder), None, sampling)

    def _speaks(self, model: nn.Module) -> None:
        """A speech model begins a segment."""
        if speech_models.knows(model) and (self._pattern is None or self._matches(model, self._pattern)):
            self.found(model)

    # ---------------------------------------------------------------- any module's call, until the model is found

    def _watch_modules(self) -> None:
        original = nn.Module.__call__

        @functools.wraps(original)
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._recorder.model is None and self._recorder.broken is None:
                try:
                    self._called(module)
                except Exception as error:
                    self._recorder.fail(error)
            return original(module, *args, **kwargs)

        self._put_back_call = replace(nn.Module, "__call__", call)
        self._undo.append(self._release_modules)

    def _release_modules(self) -> None:
        if self._put_back_call is not None:
            self._put_back_call()
            self._put_back_call = None

    def _called(self, module: nn.Module) -> None:
        if self._pattern is not None:
            self._passed.add(type(module).__name__)
            if self._matches(module, self._pattern):
                self.found(module)
            return
        if self._speech.classes:
            self._waits_for = f"{self._speech.classes[-1].__name__}.inference"
            self._passed.add(type(module).__name__)
            return
        if transformers_causal.knows(module):
            self.found(module)
            return
        if next(module.parameters(), None) is None:
            return
        owner = None if module in self._looked_at else _encoders_model(module)
        self._looked_at.add(module)
        if owner is not None:
            self.found(owner)
            return
        if self._waits_for is None:
            inner = next((item for item in module.modules() if transformers_causal.knows(item)), None)
            known = inner or _living_model()
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

    # ---------------------------------------------------------------- transformers

    def _watch_transformers(self) -> None:
        wanted: dict[str, Callable[[ModuleType], None]] = {
            GENERATION_MODULE: self._watch_generation,
            TOKENIZER_MODULE: self._watch_tokenizers,
            DYNAMO: self._watch_compiler,
        }
        missing: dict[str, Callable[[ModuleType], None]] = {}
        for name, action in wanted.items():
            if name in sys.modules:
                action(sys.modules[name])
            else:
                missing[name] = functools.partial(self._recorder.guarded, action)
        if missing:
            finder = _AfterImport(missing)
            sys.meta_path.insert(0, finder)
            self._undo.append(lambda: sys.meta_path.remove(finder))

    def _watch_compiler(self, module: ModuleType) -> None:
        run_eagerly(module, functools.partial(self._recorder.lost, SAID), self._undo)

    def _replace(self, owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        original = getattr(owner, name)
        self._undo.append(replace(owner, name, functools.wraps(original)(make(original))))

    def _watch_tokenizers(self, module: ModuleType) -> None:
        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def init(tokenizer: Any, *args: Any, **kwargs: Any) -> None:
                original(tokenizer, *args, **kwargs)
                self._recorder.guarded(self._recorder.texts.made, tokenizer)

            return init

        self._replace(module.PreTrainedTokenizerBase, "__init__", make)

    def _watch_generation(self, module: ModuleType) -> None:
        mixin = module.GenerationMixin
        self._replace(mixin, STEPWISE, self._stepwise)
        for name, words in NOT_STEPWISE.items():
            if hasattr(mixin, name):
                self._replace(mixin, name, functools.partial(self._left_out, words))
        self._replace(module.LogitsProcessorList, "__call__", self._processors)
        self._replace(module.StoppingCriteriaList, "__call__", self._criteria)

    def _stepwise(self, original: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(original).parameters)[1:]

        def sample(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            adapter = self._begin_generation(model, dict(zip(names, args, strict=False)) | kwargs)
            if adapter is None:
                return original(model, *args, **kwargs)
            try:
                result = original(model, *args, **kwargs)
            except BaseException as error:
                self._end_generation(adapter, "error", f"{type(error).__name__}: {error}")
                raise
            self._end_generation(adapter, "left")
            return result

        return sample

    def _begin_generation(self, model: nn.Module, arguments: Json) -> TransformersCausal | None:
        try:
            settings = arguments["generation_config"]
            if self._recorder.model is None and self._pattern is None and transformers_causal.knows(model):
                self.found(model, describe.sampling(settings))
            adapter = self._recorder.adapter
            if not isinstance(adapter, TransformersCausal) or not self._recorder.active:
                return None
            if not adapter.begin_generation(model, arguments):
                return None
            if _would_compile(model, arguments):
                # Compiled code has no modules left to tap.
                settings.disable_compile = True
                self._recorder.note("torch.compile is off for this generation while it is recorded")
            return adapter
        except Exception as error:
            self._recorder.fail(error)
            return None

    def _left_out(self, words: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def decode(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            adapter = self._adapter_of(model)
            if adapter is None:
                return original(model, *args, **kwargs)
            self._recorder.lost(f"{words}, which does not choose one token a step")
            adapter.mute(True)
            try:
                return original(model, *args, **kwargs)
            finally:
                adapter.mute(False)

        return decode

    def _adapter_of(self, model: nn.Module) -> TransformersCausal | None:
        try:
            if self._recorder.model is None and self._pattern is None and transformers_causal.knows(model):
                self.found(model)
        except Exception as error:
            self._recorder.fail(error)
        adapter = self._recorder.adapter
        return adapter if isinstance(adapter, TransformersCausal) and self._recorder.model is model else None

    def _processors(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def process(processors: Any, *args: Any, **kwargs: Any) -> Any:
            adapter = self._recorder.adapter
            if not isinstance(adapter, TransformersCausal) or not self._recorder.active or not adapter.listening():
                return original(processors, *args, **kwargs)
            with watched_chain(processors) as chain:
                scores = original(processors, *args, **kwargs)
            try:
                adapter.processed(processors, scores, chain)
            except Exception as error:
                self._recorder.fail(error)
            return scores

        return process

    def _criteria(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def stop(criteria: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
            done = original(criteria, input_ids, *args, **kwargs)
            adapter = self._recorder.adapter
            generation = adapter.generation if isinstance(adapter, TransformersCausal) else None
            if generation is None or criteria is not generation.criteria or not self._recorder.active:
                return done
            try:
                return generation.stopped(input_ids, done)
            except Exception as error:
                self._recorder.fail(error)
                return done

        return stop

    def _end_generation(self, adapter: TransformersCausal, reason: str, detail: str | None = None) -> None:
        if self._recorder.active:
            try:
                adapter.end_generation(reason, detail)
            except Exception as error:
                self._recorder.fail(error)


def _would_compile(model: Any, arguments: Json) -> bool:
    decides = getattr(model, "_valid_auto_compile_criteria", None)
    return bool(decides is not None and decides(arguments, arguments["generation_config"]))


def _living_model() -> nn.Module | None:
    """A causal language model that the program has made but not called yet."""
    module = sys.modules.get(GENERATION_MODULE)
    if module is None:
        return None
    mixin = module.GenerationMixin
    return next(
        (item for item in gc.get_objects() if issubclass(type(item), mixin) and transformers_causal.knows(item)), None
    )


def _encoders_model(module: nn.Module) -> nn.Module | None:
    """The encoder-decoder whose encoder is called, before the model itself is, by `generate`."""
    generation = sys.modules.get(GENERATION_MODULE)
    if generation is None:
        return None
    living = (item for item in gc.get_objects() if issubclass(type(item), generation.GenerationMixin))
    return next((item for item in living if transformers_causal.encoder_of(item) is module), None)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls an action with a module right after the program has imported it."""

    def __init__(self, actions: dict[str, Callable[[ModuleType], None]]) -> None:
        self._actions = actions

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        action = self._actions.get(fullname)
        if action is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, action)
        return spec


class _Loader(importlib.abc.Loader):
    """Another loader, and an action after it."""

    def __init__(self, loader: Any, action: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._action = action

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._action(module)
