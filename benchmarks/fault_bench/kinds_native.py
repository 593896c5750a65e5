"""Kinds of faults that the Rust engine injects itself: `tracekit-native --fault`."""

from __future__ import annotations

from benchmarks.fault_bench.fault import Expected, Fault, layer
from benchmarks.fault_bench.kinds import Dice, core, gated, kind

FLOAT32 = ("smollm2", "qwen2")
DECODERS = ("smollm2", "qwen2", "smollm2-bf16")


def planted(dice: Dice, expected: Expected, *words: object) -> Fault:
    """A fault of the engine."""
    return Fault("native", dice.setup, ":".join(map(str, words)), {}, expected)


def at_core(dice: Dice, name: str, *words: object, **more: object) -> Fault:
    """A fault of a layer's attention core."""
    at = dice.layer()
    return planted(dice, layer(core(at), **more), name, *words, at)  # type: ignore[arg-type]


@kind("native: gain of a linear layer", "native", *FLOAT32)
def gain_linear(dice: Dice) -> Fault:
    site = dice.linear()
    return planted(dice, layer(site), "gain", site, dice.rng.choice([1.01, 1.001, 1.0001]))


@kind("native: gain of a norm", "native", *FLOAT32)
def gain_norm(dice: Dice) -> Fault:
    site = dice.norm()
    return planted(dice, layer(site), "gain", site, dice.rng.choice([1.01, 1.001, 1.0001]))


@kind("native: gain between modules", "native", *FLOAT32)
def gain_between(dice: Dice) -> Fault:
    at = dice.layer()
    site = dice.rng.choice([core(at), gated(at), f"model.layers.{at}"])
    return planted(dice, layer(site), "gain", site, dice.rng.choice([1.01, 1.001, 1.0001]))


@kind("native: gain in bfloat16", "native", "smollm2-bf16")
def gain_bf16(dice: Dice) -> Fault:
    site = dice.linear()
    return planted(dice, layer(site), "gain", site, dice.rng.choice([1.01, 0.99, 1.02]))


@kind("native: offset", "native", *FLOAT32)
def offset(dice: Dice) -> Fault:
    site = dice.linear()
    return planted(dice, layer(site), "offset", site, dice.rng.choice([0.01, -0.001]))


@kind("native: one weight", "native", *FLOAT32)
def one_weight(dice: Dice) -> Fault:
    site = dice.linear()
    return planted(dice, layer(site), "weight-add", site, *dice.entry(site), 0.01)


@kind("native: transposed weight", "native", *DECODERS)
def transposed(dice: Dice) -> Fault:
    site = f"model.layers.{dice.layer()}.self_attn.{dice.rng.choice(['q_proj', 'o_proj'])}"
    return planted(dice, layer(site), "transpose-weight", site)


@kind("native: weights rounded", "native", *FLOAT32)
def rounded_weights(dice: Dice) -> Fault:
    site = dice.linear()
    return planted(dice, layer(site), dice.rng.choice(["weights-f16", "weights-bf16"]), site)


@kind("native: rows permuted", "native", *DECODERS)
def permuted_rows(dice: Dice) -> Fault:
    site = f"model.layers.{dice.layer()}.self_attn.{dice.rng.choice('qk')}_proj"
    return planted(dice, layer(site), "permuted-rows", site)


@kind("native: bias", "native", "qwen2")
def bias(dice: Dice) -> Fault:
    site = f"model.layers.{dice.layer()}.self_attn.{dice.rng.choice('qkv')}_proj"
    return planted(dice, layer(site), dice.rng.choice(["missing-bias", "double-bias"]), site)


@kind("native: norm weight plus one", "native", *DECODERS)
def plus_one(dice: Dice) -> Fault:
    site = dice.norm()
    return planted(dice, layer(site), "norm-plus-one", site)


@kind("native: norm eps of a norm", "native", *FLOAT32)
def eps_at(dice: Dice) -> Fault:
    site = dice.norm()
    return planted(dice, layer(site), "norm-eps", dice.rng.choice(["1e-6", "1e-4"]), site)


@kind("native: norm eps", "native", "smollm2")
def eps_everywhere(dice: Dice) -> Fault:
    return planted(dice, Expected(("config",), ("model.layers.0.input_layernorm",)), "norm-eps", "1e-6")


@kind("native: rotary theta", "native", "smollm2")
def theta(dice: Dice) -> Fault:
    return planted(dice, Expected(("config",), (core(0),)), "rope-theta", dice.rng.choice([10000, 20000, 500000]))


@kind("native: rotary theta of a layer", "native", *FLOAT32)
def theta_at(dice: Dice) -> Fault:
    return at_core(dice, "rope-theta", dice.rng.choice([1000, 500000, 1000000]))


@kind("native: rotary layout", "native", *DECODERS)
def rotary_layout(dice: Dice) -> Fault:
    return at_core(dice, *dice.rng.choice([("rope-interleaved",), ("rope-partial", 0.5), ("rope-linear", 2)]))


@kind("native: rotary table in short formats", "native", *FLOAT32)
def rotary_table(dice: Dice) -> Fault:
    return at_core(dice, dice.rng.choice(["rope-f16", "rope-frequencies-f16", "rope-angles-f16", "rope-angles-bf16"]))


@kind("native: rotary offset", "native", *DECODERS)
def rotary_offset(dice: Dice) -> Fault:
    return at_core(dice, "rope-offset", dice.rng.choice([1, 2]))


@kind("native: rotary at decode", "native", *DECODERS)
def rotary_decode(dice: Dice) -> Fault:
    return at_core(dice, "rope-decode-zero", step=1, at_position=True)


@kind("native: keys unrotated", "native", *DECODERS)
def keys_unrotated(dice: Dice) -> Fault:
    return at_core(dice, "rope-k-unrotated")


@kind("native: attention scale", "native", *FLOAT32)
def attention_scale(dice: Dice) -> Fault:
    return at_core(dice, "attention-scale", dice.rng.choice([1.01, 0.99, 1.001]))


@kind("native: softcap", "native", *FLOAT32)
def softcap(dice: Dice) -> Fault:
    return at_core(dice, "softcap", dice.rng.choice([20, 50]))


@kind("native: mask", "native", *DECODERS)
def mask(dice: Dice) -> Fault:
    return at_core(dice, dice.rng.choice(["mask-future", "mask-past"]))


@kind("native: mask of decoding", "native", *DECODERS)
def decoding_mask(dice: Dice) -> Fault:
    return at_core(dice, "mask-decode", dice.rng.choice([1, 2, 4]), step=1, at_position=True)


@kind("native: low-rank update", "native", *FLOAT32)
def low_rank(dice: Dice) -> Fault:
    site = dice.linear()
    return planted(dice, layer(site), "weight-low-rank", site, dice.rng.choice([1, 2, 4]), dice.rng.choice([0.1, 0.01]))


@kind("native: window", "native", *DECODERS)
def window(dice: Dice) -> Fault:
    return at_core(dice, "window", dice.rng.choice([4, 8]), step=None)


@kind("native: heads", "native", *DECODERS)
def heads(dice: Dice) -> Fault:
    return at_core(dice, dice.rng.choice(["kv-head-map", "swap-heads", "swap-kv"]))


@kind("native: attention in float16", "native", *FLOAT32)
def short_attention(dice: Dice) -> Fault:
    return at_core(dice, dice.rng.choice(["attention-scores-f16", "softmax-f16"]))


@kind("native: cache", "native", *DECODERS)
def cache(dice: Dice) -> Fault:
    name = dice.rng.choice(["stale-cache-row", "overwritten-cache-row", "cache-hole"])
    step, at = dice.step(), dice.layer()
    return planted(dice, layer(core(at), step=step, at_position=True), name, step, at)


@kind("native: gated activation", "native", *DECODERS)
def activation(dice: Dice) -> Fault:
    at = dice.layer()
    return planted(dice, layer(gated(at)), dice.rng.choice(["swap-gate-up", "gelu", "gelu-tanh"]), at)


@kind("native: layer skipped", "native", *DECODERS)
def skipped(dice: Dice) -> Fault:
    at = dice.layer(first=1)
    return planted(dice, layer(f"model.layers.{at}"), "skip-layer", at)


@kind("native: residual", "native", *DECODERS)
def residual(dice: Dice) -> Fault:
    at, which = dice.layer(), dice.rng.choice(["attn", "mlp", "parallel"])
    if which == "mlp":
        return planted(dice, layer(f"model.layers.{at}"), "drop-residual", at, "mlp")
    middle = f"model.layers.{at}.post_attention_layernorm:in"
    if which == "attn":
        return planted(dice, layer(middle), "drop-residual", at, "attn")
    return planted(dice, layer(middle), "parallel-residual", at)


@kind("native: embedding or head", "native", *FLOAT32)
def embedding_or_head(dice: Dice) -> Fault:
    which = dice.rng.choice(["embed-scale", "head-scale", "final-softcap", "logits-f16"])
    if which == "embed-scale":
        sites: tuple[str, ...] = ("model.embed_tokens", "model.layers.0.input_layernorm:in")
    else:
        sites = ("logits",)
    return planted(dice, layer(*sites), which)


FILTER = Expected(("filter",), ("survivors",), None)


@kind("native: top-p not as stated", "native", *FLOAT32)
def top_p(dice: Dice) -> Fault:
    return planted(dice, FILTER, "top-p", dice.rng.choice([0.8, 0.9, 0.99]))


@kind("native: filter rule", "native", *FLOAT32)
def filter_rule(dice: Dice) -> Fault:
    rules = [
        "temperature-after-top-p",
        "top-p-before-top-k",
        "top-k-off-by-one",
        "top-k-strict",
        "top-p-drops-crossing",
    ]
    return planted(dice, FILTER, dice.rng.choice(rules))


@kind("native: settings not applied", "native", *FLOAT32)
def settings_not_applied(dice: Dice) -> Fault:
    names = ["wrong-default-top-k", "temperature-ignored", "swapped-temperature-top-p"]
    return planted(dice, FILTER, dice.rng.choice(names))


@kind("native: penalty", "native", "qwen2-penalty")
def penalty(dice: Dice) -> Fault:
    names = ["penalty-squared", "penalty-divides-negative", "penalty-inverted-sign", "penalty-generated-only"]
    names += ["penalty-stale", "penalty-window:4", "penalty-per-occurrence", "penalty-ignored"]
    return planted(dice, FILTER, dice.rng.choice(names))


@kind("native: other race", "native", *FLOAT32)
def other_race(dice: Dice) -> Fault:
    name = dice.rng.choice(["inverse-cdf", "uniform-for-exponential", "compact-draw"])
    return planted(dice, Expected(("sampler", "rng"), ("draws", "token"), None), name)


@kind("native: seed", "native", *FLOAT32)
def seed(dice: Dice) -> Fault:
    return planted(dice, Expected(("rng",), ("draws",)), "seed", dice.rng.choice([1, 5, -1]))


@kind("native: draws", "native", *FLOAT32)
def draws(dice: Dice) -> Fault:
    name = dice.rng.choice(["seed-each-step", "extra-draw"])
    if name == "seed-each-step":
        return planted(dice, Expected(("rng",), ("draws",), 1), name)
    step = dice.step()
    return planted(dice, Expected(("rng",), ("draws",), step), name, step)


@kind("native: stops", "native", *FLOAT32)
def stops(dice: Dice) -> Fault:
    step = dice.unseen_before
    if dice.rng.choice([True, False]):
        return planted(dice, Expected(("stop",), ("stop",), step + 1), "stop-early", step)
    return planted(dice, Expected(("stop",), ("stop",), step + 1), "wrong-eos", dice.tokens[step])


@kind("native: prompt", "native", *FLOAT32)
def prompt(dice: Dice) -> Fault:
    return planted(dice, Expected(("input",), ("prompt/token_ids",)), "bos-twice")
