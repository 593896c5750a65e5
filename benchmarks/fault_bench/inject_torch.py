"""Faults in the layers of a PyTorch model: what each computes, wherever the model is a decoder or an encoder.

Every injection is a context manager `(model, run, **parameters)` that changes the live model and puts it back. It
changes what the program computes, not what is recorded: forwards are replaced, so that the recorder's hooks see inputs
and outputs as those of a program that is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from tracekit_torch.adapters.causal_calls import CACHE_NAMES, cache_length

from benchmarks.fault_bench.attention import written_out
from benchmarks.fault_bench.patching import Run, attribute, forward

Injection = Callable[..., AbstractContextManager[None]]
INJECTIONS: dict[str, Injection] = {}


def injection(name: str) -> Callable[[Injection], Injection]:
    """Registers an injection under the name that faults give."""

    def register(make: Injection) -> Injection:
        INJECTIONS[name] = make
        return make

    return register


def decoder_layers(model: Any) -> list[Any]:
    """The decoder's or encoder's blocks."""
    if hasattr(model, "encoder"):
        return list(model.encoder.layer)
    return list(model.model.layers)


def _attentions(model: Any) -> list[Any]:
    return [getattr(block, "self_attn", None) or block.attention.self for block in decoder_layers(model)]


# -------------------------------------------------------------------- one module


@injection("gain")
@contextmanager
def gain(model: Any, run: Run, site: str, factor: float) -> Iterator[None]:
    """A value times a factor: a module's output, or with `:in` its input."""
    if site.endswith(":in"):
        module = model.get_submodule(site.removesuffix(":in"))
        handle = module.register_forward_pre_hook(lambda _, args: (args[0] * factor, *args[1:]))
        try:
            yield
        finally:
            handle.remove()
        return

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def scaled(*args: Any, **kwargs: Any) -> Any:
            out = original(*args, **kwargs)
            return (out[0] * factor, *out[1:]) if isinstance(out, tuple) else out * factor

        return scaled

    with forward(model.get_submodule(site), make):
        yield


@injection("weight")
@contextmanager
def weight(model: Any, run: Run, site: str, row: int, column: int, delta: float) -> Iterator[None]:
    """One entry of a matrix is off, in what is multiplied; the parameter that was loaded is right."""
    module = model.get_submodule(site)
    wrong = module.weight.detach().clone()
    wrong[row, column] += delta
    with forward(module, lambda _: lambda x: functional.linear(x, wrong, module.bias)):
        yield


@injection("weight-in-memory")
@contextmanager
def weight_in_memory(model: Any, run: Run, site: str, row: int, column: int, delta: float) -> Iterator[None]:
    """One entry of a parameter is off, and so are the bytes that the program states."""
    parameter = model.get_submodule(site).weight
    right = parameter.detach().clone()
    with torch.no_grad():
        parameter[row, column] += delta
    try:
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(right)


@injection("bias-dropped")
@contextmanager
def bias_dropped(model: Any, run: Run, site: str) -> Iterator[None]:
    module = model.get_submodule(site)
    with forward(module, lambda _: lambda x: functional.linear(x, module.weight)):
        yield


@injection("bias-twice")
@contextmanager
def bias_twice(model: Any, run: Run, site: str) -> Iterator[None]:
    """A bias that every rank adds before the sum over ranks."""
    module = model.get_submodule(site)
    with forward(module, lambda original: lambda x: original(x) + module.bias):
        yield


@injection("transposed")
@contextmanager
def transposed(model: Any, run: Run, site: str) -> Iterator[None]:
    """A square matrix the wrong way round."""
    module = model.get_submodule(site)
    with forward(module, lambda _: lambda x: functional.linear(x, module.weight.T, module.bias)):
        yield


@injection("rows-permuted")
@contextmanager
def rows_permuted(model: Any, run: Run, site: str, heads: int) -> Iterator[None]:
    """Output rows of a projection permuted from half-split to interleaved rotary order, for `heads` heads."""
    module = model.get_submodule(site)

    def mix(rows: torch.Tensor) -> torch.Tensor:
        return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)

    matrix = mix(module.weight.detach())
    bias = None if module.bias is None else mix(module.bias.detach())
    with forward(module, lambda _: lambda x: functional.linear(x, matrix, bias)):
        yield


@injection("wrong-weights")
@contextmanager
def wrong_weights(model: Any, run: Run, site: str, other: str) -> Iterator[None]:
    """A linear layer multiplies by another's weights."""
    module, source = model.get_submodule(site), model.get_submodule(other)
    with forward(module, lambda _: lambda x: functional.linear(x, source.weight, source.bias)):
        yield


@injection("random-head")
@contextmanager
def random_head(model: Any, run: Run, site: str) -> Iterator[None]:
    """A matrix that was never loaded."""
    module = model.get_submodule(site)
    drawn = torch.randn(module.weight.shape, generator=torch.Generator().manual_seed(1)) * 0.02
    with forward(module, lambda _: lambda x: functional.linear(x, drawn.to(x.dtype), module.bias)):
        yield


# -------------------------------------------------------------------- norms


@injection("eps")
@contextmanager
def eps(model: Any, run: Run, site: str, value: float) -> Iterator[None]:
    module = model.get_submodule(site)
    name = next(name for name in ("variance_epsilon", "eps") if hasattr(module, name))
    with attribute(module, name, value):
        yield


@injection("eps-everywhere")
@contextmanager
def eps_everywhere(model: Any, run: Run, value: float) -> Iterator[None]:
    with ExitStack() as stack:
        for site, module in model.named_modules():
            if hasattr(module, "variance_epsilon") or isinstance(module, nn.LayerNorm):
                stack.enter_context(eps(model, run, site, value))
        yield


@injection("norm-plus-one")
@contextmanager
def norm_plus_one(model: Any, run: Run, site: str, amount: float = 1.0) -> Iterator[None]:
    """A norm's scale is 1 + w where w is meant (or, with -1, the reverse)."""
    module = model.get_submodule(site)
    gemma = type(module).__name__.startswith("Gemma")  # its weight is stored less 1
    scale = module.weight.detach() + amount + (1.0 if gemma else 0.0)
    small = module.eps if hasattr(module, "eps") else module.variance_epsilon

    def norm(x: torch.Tensor) -> torch.Tensor:
        if isinstance(module, nn.LayerNorm):
            return functional.layer_norm(x, module.normalized_shape, scale, module.bias, module.eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + small)
        return scale * wide.to(x.dtype)

    with forward(module, lambda _: norm):
        yield


@injection("norm-skipped")
@contextmanager
def norm_skipped(model: Any, run: Run, site: str) -> Iterator[None]:
    with forward(model.get_submodule(site), lambda _: lambda x: x.clone()):
        yield


@injection("norm-mean")
@contextmanager
def norm_mean(model: Any, run: Run, site: str) -> Iterator[None]:
    """A layer norm where a root-mean-square norm is meant."""
    module = model.get_submodule(site)
    with forward(
        module,
        lambda _: lambda x: functional.layer_norm(x, (x.shape[-1],), module.weight, None, module.variance_epsilon),
    ):
        yield


@injection("norm-keeps-float32")
@contextmanager
def norm_keeps_float32(model: Any, run: Run, site: str) -> Iterator[None]:
    """The rounding to 16 bits comes after the multiplication by the weight instead of before."""
    module = model.get_submodule(site)

    def norm(x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
        return (module.weight.float() * wide).to(x.dtype)

    with forward(module, lambda _: norm):
        yield


# -------------------------------------------------------------------- rotary


def _at_attention(model: Any, layer: int | None, change: Callable[..., dict[str, Any]]) -> ExitStack:
    """Change the keyword arguments of attention modules: `change(module, arguments)` gives those to replace."""
    stack = ExitStack()
    for index, module in enumerate(_attentions(model)):
        if layer is None or layer == index:

            def make(original: Callable[..., Any], module: Any = module) -> Callable[..., Any]:
                return lambda *args, **kwargs: original(*args, **(kwargs | change(module, kwargs)))

            stack.enter_context(forward(module, make))
    return stack


def _tables(model: Any, frequencies: torch.Tensor, positions: torch.Tensor, like: torch.Tensor) -> Any:
    angles = positions[..., None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    scaling = model.model.rotary_emb.attention_scaling
    return (angles.cos() * scaling).to(like.dtype), (angles.sin() * scaling).to(like.dtype)


def _frequencies(model: Any, theta: float) -> torch.Tensor:
    size = 2 * model.model.rotary_emb.inv_freq.numel()
    return 1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.float) / size))


@injection("rope-theta")
@contextmanager
def rope_theta(model: Any, run: Run, theta: float, layer: int | None = None) -> Iterator[None]:
    wrong = _frequencies(model, theta)

    def change(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        return {"position_embeddings": _tables(model, wrong, given["position_ids"], given["position_embeddings"][0])}

    with _at_attention(model, layer, change):
        yield


@injection("rope-theta-stated")
@contextmanager
def rope_theta_stated(model: Any, run: Run, theta: float) -> Iterator[None]:
    """As `rope-theta` everywhere, by the model's own configuration, which the trace states."""
    parameters = dict(model.config.rope_parameters) | {"rope_theta": theta}
    rotary = model.model.rotary_emb
    with (
        attribute(model.config, "rope_parameters", parameters),
        rope_theta(model, run, theta),
    ):
        assert rotary is not None
        yield


@injection("rope-table")
@contextmanager
def rope_table(model: Any, run: Run, dtype: str, layer: int | None = None) -> Iterator[None]:
    """Cosines and sines rounded to a short format."""
    low: torch.dtype = getattr(torch, dtype)

    def change(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        return {"position_embeddings": tuple(x.to(low).to(x.dtype) for x in given["position_embeddings"])}

    with _at_attention(model, layer, change):
        yield


@injection("rope-angles")
@contextmanager
def rope_angles(model: Any, run: Run, dtype: str, layer: int | None = None) -> Iterator[None]:
    """The product of position and frequency rounded to a short format before the cosine."""
    low: torch.dtype = getattr(torch, dtype)
    rotary = model.model.rotary_emb

    def change(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        like = given["position_embeddings"][0]
        angles = (given["position_ids"][..., None].to(low) * rotary.inv_freq.to(low)).float()
        angles = torch.cat((angles, angles), dim=-1)
        return {"position_embeddings": (angles.cos().to(like.dtype), angles.sin().to(like.dtype))}

    with _at_attention(model, layer, change):
        yield


@injection("rope-offset")
@contextmanager
def rope_offset(
    model: Any, run: Run, layer: int | None = None, by: int = 1, calls: str = "decode", absolute: bool = False
) -> Iterator[None]:
    """Positions of generated tokens are off by some, or (`absolute`) all the same; those of the prompt are right."""
    rotary = model.model.rotary_emb

    def change(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        positions = given["position_ids"]
        if calls == "decode" and positions.shape[-1] > 1:
            return {}
        moved = torch.zeros_like(positions) if absolute else (positions + by).clamp(min=0)
        return {"position_embeddings": _tables(model, rotary.inv_freq, moved, given["position_embeddings"][0])}

    with _at_attention(model, layer, change):
        yield


@injection("rope-frequencies")
@contextmanager
def rope_frequencies(model: Any, run: Run, layer: int | None = None, **settings: Any) -> Iterator[None]:
    """Frequencies of another scaling: `factor` divides them all; `plain` drops the scaling that is configured."""
    rotary = model.model.rotary_emb
    plain = _frequencies(model, model.config.rope_parameters["rope_theta"])
    wrong = plain if settings.get("plain") else rotary.inv_freq / torch.tensor(settings.get("factor", 1.0))
    if "divide" in settings:  # by frequency, as LongRoPE does
        wrong = plain / torch.tensor(settings["divide"])

    def change(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        return {"position_embeddings": _tables(model, wrong, given["position_ids"], given["position_embeddings"][0])}

    with _at_attention(model, layer, change):
        yield


@injection("rope-factor")
@contextmanager
def rope_factor(model: Any, run: Run, factor: float, layer: int | None = None) -> Iterator[None]:
    """Cosines and sines times a factor (an attention factor that is left out, or applied twice)."""
    with _at_attention(
        model, layer, lambda _, given: {"position_embeddings": tuple(x * factor for x in given["position_embeddings"])}
    ):
        yield


def _interleaved(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *_: Any, **__: Any) -> Any:
    half = cos.shape[-1] // 2
    cos, sin = (table.unsqueeze(1)[..., :half].repeat_interleave(2, dim=-1) for table in (cos, sin))
    turned = [torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2) for x in (q, k)]
    return q * cos + turned[0] * sin, k * cos + turned[1] * sin


def _mixed(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *_: Any, **__: Any) -> Any:
    """Tables laid out in halves, the rotation by adjacent pairs."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    turned = [torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2) for x in (q, k)]
    return q * cos + turned[0] * sin, k * cos + turned[1] * sin


def _halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _partial(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *_: Any, **__: Any) -> Any:
    """Only the first half of each head is rotated, with the first half of the frequencies."""
    size = q.shape[-1] // 2
    index = torch.cat((torch.arange(size // 2), torch.arange(size // 2)))
    cos, sin = cos.unsqueeze(1)[..., index], sin.unsqueeze(1)[..., index]
    return tuple(torch.cat((_halves(x[..., :size], cos, sin), x[..., size:]), dim=-1) for x in (q, k))


def _backwards(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *_: Any, **__: Any) -> Any:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _halves(q, cos, -sin), _halves(k, cos, -sin)


def _keys_unrotated(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *_: Any, **__: Any) -> Any:
    return _halves(q, cos.unsqueeze(1), sin.unsqueeze(1)), k


ROTATIONS = {
    "interleaved": _interleaved,
    "mixed": _mixed,
    "partial": _partial,
    "backwards": _backwards,
    "keys-unrotated": _keys_unrotated,
}


@injection("rope-layout")
@contextmanager
def rope_layout(model: Any, run: Run, layout: str, layer: int | None = None, calls: str = "all") -> Iterator[None]:
    """Another way to rotate."""
    modeling = sys.modules[type(_attentions(model)[0]).__module__]
    wrong = ROTATIONS[layout]

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def attend(*args: Any, **kwargs: Any) -> Any:
            if calls == "prefill" and kwargs["position_ids"].shape[-1] == 1:
                return original(*args, **kwargs)
            with attribute(modeling, "apply_rotary_pos_emb", wrong):
                return original(*args, **kwargs)

        return attend

    with ExitStack() as stack:
        for index, module in enumerate(_attentions(model)):
            if layer is None or layer == index:
                stack.enter_context(forward(module, make))
        yield


# -------------------------------------------------------------------- attention core and cache


@injection("rope-whole")
@contextmanager
def rope_whole(model: Any, run: Run) -> Iterator[None]:
    """The whole of each head is rotated where only a part should be."""
    attentions = _attentions(model)
    theta, size = model.config.rope_parameters["rope_theta"], attentions[0].head_dim
    frequencies = 1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.float) / size))

    def change(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        like = given["position_embeddings"][0]
        return {"position_embeddings": _tables(model, frequencies, given["position_ids"], like)}

    with ExitStack() as stack:
        for module in attentions:
            stack.enter_context(attribute(module, "rotary_ndims", size))
        stack.enter_context(_at_attention(model, None, change))
        yield


@injection("core")
@contextmanager
def attention_core(model: Any, run: Run, layer: int | None = None, **options: Any) -> Iterator[None]:
    """The attention core with options of `attention.core`; without any, another order of the same operations."""
    with written_out(_attentions(model)[0], layer, **options):
        yield


class _Cache:
    """A cache whose rows are wrong once an update has written them."""

    def __init__(self, cache: Any, spoil: Callable[[torch.Tensor], None]) -> None:
        self._cache = cache
        self._spoil = spoil

    def update(self, *args: Any, **kwargs: Any) -> Any:
        keys, values = self._cache.update(*args, **kwargs)
        self._spoil(keys)
        self._spoil(values)
        return keys, values

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def _spoilt(model: Any, layer: int, spoil: Callable[[torch.Tensor], None]) -> ExitStack:
    def change(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        name = next(name for name in CACHE_NAMES if name in given)
        return {name: _Cache(given[name], spoil)}

    return _at_attention(model, layer, change)


@injection("cache-stale")
@contextmanager
def cache_stale(model: Any, run: Run, layer: int, step: int) -> Iterator[None]:
    """At a step the new row is not written: it holds what the row before it holds."""
    positions = len(run.ids[0]) + step

    def spoil(rows: torch.Tensor) -> None:
        if rows.shape[2] == positions:
            rows[:, :, -1] = rows[:, :, -2]

    with _spoilt(model, layer, spoil):
        yield


@injection("cache-overwritten")
@contextmanager
def cache_overwritten(model: Any, run: Run, layer: int, step: int, row: int) -> Iterator[None]:
    """At a step the new row is written over an older one as well."""
    positions = len(run.ids[0]) + step

    def spoil(rows: torch.Tensor) -> None:
        if rows.shape[2] == positions:
            rows[:, :, row] = rows[:, :, -1]

    with _spoilt(model, layer, spoil):
        yield


@injection("cache-blank")
@contextmanager
def cache_blank(model: Any, run: Run, layer: int, step: int, rows: int = 1) -> Iterator[None]:
    """From a step on the first rows of the cache hold nothing."""
    positions = len(run.ids[0]) + step

    def spoil(values: torch.Tensor) -> None:
        if values.shape[2] >= positions:
            values[:, :, :rows] = 0

    with _spoilt(model, layer, spoil):
        yield


@injection("cache-window-row")
@contextmanager
def cache_window_row(model: Any, run: Run, layer: int, step: int) -> Iterator[None]:
    """From a step on, the oldest row of a sliding window is the newest one."""
    calls = [0]

    def spoil(rows: torch.Tensor) -> None:
        calls[0] += 1
        if calls[0] > 2 * step:  # keys and values, once a call
            rows[:, :, 0] = rows[:, :, -1]

    with _spoilt(model, layer, spoil):
        yield


@injection("shared-positions")
@contextmanager
def shared_positions(model: Any, run: Run) -> Iterator[None]:
    """All rows of a left-padded batch count their positions from the batch's first column."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def run_all(*args: Any, **kwargs: Any) -> Any:
            ids, first = (*args, kwargs.get("input_ids"))[0], cache_length(kwargs)
            positions = torch.arange(first, first + ids.shape[1])[None].expand(ids.shape[0], -1)
            return original(*args, **(kwargs | {"position_ids": positions}))

        return run_all

    with forward(model.base_model, make):
        yield


@injection("alibi-slopes")
@contextmanager
def alibi_slopes(model: Any, run: Run) -> Iterator[None]:
    """One geometric series also where the number of heads is no power of two."""
    modeling = sys.modules[type(model).__module__]

    def slopes(heads: int, device: Any) -> torch.Tensor:
        return torch.tensor([2.0 ** (-8.0 * (index + 1) / heads) for index in range(heads)], device=device)

    with attribute(modeling, "_get_alibi_slopes", slopes):
        yield


# -------------------------------------------------------------------- MLP and block


def _gated(module: Any, swap: bool, clamp: float | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    def mlp(x: torch.Tensor) -> torch.Tensor:
        gate, up = module.gate_proj(x), module.up_proj(x)
        gate, up = (up, gate) if swap else (gate, up)
        inner = module.act_fn(gate) * up
        if clamp is not None:
            inner = inner.clamp(-clamp, clamp)
        return module.down_proj(inner)  # type: ignore[no-any-return]

    return mlp


@injection("gate-up-swapped")
@contextmanager
def gate_up_swapped(model: Any, run: Run, layer: int) -> Iterator[None]:
    module = decoder_layers(model)[layer].mlp
    with forward(module, lambda _: _gated(module, swap=True)):
        yield


@injection("gate-up-interleaved")
@contextmanager
def gate_up_interleaved(model: Any, run: Run, layer: int) -> Iterator[None]:
    """A fused projection's output split by even and odd columns where it lies in halves."""
    module = decoder_layers(model)[layer].mlp

    def mlp(x: torch.Tensor) -> torch.Tensor:
        fused = torch.cat((module.gate_proj(x), module.up_proj(x)), dim=-1)
        return module.down_proj(module.act_fn(fused[..., ::2]) * fused[..., 1::2])  # type: ignore[no-any-return]

    with forward(module, lambda _: mlp):
        yield


@injection("clamped")
@contextmanager
def clamped(model: Any, run: Run, layer: int, limit: float) -> Iterator[None]:
    """The gated activation is clamped on one side only of the two."""
    module = decoder_layers(model)[layer].mlp
    with forward(module, lambda _: _gated(module, swap=False, clamp=limit)):
        yield


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


@injection("activation")
@contextmanager
def activation(model: Any, run: Run, layer: int, name: str) -> Iterator[None]:
    block = decoder_layers(model)[layer]
    owner, field = (block.mlp, "act_fn") if hasattr(block, "mlp") else (block.intermediate, "intermediate_act_fn")
    wrong = ACTIVATIONS[name]
    if isinstance(getattr(owner, field), nn.Module):
        with forward(getattr(owner, field), lambda _: wrong):
            yield
    else:
        with attribute(owner, field, wrong):
            yield


@injection("layer-skipped")
@contextmanager
def layer_skipped(model: Any, run: Run, layer: int) -> Iterator[None]:
    with forward(decoder_layers(model)[layer], lambda _: lambda hidden, *args, **kwargs: hidden):
        yield


@injection("layer-repeated")
@contextmanager
def layer_repeated(model: Any, run: Run, layer: int) -> Iterator[None]:
    """A layer runs with the weights of the one before it."""
    blocks = decoder_layers(model)
    with ExitStack() as stack:
        for name, module in blocks[layer].named_modules():
            if isinstance(module, nn.Linear):
                source = blocks[layer - 1].get_submodule(name)
                stack.enter_context(
                    forward(module, lambda _, s=source: lambda x: functional.linear(x, s.weight, s.bias))
                )
        yield


@injection("residual-dropped")
@contextmanager
def residual_dropped(model: Any, run: Run, layer: int, which: str) -> Iterator[None]:
    """`attention` or `mlp`: what the block adds replaces the residual stream."""
    block = decoder_layers(model)[layer]
    with forward(block, lambda _: _block(block, which)):
        yield


def _block(block: Any, wrong: str) -> Callable[..., torch.Tensor]:
    def run_block(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        before = hidden
        if wrong == "norm-overwrites":
            before = hidden = block.input_layernorm(hidden)
        else:
            hidden = block.input_layernorm(hidden)
        attended, _ = block.self_attn(*args, hidden_states=hidden, **kwargs)
        middle = attended if wrong == "attention" else before + attended
        if wrong == "parallel":
            return before + attended + block.mlp(block.post_attention_layernorm(before))  # type: ignore[no-any-return]
        out = block.mlp(block.post_attention_layernorm(middle))
        return out if wrong == "mlp" else middle + out  # type: ignore[no-any-return]

    return run_block


# -------------------------------------------------------------------- embedding and head


@injection("logits-cast")
@contextmanager
def logits_cast(model: Any, run: Run, dtype: str) -> Iterator[None]:
    low: torch.dtype = getattr(torch, dtype)
    with forward(model.get_output_embeddings(), lambda original: lambda x: original(x).to(low).to(x.dtype)):
        yield


@injection("head-row")
@contextmanager
def head_row(model: Any, run: Run) -> Iterator[None]:
    """In the prefill the head reads the hidden state one row too early."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def run_all(*args: Any, **kwargs: Any) -> Any:
            out = original(*args, **kwargs)
            if out.last_hidden_state.shape[1] > 1:
                out.last_hidden_state = out.last_hidden_state.roll(1, dims=1)
            return out

        return run_all

    with forward(model.base_model, make):
        yield


@injection("linear-in")
@contextmanager
def linear_in(model: Any, run: Run, site: str, dtype: str) -> Iterator[None]:
    """A matmul ignores the precision that was asked for."""
    module, low = model.get_submodule(site), getattr(torch, dtype)
    bias = None if module.bias is None else module.bias.to(low)
    matrix = module.weight.detach().to(low)
    with forward(module, lambda _: lambda x: functional.linear(x.to(low), matrix, bias).to(x.dtype)):
        yield


@injection("zero-point")
@contextmanager
def zero_point(model: Any, run: Run, site: str) -> Iterator[None]:
    """Every weight is one quantisation step too large."""
    module = model.get_submodule(site)
    matrix = module.weight.detach() + module.weight.detach().abs().amax(dim=1, keepdim=True) / 7
    with forward(module, lambda _: lambda x: functional.linear(x, matrix, module.bias)):
        yield


@injection("position-embedding-offset")
@contextmanager
def position_embedding_offset(model: Any, run: Run, by: int) -> Iterator[None]:
    """Learned positions counted from `by`."""
    table = next(module for name, module in model.named_modules() if name.endswith(("position_embeddings", "wpe")))
    with forward(table, lambda original: lambda ids: original(ids + by)):
        yield
