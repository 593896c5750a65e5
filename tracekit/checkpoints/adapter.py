"""A LoRA adapter as PEFT saves it: what it adds to which parameter.

Source of the names: `peft/utils/save_and_load.py` (`base_model.model.NAME.lora_A.weight`); of the scale:
`peft/tuners/lora/layer.py` (alpha / r, with rslora alpha / sqrt(r)).
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np

from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.checkpoints.relations import Update
from tracekit.trace import Json, TraceError

FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
PREFIX = "base_model.model."


class Adapter:
    """The updates of a folder or a file. Raises TraceError, in one sentence, where it holds none."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        place = Path(path)
        file = place / FILE if place.is_dir() else place
        self._checkpoint = Checkpoint(file)
        self._config = _config(file.parent / CONFIG)
        self._names = {
            name.removesuffix(DOWN).removeprefix(PREFIX): name
            for name in self._checkpoint.names
            if name.endswith(DOWN) and name.removesuffix(DOWN) + UP in self._checkpoint.names
        }
        if not self._names:
            raise TraceError(f"{file}: holds no lora_A and lora_B; give the folder of a LoRA adapter")

    def update(self, parameter: str) -> Update | None:
        """What it adds to a parameter; None where nothing."""
        module = parameter.removesuffix(".weight")
        own = next((each for each in self._names if module == each or module.endswith("." + each)), None)
        own = own or next((each for each in self._names if each.endswith("." + module)), None)
        if own is None:
            return None
        name = self._names[own]
        down = self._checkpoint.values(name).astype(np.float64)
        up = self._checkpoint.values(name.removesuffix(DOWN) + UP).astype(np.float64)
        if down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0]:
            return None
        return Update(up, down, self._scale(up.shape[1]))

    def _scale(self, rank: int) -> float | None:
        alpha = self._config.get("lora_alpha")
        if not isinstance(alpha, int | float) or not rank:
            return None
        return float(alpha) / (math.sqrt(rank) if self._config.get("use_rslora") else rank)


def _config(path: Path) -> Json:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
