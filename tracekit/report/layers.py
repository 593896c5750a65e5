"""Which layer a site belongs to, and what it is called within it."""

from __future__ import annotations

import re
from collections.abc import Sequence

NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|:|$)")


def layer_of(site: str) -> int | None:
    """The first number in a site's path: 3 of `model.layers.3.mlp.down_proj`; None where there is none."""
    found = NUMBER.search(site)
    return None if found is None else int(found[1])


def layer_ticks(sites: Sequence[str], most: int = 16) -> tuple[list[int], list[str]]:
    """Rows at which a layer begins and their labels, thinned to `most`; of sites without layers, none."""
    begins: dict[int, int] = {}
    for row, site in enumerate(sites):
        layer = layer_of(site)
        if layer is not None:
            begins.setdefault(layer, row)
    every = max(1, -(-len(begins) // most))
    kept = [(row, f"layer {layer}") for layer, row in begins.items() if layer % every == 0]
    return [row for row, _ in kept], [label for _, label in kept]
