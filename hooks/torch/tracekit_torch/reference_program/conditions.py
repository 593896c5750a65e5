"""Conditions of the reference's source that the candidate took otherwise: it decodes again with each of them inverted.

What a condition leaves out is no operation that was captured, so no edit of operations tells what its other branch
does. The program itself does: the condition is inverted in its syntax tree, and the function runs as that compiles.
"""

from __future__ import annotations

import ast
import gc
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from types import CodeType, FunctionType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tracekit.dtypes import UNIT_ROUNDOFF
from tracekit.inspection.positions import prompt_length
from tracekit.mistakes.edited_line import EditedLine, EditKind
from tracekit.trace import Sequence, Trace, TraceError
from tracekit_torch.reference_program.decoding import Decoding
from tracekit_torch.reference_program.drawn_rounding import DrawnRounding
from tracekit_torch.reference_program.loading import on_its_tokens
from tracekit_torch.reference_program.replay import Replayed
from tracekit_torch.reference_program.segment import Frame, Segment, frames_of
from tracekit_torch.reference_program.source_lines import Lines, handed_over, names_in, top_level

WORK = 4e9
"""Numbers computed with all conditions together: what a core does in some ten seconds."""
CALL = 1e7
"""Numbers that are computed in the time that a call of a model takes at least."""
SURELY = 1.0 + 1e-6
"""Sums in another order are off by less."""
MOST_KEPT = 1 << 26
"""Numbers that are kept of drawn roundings: all sites of a decoding are drawn at once, and asked for one by one."""
LEFT = 0.3
"""Of the error in the first calls, that an inverted condition may leave to be tried in all of them."""
FLOAT32 = UNIT_ROUNDOFF["float32"]
"""Of a site's largest value: what its decoding may differ from its prefill by, where a program asks for float32."""


@dataclass(frozen=True, eq=False)
class Condition:
    """A condition of a function that runs, and the code of that function with it inverted."""

    frames: tuple[Frame, ...]
    """The calls that led there; the last is the function's own."""
    test: ast.expr
    functions: tuple[FunctionType, ...]
    """That run that code."""
    inverted: CodeType

    @property
    def lines(self) -> list[EditedLine]:
        """Where it stands, and where what it asks about was handed over."""
        frame = self.frames[-1]
        own = Lines(frame.file, self.test.lineno, self.test.end_lineno or self.test.lineno)
        over = handed_over(names_in(self.test), frame.code, self.frames[:-1])
        return [_edited(own, EditKind.BRANCH), *(_edited(lines, EditKind.OTHER_VALUE) for lines in over)]


def _edited(lines: Lines, kind: EditKind) -> EditedLine:
    return EditedLine(lines.name, lines.line, lines.last, lines.text, kind, "")


class Conditions:
    """The conditions of all functions that compute some sites of a sequence, each inverted by itself.

    Args:
        sites: with what feeds each in one prefill.
        until: the positions up to there show what is wrong.
        unit: unit roundoff of the dtype that the candidate computes in.
    """

    def __init__(
        self,
        model: nn.Module,
        trace: Trace,
        sequence: Sequence,
        sites: Mapping[str, tuple[Replayed, Segment]],
        factors: Mapping[str, float],
        until: int,
        unit: float,
    ) -> None:
        self._model, self._trace, self._sequence, self._sites = model, trace, sequence, sites
        self._factors, self._until, self._unit = factors, until, unit
        self._known: dict[Condition, Mapping[str, Replayed]] = {}
        self._drawn: dict[tuple[Condition, int], Mapping[str, NDArray[np.float32]]] = {}
        self.too_dear = False
        """Whether they were left untried, as decoding again for each is too much work."""

    def values(self, site: Replayed) -> Iterator[tuple[Condition, NDArray[np.float64]]]:
        """What each makes of a site, [rows, width], of those that the first calls do not refute."""
        for condition, found in self._first.items():
            first = found.get(site.site)
            if first is not None and _comes_nearer(first, site):
                other = self._whole(condition).get(site.site)
                if other is not None and np.array_equal(other.rows, site.rows):
                    yield condition, other.values

    def draws(self, condition: Condition, site: Replayed, runs: int) -> NDArray[np.float32] | None:
        """What rounding may do to that, [runs, rows, width]; None where it cannot go on."""
        known = self._drawn.get((condition, runs))
        if known is None:
            drawn = DrawnRounding(self._unit, FLOAT32, 0, runs)
            decoded = self._decoded(condition, self._sequence.positions, drawn)
            known = {name: found.draws for name, found in decoded.items()}
            if sum(draws.size for each in (*self._drawn.values(), known) for draws in each.values()) <= MOST_KEPT:
                self._drawn[condition, runs] = known
        return known.get(site.site)

    @cached_property
    def _first(self) -> Mapping[Condition, Mapping[str, Replayed]]:
        """What each makes of the sites in the calls up to the first that shows what is wrong there."""
        with suppress(TraceError), on_its_tokens(self._trace, self._sequence):
            decoding = Decoding(self._model, self._trace, self._sequence, self._factors)
            if not decoding.possible:
                return {}
            most = int(WORK / self._work)
            with _Ran() as ran:
                plain = decoding.decode(set(self._sites), None, self._until) if most else {}
            prefilled = (node.frames for _, segment in self._sites.values() for node in segment.nodes)
            found = list(islice(_conditions(chain(prefilled, ran.places)), most + 1))
            self.too_dear = len(found) > most
            if self._as_in_one_prefill(plain):
                return {
                    condition: self._decoded(condition, self._until, met=self._nearer(plain))
                    for condition in found[:most]
                }
        return {}

    def _nearer(self, plain: Mapping[str, Replayed]) -> Callable[[Replayed], None]:
        """Raises `_NoNearer` once what was met of every site is further off than the whole of it may be."""
        most = {
            name: LEFT * _error(site.recorded[: len(plain[name].rows)] - site.values[: len(plain[name].rows)])
            for name, (site, _) in self._sites.items()
        }
        off = dict.fromkeys(most, 0.0)

        def met(part: Replayed) -> None:
            off[part.site] = math.hypot(off[part.site], _error(part.recorded - part.values))
            if not any(off[name] <= SURELY * most[name] for name in most):
                raise _NoNearer

        return met

    @property
    def _work(self) -> float:
        """Of the calls up to there."""
        calls = 1 + self._until - prompt_length(self._sequence)
        return calls * CALL + float(self._until) * sum(parameter.numel() for parameter in self._model.parameters())

    def _as_in_one_prefill(self, plain: Mapping[str, Replayed]) -> bool:
        return all(name in plain and _alike(plain[name], site) for name, (site, _) in self._sites.items())

    def _whole(self, condition: Condition) -> Mapping[str, Replayed]:
        if condition not in self._known:
            self._known[condition] = self._decoded(condition, self._sequence.positions)
        return self._known[condition]

    def _decoded(
        self,
        condition: Condition,
        stop: int,
        drawn: DrawnRounding | None = None,
        met: Callable[[Replayed], None] | None = None,
    ) -> Mapping[str, Replayed]:
        decoding = Decoding(self._model, self._trace, self._sequence, self._factors)
        with suppress(Exception), _as_it_is(self._model), _silent(), _inverted(condition):
            return decoding.decode(set(self._sites), None, stop, drawn, met)
        return {}  # with the other branch, the program does not go on


def _comes_nearer(first: Replayed, site: Replayed) -> bool:
    """Whether the first rows of a site are off by less than what the reference makes of them."""
    recorded, values = site.recorded[: len(first.rows)], site.values[: len(first.rows)]
    if first.values.shape != values.shape:
        return False
    return _error(first.values - recorded) <= LEFT * _error(values - recorded)


def _error(gap: NDArray[np.float64]) -> float:
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(gap))


class _NoNearer(Exception):
    """What a changed program gives is refuted already."""


def _alike(decoded: Replayed, site: Replayed) -> bool:
    """Whether the first calls give what one prefill does."""
    values = site.values[: len(decoded.rows)]
    within = FLOAT32 * float(np.nanmax(np.abs(site.values), initial=0.0))
    return decoded.values.shape == values.shape and np.allclose(
        decoded.values, values, rtol=0.0, atol=within, equal_nan=True
    )


class _Ran(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While this mode is on, the places that operations are asked for from are kept: decoding may run other functions
    than a prefill does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places: dict[tuple[Frame, ...], None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.places.setdefault(frames_of(sys._getframe(1)))
        return func(*args, **(kwargs or {}))


def _conditions(places: Iterable[tuple[Frame, ...]]) -> Iterator[Condition]:
    """Of every function that leads to an operation, each condition once."""
    calls: dict[CodeType, tuple[Frame, ...]] = {}
    for frames in places:
        for depth, frame in enumerate(frames):
            calls.setdefault(frame.code, frames[: depth + 1])
    functions: dict[CodeType, list[FunctionType]] = {}
    for each in gc.get_objects():
        if type(each) is FunctionType and each.__code__ in calls:
            functions.setdefault(each.__code__, []).append(each)
    for code, frames in calls.items():
        statement = top_level(code)
        if statement is None:
            continue
        for holder in _holders(_function(statement, code)):
            test, holder.test = holder.test, ast.UnaryOp(ast.Not(), holder.test)
            try:
                whole = compile(ast.fix_missing_locations(ast.Module([statement], [])), code.co_filename, "exec")
            finally:
                holder.test = test
            inverted = _code_like(code, whole)
            if inverted is not None and inverted.co_freevars == code.co_freevars:
                yield Condition(frames, test, tuple(functions.get(code, ())), inverted)


def _function(statement: ast.stmt, code: CodeType) -> ast.FunctionDef | None:
    for node in ast.walk(statement):
        if not isinstance(node, ast.FunctionDef) or node.name != code.co_name:
            continue
        if code.co_firstlineno == min([node.lineno, *(each.lineno for each in node.decorator_list)]):
            return node
    return None


def _holders(node: ast.AST | None) -> Iterator[Any]:
    """What has a condition in a function, within no function of its own and no loop that a condition ends."""
    for child in ast.iter_child_nodes(node) if node is not None else ():
        if isinstance(child, ast.If | ast.IfExp):
            yield child
        if not isinstance(child, ast.FunctionDef | ast.Lambda | ast.ClassDef | ast.While):
            yield from _holders(child)


def _code_like(code: CodeType, within: CodeType) -> CodeType | None:
    """The code of the same function in one that holds it."""
    for each in within.co_consts:
        if isinstance(each, CodeType):
            same = (each.co_name, each.co_firstlineno) == (code.co_name, code.co_firstlineno)
            found = each if same else _code_like(code, each)
            if found is not None:
                return found
    return None


@contextmanager
def _inverted(condition: Condition) -> Iterator[None]:
    """While it lasts, the reference runs with the condition inverted."""
    for function in condition.functions:
        function.__code__ = condition.inverted
    try:
        yield
    finally:
        for function in condition.functions:
            function.__code__ = condition.frames[-1].code


@contextmanager
def _silent() -> Iterator[None]:
    """What a program says of a branch that it was not to take is of no use to anyone."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _as_it_is(model: nn.Module) -> Iterator[None]:
    """What a changed program keeps in its modules is gone after it."""
    with ExitStack() as after:
        for module in model.modules():
            for held in (vars(module), module._buffers):
                after.callback(_put_back, held, dict(held))
        yield


def _put_back(held: dict[str, Any], before: dict[str, Any]) -> None:
    held.clear()
    held.update(before)
