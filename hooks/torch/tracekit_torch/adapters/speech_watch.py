"""Finding a speech-token language model by its class's name, wherever that is defined, and watching its methods.

Such a model is never called as a module: the program calls `inference`, a generator. So the methods are watched on the
class, from the moment the class is made (or at once, where it is there already), until the recording ends.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from torch import nn

from tracekit.trace import Json, Sequence, Trace
from tracekit_torch.adapters import ModelKind, Watching, speech_models
from tracekit_torch.adapters.cosyvoice import CosyVoice
from tracekit_torch.adapters.speech_prefill import speech_prefill
from tracekit_torch.adapters.speech_segment import Segment
from tracekit_torch.patching import replace
from tracekit_torch.recorder import Recorder

GENERATIONS = ("inference", "inference_bistream", "inference_wrapper")
"""Methods that give speech tokens one by one; the outermost call of one of them is a segment."""
SAMPLER = "sampling_ids"
Method = Callable[..., Any]


class SpeechModels(ModelKind):
    """CosyVoice's speech-token language models."""

    priority = 20

    def knows(self, module: nn.Module) -> bool:
        return speech_models.knows(module)

    def attach(self, recorder: Recorder, model: nn.Module, sampling: Json | None) -> None:
        speech = CosyVoice(recorder, model)
        recorder.attach(model, speech, speech.head, sampling, speech_models.about(model))
        speech.listen()

    def computing(self, model: nn.Module) -> nn.Module:
        inner: nn.Module = model.llm.model  # type: ignore[union-attr, assignment]
        return inner

    def prefill(self, model: nn.Module, trace: Trace, sequence: Sequence) -> Callable[[], Any]:
        return speech_prefill(model, trace, sequence)

    def watch(self, watching: Watching) -> None:
        _SpeechWatch(watching).install()


KIND = SpeechModels()


class _SpeechWatch:
    """Watches the methods of speech models. One that begins a segment before any model is known is recorded."""

    def __init__(self, watching: Watching) -> None:
        self._watching = watching
        self._recorder = watching.recorder
        self._classes: list[type] = []
        self._watched: set[tuple[type, str]] = set()

    def install(self) -> None:
        """Watch from now on."""
        for kind in _subclasses(nn.Module):
            self._watch(kind)

        def made(cls: Any, /, **kwargs: Any) -> None:
            super(nn.Module, cls).__init_subclass__(**kwargs)  # type: ignore[misc]
            self._watch(cls)

        self._watching.until_end(replace(nn.Module, "__init_subclass__", classmethod(made)))

    def _watch(self, kind: type) -> None:
        if not speech_models.is_speech_class(kind) or kind in self._classes:
            return
        self._classes.append(kind)
        self._watching.wait_for(f"{kind.__name__}.{GENERATIONS[0]}")
        # Each base's own as well: upstream's `sampling_ids` is that of the first class of the chain.
        for base in kind.__mro__:
            for name in (*GENERATIONS, SAMPLER):
                if not inspect.isfunction(vars(base).get(name)) or (base, name) in self._watched:
                    continue
                self._watched.add((base, name))
                self._watching.replace(base, name, self._sampler if name == SAMPLER else self._generation)

    def _begins(self, model: nn.Module) -> None:
        if speech_models.knows(model) and self._watching.allows(model):
            self._watching.found(model)

    # ---------------------------------------------------------------- segments

    def _generation(self, original: Method) -> Method:
        def generate(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            adapter = self._adapter(model)
            if adapter is None:
                return original(model, *args, **kwargs)
            arguments = self._recorder.guarded(_named, original, model, args, kwargs) or {}
            segment = self._recorder.guarded(adapter.begin_segment, arguments)
            if segment is None:
                return original(model, *args, **kwargs)
            tokens = original(model, *args, **kwargs)
            return self._segment(adapter, segment, tokens) if isinstance(tokens, Iterator) else tokens

        return generate

    def _segment(self, adapter: CosyVoice, segment: Segment, tokens: Iterator[Any]) -> Generator[Any, None, None]:
        """The tokens as the model gives them; what ends them is recorded."""
        guarded = self._recorder.guarded
        try:
            while True:
                with adapter.inside(segment):
                    token = next(tokens, _END)
                if token is _END:
                    guarded(adapter.ended, segment)
                    return
                guarded(adapter.gave, segment, token)
                yield token
        except GeneratorExit:
            if self._recorder.active:
                guarded(adapter.left, segment, "left", "the program left the generation")
            if isinstance(tokens, Generator):
                tokens.close()
            raise
        except BaseException as error:
            if self._recorder.active:
                guarded(adapter.left, segment, "error", f"{type(error).__name__}: {error}")
            raise

    def _adapter(self, model: nn.Module) -> CosyVoice | None:
        """The adapter of `model`, which is recorded from now on if nothing is yet."""
        recorder = self._recorder
        if recorder.model is None and recorder.broken is None and not recorder.closed:
            recorder.guarded(self._begins, model)
        adapter = recorder.adapter
        ours = recorder.model is model and isinstance(adapter, CosyVoice) and recorder.active
        return adapter if ours and isinstance(adapter, CosyVoice) else None

    # ---------------------------------------------------------------- steps

    def _sampler(self, original: Method) -> Method:
        def sample(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            recorder = self._recorder
            adapter = recorder.adapter
            if not isinstance(adapter, CosyVoice) or recorder.model is not model or not recorder.active:
                return original(model, *args, **kwargs)
            if adapter.listening():  # a base's method, called by the one that is watched
                return original(model, *args, **kwargs)
            arguments = recorder.guarded(_named, original, model, args, kwargs) or {}
            scores, decoded = list(arguments.values())[:2] if len(arguments) > 1 else (None, ())
            if isinstance(scores, torch.Tensor):
                recorder.guarded(adapter.begin_step, scores, decoded)
            token = original(model, *args, **kwargs)
            forced = recorder.guarded(adapter.took, int(token)) if recorder.active else None
            if forced is None:
                return token
            return torch.full_like(token, forced) if isinstance(token, torch.Tensor) else forced

        return sample


_END = object()


def _named(original: Method, model: nn.Module, args: tuple[Any, ...], kwargs: Json) -> Json:
    """The arguments of a method by name, defaults included, without `self`."""
    bound = inspect.signature(original).bind(model, *args, **kwargs)
    bound.apply_defaults()
    return dict(list(bound.arguments.items())[1:])


def _subclasses(kind: type) -> Iterator[type]:
    child: type
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)
