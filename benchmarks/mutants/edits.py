"""What can be changed in a syntax tree: each place with the change, as cosmic-ray and mutmut make them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a change is of."""

    CONSTANT = "constant"
    OPERATOR = "operator"
    ORDER = "operand order"
    CALL = "call dropped"
    CAST = "cast dropped"
    AXIS = "axis"
    SLICE = "slice bound"
    INDEX = "index ±1"
    COMPARISON = "comparison"
    TERM = "term dropped"
    DEFAULT = "keyword default"
    KEYWORD = "keyword dropped"
    GAIN = "small gain"


@dataclass(frozen=True)
class Point:
    """One change that can be made: `new` in the place of what `holder.field` holds, or its item `index`."""

    kind: Kind
    function: str
    statement: ast.stmt
    holder: ast.AST
    field: str
    index: int | None
    new: ast.AST

    @property
    def old(self) -> ast.AST:
        held = getattr(self.holder, self.field)
        return held if self.index is None else held[self.index]  # type: ignore[no-any-return]

    @property
    def lines(self) -> range:
        """Lines of the source that the changed statement stands on; of a compound one those of its head."""
        first, last = self.statement.lineno, self.statement.end_lineno or self.statement.lineno
        body = getattr(self.statement, "body", None)
        if body:
            last = max(first, body[0].lineno - 1)
        return range(first, last + 1)

    @property
    def line(self) -> int:
        """The line of the changed expression itself."""
        return getattr(self.old, "lineno", self.statement.lineno)

    def put(self, node: ast.AST) -> None:
        """Put `node` in its place."""
        if self.index is None:
            setattr(self.holder, self.field, node)
        else:
            getattr(self.holder, self.field)[self.index] = node

    def words(self) -> str:
        """The change: `before -> after`."""
        return f"{ast.unparse(self.old)} -> {ast.unparse(self.new)}"


@dataclass(frozen=True)
class Where:
    """Where a node stands: what of it may be changed depends on that."""

    function: str
    statement: ast.stmt
    role: str = ""
    """`axis`, `index`, `slice`, `default`, `shape` (of which nothing is changed) or nothing in particular."""


SWAPS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
GAINS = (1.1, 1.01, 1.001, 1.0001)
"""Factors near 1: the faults that are hard to see."""
CASTS = {"to", "float", "half", "type_as", "type", "bfloat16", "double"}
WITH_AXES = {
    "transpose", "softmax", "sum", "mean", "unsqueeze", "squeeze", "chunk", "split", "cat", "stack", "permute", "flip",
    "flatten", "argmax", "topk", "cumsum", "repeat_interleave", "index_select", "gather", "roll", "size", "swapaxes",
}  # fmt: skip
WITH_SHAPES = {"view", "reshape", "expand", "repeat", "zeros", "ones", "empty", "full", "new_zeros", "new_ones"}
AXES = {"dim", "dims", "axis", "start_dim", "end_dim"}
NOT_COMPUTED = (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom, ast.Global, ast.Pass)
NOT_LOOKED_AT = {"annotation", "returns", "decorator_list", "type_comment", "type_params", "ctx"}
LOGGERS = {"logger", "warnings"}
NOT_MUTATED = {"__init__", "_init_weights", "extra_repr", "prepare_inputs_for_generation"}
"""The last says what a call is given, not what is computed."""


def points(tree: ast.Module) -> list[Point]:
    """Every change that can be made in the functions of a module, in the order of its text."""
    return [point for statement in tree.body for point in _of(statement, Where("", statement))]


def _of(node: ast.AST, where: Where) -> Iterator[Point]:
    """All changes of what `node` holds."""
    if isinstance(node, ast.stmt):
        where = Where(where.function, node)
        if isinstance(node, NOT_COMPUTED) or _only_says(node):
            return
    if isinstance(node, ast.FunctionDef):
        if node.name in NOT_MUTATED:
            return
        where = Where(f"{where.function}.{node.name}".lstrip("."), node)
    elif isinstance(node, ast.ClassDef):
        where = Where(f"{where.function}.{node.name}".lstrip("."), node)
    for field, value in ast.iter_fields(node):
        if field in NOT_LOOKED_AT:
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST):
                inner = Where(where.function, where.statement, _role(node, field, index, where.role))
                if where.function and not isinstance(node, ast.ClassDef):
                    for kind, new in _changes(child, inner):
                        yield Point(kind, where.function, _statement(child, inner), node, field, index, new)
                yield from _of(child, inner)


def _statement(node: ast.AST, where: Where) -> ast.stmt:
    return node if isinstance(node, ast.stmt) else where.statement


def _only_says(node: ast.stmt) -> bool:
    """A docstring, or something logged."""
    if not isinstance(node, ast.Expr):
        return False
    value = node.value
    if isinstance(value, ast.Constant):
        return True
    function = value.func if isinstance(value, ast.Call) else None
    return isinstance(function, ast.Attribute) and getattr(function.value, "id", "") in LOGGERS


def _role(node: ast.AST, field: str, index: int | None, outer: str) -> str:
    """What the child of `node` in `field` is."""
    match node:
        case ast.Subscript() if field == "slice":
            return "index"
        case ast.Slice():
            return "slice"
        case ast.Tuple() | ast.UnaryOp():
            return outer
        case ast.keyword(arg=name) if name in AXES:
            return "axis"
        case ast.arguments() if field in ("defaults", "kw_defaults"):
            return "default"
        case ast.Call(func=function) if field == "args":
            name = getattr(function, "attr", getattr(function, "id", ""))
            return "axis" if name in WITH_AXES else "shape" if name in WITH_SHAPES else ""
    return ""


def _changes(node: ast.AST, where: Where) -> Iterator[tuple[Kind, ast.AST]]:
    number = _number(node)
    if number is not None and where.role != "shape":
        yield from ((kind, ast.copy_location(new, node)) for kind, new in _numbers(number, where.role))
        return
    if where.role == "slice" and isinstance(node, ast.expr):
        for sign in (ast.Add(), ast.Sub()):
            yield Kind.SLICE, ast.copy_location(ast.BinOp(node, sign, ast.Constant(1)), node)
    match node:
        case ast.BinOp():
            yield from _binary(node)
        case ast.AugAssign():
            yield Kind.TERM, ast.copy_location(ast.Pass(), node)
            if type(node.op) in SWAPS:
                other = ast.AugAssign(node.target, SWAPS[type(node.op)](), node.value)
                yield Kind.OPERATOR, ast.copy_location(other, node)
        case ast.Compare(ops=[operator]) if type(operator) in COMPARISONS:
            other = ast.Compare(node.left, [COMPARISONS[type(operator)]()], node.comparators)
            yield Kind.COMPARISON, ast.copy_location(other, node)
        case ast.BoolOp():
            exchanged = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield Kind.COMPARISON, ast.copy_location(ast.BoolOp(exchanged, node.values), node)
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            kind = Kind.COMPARISON if isinstance(node.op, ast.Not) else Kind.OPERATOR
            yield kind, node.operand
        case ast.IfExp():
            yield Kind.COMPARISON, node.body
            yield Kind.COMPARISON, node.orelse
        case ast.Call():
            yield from _call(node)


def _number(node: ast.AST) -> float | bool | None:
    """The number that a node is, -1 among them; None where it is none."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _number(node.operand)
        return None if inner is None else -inner
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, bool | int | float) else None


def _numbers(value: float | bool, role: str) -> Iterator[tuple[Kind, ast.expr]]:
    kinds = {"axis": Kind.AXIS, "index": Kind.INDEX, "slice": Kind.SLICE, "default": Kind.DEFAULT}
    kind = kinds.get(role, Kind.CONSTANT)
    if isinstance(value, bool):
        others: tuple[float, ...] = (not value,)
    elif isinstance(value, int):
        others = (value + 1, value - 1)
    else:
        others = (value * 1.01, value * 2.0, value / 10.0, value + 1.0)
    yield from ((kind, ast.Constant(other)) for other in others if other != value)


def _binary(node: ast.BinOp) -> Iterator[tuple[Kind, ast.AST]]:
    operator = type(node.op)
    if operator in SWAPS:
        yield Kind.OPERATOR, ast.copy_location(ast.BinOp(node.left, SWAPS[operator](), node.right), node)
    if operator in (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.MatMult):
        for gain in GAINS:
            yield Kind.GAIN, ast.copy_location(ast.BinOp(node, ast.Mult(), ast.Constant(gain)), node)
    if operator in (ast.Sub, ast.Div, ast.MatMult, ast.Pow, ast.FloorDiv):
        yield Kind.ORDER, ast.copy_location(ast.BinOp(node.right, node.op, node.left), node)
    if operator in (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow):
        yield Kind.TERM, node.left
    if operator in (ast.Add, ast.Sub, ast.Mult):
        yield Kind.TERM, node.right


def _call(node: ast.Call) -> Iterator[tuple[Kind, ast.AST]]:
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else ""
    of_a_value = isinstance(function, ast.Attribute) and not _names_a_module(function.value)
    inner = function.value if of_a_value and isinstance(function, ast.Attribute) else next(iter(node.args), None)
    if inner is not None and not isinstance(inner, ast.Starred):
        yield (Kind.CAST if name in CASTS else Kind.CALL), inner
    for first in range(len(node.args) - 1):
        pair = node.args[first : first + 2]
        if all(isinstance(each, ast.Name | ast.Attribute | ast.Subscript) for each in pair):
            args = [*node.args[:first], pair[1], pair[0], *node.args[first + 2 :]]
            yield Kind.ORDER, ast.copy_location(ast.Call(function, args, node.keywords), node)
    match node.args:
        case [ast.Tuple(elts=[one, two]) as pair, *rest] if name in ("cat", "stack"):
            exchanged = ast.copy_location(ast.Tuple([two, one], pair.ctx), pair)
            yield Kind.ORDER, ast.copy_location(ast.Call(function, [exchanged, *rest], node.keywords), node)
    for index, keyword in enumerate(node.keywords):
        if keyword.arg is not None:
            keywords = [*node.keywords[:index], *node.keywords[index + 1 :]]
            yield Kind.KEYWORD, ast.copy_location(ast.Call(function, node.args, keywords), node)


def _names_a_module(node: ast.expr) -> bool:
    """Whether `node` is `torch`, `nn.functional`, `self`: what a function or a layer is taken from."""
    while isinstance(node, ast.Attribute):
        node = node.value
        if isinstance(node, ast.Name) and node.id in ("torch", "nn", "F"):
            return True
    return isinstance(node, ast.Name) and node.id in ("torch", "nn", "F", "math", "self", "np")
