"""Watching the calls inside transformers' `generate`: its decoding methods, logits processors and stopping criteria."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

from tracekit.trace import Json
from tracekit_torch import describe
from tracekit_torch.adapters import ModelKind, Watching, transformers_causal
from tracekit_torch.adapters.processors import watched_chain
from tracekit_torch.adapters.transformers_causal import TransformersCausal
from tracekit_torch.living import instances
from tracekit_torch.recorder import BESIDE, Recorder

GENERATION_MODULE = "transformers.generation.utils"
STEPWISE = "_sample"
"""The decoding method that greedy search and sampling share."""
NOT_STEPWISE = {
    "_beam_search": ("beam search", "with num_beams=1"),
    "_group_beam_search": ("group beam search", "with num_beams=1"),
    "_constrained_beam_search": ("constrained beam search", "with num_beams=1 and no constraints"),
    "_assisted_decoding": ("assisted decoding", "without assistant_model and prompt_lookup_num_tokens"),
    "_contrastive_search": ("contrastive search", "without penalty_alpha"),
    "_dola_decoding": ("DoLa decoding", "without dola_layers"),
}
"""Decoding methods whose forward calls are not one step each, and how to do without."""


INSIDE_ANOTHER = "generations inside another generation that is recorded"
OF_A_PROCESSOR = "calls of the model that a logits processor makes"
OF_A_CRITERION = "calls of the model that a stopping criterion makes"


class CausalModels(ModelKind):
    """Causal language models of transformers, and encoder-decoders."""

    priority = 10

    def knows(self, module: nn.Module) -> bool:
        return transformers_causal.knows(module)

    def attach(self, recorder: Recorder, model: nn.Module, sampling: Json | None) -> None:
        causal = TransformersCausal(recorder, model)
        about = transformers_causal.about(model, replayable=recorder.command is not None)
        recorder.attach(model, causal, transformers_causal.head_of(model), sampling, about)
        causal.listen(model)

    def watch(self, watching: Watching) -> None:
        watching.after_import(GENERATION_MODULE, _GenerateWatch(watching).install)

    def owner(self, module: nn.Module) -> nn.Module | None:
        """The encoder-decoder whose encoder is called, before the model itself is, by `generate`."""
        return next((item for item in _living() if transformers_causal.encoder_of(item) is module), None)

    def living(self) -> nn.Module | None:
        return next((item for item in _living() if transformers_causal.knows(item)), None)


def _living() -> list[nn.Module]:
    """Models that can generate; none where nothing has imported what they are made of."""
    generation = sys.modules.get(GENERATION_MODULE)
    return [] if generation is None else instances(generation.GenerationMixin)


KIND = CausalModels()


class _GenerateWatch:
    """Tells the adapter of the recorded model what `generate` does."""

    def __init__(self, watching: Watching) -> None:
        self._watching = watching
        self._recorder = watching.recorder
        self._given: dict[int, Json] = {}
        """By thread, what the `generate` was given that runs in it."""

    def install(self, module: ModuleType) -> None:
        """Watch the methods of transformers' module of generation."""
        mixin = module.GenerationMixin
        self._watching.replace(mixin, "generate", self._generate)
        self._watching.replace(mixin, STEPWISE, self._stepwise)
        for name, (words, mend) in NOT_STEPWISE.items():
            if hasattr(mixin, name):
                self._watching.replace(mixin, name, functools.partial(self._left_out, words, mend))
        self._watching.replace(module.LogitsProcessorList, "__call__", self._processors)
        self._watching.replace(module.StoppingCriteriaList, "__call__", self._criteria)

    def _generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def generate(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            thread = threading.get_ident()
            around, self._given[thread] = self._given.get(thread), kwargs
            try:
                return original(model, *args, **kwargs)
            finally:
                del self._given[thread]
                if around is not None:
                    self._given[thread] = around

        return generate

    def _stepwise(self, original: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(original).parameters)[1:]

        def sample(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._generates:
                with self._leaving_out(INSIDE_ANOTHER):
                    return original(model, *args, **kwargs)
            adapter = self._begin_generation(model, dict(zip(names, args, strict=False)) | kwargs)
            if adapter is None:
                with self._another_goes_on(model):
                    result = original(model, *args, **kwargs)
                self._recorder.guarded(self._say_without_steps, model)
                return result
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
            if self._recorder.model is None and not self._watching.by_name and transformers_causal.knows(model):
                self._watching.found(model, describe.sampling(settings))
            adapter = self._recorder.adapter
            self._say_if_another(model)
            if not isinstance(adapter, TransformersCausal) or not self._recorder.active:
                return None
            if not adapter.begin_generation(model, arguments, self._given.get(threading.get_ident())):
                return None
            if _would_compile(model, arguments):
                # Compiled code has no modules left to tap.
                settings.disable_compile = True
                self._recorder.note("torch.compile is off for this generation while it is recorded")
            return adapter
        except Exception as error:
            self._recorder.fail(error)
            return None

    @property
    def _generates(self) -> bool:
        """Whether this thread's generation is being recorded."""
        adapter = self._recorder.adapter
        generation = adapter.generation if isinstance(adapter, TransformersCausal) else None
        return generation is not None and generation.thread == threading.get_ident() and self._recorder.active

    @contextmanager
    def _another_goes_on(self, model: nn.Module) -> Iterator[None]:
        """Leave out a generation of the recorded model that began while another thread ran it: to its end, since its
        beginning is not known."""
        adapter = self._recorder.adapter
        if isinstance(adapter, TransformersCausal) and self._recorder.active and self._recorder.model is model:
            with self._recorder.leaving_out(BESIDE):
                yield
        else:
            yield

    @contextmanager
    def _leaving_out(self, calls: str) -> Iterator[None]:
        """Leave out the calls that a recorded generation makes inside the block, which are none of its steps."""
        if self._generates:
            with self._recorder.leaving_out(calls):
                yield
        else:
            yield

    def _say_if_another(self, model: nn.Module) -> None:
        """A second model generates: one is recorded. Not said where the user chose which, or of an assistant."""
        recorder, adapter = self._recorder, self._recorder.adapter
        chosen = self._watching.by_name or recorder.command is None
        if chosen or recorder.model is None or (isinstance(adapter, TransformersCausal) and adapter.muted):
            return
        if not _inside(model, recorder.model) and not _inside(recorder.model, model):
            recorder.lost(f"generations of a second model ({type(model).__name__}); choose a model with --module")

    def _say_without_steps(self, model: nn.Module) -> None:
        """A model that generates and is recorded as any module is: its calls, and not what it chooses by them."""
        recorder = self._recorder
        if recorder.model is None or isinstance(recorder.adapter, TransformersCausal):
            return
        if _inside(model, recorder.model) or _inside(recorder.model, model):
            recorder.lost(f"steps of {type(model).__name__}.generate, whose logits are not those of one token a step")

    def _left_out(self, words: str, mend: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def decode(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            adapter = self._adapter_of(model)
            if adapter is None:
                return original(model, *args, **kwargs)
            left_out = f"{words}, which does not choose one token a step; generate {mend}"
            self._recorder.lost(left_out)
            with self._recorder.leaving_out(left_out):
                return original(model, *args, **kwargs)

        return decode

    def _adapter_of(self, model: nn.Module) -> TransformersCausal | None:
        try:
            if self._recorder.model is None and not self._watching.by_name and transformers_causal.knows(model):
                self._watching.found(model)
        except Exception as error:
            self._recorder.fail(error)
        adapter = self._recorder.adapter
        return adapter if isinstance(adapter, TransformersCausal) and self._recorder.model is model else None

    def _processors(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def process(processors: Any, *args: Any, **kwargs: Any) -> Any:
            adapter = self._recorder.adapter
            if not isinstance(adapter, TransformersCausal) or not self._recorder.active or not adapter.listening():
                return original(processors, *args, **kwargs)
            with watched_chain(processors, self._recorder.fail) as chain, self._recorder.leaving_out(OF_A_PROCESSOR):
                scores = original(processors, *args, **kwargs)
            try:
                adapter.processed(processors, scores, chain)
            except Exception as error:
                self._recorder.fail(error)
            return scores

        return process

    def _criteria(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def stop(criteria: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
            with self._leaving_out(OF_A_CRITERION):
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


def _inside(part: nn.Module, whole: nn.Module) -> bool:
    return any(module is part for module in whole.modules())


def _would_compile(model: Any, arguments: Json) -> bool:
    decides = getattr(model, "_valid_auto_compile_criteria", None)
    return bool(decides is not None and decides(arguments, arguments["generation_config"]))
