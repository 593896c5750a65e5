"""Small sound dumps of every tool, to damage; and the damage to one file of a dump."""

from __future__ import annotations

import io
import json
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from tests.attacks.damage import BYTES, damaged, damaged_json

ROWS, WIDTH = 8, 8


def write_dumps(folder: Path) -> list[Path]:
    """One dump of each tool: folders, and a text file."""
    values = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
    sites, sglang, debugger, edge = (folder / name for name in ("sites", "sglang", "debugger", "edge"))
    for each in (sites, sglang, debugger, edge):
        each.mkdir(parents=True)
    np.save(sites / "a.npy", values)
    save_file({"b": values, "input_ids": np.arange(ROWS)}, sites / "b.safetensors")
    for index, (name, value) in enumerate({"input_ids": torch.arange(ROWS), "a": torch.tensor(values)}.items()):
        meta = {"step": 0, "rank": 0, "dump_index": index, "name": name, "layer_id": 0, "world": {"size": (1, 2)}}
        torch.save({"value": value, "meta": meta}, sglang / f"step=0___rank=0___dump_index={index}___name={name}.pt")
    save_file({"data": values[None]}, debugger / "M.a_outputs.safetensors")
    save_file({"data": np.arange(ROWS)[None]}, debugger / "M_inputs_kwargs_input_ids.safetensors")
    told = {"shape": "torch.Size([1, 8, 8])", "dtype": "torch.float32", "value": "./M.a_outputs.safetensors"}
    ids = {"value": "./M_inputs_kwargs_input_ids.safetensors"}
    child = {"module_path": "M.a", "inputs": {"args": [told]}, "outputs": told}
    tree = {"module_path": "M", "inputs": {"kwargs": {"input_ids": ids}}, "children": [child]}
    (debugger / "M_debug_tree_FULL_TENSORS.json").write_text(json.dumps(tree))
    cache = np.ones((1, 2, 2, ROWS, 4), np.float32)
    rounds = {
        f"round_{index}.{name}": value
        for index in range(2)
        for name, value in {
            "logits": values[:1],
            "layer_0.kv": cache,
            "context_lengths": np.array([3 + index], np.int32),
            "generated_token_ids": np.array([index], np.int32),
        }.items()
    }
    save_file(rounds, edge / "edgellm_dump.safetensors")
    (folder / "printed.txt").write_text(_printed())
    return [sites, sglang, debugger, edge, folder / "printed.txt"]


def _printed() -> str:
    row = (
        "            [      0.1000,       0.2000,       0.3000,    ...,       0.4000,      -0.5000,      -1.0000  ],\n"
    )
    rows = row * 3 + "            ..., \n" + row * 3
    body = f"    [\n        [\n{rows}        ],\n    ]\n    sum = 1.5\n"
    sizes = f"{{{WIDTH}, {ROWS}, 1, 1}}"
    first = f"ggml_debug: inp_embd = (f32) GET_ROWS(token_embd.weight{sizes}, inp_tokens{sizes}}}) = {sizes}\n"
    other = f"ggml_debug: l_out-0 = (f32) ADD(ffn_out-0{sizes}, ffn_inp-0{sizes}}}) = {sizes}\n"
    return f"number of input tokens = {ROWS}\n" + "  7\n" * ROWS + first + body + other + body


def damaged_dump(rng: random.Random, base: Path, bad: Path) -> None:
    """A copy of a dump, `bad`, with damage in one of its files."""
    if bad.is_dir():
        shutil.rmtree(bad)
    bad.unlink(missing_ok=True)
    if base.is_dir():
        shutil.copytree(base, bad)
    else:
        shutil.copy(base, bad)
    file = rng.choice(sorted(bad.iterdir())) if bad.is_dir() else bad
    data = file.read_bytes()
    if file.suffix == ".json" and rng.random() < 0.7:
        file.write_text(json.dumps(damaged_json(rng, json.loads(data))))
    elif file.suffix == ".pt" and rng.random() < 0.7:
        file.write_bytes(_damaged_pickle(rng, data))
    elif file.suffix == ".safetensors":
        file.write_bytes(damaged(rng, data, ".safetensors", bad))
    else:
        file.write_bytes(rng.choice(BYTES)(rng, data))


def _damaged_pickle(rng: random.Random, data: bytes) -> bytes:
    """A sound zip file with damage in what it says it holds."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            held = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                held = rng.choice(BYTES)(rng, held)
            new.writestr(entry.filename, held)
    return out.getvalue()
