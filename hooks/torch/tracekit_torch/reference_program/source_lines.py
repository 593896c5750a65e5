"""Which lines of the reference's source an edit of its operations is."""

from __future__ import annotations

import ast
import linecache
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import CodeType
from typing import TypeGuard

from tracekit_torch.reference_program.edits import Change
from tracekit_torch.reference_program.edits.scaled import SHAPES_ONLY
from tracekit_torch.reference_program.segment import Frame, Segment


@dataclass(frozen=True)
class Lines:
    """Lines of one file."""

    file: str
    line: int
    last: int

    @property
    def text(self) -> str:
        """The source of the first line."""
        return linecache.getline(self.file, self.line).strip()

    @property
    def name(self) -> str:
        """The file as it is imported, without this machine's folders."""
        return _name(self.file)


def lines_of(segment: Segment, place: int, change: Change, together: Iterable[tuple[int, Change]] = ()) -> list[Lines]:
    """The lines of an edit at a node, the most exact first. Several where it is all that a call does, or all that is
    done under a condition, which might have been left out as a whole; or where what is changed was handed over by a
    call, which might have handed over something else. `together`: all nodes that are edited at once, with what is made
    there."""
    removed = passed_over(segment, place, change.source)
    edited = _not_run(segment, {place: change.source} | {at: other.source for at, other in together})
    chains = [frames for each in (*removed, *change.places) if (frames := segment.nodes[each].frames)]
    if not chains:
        return []
    found: list[Lines] = []
    depth = _common(chains)
    inner = [chain[depth] for chain in chains if len(chain) > depth]
    prefix = chains[0][:depth]
    if inner and len({frame.code for frame in inner}) == 1:
        lines = Lines(inner[0].file, min(frame.line for frame in inner), max(frame.line for frame in inner))
        found.append(lines)
        heads = _conditions(segment, prefix, lines, edited)
        given = {name for head in heads for name in names_in(head)}
        also: list[ast.expr | ast.Assign] = [*heads, *_worked_out(given, lines)]
        if change.stated is not None or change.places:
            read = names_in(statement_at(lines.file, lines.line))
            also += (node for node in _worked_out(read, lines) if not _computes(segment, lines.file, node))
            given |= read
        found += [Lines(lines.file, node.lineno, node.lineno) for node in also]
        found += handed_over(given, inner[0].code, prefix)
    while prefix and (not found or _whole(segment, prefix, place, edited)):
        found.append(_line(prefix[-1]))
        prefix = prefix[:-1]
        heads = _conditions(segment, prefix, found[-1], edited)
        found += [Lines(found[-1].file, head.lineno, head.lineno) for head in heads]
    return list(dict.fromkeys(found))


def _worked_out(names: set[str], lines: Lines) -> Iterable[ast.Assign]:
    """The statements of a function before `lines` that work out the values that `names` have there."""
    inside = reversed(_around(lines.file, lines.line))
    function = next((node for node in inside if isinstance(node, ast.FunctionDef)), ast.Module([], []))
    before = [node for node in ast.walk(function) if isinstance(node, ast.Assign) and node.lineno < lines.line]
    found: dict[str, ast.Assign] = {}
    for node in sorted(before, key=lambda node: node.lineno):
        if not isinstance(node.value, ast.Name | ast.Attribute):  # those hand a value on
            found |= {each.id: node for each in node.targets if isinstance(each, ast.Name) and each.id in names}
    return found.values()


def _computes(segment: Segment, file: str, node: ast.Assign) -> bool:
    """Whether operations that can be edited stand in a statement: what it gives is no mere number."""
    inside = range(node.lineno, (node.end_lineno or node.lineno) + 1)
    return any(frame.file == file and frame.line in inside for each in segment.nodes for frame in each.frames)


def handed_over(names: set[str], code: CodeType, callers: tuple[Frame, ...]) -> list[Lines]:
    """Where values of a function were handed over by the calls that led to it, the innermost first: maybe as they were
    handed over before. `names`: of the function's values."""
    found: list[Lines] = []
    names = names & set(_parameters(code))
    for frame in reversed(callers):
        if not names:
            break
        found.append(_line(frame))
        statement = statement_at(frame.file, frame.line)
        if not _hands_on_all(statement):
            names = names & names_in(statement) & set(_parameters(frame.code))
    return found


def _hands_on_all(statement: ast.AST | None) -> bool:
    """Whether it is the call of a decorator's function, which hands on whatever it was given."""
    return statement is not None and any(
        isinstance(node, ast.Call)
        and any(isinstance(each, ast.Starred) for each in node.args)
        and any(each.arg is None for each in node.keywords)
        for node in ast.walk(statement)
    )


def in_a_loop(frame: Frame) -> bool:
    """Whether a loop of the function itself runs it."""
    first = frame.code.co_firstlineno
    loops = (ast.For, ast.While)
    return any(isinstance(node, loops) and node.lineno >= first for node in _around(frame.file, frame.line))


def _line(frame: Frame) -> Lines:
    return Lines(frame.file, frame.line, frame.line)


def passed_over(segment: Segment, place: int, source: int | None) -> list[int]:
    """Positions of the nodes between a value and the node, which is among them."""
    if source is None or source in segment.nodes[place].inputs:
        return [place]
    start = segment.producers.get(source)
    reached, passed = {source}, []
    for between in range(0 if start is None else start + 1, place + 1):
        node = segment.nodes[between]
        if not reached.isdisjoint(node.inputs):
            reached.update(node.outputs)
            passed.append(between)
    if place not in passed:
        return [place]
    needed, path = set(segment.nodes[place].inputs), [place]
    for between in reversed(passed[:-1]):
        if not needed.isdisjoint(segment.nodes[between].outputs):
            path.append(between)
            needed.update(segment.nodes[between].inputs)
    return path


def _not_run(segment: Segment, edits: Mapping[int, int | None]) -> frozenset[int]:
    """Positions of the nodes that nothing needs with each of `edits` made, those among them. `edits`: by position, the
    value that is taken in the place of the result, if one is."""
    needed = {value for value, _ in segment.targets}
    groups = {segment.groups[value] for value in needed}
    run: set[int] = set()
    for place in range(len(segment.nodes) - 1, -1, -1):
        node, source = segment.nodes[place], edits.get(place)
        if needed.isdisjoint(node.outputs) and not any(segment.groups[value] in groups for value in node.mutated):
            continue
        run.add(place)
        read = node.inputs if source is None else (source,)
        needed.update(read)
        groups.update(segment.groups[value] for value in read if not segment.steady(value))
    return frozenset(place for place in range(len(segment.nodes)) if place in edits or place not in run)


def _common(chains: list[tuple[Frame, ...]]) -> int:
    """How many calls the chains have in common, the place of the operation itself not among them."""
    depth, most = 0, min(map(len, chains)) - 1
    while depth < most and len({(chain[depth].code, chain[depth].last) for chain in chains}) == 1:
        depth += 1
    return depth


def _whole(segment: Segment, prefix: tuple[Frame, ...], place: int, removed: frozenset[int]) -> bool:
    """Whether all that a call computes, up to the node and after it, is passed over."""
    calls, last = tuple((frame.code, frame.last) for frame in prefix), place
    while last + 1 < len(segment.nodes) and segment.follows(last + 1, len(calls)):
        last += 1
    return all(
        index in removed or node.name in SHAPES_ONLY
        for index, node in enumerate(segment.nodes[: last + 1])
        if node.place[: len(calls)] == calls
    )


def _conditions(segment: Segment, prefix: tuple[Frame, ...], lines: Lines, removed: frozenset[int]) -> list[ast.expr]:
    """The conditions under which nothing else is done than what is passed over, and what loops go through of which a
    round is passed over; the innermost first."""
    calls = tuple((frame.code, frame.last) for frame in prefix)

    def inside(first: int, last: int) -> list[int]:
        return [
            index
            for index, each in enumerate(segment.nodes)
            if each.name not in SHAPES_ONLY
            and each.place[: len(calls)] == calls
            and len(each.frames) > len(calls)
            and each.frames[len(calls)].file == lines.file
            and first <= each.frames[len(calls)].line <= last
        ]

    heads: list[ast.expr] = []
    for node in _around(lines.file, lines.line):
        for block in _blocks(node):
            first, last = block[0].lineno, block[-1].end_lineno or block[-1].lineno
            if not first <= lines.line <= last:
                continue
            for before, after in pairwise(block):
                if after.lineno <= lines.line and _leaves(before) and removed.issuperset(inside(after.lineno, last)):
                    heads.append(before.test)
            if isinstance(node, ast.For):
                rounds = {segment.nodes[index].place for index in inside(first, last)}
                if rounds == {segment.nodes[index].place for index in inside(first, last) if index in removed}:
                    heads.append(node.iter)
            elif isinstance(node, ast.If) and removed.issuperset(inside(first, last)):
                heads.append(node.test)
    return heads[::-1]


def _blocks(node: ast.stmt) -> list[list[ast.stmt]]:
    """The statements that a compound one holds, those of each of its branches."""
    return [block for name in ("body", "orelse", "finalbody") if (block := getattr(node, name, None))]


def _leaves(node: ast.stmt) -> TypeGuard[ast.If]:
    """Whether it is a condition under which what comes after it is not reached."""
    ends = ast.Continue | ast.Break | ast.Return
    return isinstance(node, ast.If) and not node.orelse and isinstance(node.body[-1], ends)


@cache
def _around(file: str, line: int) -> list[ast.stmt]:
    """The parts of a file's syntax tree that a line stands in, the outermost first."""
    found = [
        node
        for node in ast.walk(_tree(file))
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno)
    ]
    return sorted(found, key=lambda node: (node.lineno, -(node.end_lineno or node.lineno)))


def statement_at(file: str, line: int) -> ast.AST | None:
    found = _around(file, line)
    return found[-1] if found else None


def top_level(code: CodeType) -> ast.stmt | None:
    """The statement of a module that holds the source of a function."""
    around = _around(code.co_filename, code.co_firstlineno)
    after = (each for each in _tree(code.co_filename).body if (each.end_lineno or 0) >= code.co_firstlineno)
    return around[0] if around else next(after, None)


@cache
def _tree(file: str) -> ast.Module:
    try:
        return ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:  # made by a program, not written in a file
        return ast.Module([], [])


def names_in(node: ast.AST | None) -> set[str]:
    """Names that are read, but for those whose method is called."""
    if node is None:
        return set()
    called = {each.func.value for each in ast.walk(node) if isinstance(each, ast.Call) and _is_method(each.func)}
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and each not in called}


def _is_method(function: ast.expr) -> TypeGuard[ast.Attribute]:
    return isinstance(function, ast.Attribute)


def _parameters(code: CodeType) -> tuple[str, ...]:
    """Names of what a function is given."""
    return tuple(name for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if name != "self")


@cache
def _name(file: str) -> str:
    path = Path(file)
    roots = [root for root in map(Path, filter(None, sys.path)) if path.is_relative_to(root)]
    longest = max(roots, key=lambda root: len(root.parts), default=path.parent)
    return path.relative_to(longest).as_posix()
