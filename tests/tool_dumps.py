"""Dumps of one run of a tiny model as other tools write them: each function makes the folder or file of one tool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers.model_debugging_utils import model_addition_debugger_context

from tests.tiny_families import PROMPT, load

STEPS = 4
FAULT = "model.layers.1.self_attn.v_proj"
CACHED = 3
"""Positions of room in a cache beyond those that are used."""


@dataclass
class Call:
    """One forward call: what was read, and the value of each module, [rows, width], in the order of completion."""

    ids: list[int]
    first: int
    values: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    logits: np.ndarray  # [vocabulary], of the last row
    token: int
    keys: list[np.ndarray]  # a layer, [heads, positions, head size]
    cached: list[np.ndarray]  # the values likewise


def model_of(folder: Path, gain: float = 1.0) -> Any:
    """The model, with a gain in one matrix."""
    model = load(folder)
    with torch.no_grad():
        model.get_submodule(FAULT).weight.mul_(gain)
    return model


@torch.no_grad()
def calls_of(model: Any) -> list[Call]:
    """A greedy generation: the prompt in one call, then token by token."""
    held: dict[str, np.ndarray] = {}
    given: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            if isinstance(value, torch.Tensor) and value.dim() == 3:
                held[name] = value[0].numpy().copy()
            if inputs and inputs[0].dim() == 3:
                given[name] = inputs[0][0].numpy().copy()

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules() if name]
    calls, ids, cache, first = [], list(PROMPT[0]), None, 0
    for _ in range(STEPS):
        held.clear(), given.clear()
        done = model(input_ids=torch.tensor([ids]), cache=cache, use_cache=True)
        cache = done.past_key_values
        logits = done.logits[0, -1].numpy().copy()
        keys = [layer.keys[0].numpy().copy() for layer in cache.layers]
        cached = [layer.values[0].numpy().copy() for layer in cache.layers]
        calls.append(Call(ids, first, dict(held), dict(given), logits, int(logits.argmax()), keys, cached))
        first, ids = first + len(ids), [calls[-1].token]
    for handle in handles:
        handle.remove()
    return calls


def npy(model: Any, out: Path) -> Path:
    """A file a site."""
    out.mkdir()
    call = calls_of(model)[0]
    for name, value in call.values.items():
        np.save(out / f"{name}.npy", value[None])
    np.save(out / "input_ids.npy", np.array([call.ids]))
    return out


def safetensors(model: Any, out: Path) -> Path:
    """A file a call."""
    out.mkdir()
    call = calls_of(model)[0]
    save_file(call.values | {"input_ids": np.array(call.ids)}, out / "prefill.safetensors")
    return out


def sglang(model: Any, out: Path) -> Path:
    """SGLang's dumper, `DUMPER_NON_INTRUSIVE_MODE=all`."""
    out.mkdir()
    index = 0

    def dump(step: int, name: str, value: torch.Tensor, **tags: Any) -> None:
        nonlocal index
        index += 1
        said = {"step": step, "rank": 0, "dump_index": index, "name": name, "recompute_status": "disabled"} | tags
        file = "___".join(f"{key}={value}" for key, value in said.items()) + ".pt"
        meta = said | {"world_rank": 0, "world_size": 1, "sglang_parallel_info": {"tp_rank": 0, "tp_size": 1}}
        torch.save({"value": value, "meta": meta}, out / file)

    for step, call in enumerate(calls_of(model)):
        dump(step, "input_ids", torch.tensor(call.ids))
        dump(step, "positions", torch.arange(call.first, call.first + len(call.ids)))
        for name, value in call.values.items():
            layer = {"layer_id": int(name.split(".")[2])} if name.startswith("model.layers.") else {}
            if name in call.inputs:
                dump(step, f"non_intrusive__{name}.inputs.0", torch.tensor(call.inputs[name]), **layer)
            dump(step, f"non_intrusive__{name}.output", torch.tensor(value), **layer)
    return out


def debugger(model: Any, out: Path) -> Path:
    """transformers' model debugger, the real one."""
    with model_addition_debugger_context(model, debug_path=str(out), do_prune_layers=False, use_repr=False):
        model(input_ids=torch.tensor(PROMPT))
    return out


def edge(model: Any, out: Path) -> Path:
    """TensorRT Edge-LLM's layer debugger: caches of a fixed capacity, all of them in every round."""
    out.mkdir()
    tensors = {}
    calls = calls_of(model)
    room = calls[-1].first + len(calls[-1].ids) + CACHED
    for number, call in enumerate(calls):
        length = call.first + len(call.ids)
        tensors[f"round_{number}.logits"] = call.logits[None]
        tensors[f"round_{number}.context_lengths"] = np.array([length], np.int32)
        tensors[f"round_{number}.generated_token_ids"] = np.array([call.token], np.int32)
        for layer, (keys, values) in enumerate(zip(call.keys, call.cached, strict=True)):
            cache = np.zeros((1, 2, keys.shape[0], room, keys.shape[2]), np.float32)
            cache[0, 0, :, :length], cache[0, 1, :, :length] = keys, values
            tensors[f"round_{number}.layer_{layer}.kv"] = cache
    save_file(tensors, out / "edgellm_dump.safetensors")
    return out


def eval_callback(model: Any, out: Path) -> Path:
    """What llama.cpp prints of the prompt's call: `common_debug_print_tensor` with n = 3."""
    call = calls_of(model)[0]
    lines = [f"number of input tokens = {len(call.ids)}", *(f"  {token}" for token in call.ids)]

    def tensor(name: str, operation: str, sources: str, rows: np.ndarray) -> None:
        sizes = f"{rows.shape[1]}, {rows.shape[0]}, 1, 1"
        lines.append(f"ggml_debug: {name:>24} = (f32) {operation:>10}({sources}) = {{{sizes}}}")
        lines.extend(["    [", "        ["])
        for index in _ends(len(rows), lines, "            ..., "):
            numbers: list[str] = []
            for column in _ends(rows.shape[1], numbers, "   ..."):
                numbers.append(f"{rows[index, column]:12.4f}")
            lines.append(f"            [{', '.join(numbers)}  ],")
        lines.extend(["        ],", "    ]", f"    sum = {rows.sum():f}"])

    def of(name: str, weight: str = "", given: str = "") -> str:
        sizes = "{8, 8, 1, 1}"
        return f"{name}{sizes}, {weight or given}{sizes if weight or given else ''}}}"

    def linear(name: str, weight: str, given: str, module: str) -> None:
        tensor(name, "MUL_MAT", of(f"{weight}.weight", given=given), call.values[module])

    embedded = call.values["model.embed_tokens"]
    tensor("inp_embd", "GET_ROWS", of("token_embd.weight", given="inp_tokens"), embedded)
    for layer in range(model.config.num_hidden_layers):
        module, block = f"model.layers.{layer}", f"blk.{layer}"
        norms = call.values[f"{module}.input_layernorm"], call.values[f"{module}.post_attention_layernorm"]
        tensor(f"attn_norm-{layer}", "MUL", of(f"norm-{layer}", f"{block}.attn_norm.weight"), norms[0])
        linear(f"Qcur-{layer}", f"{block}.attn_q", f"attn_norm-{layer}", f"{module}.self_attn.q_proj")
        linear(f"Vcur-{layer}", f"{block}.attn_v", f"attn_norm-{layer}", f"{module}.self_attn.v_proj")
        tensor(f"kqv_out-{layer}", "CONT", of(f"kqv-{layer}"), call.inputs[f"{module}.self_attn.o_proj"])
        linear(f"attn_out-{layer}", f"{block}.attn_output", f"kqv_out-{layer}", f"{module}.self_attn.o_proj")
        tensor(f"ffn_norm-{layer}", "MUL", of(f"norm-{layer}", f"{block}.ffn_norm.weight"), norms[1])
        linear(f"ffn_gate-{layer}", f"{block}.ffn_gate", f"ffn_norm-{layer}", f"{module}.mlp.gate_proj")
        linear(f"ffn_up-{layer}", f"{block}.ffn_up", f"ffn_norm-{layer}", f"{module}.mlp.up_proj")
        gated = call.inputs[f"{module}.mlp.down_proj"]
        tensor(f"ffn_swiglu-{layer}", "SWIGLU", of(f"ffn_gate-{layer}", given=f"ffn_up-{layer}"), gated)
        linear(f"ffn_out-{layer}", f"{block}.ffn_down", f"ffn_swiglu-{layer}", f"{module}.mlp.down_proj")
        tensor(f"l_out-{layer}", "ADD", of(f"ffn_out-{layer}", given=f"ffn_inp-{layer}"), call.values[module])
    tensor("result_norm", "MUL", of("norm", "output_norm.weight"), call.values["model.norm"])
    tensor("result_output", "MUL_MAT", of("output.weight", given="result_norm"), call.logits[None])
    out.write_text("llama_model_loader: - type f32\n" + "\n".join(lines) + "\n")
    return out


def _ends(count: int, said: list[str], gap: str, most: int = 3) -> Any:
    """The first and the last `most` of a count, and a gap where some are left out."""
    if count <= 2 * most:
        yield from range(count)
        return
    yield from range(most)
    said.append(gap)
    yield from range(count - most, count)


TOOLS: dict[str, Callable[[Any, Path], Path]] = {
    "npy": npy,
    "safetensors": safetensors,
    "sglang": sglang,
    "debugger": debugger,
    "edge": edge,
    "eval_callback": eval_callback,
}
