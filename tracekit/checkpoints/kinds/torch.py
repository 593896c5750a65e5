"""Files of `torch.save` and `torch.jit.save` (.pt, .pth, .bin, .ckpt, .jit), and folders of them."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from tracekit.checkpoints.parameters import Parameters, declared_settings
from tracekit.formats.inert_pickle import Unread
from tracekit.formats.torch_file import StoredTensor, read_torch_file, tensors_in
from tracekit.trace import TraceError

INDEX = "pytorch_model.bin.index.json"
SINGLE = "pytorch_model.bin"
SPEECH_MODELS = ("llm.rl.pt", "llm.pt")
"""The language model of a CosyVoice folder."""
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".jit")
BEGINNINGS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of torch's zip format, and of the pickles before it."""
NESTED = ("state_dict", "model", "module")
"""Where programs put a state dict that they save beside an epoch or an optimizer."""


def torch_files(path: Path) -> list[Path]:
    """The files of a checkpoint in torch's format: the path itself, or a folder's; none where there are none."""
    if not path.is_dir():
        return [path]
    index = path / INDEX
    if not index.exists():
        names = (SINGLE, *SPEECH_MODELS)
        return [path / name for name in names if (path / name).exists()][:1]
    try:
        named = sorted({str(name) for name in json.loads(index.read_text())["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise TraceError(f"{index}: is no index of a checkpoint's files; fetch the checkpoint again") from None
    if any(os.path.sep in name for name in named):
        raise TraceError(f"{index}: names a file outside its folder; fetch the checkpoint again")
    return [path / name for name in named]


def _tensors(file: Path) -> dict[str, StoredTensor]:
    held = read_torch_file(file)
    if held.scripted or isinstance(held.root, Unread):
        # Values that code keeps (`CONSTANTS.c0`) are weights of a traced program.
        found = dict(tensors_in(held.root)) | dict(tensors_in(held.constants, "CONSTANTS"))
        found = {name: tensor for name, tensor in found.items() if math.prod(tensor.shape)}
    elif isinstance(held.root, dict):
        found = _direct(held.root)
        nested = next((held.root[key] for key in NESTED if key in held.root), None)
        if not found and nested is not None:
            found = _direct(nested) if isinstance(nested, dict) else dict(tensors_in(nested))
    else:
        kind = type(held.root).__name__
        raise TraceError(f"{file}: holds a {kind}, not a state dict; save model.state_dict()")
    if not found:
        raise TraceError(f"{file}: holds no tensors; give a checkpoint that holds a state dict")
    return found


def _direct(state: dict[Any, Any]) -> dict[str, StoredTensor]:
    """The tensors of a state dict; an epoch or a step beside them is passed over."""
    return {str(name): value for name, value in state.items() if isinstance(value, StoredTensor)}


class Torch:
    reads = "PyTorch (*.pt, *.pth, *.bin, *.jit)"

    def knows(self, path: Path, head: bytes) -> bool:
        if path.is_dir():
            return bool(torch_files(path)) or any(path.glob("pytorch_model*.bin*"))
        return head.startswith(BEGINNINGS) or path.suffix in SUFFIXES

    def open(self, path: Path) -> Parameters:
        """The tensors of a state dict, of a pickled module or of a TorchScript program. Files are mapped, not loaded.
        Raises TraceError where a file is damaged, wants to run code, or holds no tensors."""
        files = torch_files(path)
        if not files:
            raise TraceError(f"{path}: holds no {SINGLE} and no {INDEX}; fetch the checkpoint again")
        found: dict[str, StoredTensor] = {}
        for file in files:
            found |= _tensors(file)
        single = path if len(files) > 1 else files[0]
        return Parameters(str(single), found, declared_settings(path))


KIND = Torch()
