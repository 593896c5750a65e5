"""Where a mutant differs from the clean program on the same values, from the bits, and by how much of the rounding.

Independent of what is judged: hooks of its own, which hold the mutant's tensors as they are, and no trace. The clean
program runs with the mutant's value put in at every recorded site, so that each difference is what the mutant did there
by itself. The same in float64, both programs with the same values put in, tells the change of the formula from the
rounding that goes with another order of operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import NormalDist

import torch
from torch import nn
from tracekit_torch.reference_program.drawn_rounding import DrawnRounding

from benchmarks.mutants.subject import PROMPT, forward

Place = tuple[int, str]
"""Call and site."""
ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
LEVEL = 1e-4 / 5000
"""A false alarm in ten thousand traces, at about 5000 tests a trace."""
DEVIATIONS = NormalDist().inv_cdf(1.0 - LEVEL) + NormalDist().inv_cdf(0.999)
"""What the best of all tests of one known change (Neyman and Pearson 1933) needs at that level, to find it in 999 of
1000 cases: the change in standard deviations of the rounding, root of the sum of squares over all its values."""
CERTAIN, DRAWS = 1000.0, 4
"""A change of fewer deviations is compared with the rounding of any program for the same formula, each of its steps
rounded at random, in as many runs; not only with that of the clean program."""
OF_ONE_VALUE = 3.0
"""Standard deviations of the rounding that a single value must change by: another program that is right may be off by
as much at every value alike (a library's reciprocal root, a constant rounded once), so no test of their common gain
proves a fault."""
SMALL = 2.0**-30
"""A change in float64 of this part of the site's largest value is none of the formula: float64 rounds to 2^-53, and
what is left of a cancellation is far below."""


@dataclass(frozen=True)
class Change:
    """What a mutant does at one site by itself."""

    site: str
    call: int
    order: int
    deviations: float
    """Of the formula's change, in standard deviations of the clean program's rounding; infinite where shapes differ."""
    largest: float
    """The same of the value that changes most."""
    judged: bool = True
    """Whether all values before it are finite."""

    @property
    def visible(self) -> bool:
        return self.judged and self.deviations > DEVIATIONS and self.largest > OF_ONE_VALUE


@dataclass
class Truth:
    """Sites whose bits change, in the order of the computation."""

    changes: tuple[Change, ...] = ()

    @property
    def first(self) -> Change | None:
        """The first that is no rounding."""
        return next((change for change in self.changes if change.visible), None)

    @property
    def sites(self) -> frozenset[str]:
        """All that are no rounding."""
        return frozenset(change.site for change in self.changes if change.visible)


@dataclass
class Values:
    """Tensors of a run by place, in execution order."""

    held: dict[Place, torch.Tensor] = field(default_factory=dict)


def watched(model: nn.Module, ids: torch.Tensor) -> tuple[Values, Callable[[], None]]:
    """Hold all tensors of `model` from now on; what is returned second runs it."""
    values = Values()

    def meet(place: Place, tensor: torch.Tensor) -> None:
        values.held[place] = tensor.detach().clone()

    def run() -> None:
        with _hooks(model, meet):
            forward(model, ids)

    return values, run


def truth(
    clean: nn.Module,
    exact: nn.Module,
    changed: nn.Module,
    ids: torch.Tensor,
    mutant: Values,
    rows: Mapping[str, Collection[int]],
) -> Truth:
    """The changes of a mutant.

    Args:
        clean: the unchanged program.
        exact: the same in float64.
        changed: the mutant in float64.
        ids: i64 [1, positions].
        mutant: its tensors in its own precision.
        rows: the recorded sites, with the positions that are recorded.
    """
    plain = _fed(clean, ids, mutant, rows)
    moved = [place for place, value in plain.items() if _differ(value, mutant.held[place], place, rows)]
    if not moved:
        return Truth()
    right, wrong = _fed(exact, ids, mutant, rows), _fed(changed, ids, mutant, rows)
    order = {place: index for index, place in enumerate(right)}
    order |= {place: len(order) for place in moved if place not in order}
    end = min((order[at] for at in moved if not bool(mutant.held[at].isfinite().all())), default=len(order))
    changes = _changes(moved, order, end, rows, [plain], right, wrong)
    if any(0.0 < change.deviations < CERTAIN for change in changes):
        unit = ROUNDOFF[next(clean.parameters()).dtype]
        loose = []
        for seed in range(DRAWS):
            with DrawnRounding(unit, ROUNDOFF[torch.float32], seed):
                loose.append(_fed(exact, ids, mutant, rows))
        changes = _changes(moved, order, end, rows, [plain, *loose], right, wrong)
    return Truth(tuple(sorted(changes, key=lambda change: (change.call, change.order))))


def _changes(
    moved: Collection[Place],
    order: Mapping[Place, int],
    end: int,
    rows: Mapping[str, Collection[int]],
    rounded: Collection[Mapping[Place, torch.Tensor]],
    right: Mapping[Place, torch.Tensor],
    wrong: Mapping[Place, torch.Tensor],
) -> list[Change]:
    changes = []
    for place in moved:
        one, other = (_part(values[place], place, rows) if place in values else None for values in (right, wrong))
        runs = [_part(values[place], place, rows) for values in rounded if place in values]
        changes.append(Change(place[1], place[0], order[place], *_deviations(runs, one, other), order[place] <= end))
    return changes


def _fed(
    model: nn.Module, ids: torch.Tensor, mutant: Values, rows: Mapping[str, Collection[int]]
) -> dict[Place, torch.Tensor]:
    """What a program computes at every recorded place, the mutant's value being put in its place after it."""
    out: dict[Place, torch.Tensor] = {}

    def meet(place: Place, tensor: torch.Tensor) -> None:
        given = mutant.held.get(place)
        if place[1] not in rows or given is None:
            return
        out[place] = tensor.detach().clone()
        given, tensor = _tails(given, tensor)
        if given.shape == tensor.shape and bool(given.isfinite().all()):
            tensor.copy_(given)

    with _hooks(model, meet):
        try:
            forward(model, ids)
        except (RuntimeError, ValueError, IndexError, TypeError, KeyError, AttributeError):
            return out  # with another program's values it may not run to the end
    return out


class _Hooks:
    """Hooks at every input and output of a module, which `meet` is told of with its place."""

    def __init__(self, model: nn.Module, meet: Callable[[Place, torch.Tensor], None]) -> None:
        self._meet, self._call = meet, -1
        self._fired: dict[str, int] = {}
        self._handles = [model.register_forward_pre_hook(self._begun), model.register_forward_hook(self._finished)]
        for path, module in model.named_modules():
            if path:
                self._handles.append(module.register_forward_pre_hook(self._before(path), with_kwargs=True))
                self._handles.append(module.register_forward_hook(self._after(path)))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _tell(self, name: str, value: object) -> None:
        tensor = _tensor(value)
        if tensor is not None and tensor.is_floating_point():
            self._meet((self._call, name), tensor)

    def _name(self, path: str) -> str:
        return path if not self._fired.get(path) else f"{path}#{self._fired[path] + 1}"

    def _before(self, path: str) -> Callable[..., None]:
        def before(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            self._tell(f"{self._name(path)}:in", args or kwargs)

        return before

    def _after(self, path: str) -> Callable[..., None]:
        def after(_: nn.Module, args: object, output: object) -> None:
            self._tell(self._name(path), output)
            self._fired[path] = self._fired.get(path, 0) + 1

        return after

    def _begun(self, _: nn.Module, args: object) -> None:
        self._call += 1
        self._fired.clear()

    def _finished(self, _: nn.Module, args: object, output: object) -> None:
        self._tell("logits", getattr(output, "logits", None))


@contextmanager
def _hooks(model: nn.Module, meet: Callable[[Place, torch.Tensor], None]) -> Iterator[None]:
    """Hooks while it lasts."""
    hooks = _Hooks(model, meet)
    try:
        yield
    finally:
        hooks.remove()


def _tensor(value: object) -> torch.Tensor | None:
    """The first tensor of an output."""
    if isinstance(value, torch.Tensor):
        return value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return next((found for found in map(_tensor, items) if found is not None), None)


def _part(value: torch.Tensor, place: Place, rows: Mapping[str, Collection[int]]) -> torch.Tensor:
    """The recorded positions of a tensor [1, positions, ...]: the call's are the last ones of all that it has."""
    time = PROMPT if place[0] == 0 else 1
    first = 0 if place[0] == 0 else PROMPT + place[0] - 1
    wanted = [at - first for at in range(first, first + time) if at in rows[place[1]]]
    if value.dim() != 3:
        return value
    return value[:, [at for at in (at - time + value.shape[1] for at in wanted) if at >= 0]]


def _tails(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The last positions that all have: the head may run on the last one alone or on all, keys and values on the call's
    or on all that are cached. Tensors that differ in other ways as they are."""
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len({len(shape) for shape in shapes}) > 1:
        return list(tensors)
    differing = [dim for dim, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1]
    if len(differing) != 1 or not 0 < differing[0] < len(shapes[0]) - 1:
        return list(tensors)
    count = min(shape[differing[0]] for shape in shapes)
    return [tensor.narrow(differing[0], tensor.shape[differing[0]] - count, count) for tensor in tensors]


def _differ(one: torch.Tensor, other: torch.Tensor, place: Place, rows: Mapping[str, Collection[int]]) -> bool:
    one, other = _tails(_part(one, place, rows), _part(other, place, rows))
    return one.shape != other.shape or not bool(((one == other) | (one.isnan() & other.isnan())).all())


def _deviations(
    rounded: Sequence[torch.Tensor], right: torch.Tensor | None, wrong: torch.Tensor | None
) -> tuple[float, float]:
    """The change of the formula, `wrong - right`, in standard deviations of the rounding, `rounded - right`: root of
    the sum of squares, and the largest. A value's deviation is taken from those of its row and its column, the largest
    of all runs."""
    if right is None or wrong is None:
        return math.inf, math.inf
    right, wrong, *rounded = _tails(right, wrong, *rounded)
    if any(right.shape != one.shape for one in (wrong, *rounded)):
        return math.inf, math.inf
    change = (wrong.double() - right.double()).flatten(0, -2)
    if not bool(change.isfinite().all()):
        return math.inf, math.inf
    value = right.double().flatten(0, -2)
    if float(change.abs().max()) <= SMALL * float(value.abs().max()):
        return 0.0, 0.0
    variance = (value * ROUNDOFF[rounded[0].dtype]).square() / 3.0
    for one in rounded:
        squares = (one.double().flatten(0, -2) - value).square()
        product = squares.mean(-1, keepdim=True) * squares.mean(0, keepdim=True) / squares.mean().clamp_min(1e-300)
        variance = torch.maximum(variance, product)
    change = change.square() / variance.clamp_min(1e-300)
    return float(change.sum().sqrt()), float(change.max().sqrt())
