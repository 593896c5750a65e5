"""Draws: every use of a random generator through torch's Python entry points, with where in its stream it lies.

`fast` replaces the entry points themselves for the length of the recording and costs nothing on other operators;
`thorough` watches all operators with a dispatch mode and so sees draws that are made inside of others. Both leave the
generator exactly as the program would have it: its state is read before and after, never used.

Draws made inside the model's forward (dropout) and before the first sequence (initialisation) belong to no step and
are not recorded; the offsets of later draws count them all the same.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tracekit.torch_rng.generator import offset_of, words_between
from tracekit.trace import Json, TraceError
from tracekit_torch.patching import replace

BLOCK_WORDS = 624
"""Words that mt19937 makes at a time."""
FUNCTIONS = (
    "bernoulli",
    "multinomial",
    "normal",
    "rand",
    "rand_like",
    "randint",
    "randint_like",
    "randn",
    "randn_like",
    "randperm",
)
METHODS = (
    "bernoulli",
    "bernoulli_",
    "cauchy_",
    "exponential_",
    "geometric_",
    "log_normal_",
    "multinomial",
    "normal_",
    "random_",
    "uniform_",
)
CHOICES = ("argmax",)
"""Not random, but how a greedy loop chooses its token."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One draw as it happened. `source` is what was drawn from (probabilities), `result` what came out."""

    op: str
    source: torch.Tensor | None
    result: torch.Tensor
    generator: str
    seed: int | None
    offset: int | None
    words: int | None

    def as_json(self, result: int | None = None, offset: int | None = None, words: int | None = None) -> Json:
        """As a step's `draws` holds it; `offset` and `words` narrow it to one row of a batch."""
        return {
            "op": self.op,
            "generator": self.generator,
            "seed": self.seed,
            "offset": self.offset if offset is None else offset,
            "words": self.words if words is None else words,
            "result": result,
        }

    @property
    def value(self) -> float | None:
        """The number that was drawn, where it is a single floating-point one."""
        if self.result.numel() == 1 and self.result.is_floating_point():
            return float(self.result)
        return None


class Listener(Protocol):
    """Who wants to know of draws."""

    def listening(self) -> bool:
        """Whether a draw made now could belong to a step."""

    def draws_from(self, generator: torch.Generator) -> None:
        """A draw is about to be made from a generator, which may be moved (when another trace's draws are followed)."""

    def drew(self, drawn: Drawn) -> torch.Tensor | None:
        """A draw was made. What is returned replaces its result (when another trace is followed)."""

    def chose(self, scores: torch.Tensor, result: torch.Tensor) -> torch.Tensor | None:
        """An argmax was taken; as `drew`."""

    def passed(self, op: str, source: torch.Tensor | None, result: torch.Tensor) -> None:
        """Something was drawn or chosen while not `listening`."""

    def guarded(self, action: Callable[..., Any], *args: Any) -> Any:
        """What `action` gives; None where it fails, which the program does not see."""


class StreamPosition:
    """Where in its stream one generator is: kept from draw to draw, so that the stream is not walked each time."""

    def __init__(self) -> None:
        self._state = b""
        self._offset: int | None = None

    def advance(self, before: bytes, after: bytes, expected: int | None) -> tuple[int | None, int | None]:
        """(offset, words) of a draw that took the generator from state `before` to `after` (5056 bytes each).

        `expected` is how many words the operator is known to use; it is believed when the states agree with it.
        """
        if before != self._state:
            self._offset = self._found(before)
        offset = self._offset
        words = expected
        if expected is None or (_place(after) - _place(before) - expected) % BLOCK_WORDS:
            words = words_between(before, after)
        self._state = after
        self._offset = None if offset is None or words is None else offset + words
        return offset, words

    def _found(self, state: bytes) -> int | None:
        """The offset of a state that other draws led to: walked from the last one known, else from the seed."""
        same_seed = self._state[:8] == state[:8]
        if same_seed and self._offset is not None and not _is_fresh(state):
            words = words_between(self._state, state)
            if words is not None:
                return self._offset + words
        return offset_of(state)[1]


def _is_fresh(state: bytes) -> bool:
    """Whether nothing was drawn since seeding."""
    left, _, following = struct.unpack_from("<iiQ", state, 8)
    return bool(left == 1 and following == 0)


def _place(state: bytes) -> int:
    """How many words of its current block a generator has given; a fresh seed stands at the end of a block."""
    (left,) = struct.unpack_from("<i", state, 8)
    return BLOCK_WORDS + 1 - int(left) if left > 1 else BLOCK_WORDS


class Draws:
    """Watches torch's random operators and tells `listener` of them."""

    def __init__(self, listener: Listener, mode: str) -> None:
        self._listener = listener
        self._mode = mode
        self._streams: dict[torch.Generator, StreamPosition] = {}
        self._inside = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Replace the entry points (and push the dispatch mode) inside the block; put them back after it."""
        places = [(torch, name) for name in FUNCTIONS + CHOICES] + [(torch.Tensor, name) for name in METHODS + CHOICES]
        undo = []
        for owner, name in places:
            make = self._choice if name in CHOICES else self._draw
            undo.append(replace(owner, name, make(name, getattr(owner, name))))
        mode = _Watch(self) if self._mode == "thorough" else None
        try:
            if mode is None:
                yield
            else:
                with mode:
                    yield
        finally:
            for put_back in reversed(undo):
                put_back()

    def _draw(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def draw(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            if not self._listener.listening():
                return self._passed(name, function, args, kwargs)
            return self._watched(name, function, args, kwargs)

        draw.__name__ = draw.__qualname__ = name
        draw.__doc__ = function.__doc__
        return draw

    def _choice(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def choose(*args: Any, **kwargs: Any) -> Any:
            if not self._listener.listening():
                return self._passed(name, function, args, kwargs)
            result = function(*args, **kwargs)
            if isinstance(result, torch.Tensor):
                scores = args[0] if args else kwargs.get("input")
                forced = self._listener.chose(scores, result) if isinstance(scores, torch.Tensor) else None
                return result if forced is None else forced
            return result

        choose.__name__ = choose.__qualname__ = name
        choose.__doc__ = function.__doc__
        return choose

    def _passed(self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator while no step is waited for."""
        result = function(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            source = args[0] if args else kwargs.get("input")
            self._listener.guarded(
                self._listener.passed, name, source if isinstance(source, torch.Tensor) else None, result
            )
        return result

    def _watched(self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        source = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)
        moved = self._mode == "cpu" and source is not None and source.is_cuda and kwargs.get("generator") is None
        if moved and source is not None:
            # Drawn on the CPU generator, so that a port can draw the same.
            return self._on_cpu(name, function, args, kwargs, source)
        # What is done around the draw may fail, the draw is the program's: it runs as it would, once.
        generator, before = self._listener.guarded(self._prepare, kwargs, source) or (None, None)
        self._inside = True
        try:
            result = function(*args, **kwargs)
        finally:
            self._inside = False
        if generator is None:
            return result
        forced = self._listener.guarded(self._tell, name, source, result, generator, before, kwargs)
        return result if forced is None else forced

    def _prepare(self, kwargs: dict[str, Any], source: torch.Tensor | None) -> tuple[torch.Generator, torch.Tensor]:
        """The generator that a draw will use, put where it is to be, and its state."""
        generator = _generator(kwargs, source)
        self._inside = True
        try:
            self._listener.draws_from(generator)
            return generator, generator.get_state()
        finally:
            self._inside = False

    def _on_cpu(
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        source: torch.Tensor,
    ) -> Any:
        def to_cpu(value: Any) -> Any:
            return value.cpu() if isinstance(value, torch.Tensor) else value

        named = {key: to_cpu(value) for key, value in kwargs.items()}
        result = self._watched(name, function, tuple(map(to_cpu, args)), named)
        if name.endswith("_") and isinstance(result, torch.Tensor):
            return source.copy_(result)
        return result.to(source.device) if isinstance(result, torch.Tensor) else result

    def _tell(
        self,
        name: str,
        source: torch.Tensor | None,
        result: Any,
        generator: torch.Generator,
        before: torch.Tensor,
        kwargs: dict[str, Any],
    ) -> torch.Tensor | None:
        """Report a draw; what the program gets in place of its result, if anything."""
        if not isinstance(result, torch.Tensor):
            return None
        after = generator.get_state()
        if generator.device.type == "cpu":
            stream = self._streams.setdefault(generator, StreamPosition())
            expected = _words(name, source, result)
            offset, words = stream.advance(before.numpy().tobytes(), after.numpy().tobytes(), expected)
            kind = "mt19937"
        else:
            kind = "philox"
            offset, words = _philox_offset(before), _philox_offset(after) - _philox_offset(before)
        drawn = Drawn(name, source, result, kind, generator.initial_seed(), offset, words)
        return self._listener.drew(drawn)

    def operator(self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator that the dispatch mode saw to be random."""
        if self._inside or not self._listener.listening():
            return function(*args, **kwargs)
        return self._watched(name, function, args, kwargs)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands every operator that torch itself tags as random to `Draws`."""

    def __init__(self, draws: Draws) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._draws = draws

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            return self._draws.operator(func._schema.name.removeprefix("aten::"), func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _generator(kwargs: dict[str, Any], source: torch.Tensor | None) -> torch.Generator:
    """The generator that an operator will use."""
    given = kwargs.get("generator")
    if isinstance(given, torch.Generator):
        return given
    device = torch.device(kwargs.get("device") or (source.device if source is not None else torch.get_default_device()))
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    if device.type != "cpu":
        raise TraceError(f"draws on {device} cannot be followed; record on cpu or cuda")
    return torch.default_generator


def _words(name: str, source: torch.Tensor | None, result: torch.Tensor) -> int | None:
    """Words that an operator uses, where that is known: an exponential race takes two for each probability."""
    if name == "multinomial" and source is not None and result.shape[-1] == 1:
        return 2 * source.numel()
    if name == "exponential_":
        return 2 * result.numel()
    return None


def _philox_offset(state: torch.Tensor) -> int:
    (offset,) = struct.unpack_from("<q", state.numpy().tobytes(), 8)
    return int(offset)
