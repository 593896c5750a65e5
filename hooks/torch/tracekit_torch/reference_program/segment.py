"""The operations between the last recorded sites and a site, run again in milliseconds, with some of them changed.

`Capture` writes down, during one pass of the replay, every operation that torch dispatches, what it reads and the lines
of the program that asked for it. A `Segment` is what of that feeds one site: its leaves are the recorded values,
parameters and constants, so no other part of the model is needed to compute the site again.
"""

from __future__ import annotations

import os
import sys
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeGuard

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from tracekit_torch.reference_program.drawn_rounding import DrawnRounding

Floats = NDArray[np.float64]
Result = Any
"""What an operation returns: a tensor, or a tuple or list of them."""

Arrange = Callable[[torch.Tensor], list[torch.Tensor]]
"""Takes the recorded rows of a site's tensor, [rows, ...] each."""
CANNOT = RuntimeError, ValueError, TypeError, IndexError, KeyError, ArithmeticError, AttributeError
"""What is raised where a changed program cannot go on."""

LIBRARIES = (
    "/torch/", "/tracekit_torch/", "/transformers/utils/", "/transformers/modeling_layers.py",
    "/transformers/modeling_utils.py", "/contextlib.py", "/functools.py",
)  # fmt: skip
"""Files whose lines are no part of a model's definition."""
OVERHEAD = 1e4
"""Numbers that are computed in the time that an operation takes at least."""
MULTIPLIED_AT_ONCE = 8.0
NUMBERS_BESIDE = 1 << 24
"""Numbers that are held for changed runs that go beside each other."""
UNCHANGED = -1
"""The last of them, which changes nothing: all are as good as what it gives."""
FEWEST_BESIDE = 4
"""Runs that fit into it below which nothing is saved."""
HERE = str(Path(__file__).parent) + os.sep
SHAPES_LATER = {"view": torch.reshape, "_unsafe_view": torch.reshape}
"""Operations that want strides which a changed operand may not have."""


@dataclass(frozen=True)
class Value:
    """A tensor among the operands of an operation, by its number in the capture."""

    id: int


@dataclass(frozen=True)
class Frame:
    """A place of the program that an operation was asked for from."""

    code: CodeType
    last: int
    """Offset of the bytecode instruction: tells two calls on one line apart."""
    line: int

    @property
    def file(self) -> str:
        return self.code.co_filename


@dataclass(frozen=True, eq=False)
class Node:
    """One operation."""

    index: int
    """In the order of execution."""
    func: Any
    """The overload of aten."""
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    """Tensors are `Value`."""
    outputs: tuple[int, ...]
    """Of the tensors that it returns."""
    mutated: tuple[int, ...]
    """Of the tensors that it writes to."""
    frames: tuple[Frame, ...]
    """Of the model's program, outermost first."""

    @cached_property
    def name(self) -> str:
        return str(self.func.overloadpacket.__name__)

    @cached_property
    def inputs(self) -> tuple[int, ...]:
        return tuple(value.id for value in _values([self.args, self.kwargs]))

    @cached_property
    def copies(self) -> bool:
        """Whether it writes to its first operand, which nothing else reads after it."""
        return bool(self.func._schema.is_mutable) and not self.mutated

    @cached_property
    def runs(self) -> Any:
        """What is called."""
        return SHAPES_LATER.get(self.name, self.func)

    @cached_property
    def multiplies(self) -> bool:
        """Whether it is a product of matrices."""
        return self.name in ("mm", "bmm", "addmm", "baddbmm")

    @cached_property
    def _tensors(self) -> tuple[tuple[int, int], ...] | None:
        """Positions and values of the operands that are tensors; None where some are within lists."""
        flat = not any(isinstance(each, tuple | list) and any(_values(each)) for each in self.args)
        return tuple((at, each.id) for at, each in enumerate(self.args) if isinstance(each, Value)) if flat else None

    @cached_property
    def _named(self) -> bool:
        """Whether a named operand is a tensor."""
        return any(_values(self.kwargs))

    def operands(self, value: Callable[[int], torch.Tensor]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Its operands, with a tensor for each `Value`."""
        if self._tensors is None:
            args = [_mapped(each, value, Value) for each in self.args]
        else:
            args = list(self.args)
            for at, each in self._tensors:
                args[at] = value(each)
        if not self._named:
            return tuple(args), self.kwargs
        return tuple(args), {key: _mapped(each, value, Value) for key, each in self.kwargs.items()}

    def result(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Result:
        """What it makes of these operands."""
        return self.runs(*((args[0].clone(), *args[1:]) if self.copies else args), **kwargs)

    @cached_property
    def place(self) -> tuple[tuple[CodeType, int], ...]:
        """Where in the program it stands: the calls that led to it."""
        return tuple((frame.code, frame.last) for frame in self.frames)


class Capture(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While this mode is on, every operation becomes a `Node`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._nodes: list[Node] = []
        self._leaves: dict[int, torch.Tensor] = {}
        self._ids: dict[int, int] = {}
        """By address: that of a tensor that is gone is given to another only through an operation, which is seen."""
        self._groups: list[int] = []
        """Of each value: those of one group share memory."""
        self._sizes: dict[int, int] = {}
        """Values of each group."""
        self._put_in: dict[int, tuple[int, int]] = {}
        """By group: number of values there were when a recorded value was put in, and its size."""
        self._met: dict[str, list[tuple[int, Arrange]]] = {}
        self._begins: list[int] = []
        """The first operation of each call of the model, where those are told apart."""

    def begun(self) -> None:
        """Another call of the model begins."""
        self._begins.append(len(self._nodes))

    def met(self, name: str, value: int, arrange: Arrange) -> None:
        """A site is computed: `value` is what the program holds there, of which `arrange` takes the recorded rows."""
        self._met.setdefault(name, []).append((value, arrange))

    def put(self, tensor: torch.Tensor, before: int) -> None:
        """Recorded values took the place of `before` in a tensor: what comes before them feeds nothing later."""
        self._put_in[self._groups[before]] = (len(self._groups), tensor.numel())
        self._leaf(tensor)

    def segment(self, name: str) -> Segment | None:
        """All that feeds the site `name`; None where it was not met."""
        if name not in self._met:
            return None
        targets = tuple(self._met[name])
        written = {self._groups[value] for node in self._nodes for value in node.mutated}
        needed = {value for value, _ in targets}
        groups = {self._groups[value] for value in needed}
        kept: list[Node] = []
        for node in reversed(self._nodes):
            writes = any(self._groups[value] in groups for value in node.mutated)
            if writes or not needed.isdisjoint(node.outputs):
                kept.append(node)
                needed.update(node.inputs)
                groups.update(self._groups[value] for value in node.inputs if self._groups[value] in written)
        leaves = {value: self._leaves[value] for value in needed if value in self._leaves}
        kept.reverse()
        return Segment(name, tuple(kept), leaves, targets, tuple(self._groups), tuple(self._begins))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        lifted = func.overloadpacket.__name__.startswith("lift")
        given = tuple(_mapped(each, self._leaf if lifted else self.of) for each in args)
        named = {key: _mapped(each, self.of) for key, each in kwargs.items()}
        mutated = self._written(func, args, kwargs)
        alone = len(mutated) == 1 and self._sizes[self._groups[mutated[0]]] == 1
        out = func(*args, **kwargs)
        if alone:  # nothing else shares its memory: as good as another tensor
            self._ids[out._cdata] = made = self._new()
            frames = frames_of(sys._getframe(1))
            self._nodes.append(Node(len(self._nodes), func, given, named, (made,), (), frames))
            return out
        outputs = self._outputs(func, given, mutated, out)
        self._nodes.append(Node(len(self._nodes), func, given, named, outputs, mutated, frames_of(sys._getframe(1))))
        return out

    def _new(self, group: int | None = None) -> int:
        self._groups.append(len(self._groups) if group is None else group)
        self._sizes[self._groups[-1]] = self._sizes.get(self._groups[-1], 0) + 1
        return len(self._groups) - 1

    def _leaf(self, tensor: torch.Tensor) -> int:
        value = self._new()
        self._leaves[value] = tensor
        self._ids[tensor._cdata] = value
        return value

    def of(self, tensor: torch.Tensor) -> int:
        """Number of the value that a tensor holds now."""
        value = self._ids.get(tensor._cdata)
        if value is None:
            return self._leaf(tensor)
        count, size = self._put_in.get(self._groups[value], (0, 0))
        # Another view of memory that recorded values were put into since.
        return self._leaf(tensor.clone()) if value < count and tensor.numel() == size else value

    def _written(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
        if not func._schema.is_mutable:
            return ()
        written = []
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            tensor = args[place] if place < len(args) else kwargs.get(argument.name)
            if isinstance(tensor, torch.Tensor):
                value = self.of(tensor)
                if value in self._leaves:
                    self._leaves[value] = tensor.clone()
                written.append(value)
        return tuple(written)

    def _outputs(self, func: Any, given: tuple[Any, ...], mutated: tuple[int, ...], out: Any) -> tuple[int, ...]:
        returns = func._schema.returns
        outputs: list[int] = []
        source = next(_values(given), None)
        for place, tensor in enumerate(out if isinstance(out, tuple | list) else (out,)):
            if not isinstance(tensor, torch.Tensor):
                continue
            alias = returns[min(place, len(returns) - 1)].alias_info
            if alias is not None and alias.is_write and mutated:
                outputs.append(mutated[min(place, len(mutated) - 1)])
                continue
            shares = alias is not None and source is not None
            value = self._new(self._groups[source.id] if shares and source is not None else None)
            self._ids[tensor._cdata] = value
            outputs.append(value)
        return tuple(outputs)


@dataclass(eq=False)
class Segment:
    """What feeds one site."""

    site: str
    nodes: tuple[Node, ...]
    leaves: Mapping[int, torch.Tensor]
    targets: tuple[tuple[int, Arrange], ...]
    """The values that the site is, one for each call of the model."""
    groups: tuple[int, ...]
    """Of every value of the capture: those of one group share memory."""
    begins: tuple[int, ...] = ()
    """By their index, the first operations of the calls of the model, where there are several."""
    work: float = 0.0
    """Numbers computed so far, an operation counted as no fewer than `OVERHEAD`."""
    _clean: dict[int, torch.Tensor] = field(default_factory=dict)
    _plans: dict[frozenset[int], tuple[int, ...]] = field(default_factory=dict)
    _contents: dict[int, Hashable] = field(default_factory=dict)
    _counted: dict[tuple[int, ...], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._clean.update(self.leaves)

    @cached_property
    def clean(self) -> Mapping[int, torch.Tensor]:
        """All values of the segment as the reference computes them."""
        self._clean |= self._executed(range(len(self.nodes)), {})
        return self._clean

    @cached_property
    def written(self) -> frozenset[int]:
        """Groups of values that operations write to."""
        return frozenset(self.groups[value] for node in self.nodes for value in node.mutated)

    @cached_property
    def producers(self) -> Mapping[int, int]:
        """Position of the node that made each value."""
        made: dict[int, int] = {}
        for place, node in enumerate(self.nodes):
            for value in node.outputs:
                made.setdefault(value, place)
        return made

    @cached_property
    def _read(self) -> frozenset[int]:
        """Values that an operation reads, or that are the site's."""
        return frozenset((*self.readers, *(value for value, _ in self.targets)))

    def made_by(self, place: int) -> int | None:
        """The value that an operation makes, of several the first where nothing reads the others (a layer norm gives
        its mean as well); None where several are read."""
        outputs = self.nodes[place].outputs
        return outputs[0] if outputs and self._read.isdisjoint(outputs[1:]) else None

    @cached_property
    def readers(self) -> Mapping[int, tuple[int, ...]]:
        """Positions of the nodes that read each value."""
        read: dict[int, list[int]] = {}
        for place, node in enumerate(self.nodes):
            for value in set(node.inputs):
                read.setdefault(value, []).append(place)
        return {value: tuple(places) for value, places in read.items()}

    @cached_property
    def alike(self) -> list[tuple[int, ...]]:
        """Positions of the nodes, the last first, each with those of the same operation in the other calls."""
        found: dict[Hashable, list[int]] = {}
        counted: Counter[Hashable] = Counter()
        for place, node in enumerate(self.nodes):
            call = node.place, node.name, self.call_of(place)
            found.setdefault((*call[:2], counted[call]), []).append(place)
            counted[call] += 1
        return [tuple(places[::-1]) for places in reversed(found.values())]

    def call_of(self, place: int) -> int:
        """The call of the model that runs a node, counted from 1 where there are several."""
        return bisect_right(self.begins, self.nodes[place].index)

    def steady(self, value: int) -> bool:
        """Whether a value is the same at all times: no operation writes to its memory."""
        return self.groups[value] not in self.written

    def same(self, one: int, other: int) -> bool:
        """Whether two values are equal: what is not a number is equal to nothing."""
        if self.clean[one].dtype != self.clean[other].dtype:
            return self.clean[one].shape == self.clean[other].shape and bool(
                (self.clean[one] == self.clean[other]).all()
            )
        return self._content(one) == self._content(other) is not None

    def _content(self, value: int) -> Hashable:
        """The same of values that are equal; None of one that is not even equal to itself."""
        if value not in self._contents:
            held = self.clean[value]
            exact = not held.is_floating_point() and not held.is_complex()
            plain = (held if exact else held + 0.0).reshape(-1)  # zero has one sign
            digest = xxhash.xxh3_128_digest(plain.contiguous().view(torch.uint8).numpy().data)
            number = exact or not bool(torch.isnan(held).any())
            self._contents[value] = (held.shape, held.dtype, digest) if number else None
        return self._contents[value]

    @cached_property
    def made_by_shape(self) -> Mapping[Hashable, list[tuple[int, int]]]:
        """By shape and dtype, in their order (of one node the last first), steady values with the position of the node
        that gives them."""
        found: dict[Hashable, list[tuple[int, int]]] = {}
        for place, node in enumerate(self.nodes):
            for value in reversed(node.outputs):
                if self.steady(value):
                    found.setdefault((self.clean[value].shape, self.clean[value].dtype), []).append((place, value))
        return found

    @cached_property
    def read_by_shape(self) -> Mapping[Hashable, list[int]]:
        """By shape, in the order in which they are read, steady values of more than one dimension that are no whole
        numbers."""
        found: dict[Hashable, list[int]] = {}
        for value in self.readers:
            held = self.clean[value]
            if self.steady(value) and held.is_floating_point() and held.dim() > 1:
                found.setdefault(held.shape, []).append(value)
        return found

    def feeds(self, place: int, later: int) -> bool:
        """Whether what the node at `place` makes goes into what the one at `later` makes, or both are one."""
        return bool(self._fed[place] >> later & 1)

    def after(self, place: int) -> list[int]:
        """Positions of the nodes that what the node at `place` makes goes into, its own the first."""
        return [later for later in range(place, len(self.nodes)) if self.feeds(place, later)]

    @cached_property
    def _fed(self) -> list[int]:
        """Of each node those that it feeds and itself, as bits."""
        fed = [1 << place for place in range(len(self.nodes))]
        for place in range(len(self.nodes) - 1, -1, -1):
            for value in self.nodes[place].outputs:
                for reader in self.readers.get(value, ()):
                    fed[place] |= fed[reader] if reader > place else 0
        return fed

    def calls_ending(self, place: int) -> Iterator[int]:
        """Of every call that ends with the node at `place`, the position of its first node, from the outermost on. Two
        calls from one place of the program, rounds of a loop, are told apart by their lines, which begin again."""
        for depth in range(1, len(self.nodes[place].frames)):
            if place + 1 < len(self.nodes) and self.follows(place + 1, depth):
                continue
            first = place
            while self.follows(first, depth):
                first -= 1
            yield first

    def follows(self, place: int, depth: int) -> bool:
        """Whether a node belongs to the same call at that depth as the one before it."""
        if place == 0:
            return False
        node, before = self.nodes[place], self.nodes[place - 1]
        if min(len(node.frames), len(before.frames)) <= depth or node.place[:depth] != before.place[:depth]:
            return False
        here, there = node.frames[depth], before.frames[depth]
        return here.code is there.code and here.last >= there.last

    def mixes_positions(self, rows: NDArray[np.int64]) -> bool:
        """Whether what is at the first position reaches others: the site is after a sum over positions. `rows`: the
        site's recorded positions."""
        target = self.clean[self.targets[0][0]]
        count = target.shape[-2] if target.dim() > 1 else 0
        leaves = {value: _without_the_first(tensor, count) for value, tensor in self.leaves.items()}
        here, there = (
            self.run({}),
            replace(self, leaves=leaves, _clean={}, _plans={}, _contents={}, _counted={}).run({}),
        )
        later = rows > 0
        return here is None or there is None or not np.array_equal(here[later], there[later], equal_nan=True)

    def run(self, changed: Changed, refuted: Callable[[Floats], bool] | None = None) -> Floats | None:
        """The site's values [rows, width] with the results of some nodes, by position, made by others; None where the
        program cannot go on with those, or where `refuted` says of the rows of the first calls that they are enough."""
        clean, plan = self.clean, self._plan(frozenset(changed))
        made: dict[int, torch.Tensor] = {}
        parts: list[torch.Tensor] = []
        done = 0
        try:
            for (value, of), needed in zip(self.targets, self._needed, strict=True):
                stop = bisect_left(plan, needed)
                self._execute(plan[done:stop], changed, made)
                done = stop
                parts += of(made.get(value, clean[value]))
                if refuted is not None and parts and needed < len(self.nodes) and refuted(_rows(parts)):
                    return None
            return _rows(parts)
        except CANNOT:
            return None

    def run_beside(
        self, lanes: Seq[Changed], refuted: Callable[[Floats], bool] | None = None
    ) -> dict[int, Floats | None]:
        """What `run` gives of each of `lanes`, by its number: an operation runs once for many of them. All change the
        same nodes. Nothing of those that cannot be computed together."""
        plan = self._plan(frozenset(lanes[0]))
        many = int(NUMBERS_BESIDE // max(self._numbers_of(plan), 1.0))
        if many < FEWEST_BESIDE or any(self.nodes[place].mutated for place in plan):
            return {}
        found: dict[int, Floats | None] = {}
        every = [*lanes, dict.fromkeys(lanes[0], Given.result)]
        for first in range(0, len(lanes), many):
            numbers = [*range(first, min(first + many, len(lanes))), UNCHANGED]
            with torch.no_grad(), suppress(*CANNOT):
                told = self._run_beside(numbers, every, plan, refuted)
                if _as_good_as_same(told.pop(UNCHANGED, None), self.run({})):
                    found |= told
        return found

    def _run_beside(
        self,
        numbers: Seq[int],
        lanes: Seq[Changed],
        plan: tuple[int, ...],
        refuted: Callable[[Floats], bool] | None,
    ) -> dict[int, Floats | None]:
        found: dict[int, Floats | None] = {}
        alive, made, done = list(numbers), dict[int, torch.Tensor](), 0
        rows = np.zeros((len(alive), 0, 0))
        for (value, of), needed in zip(self.targets, self._needed, strict=True):
            stop = bisect_left(plan, needed)
            while done < stop and alive:
                if plan[done] in lanes[0]:
                    alive, kept, made = self._changed_beside(plan[done], alive, lanes, made, found)
                    rows = rows[kept]
                    done += 1
                    continue
                end = next((at for at in range(done, stop) if plan[at] in lanes[0]), stop)
                # A change may read any earlier value.
                last = all(place not in lanes[0] for place in plan[end:])
                made |= self._unchanged_beside(plan[done:end], len(alive), made, last)
                done = end
            if not alive:
                return found
            if parts := of(self.clean[value]):
                part = _rows(parts)[None].repeat(len(alive), 0) if value not in made else _rows_beside(made[value], of)
                rows = part if not rows.size else np.concatenate([rows, part], axis=1)
            if refuted is not None and rows.size and needed < len(self.nodes):
                out = [lane != UNCHANGED and refuted(each) for lane, each in zip(alive, rows, strict=True)]
                found |= {lane: None for lane, wrong in zip(alive, out, strict=True) if wrong}
                kept = [at for at, wrong in enumerate(out) if not wrong]
                alive, rows, made = [alive[at] for at in kept], rows[kept], _of(made, kept, len(alive))
        return found | dict(zip(alive, rows, strict=True))

    def _changed_beside(
        self,
        place: int,
        alive: list[int],
        lanes: Seq[Changed],
        made: dict[int, torch.Tensor],
        found: dict[int, Floats | None],
    ) -> tuple[list[int], list[int], dict[int, torch.Tensor]]:
        """The lanes that go on after a node that each of them changes, their positions among those that came to it, and
        what they hold. What cannot go on is `found`; what goes on with another shape goes alone."""
        node, alone = self.nodes[place], self.made_by(place) is not None
        outputs = node.outputs[:1] if alone else node.outputs
        shapes = [(self.clean[value].shape, self.clean[value].dtype) for value in outputs]
        results: list[list[torch.Tensor]] = []
        kept: list[int] = []
        for at, lane in enumerate(alive):

            def value_of(value: int, at: int = at) -> torch.Tensor:
                return made[value][at] if value in made else self._clean[value]

            args, kwargs = node.operands(value_of)
            try:
                out = lanes[lane][place](Given(node, args, kwargs, value_of, alone))
            except CANNOT:
                found[lane] = None
                continue
            finally:
                self.work += OVERHEAD + self._numbers_of((place,))
            tensors = [each for each in (out if isinstance(out, tuple | list) else (out,)) if _is_tensor(each)]
            if [(each.shape, each.dtype) for each in tensors[: len(outputs)]] == shapes:
                results.append(tensors)
                kept.append(at)
        made = _of(made, kept, len(alive))
        if kept:
            made |= {value: torch.stack([each[at] for each in results]) for at, value in enumerate(outputs)}
        return [alive[at] for at in kept], kept, made

    def _unchanged_beside(
        self, places: tuple[int, ...], count: int, made: dict[int, torch.Tensor], last: bool
    ) -> dict[int, torch.Tensor]:
        """What nodes make of what `count` lanes hold; `last`: only what operations read after them, or a site is."""
        written = {node.inputs[0] for node in map(self.nodes.__getitem__, places) if node.copies} - made.keys()
        outputs = [value for place in places for value in self.nodes[place].outputs]
        known = made | {
            value: self._clean[value].expand(count, *self._clean[value].shape) for value in written.difference(outputs)
        }
        wanted = [
            value
            for value in dict.fromkeys(outputs)
            if not last or self.readers.get(value, (0,))[-1] > places[-1] or value in self._target_values
        ]

        def run(given: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
            held = dict(given)
            for place in places:
                node = self.nodes[place]
                args, kwargs = node.operands(lambda value: held[value] if value in held else self._clean[value])
                out = node.result(args, kwargs)
                results = out if isinstance(out, tuple | list) else (out,)
                held.update(zip(node.outputs, (each for each in results if _is_tensor(each)), strict=True))
            return {value: held[value] for value in wanted}

        read = {value for place in places for value in self.nodes[place].inputs}
        self.work += OVERHEAD * len(places) + count * self._numbers_of(places)
        done: dict[int, torch.Tensor] = torch.func.vmap(run)({v: known[v] for v in known if v in read})
        return done

    @cached_property
    def _target_values(self) -> frozenset[int]:
        return frozenset(value for value, _ in self.targets)

    def cost(self, changed: Changed, lanes: float) -> tuple[float, float]:
        """Work of a run with these changes: what it takes however many run beside each other, and for `lanes` more."""
        plan = self._plan(frozenset(changed))
        return OVERHEAD * len(plan), lanes * (OVERHEAD * len(changed) + self._numbers_of(plan))

    def _numbers_of(self, plan: tuple[int, ...]) -> float:
        if plan not in self._counted:
            self._counted[plan] = sum(map(self._numbers, plan))
        return self._counted[plan]

    def _numbers(self, place: int) -> float:
        """What a node computes, as `work` counts it, without what it takes to ask for it."""
        node = self.nodes[place]
        terms = _terms(node, node.operands(self.clean.__getitem__)[0]) if node.multiplies else 1.0
        return terms * sum(self.clean[value].numel() for value in node.outputs)

    @cached_property
    def _needed(self) -> list[int]:
        """How many of the nodes have to have run for each target, after those for the targets before it; all where
        memory is written to that a target shares."""
        every = len(self.nodes)
        needed = (self.producers.get(value, -1) + 1 if self.steady(value) else every for value, _ in self.targets)
        return list(accumulate(needed, max))

    def off(self, changed: Changed, drawn: DrawnRounding) -> NDArray[np.float32] | None:
        """What rounding may do to that, float32 [runs, rows, width]; None where it cannot go on."""
        try:
            with drawn:
                made = self._executed(range(len(self.nodes)), changed)
            parts = [part for value, of in self.targets for part in of(made[value])]
            offs = [drawn.off(part) for part in parts]
        except CANNOT:
            return None
        runs = drawn.runs
        return np.concatenate(
            [
                np.zeros((runs, len(part), part[0].numel()), np.float32)
                if off is None
                else off.reshape(runs, len(part), -1).numpy()
                for part, off in zip(parts, offs, strict=True)
            ],
            axis=1,
        )

    def _executed(self, places: Iterable[int], changed: Changed) -> dict[int, torch.Tensor]:
        made: dict[int, torch.Tensor] = {}
        self._execute(places, changed, made)
        return made

    def _execute(self, places: Iterable[int], changed: Changed, made: dict[int, torch.Tensor]) -> None:
        """Add what the nodes make to `made`."""

        def value_of(value: int) -> torch.Tensor:
            held = made.get(value)
            if held is not None:
                return held
            tensor = self._clean[value]
            if value in self.leaves and not self.steady(value):
                tensor = made[value] = tensor.clone()
            return tensor

        def own_value_of(value: int) -> torch.Tensor:
            return self._own_memory(value_of(value))

        with torch.no_grad():
            for place in places:
                node, change = self.nodes[place], changed.get(place)
                given = value_of if change is None or not node.mutated else own_value_of
                args, kwargs = node.operands(given)
                alone = change is not None and self.made_by(place) is not None
                out = node.result(args, kwargs) if change is None else change(Given(node, args, kwargs, given, alone))
                results = out if isinstance(out, tuple | list) else (out,)
                tensors = [each for each in results if isinstance(each, torch.Tensor)]
                if change is not None and not all(map(self.steady, node.outputs)):  # it will be written to
                    tensors = [self._own_memory(each) for each in tensors]
                made.update(zip(node.outputs, tensors, strict=not alone))
                self.work += OVERHEAD + sum(tensor.numel() for tensor in tensors) * _terms(node, args)

    def _own_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        """What a changed run may write to: a copy of what the next run needs as it is."""
        return tensor.clone() if _memory(tensor) in self._clean_memory else tensor

    @cached_property
    def _clean_memory(self) -> frozenset[int]:
        return frozenset(map(_memory, self.clean.values()))

    def _plan(self, changed: frozenset[int]) -> tuple[int, ...]:
        """Positions of the nodes to run again: those that read what changes. What shares memory that is written to is
        run again together, in its order."""
        known = self._plans.get(changed)
        if known is not None:
            return known
        again, size = set(changed), -1
        while len(again) != size:
            size = len(again)
            for cluster in self._clusters:
                if not again.isdisjoint(cluster):
                    again |= cluster
            moved = {value for place in again for value in self.nodes[place].outputs}
            for place in range(min(again, default=0), len(self.nodes)):
                node = self.nodes[place]
                if place in again or not moved.isdisjoint(node.inputs):
                    again.add(place)
                    moved.update(node.outputs)
        self._plans[changed] = tuple(sorted(again))
        return self._plans[changed]

    @cached_property
    def _clusters(self) -> list[frozenset[int]]:
        return [
            frozenset(
                place
                for place, node in enumerate(self.nodes)
                if any(self.groups[value] == group for value in (*node.inputs, *node.outputs))
            )
            for group in self.written
        ]


@dataclass(frozen=True)
class Given:
    """A node with its operands at hand."""

    node: Node
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    value: Callable[[int], torch.Tensor]
    """Any earlier value of the segment."""
    alone: bool = False
    """Whether of what it makes, the first tensor is all that is asked for."""

    def result(self, *args: Any, **kwargs: Any) -> Result:
        """What the node makes of its operands, or of `args`; `kwargs` in the place of its own of the same name."""
        out = self.node.result(args or self.args, {**self.kwargs, **kwargs})
        return out[0] if self.alone and isinstance(out, tuple | list) else out


Changed = Mapping[int, Callable[[Given], Result]]
"""What nodes make in the place of their results, by position in the segment."""


def _memory(tensor: torch.Tensor) -> int:
    """The address of the memory that a tensor is a view of."""
    return tensor.untyped_storage().data_ptr()


def _is_tensor(thing: Any) -> TypeGuard[torch.Tensor]:
    return isinstance(thing, torch.Tensor)


def _of(made: dict[int, torch.Tensor], lanes: list[int], count: int) -> dict[int, torch.Tensor]:
    """What some of `count` lanes hold."""
    return made if len(lanes) == count else {value: held[lanes] for value, held in made.items()}


def _as_good_as_same(one: Floats | None, other: Floats | None) -> bool:
    """Whether values differ by no more than sums in another order."""
    if one is None or other is None or one.shape != other.shape:
        return False
    largest = float(np.abs(other).max(initial=0.0, where=np.isfinite(other)))
    return np.allclose(one, other, rtol=1e-9, atol=1e-11 * largest, equal_nan=True)


def _rows_beside(values: torch.Tensor, of: Arrange) -> Floats:
    """[lanes, rows, width]"""
    rows = torch.func.vmap(lambda value: torch.cat([part.reshape(len(part), -1) for part in of(value)]))(values)
    return np.asarray(rows.to(torch.float64).numpy())


def _rows(parts: list[torch.Tensor]) -> Floats:
    return np.concatenate([part.reshape(len(part), -1).to(torch.float64).numpy() for part in parts])


def _without_the_first(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """A tensor with other values at the first of `count` positions; as it is where none of its dimensions are those."""
    if not tensor.is_floating_point() or count < 2:
        return tensor
    other = tensor.clone()
    for dim, size in enumerate(tensor.shape):
        if size == count:
            other.narrow(dim, 0, 1).mul_(0.5)
    return other


def _terms(node: Node, args: tuple[Any, ...]) -> float:
    """How much of a product goes into each of its numbers."""
    if node.multiplies:
        return 1.0 + args[-1].shape[-2] / MULTIPLIED_AT_ONCE if isinstance(args[-1], torch.Tensor) else 1.0
    return 1.0


def _mapped(value: Any, change: Callable[[Any], Any], kind: type = torch.Tensor) -> Any:
    """`value` with all of `kind` in it changed: tensors to `Value`, and back."""
    if isinstance(value, kind):
        return Value(change(value)) if kind is torch.Tensor else change(value.id)  # type: ignore[attr-defined]
    if isinstance(value, tuple | list):
        return type(value)([_mapped(each, change, kind) for each in value])
    return value


def _values(thing: Any) -> Iterator[Value]:
    if isinstance(thing, Value):
        yield thing
    elif isinstance(thing, tuple | list):
        for each in thing:
            yield from _values(each)
    elif isinstance(thing, Mapping):
        yield from _values(list(thing.values()))


def frames_of(frame: FrameType | None) -> tuple[Frame, ...]:
    """Places in the model's program, outermost first."""
    found = []
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(HERE) and file != __file__ and frame.f_code.co_name != "__torch_dispatch__":
            break  # the replay, which runs the model; another mode only looks at operations on their way
        if _of_the_model(file):
            found.append(Frame(frame.f_code, frame.f_lasti, frame.f_lineno))
        frame = frame.f_back
    return tuple(reversed(found))


_KNOWN: dict[str, bool] = {}


def _of_the_model(file: str) -> bool:
    known = _KNOWN.get(file)
    if known is None:
        known = _KNOWN[file] = not any(part in Path(file).as_posix() for part in LIBRARIES) and not file.startswith(
            "<frozen"
        )
    return known
