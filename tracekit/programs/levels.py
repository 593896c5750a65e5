"""How much of a program is recorded: each level holds what those before it hold."""

from __future__ import annotations

import re

from tracekit.trace import INPUT_SUFFIX

LEVELS = ("tokens", "logits", "layers", "all")


def is_layer(name: str) -> bool:
    """Whether a site is the output of a whole layer, or stands before or after the layers: `model.layers.3`."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdecimal()]
    return not name.endswith(INPUT_SUFFIX) and (not numbers or numbers[0] == len(parts) - 1)


def keeps(level: str, pattern: str | None, name: str) -> bool:
    """Whether a level and the pattern of `--sites` want the site of this name."""
    if level in ("tokens", "logits") or (level == "layers" and not is_layer(name)):
        return False
    return pattern is None or re.search(pattern, name) is not None
