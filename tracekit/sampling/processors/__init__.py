"""The registry of logits processors: each module of this package defines one, `PROCESSOR`. To add one, add a file."""

from __future__ import annotations

from typing import Any

from tracekit.plugins import modules_in
from tracekit.sampling.processor import Processor

PROCESSORS: tuple[Processor, ...] = tuple(
    sorted((module.PROCESSOR for module in modules_in(__name__)), key=lambda each: each.place)
)
"""All of them, in the order of transformers' `generate`."""
GENERATE = tuple(each for each in PROCESSORS if each.sampler is None)
"""Those of transformers' `generate`."""
BY_NAME = {each.name: each for each in GENERATE}
BY_SETTING = {each.setting: each for each in GENERATE}
ONLY_SAMPLED = tuple(each.setting for each in GENERATE if each.sampled)
"""Settings that greedy decoding does not apply."""


def plain_filter_setting(setting: str, value: Any) -> Any:
    """A processor's setting, None where it does nothing: missing and neutral mean the same."""
    return None if value is None or value in BY_SETTING[setting].neutral else value
