"""Harmless rewrites: what a verdict must not call a divergence."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import tracekit
from benchmarks.fault_bench.fault import Json
from benchmarks.fault_bench.inject_torch import decoder_layers, injection
from benchmarks.fault_bench.patching import Run, attribute, forward
from benchmarks.fault_bench.setups import SETUPS
from benchmarks.fault_bench.studio import Studio


@dataclass(frozen=True)
class Rewrite:
    """A candidate that computes the same as the reference of `setup`, in another way."""

    setup: str
    record: Callable[[Studio, Path, Rewrite], None]
    parameters: Json = field(default_factory=dict)
    thread: str = ""
    """The public thread of a false alarm that this stages."""

    def verdict(self, studio: Studio, path: Path) -> tracekit.Verdict:
        """Record it and diff it against the reference."""
        self.record(studio, path, self)
        with (
            tracekit.open(studio.trace(self.setup, "reference")) as reference,
            tracekit.open(path) as candidate,
            tracekit.open(studio.trace(self.setup, "oracle")) as oracle,
        ):
            return tracekit.diff(reference, candidate, oracle)


def engine(studio: Studio, path: Path, rewrite: Rewrite) -> None:
    """The Rust engine, with more words on its command line."""
    setup = SETUPS[rewrite.setup]
    given = rewrite.parameters
    with _environment(studio, rewrite) if given.get("follows") else nullcontext():
        studio.native(setup, path, [], *given.get("words", ()), folder=given.get("folder"))


def pytorch(studio: Studio, path: Path, rewrite: Rewrite) -> None:
    """The PyTorch model with injections that change nothing but the order of operations."""
    setup, given = SETUPS[rewrite.setup], rewrite.parameters
    setup = replace(setup, settings={**setup.settings, **given.get("settings", {})}, **given.get("setup", {}))
    options = {"follow": studio.trace(rewrite.setup, "reference")} if given.get("follows") else {}
    studio.torch_run(setup, path, list(given.get("injections", ())), folder=given.get("folder"), **options)


@contextmanager
def _environment(studio: Studio, rewrite: Rewrite) -> Iterator[None]:
    """What `tracekit record --follow` tells a native program."""
    from tracekit.programs.native import write_tokens

    path = studio.scratch / f"{rewrite.setup}.{os.getpid()}.follow.tklog"
    with tracekit.open(studio.trace(rewrite.setup, "reference")) as trace:
        write_tokens(trace, path)
    os.environ["TRACEKIT_FOLLOW"] = str(path)
    try:
        yield
    finally:
        del os.environ["TRACEKIT_FOLLOW"]


# -------------------------------------------------------------------- other orders of the same operations


@injection("harmless: eager attention")
@contextmanager
def eager(model: Any, run: Run) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@injection("harmless: threads")
@contextmanager
def threads(model: Any, run: Run, count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Fused:
    """Queries, keys and values of one layer by one matmul, made when the first of the three is asked for."""

    def __init__(self, parts: list[Any]) -> None:
        self._matrix = torch.cat([part.weight for part in parts])
        self._bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
        self._sizes = [part.weight.shape[0] for part in parts]
        self._made: list[torch.Tensor] = []

    def part(self, index: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def give(x: torch.Tensor) -> torch.Tensor:
            if index == 0:
                self._made = list(functional.linear(x, self._matrix, self._bias).split(self._sizes, dim=-1))
            return self._made[index].contiguous()

        return give


@injection("harmless: fused qkv")
@contextmanager
def fused_qkv(model: Any, run: Run) -> Iterator[None]:
    """One matmul for queries, keys and values."""
    with ExitStack() as stack:
        for block in decoder_layers(model):
            parts = [getattr(block.self_attn, name) for name in ("q_proj", "k_proj", "v_proj")]
            fused = _Fused(parts)
            for index, part in enumerate(parts):
                stack.enter_context(attribute(part, "forward", fused.part(index)))
        yield


def _other_norm(norm: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def normed(x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        mean = torch.einsum("...i,...i->...", wide, wide)[..., None] / x.shape[-1]
        return (wide * (norm.weight.float() / (mean + norm.variance_epsilon).sqrt())).to(x.dtype)

    return normed


@injection("harmless: norm order")
@contextmanager
def norm_order(model: Any, run: Run) -> Iterator[None]:
    """x * (w * rsqrt(mean square)), and the mean as a dot product."""
    with ExitStack() as stack:
        for module in model.modules():
            if hasattr(module, "variance_epsilon"):
                stack.enter_context(attribute(module, "forward", _other_norm(module)))
        yield


@injection("harmless: upcast head")
@contextmanager
def upcast_head(model: Any, run: Run) -> Iterator[None]:
    """The logits head multiplies in float32 and rounds the result."""
    head = model.get_output_embeddings()
    wide = head.weight.detach().float()
    with forward(head, lambda _: lambda x: functional.linear(x.float(), wide).to(x.dtype)):
        yield


def _blockwise(module: Any, block: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def multiply(x: torch.Tensor) -> torch.Tensor:
        parts = zip(x.split(block, dim=-1), module.weight.split(block, dim=-1), strict=True)
        out = torch.stack([functional.linear(one.float(), other.float()) for one, other in parts]).sum(dim=0)
        return (out if module.bias is None else out + module.bias.float()).to(x.dtype)

    return multiply


@injection("harmless: matmul in blocks")
@contextmanager
def matmul_in_blocks(model: Any, run: Run, block: int) -> Iterator[None]:
    """Every linear layer sums its products in blocks of columns."""
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                stack.enter_context(attribute(module, "forward", _blockwise(module, block)))
        yield


@injection("harmless: temperature after log-softmax")
@contextmanager
def temperature_of_logprobs(model: Any, run: Run) -> Iterator[None]:
    """The temperature divides log-probabilities: the same distribution once it is normalised."""
    from transformers import TemperatureLogitsWarper

    def divide(self: Any, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(scores, dim=-1) / self.temperature

    with attribute(TemperatureLogitsWarper, "__call__", divide):
        yield


@injection("harmless: inference mode")
@contextmanager
def inference_mode(model: Any, run: Run) -> Iterator[None]:
    with torch.inference_mode():
        yield


def _variants(setup: str, *names: str) -> dict[str, Rewrite]:
    return {
        f"native, {name}" + (" (bfloat16)" if "bf16" in setup else ""): Rewrite(
            setup, engine, {"words": ("--variant", name)}
        )
        for name in names
    }


def _injected(setup: str, name: str, **parameters: Any) -> Rewrite:
    return Rewrite(setup, pytorch, {"injections": [(name, parameters)]})


REWRITES: dict[str, Rewrite] = {
    "native against PyTorch": Rewrite("smollm2", engine),
    "native against PyTorch, greedy": Rewrite("smollm2-greedy", engine),
    "native against PyTorch, bfloat16": Rewrite("smollm2-bf16", engine),
    "native against PyTorch, biases": Rewrite("qwen2", engine),
    "native against PyTorch, repetition penalty": Rewrite("qwen2-penalty", engine),
    "native, prefill in chunks of 3": Rewrite("smollm2", engine, {"words": ("--prefill-chunk", "3")}),
    "native, token by token": Rewrite("smollm2", engine, {"words": ("--prefill-chunk", "1")}),
    "native, token by token (bfloat16)": Rewrite("smollm2-bf16", engine, {"words": ("--prefill-chunk", "1")}),
    "native, followed": Rewrite("smollm2", engine, {"follows": True}),
    "native, followed (bfloat16)": Rewrite("smollm2-bf16", engine, {"follows": True}),
    **_variants(
        "smollm2",
        "fused-qkv",
        "fused-qkv-site",
        "fused-gate-up",
        "fused-gate-up-site",
        "online-softmax",
        "kv-repeat",
        "scale-queries",
        "rope-shift",
        "f64-rope-table",
        "norm-order",
        "matmul-transposed",
    ),
    **_variants("smollm2-bf16", "online-softmax", "kv-repeat", "upcast-head", "norm-order"),
    "PyTorch, prefill in chunks of 3": Rewrite("smollm2", pytorch, {"settings": {"prefill_chunk_size": 3}}),
    "PyTorch, token by token": Rewrite("smollm2", pytorch, {"settings": {"prefill_chunk_size": 1}}),
    "PyTorch, token by token (bfloat16)": Rewrite("smollm2-bf16", pytorch, {"settings": {"prefill_chunk_size": 1}}),
    "PyTorch, eager attention": _injected("smollm2", "harmless: eager attention"),
    "PyTorch, eager attention (bfloat16)": _injected("smollm2-bf16", "harmless: eager attention"),
    "PyTorch, eager attention, followed": Rewrite(
        "smollm2", pytorch, {"injections": [("harmless: eager attention", {})], "follows": True}
    ),
    "PyTorch, attention written out": _injected("smollm2", "core"),
    "PyTorch, online softmax": _injected("smollm2", "core", online=4),
    "PyTorch, online softmax (bfloat16)": _injected("smollm2-bf16", "core", online=4),
    "PyTorch, fused qkv": _injected("smollm2", "harmless: fused qkv"),
    "PyTorch, fused qkv with biases": _injected("qwen2", "harmless: fused qkv"),
    "PyTorch, norms in another order": _injected("smollm2", "harmless: norm order"),
    "PyTorch, matmuls in blocks": _injected("smollm2", "harmless: matmul in blocks", block=64),
    "PyTorch, matmuls in blocks (bfloat16)": _injected("smollm2-bf16", "harmless: matmul in blocks", block=96),
    "PyTorch, upcast head (bfloat16)": _injected("smollm2-bf16", "harmless: upcast head"),
    "PyTorch, 2 threads": _injected("smollm2", "harmless: threads", count=2),
    "PyTorch, inference mode": _injected("smollm2", "harmless: inference mode"),
    "PyTorch, batch of 3": Rewrite("smollm2-greedy", pytorch, {"setup": {"copies": 3}}),
    "PyTorch, batch of 2, left padding": Rewrite("smollm2-greedy", pytorch, {"setup": {"beside": (504, 1463)}}),
    "PyTorch, shards of safetensors": Rewrite("qwen2", pytorch, {"folder": "qwen2-shards"}),
    "PyTorch, weights of a .bin file": Rewrite("qwen2", pytorch, {"folder": "qwen2-bin"}),
    "native, shards of safetensors": Rewrite("qwen2", engine, {"folder": "qwen2-shards"}),
    "PyTorch, encoder, eager attention": _injected("encoder", "harmless: eager attention"),
    "PyTorch, encoder, matmuls in blocks": _injected("encoder", "harmless: matmul in blocks", block=16),
    # The false alarms that were reported as faults.
    "count of tokens after encoding the text again": Rewrite("smollm2", engine, thread="vllm-project/vllm#28172"),
    "both run on without an end": Rewrite("qwen2-long", engine, thread="Blaizzy/mlx-audio#921"),
    "no end token on either side": Rewrite(
        "qwen2-long",
        pytorch,
        {"injections": [("harmless: eager attention", {})]},
        thread="sgl-project/sglang-omni#1179",
    ),
    "sampled tokens of two devices": Rewrite("smollm2-hot-bf16", engine, thread="CrispStrobe/CrispASR#337"),
    "ties at the cut": Rewrite("smollm2-ties-bf16", engine, thread="tenstorrent/tt-metal#48222"),
    "temperature divides log-probabilities": Rewrite(
        "smollm2",
        pytorch,
        {"injections": [("harmless: temperature after log-softmax", {})]},
        thread="MoonshotAI/Kimi-Audio#161",
    ),
    "tokens agree, the fault comes after them": Rewrite("smollm2-greedy", engine, thread="0xShug0/audio.cpp#67"),
    "fault of another model": Rewrite("qwen2", engine, thread="Pushkinist/rMLX#373"),
}
