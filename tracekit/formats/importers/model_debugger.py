"""transformers' model debugger: `model_addition_debugger_context(model, debug_path=..., use_repr=False)`.

Source: transformers/model_debugging_utils.py. A folder holds `<Class>_debug_tree_FULL_TENSORS.json`, a tree of module
calls, and a .safetensors file with the tensor `data` for every value; of a module that has others inside it, its inputs
alone. With `use_repr=True` there is printed text in place of tensors, which is refused. One forward call.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tracekit.errors import TraceError
from tracekit.formats.dumped import IDS, Dump, DumpedSequence, integers_of, rows_of, safetensors_of
from tracekit.formats.log import Tensor
from tracekit.trace import INPUT_SUFFIX, Json

TREE = "*_debug_tree_FULL_TENSORS.json"
LARGEST = 1 << 28
"""Bytes of a tree that is read: one with printed tensors in it is larger, and refused for that."""
DEEPEST = 200
"""Modules inside each other."""
IDS_NAME = "input_ids"
HIDDEN = "hidden_states"
"""How a layer is given its input, if not as the first argument."""


class ModelDebugger:
    """One sequence without steps: one forward call."""

    reads = "folders of transformers' model debugger (*_debug_tree_FULL_TENSORS.json)"

    def knows(self, path: Path) -> bool:
        return path.is_dir() and next(path.glob(TREE), None) is not None

    def log(self, path: Path, scratch: Path) -> Path:
        trees = sorted(path.glob(TREE))
        if len(trees) > 1:
            raise TraceError(f"{path}: holds trees of {len(trees)} models, {trees[0].name} first; keep one a folder")
        tree = _tree(trees[0])
        sequence = DumpedSequence(prompt=_prompt(path, tree))
        model = str(tree.get("module_path", ""))
        for name, tensor in _values(path, tree, f"{model}.", 0):
            if name in sequence.rows:
                raise TraceError(
                    f"{trees[0]}: {name} was called twice, and the dump keeps one of them; dump a model without shared "
                    "modules"
                )
            sequence.add(name, 0, tensor)
        if not sequence.rows:
            raise TraceError(f"{trees[0]}: holds no values; dump with use_repr=False and do_prune_layers=False")
        return Dump("transformers-debugger", [sequence]).write(path, scratch)


IMPORTER = ModelDebugger()


def _tree(file: Path) -> Json:
    try:
        if file.stat().st_size > LARGEST:
            raise TraceError(f"{file}: is {file.stat().st_size} bytes long; dump with use_repr=False")
        tree = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise TraceError(f"{file}: cannot be read as JSON ({error}); dump it again") from None
    if not isinstance(tree, dict):
        raise TraceError(f"{file}: holds no tree of modules; dump it again")
    return tree


def _prompt(folder: Path, tree: Json) -> Any:
    """The tokens of the outermost call."""
    given = _given(tree)
    for told in (given.get("kwargs", {}).get(IDS_NAME), *given.get("args", [])):
        tensor = _tensor(folder, told)
        if tensor is not None and tensor.dtype in IDS:
            if len(tensor.shape) == 2 and tensor.shape[0] != 1:
                raise TraceError(f"{folder}: holds a batch of {tensor.shape[0]}; dump one sequence at a time")
            return integers_of(folder, IDS_NAME, tensor)
    return None


def _values(folder: Path, node: Json, model: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """Sites in the order in which they are complete: an input, what is inside the module, its output."""
    if depth > DEEPEST:
        raise TraceError(f"{folder}: its tree is deeper than {DEEPEST} modules; dump it again")
    name = str(node.get("module_path", "")).removeprefix(model)
    if depth:
        given = _given(node)
        told = next(iter(given.get("args", [])), None) or given.get("kwargs", {}).get(HIDDEN)
        yield from _site(folder, name + INPUT_SUFFIX, told)
    children = node.get("children") or []
    if not isinstance(children, list) or not all(isinstance(child, dict) for child in children):
        raise TraceError(f"{folder}: {name or 'the model'} has no list of modules inside it; dump it again")
    for child in children:
        yield from _values(folder, child, model, depth + 1)
    if depth:
        yield from _site(folder, name, node.get("outputs"))


def _given(node: Json) -> Json:
    given = node.get("inputs")
    given = given if isinstance(given, dict) else {}
    args, kwargs = given.get("args"), given.get("kwargs")
    return {"args": args if isinstance(args, list) else [], "kwargs": kwargs if isinstance(kwargs, dict) else {}}


def _site(folder: Path, name: str, told: object) -> Iterator[tuple[str, Tensor]]:
    """A value that has a row for each position; masks and tables of a batch of one are none of a sequence's."""
    told = told[0] if isinstance(told, list) and len(told) == 1 else told
    tensor = _tensor(folder, told)
    if tensor is None or tensor.dtype in (*IDS, "bool") or len(tensor.shape) != 3:
        return
    yield name, rows_of(folder, name, tensor)


def _tensor(folder: Path, told: object) -> Tensor | None:
    """What an entry of the tree stands for; None of what is no tensor."""
    if not isinstance(told, dict) or "value" not in told:
        return None
    where = told["value"]
    if not isinstance(where, str):
        raise TraceError(f"{folder}: holds printed tensors; dump with use_repr=False, which keeps their values")
    file = folder / where
    if file.parent.resolve() != folder.resolve():
        raise TraceError(f"{folder}: names a file outside it, {where}; dump it again")
    tensors = safetensors_of(file)
    if list(tensors) != ["data"]:
        raise TraceError(f"{file}: does not hold the one tensor `data`; dump it again")
    return tensors["data"]
