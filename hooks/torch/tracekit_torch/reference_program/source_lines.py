"""Which lines of the reference's source an edit of its operations is."""

from __future__ import annotations

import linecache
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

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


def lines_of(segment: Segment, place: int, source: int | None) -> list[Lines]:
    """The lines of an edit at a node, the most exact first; several where it is all that a call does, which might have
    been left out as a whole. `source`: the value that takes the place of the node's result."""
    removed = _passed_over(segment, place, source)
    chains = [segment.nodes[each].frames for each in removed if segment.nodes[each].frames]
    if not chains:
        return []
    found: list[Lines] = []
    depth = _common(chains)
    inner = [chain[depth] for chain in chains if len(chain) > depth]
    if inner and len({frame.file for frame in inner}) == 1:
        found.append(Lines(inner[0].file, min(f.line for f in inner), max(f.line for f in inner)))
    prefix = chains[0][:depth]
    while prefix and (len(found) == 0 or _whole(segment, prefix, place, removed)):
        found.append(Lines(prefix[-1].file, prefix[-1].line, prefix[-1].line))
        prefix = prefix[:-1]
    return found


def _passed_over(segment: Segment, place: int, source: int | None) -> list[int]:
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


def _common(chains: list[tuple[Frame, ...]]) -> int:
    """How many calls the chains have in common, the place of the operation itself not among them."""
    depth, most = 0, min(map(len, chains)) - 1
    while depth < most and len({(chain[depth].code, chain[depth].last) for chain in chains}) == 1:
        depth += 1
    return depth


def _whole(segment: Segment, prefix: tuple[Frame, ...], place: int, removed: list[int]) -> bool:
    """Whether all that a call does for the node is passed over."""
    calls = tuple((frame.code, frame.last) for frame in prefix)
    return all(
        index in removed
        for index, node in enumerate(segment.nodes)
        if index <= place and node.place[: len(calls)] == calls
    )


@cache
def _name(file: str) -> str:
    path = Path(file)
    roots = [root for root in map(Path, filter(None, sys.path)) if path.is_relative_to(root)]
    longest = max(roots, key=lambda root: len(root.parts), default=path.parent)
    return path.relative_to(longest).as_posix()
