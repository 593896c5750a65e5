"""Draw the two ways of docs/architecture.md, as an SVG and as mermaid, from its numbered lists.

    python scripts/draw_architecture.py

GitHub draws the mermaid block. The site shows the SVG: mermaid itself would have to be loaded from a CDN.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from itertools import pairwise
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, PICTURE = DOCS / "architecture.md", DOCS / "architecture.svg"
TITLES = ("The way of one tensor", "The way of one draw")
BLOCK = re.compile(r"(?<=```mermaid\n).*?(?=```)", re.DOTALL)
ITEM = re.compile(r"^1\. `([^`]+)`:", re.MULTILINE)
STAGES = (
    *("formats", "programs", "recording", "checkpoints", "inspection", "torch_rng", "sampling", "align", "compare"),
    *("auditing", "mistakes", "verdict", "selfcheck", "bisect", "extra", "report", "repro", "postmortem", "api"),
)
"""Stages that the ways may pass, in their order; tests/test_docs.py holds them against the house's."""
WIDTH, BOX, HIGH, ROW, LEFT = 860, 210, 24, 34, 110
"""Pixels: of the picture, of a box and its height, from row to row, and of the stages' names."""
COLOURS = ("#3f51b5", "#c2185b")


def ways(text: str) -> tuple[list[str], list[str]]:
    """The modules of both lists, in their order."""
    one, other = (ITEM.findall(text.split(f"## {title}\n")[1].split("\n## ")[0]) for title in TITLES)
    return one, other


def stage(module: str) -> str:
    """The folder of `tracekit/` that a module is in; `hooks` for what records."""
    return module.removesuffix(".py").split("/")[1] if module.startswith("tracekit/") else "hooks"


def rows(text: str) -> list[str]:
    """Every module once, so that both ways only go down."""
    one, other = ways(text)
    merged = list(one)
    for index, module in enumerate(other):
        if module not in merged:
            later = (merged.index(each) for each in other[index:] if each in merged)
            merged.insert(next(later, len(merged)), module)
    order = ("hooks", *STAGES)
    return sorted(merged, key=lambda module: order.index(stage(module)))


def mermaid(text: str) -> str:
    """Both ways as a flowchart, the modules of a stage in a box."""
    nodes = {module: f"n{index}" for index, module in enumerate(rows(text))}
    lines, last = ["flowchart TD"], None
    for module, node in nodes.items():
        if stage(module) != last:
            lines += [*(["  end"] if last else []), f"  subgraph {stage(module)}"]
            last = stage(module)
        lines.append(f'    {node}["{short(module)}"]')
    lines.append("  end")
    for way, arrow in zip(ways(text), ("-->", "-.->"), strict=True):
        lines += [f"  {nodes[a]} {arrow} {nodes[b]}" for a, b in pairwise(way)]
    return "\n".join(lines) + "\n"


def short(module: str) -> str:
    """A module's name without the folders that all of its stage share."""
    bare = module.removeprefix("hooks/torch/tracekit_torch/").removeprefix("tracekit/")
    return bare.removeprefix(f"{stage(module)}/")


def svg(text: str) -> str:
    """A row a module: the tensor's on the left, the draw's on the right, those of both in the middle."""
    one, other = ways(text)
    column = {module: (1 if module not in one else 0 if module in other else -1) for module in rows(text)}
    middle = LEFT + (WIDTH - LEFT) // 2
    at = {module: (middle + side * (BOX + 30), 20 + index * ROW) for index, (module, side) in enumerate(column.items())}
    height = 20 + len(at) * ROW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="monospace" '
        'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        *bands(at),
        *(line for way, colour in zip((one, other), COLOURS, strict=True) for line in edges(way, at, colour)),
    ]
    for module, (x, y) in at.items():
        box = f'x="{x - BOX // 2}" y="{y - HIGH // 2}" width="{BOX}" height="{HIGH}" rx="4"'
        parts.append(f'<rect {box} fill="white" stroke="#555"/>')
        parts.append(f'<text x="{x}" y="{y + 4}" text-anchor="middle">{escape(short(module))}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def bands(at: dict[str, tuple[int, int]]) -> Iterator[str]:
    """Behind the rows of every other stage a band, and the stage's name at the left."""
    seen: dict[str, list[int]] = {}
    for module, (_, y) in at.items():
        seen.setdefault(stage(module), []).append(y)
    for index, (name, heights) in enumerate(seen.items()):
        top, bottom = heights[0] - ROW // 2, heights[-1] + ROW // 2
        fill = "#f2f2f7" if index % 2 == 0 else "#ffffff"
        yield f'<rect x="0" y="{top}" width="{WIDTH}" height="{bottom - top}" fill="{fill}"/>'
        yield f'<text x="8" y="{heights[0] + 4}" fill="#555" font-weight="bold">{escape(name)}</text>'


def edges(way: list[str], at: dict[str, tuple[int, int]], colour: str) -> Iterator[str]:
    """A curve from each module to the next."""
    dashes = ' stroke-dasharray="5 3"' if colour == COLOURS[1] else ""
    shift = -12 if colour == COLOURS[0] else 12
    for a, b in pairwise(way):
        (x, y), (u, v) = at[a], at[b]
        curve = f"M {x + shift} {y} C {x + shift} {y + ROW} {u + shift} {v - ROW} {u + shift} {v}"
        yield f'<path d="{curve}" fill="none" stroke="{colour}" stroke-width="1.6"{dashes}/>'


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BLOCK.sub(lambda _: mermaid(text), text), encoding="utf-8")
    PICTURE.write_text(svg(text), encoding="utf-8")


if __name__ == "__main__":
    main()
