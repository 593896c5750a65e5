"""Kinds of faults that the harness injects into PyTorch models."""

from __future__ import annotations

from typing import Any

from benchmarks.fault_bench.fault import Expected, Fault, layer
from benchmarks.fault_bench.kinds import Dice, core, gated, kind
from benchmarks.fault_bench.setups import SETUPS

FLOAT32 = ("smollm2", "qwen2")
DECODERS = ("smollm2", "qwen2", "smollm2-bf16")


def planted(
    dice: Dice, name: str, expected: Expected, twin: dict[str, Any] | None = None, /, **parameters: Any
) -> Fault:
    """A fault of the PyTorch side."""
    return Fault("torch", dice.setup, name, parameters, expected, twin)


# -------------------------------------------------------------------- modules


@kind("gain of a linear layer", "torch", *FLOAT32)
def gain_linear(dice: Dice) -> Fault:
    site = dice.linear()
    factor = dice.rng.choice([1.01, 1.001, 1.0001])
    return planted(dice, "gain", layer(site), site=site, factor=factor)


@kind("gain of a norm", "torch", *FLOAT32)
def gain_norm(dice: Dice) -> Fault:
    site = dice.rng.choice([dice.norm(), "model.norm"])
    factor = dice.rng.choice([1.01, 1.001, 0.9999])
    return planted(dice, "gain", layer(site), site=site, factor=factor)


@kind("gain of the embedding", "torch", *FLOAT32)
def gain_embedding(dice: Dice) -> Fault:
    site = "model.embed_tokens"
    factor = dice.rng.choice([1.01, 1.0001])
    return planted(dice, "gain", layer(site), site=site, factor=factor)


@kind("gain between modules", "torch", *FLOAT32)
def gain_between(dice: Dice) -> Fault:
    at = dice.layer()
    site = dice.rng.choice([core(at), gated(at)])
    factor = dice.rng.choice([1.01, 1.001, 1.0001])
    return planted(dice, "gain", layer(site), site=site, factor=factor)


@kind("gain in bfloat16", "torch", "smollm2-bf16")
def gain_bf16(dice: Dice) -> Fault:
    site = dice.linear()
    return planted(dice, "gain", layer(site), site=site, factor=dice.rng.choice([1.01, 0.99, 1.02]))


@kind("gain in the encoder", "torch", "encoder")
def gain_encoder(dice: Dice) -> Fault:
    site = dice.encoder_linear()
    factor = dice.rng.choice([1.01, 1.001, 1.0001])
    return planted(dice, "gain", layer(site), site=site, factor=factor)


@kind("one weight", "torch", *FLOAT32)
def one_weight(dice: Dice) -> Fault:
    site = dice.linear()
    row, column = dice.entry(site)
    return planted(dice, "weight", layer(site), site=site, row=row, column=column, delta=dice.rng.choice([0.01, -0.01]))


@kind("one weight of the encoder", "torch", "encoder")
def one_weight_encoder(dice: Dice) -> Fault:
    site = dice.encoder_linear("attention.self.query", "attention.self.value", "attention.output.dense")
    row, column = dice.entry(site)
    return planted(dice, "weight", layer(site), site=site, row=row, column=column, delta=0.01)


@kind("one weight as loaded", "torch", *FLOAT32)
def one_loaded_weight(dice: Dice) -> Fault:
    site = dice.linear()
    row, column = dice.entry(site)
    expected = Expected(("weights",), (site,))
    return planted(dice, "weight-in-memory", expected, site=site, row=row, column=column, delta=0.01)


@kind("bias dropped", "torch", "qwen2")
def no_bias(dice: Dice) -> Fault:
    site = f"model.layers.{dice.layer()}.self_attn.{dice.rng.choice('qkv')}_proj"
    return planted(dice, dice.rng.choice(["bias-dropped", "bias-twice"]), layer(site), site=site)


@kind("bias dropped in the encoder", "torch", "encoder")
def no_bias_encoder(dice: Dice) -> Fault:
    site = dice.encoder_linear()
    return planted(dice, "bias-dropped", layer(site), site=site)


@kind("norm eps", "torch", *FLOAT32)
def norm_eps(dice: Dice) -> Fault:
    site = dice.norm()
    return planted(dice, "eps", layer(site), site=site, value=dice.rng.choice([1e-6, 1e-4]))


@kind("norm eps of the encoder", "torch", "encoder")
def norm_eps_encoder(dice: Dice) -> Fault:
    site = f"encoder.layer.{dice.layer()}.{dice.rng.choice(['attention.output', 'output'])}.LayerNorm"
    return planted(dice, "eps", layer(site), site=site, value=dice.rng.choice([1e-5, 1e-6]))


@kind("norm weight plus one", "torch", *DECODERS, "encoder")
def plus_one(dice: Dice) -> Fault:
    encoder = f"encoder.layer.{dice.layer()}.output.LayerNorm"
    site = encoder if dice.setup == "encoder" else dice.norm()
    return planted(dice, "norm-plus-one", layer(site), site=site)


@kind("transposed weight", "torch", *DECODERS)
def transposed(dice: Dice) -> Fault:
    site = f"model.layers.{dice.layer()}.self_attn.{dice.rng.choice(['q_proj', 'o_proj'])}"
    return planted(dice, "transposed", layer(site), site=site)


@kind("transposed weight in the encoder", "torch", "encoder")
def transposed_encoder(dice: Dice) -> Fault:
    site = dice.encoder_linear("attention.self.query", "attention.self.key", "attention.output.dense")
    return planted(dice, "transposed", layer(site), site=site)


@kind("q and k swapped", "torch", "encoder")
def swapped_projections(dice: Dice) -> Fault:
    block = f"encoder.layer.{dice.layer()}.attention.self"
    pair = dice.rng.choice([("query", "key"), ("key", "query"), ("value", "key")])
    return planted(
        dice, "wrong-weights", layer(f"{block}.{pair[0]}"), site=f"{block}.{pair[0]}", other=f"{block}.{pair[1]}"
    )


@kind("rows of q or k permuted", "torch", "smollm2")
def permuted(dice: Dice) -> Fault:
    which, heads = dice.rng.choice([("q_proj", dice.shape.heads), ("k_proj", dice.shape.kv_heads)])
    site = f"model.layers.{dice.layer()}.self_attn.{which}"
    return planted(dice, "rows-permuted", layer(site), site=site, heads=heads)


# -------------------------------------------------------------------- rotary


@kind("rotary theta of a layer", "torch", *FLOAT32)
def theta_at(dice: Dice) -> Fault:
    at, theta = dice.layer(), dice.rng.choice([1000.0, 500000.0, 1000000.0])
    return planted(dice, "rope-theta", layer(core(at)), layer=at, theta=theta)


@kind("rotary theta", "torch", *FLOAT32)
def theta_everywhere(dice: Dice) -> Fault:
    theta = dice.rng.choice([1000.0, 20000.0, 500000.0])
    return planted(dice, "rope-theta", layer(core(0)), theta=theta)


@kind("rotary theta as stated", "torch", "smollm2")
def theta_stated(dice: Dice) -> Fault:
    return planted(dice, "rope-theta-stated", Expected(("config",), (core(0),)), theta=10000.0)


@kind("rotary layout", "torch", *DECODERS)
def rotary_layout(dice: Dice) -> Fault:
    at, layout = dice.layer(), dice.rng.choice(["interleaved", "mixed", "backwards", "keys-unrotated", "partial"])
    return planted(dice, "rope-layout", layer(core(at)), layout=layout, layer=at)


@kind("rotary table in float16", "torch", *FLOAT32)
def rotary_table(dice: Dice) -> Fault:
    at = dice.rng.choice([None, dice.layer()])
    dtype = dice.rng.choice(["float16", "bfloat16"])
    return planted(dice, "rope-table", layer(core(at or 0)), dtype=dtype, layer=at)


@kind("rotary position off by one", "torch", *DECODERS)
def rotary_offset(dice: Dice) -> Fault:
    at = dice.layer()
    return planted(
        dice, "rope-offset", layer(core(at), step=1, at_position=True), layer=at, by=dice.rng.choice([1, -1])
    )


# -------------------------------------------------------------------- attention core and cache


@kind("attention scale", "torch", *FLOAT32)
def attention_scale(dice: Dice) -> Fault:
    at, scale = dice.layer(), dice.rng.choice([1.01, 0.99, 1.001, 8.0])
    return planted(dice, "core", layer(core(at)), {"layer": at}, layer=at, scale=scale)


@kind("mask off by one", "torch", *DECODERS)
def mask_off(dice: Dice) -> Fault:
    at, future = dice.layer(), dice.rng.choice([1, -1])
    if future == 1:
        return planted(dice, "core", layer(core(at)), {"layer": at}, layer=at, future=1)
    return planted(dice, "core", layer(core(at)), {"layer": at}, layer=at, lost_rows=1)


@kind("window end", "torch", "mistral")
def window_end(dice: Dice) -> Fault:
    at = dice.layer()
    return planted(dice, "core", layer(core(at)), {"layer": at}, layer=at, window_end=dice.rng.choice([1, -1]))


@kind("KV-head map", "torch", *DECODERS)
def kv_map(dice: Dice) -> Fault:
    at, heads = dice.layer(), dice.rng.choice(["repeated", "one-late"])
    return planted(dice, "core", layer(core(at)), {"layer": at}, layer=at, heads=heads)


@kind("softmax in float16", "torch", *FLOAT32)
def short_softmax(dice: Dice) -> Fault:
    at = dice.layer()
    return planted(dice, "core", layer(core(at)), {"layer": at}, layer=at, softmax="float16")


@kind("stale cache row", "torch", *DECODERS)
def stale_row(dice: Dice) -> Fault:
    at, step = dice.layer(), dice.step()
    return planted(dice, "cache-stale", layer(core(at), step=step, at_position=True), layer=at, step=step)


@kind("overwritten cache row", "torch", *DECODERS)
def overwritten_row(dice: Dice) -> Fault:
    at, step, row = dice.layer(), dice.step(), dice.rng.randrange(2, 7)
    expected = layer(core(at), step=step, at_position=True)
    return planted(dice, "cache-overwritten", expected, layer=at, step=step, row=row)


# -------------------------------------------------------------------- MLP and block


@kind("gate and up swapped", "torch", *DECODERS)
def swapped_gate(dice: Dice) -> Fault:
    at = dice.layer()
    return planted(dice, "gate-up-swapped", layer(gated(at)), layer=at)


@kind("activation", "torch", *DECODERS)
def wrong_activation(dice: Dice) -> Fault:
    at = dice.layer()
    return planted(
        dice, "activation", layer(gated(at)), layer=at, name=dice.rng.choice(["gelu_tanh", "gelu", "quick_gelu"])
    )


@kind("tanh GELU in the encoder", "torch", "encoder")
def tanh_gelu(dice: Dice) -> Fault:
    at = dice.layer()
    sites = (f"encoder.layer.{at}.output.dense:in", f"encoder.layer.{at}.intermediate")
    return planted(dice, "activation", layer(*sites), layer=at, name="gelu_tanh")


@kind("layer skipped", "torch", *DECODERS)
def skipped(dice: Dice) -> Fault:
    at = dice.layer(first=1)
    return planted(dice, "layer-skipped", layer(f"model.layers.{at}"), layer=at)


@kind("residual dropped", "torch", *DECODERS)
def no_residual(dice: Dice) -> Fault:
    at, which = dice.layer(), dice.rng.choice(["attention", "mlp"])
    site = f"model.layers.{at}" + (".post_attention_layernorm:in" if which == "attention" else "")
    return planted(dice, "residual-dropped", layer(site), layer=at, which=which)


@kind("logits cast to float16", "torch", *FLOAT32)
def cast_logits(dice: Dice) -> Fault:
    return planted(dice, "logits-cast", layer("logits"), dtype=dice.rng.choice(["float16", "bfloat16"]))


# -------------------------------------------------------------------- sampler, draws, stop


FILTER = Expected(("filter",), ("survivors",), None)


@kind("temperature after top-p", "torch", "smollm2", "qwen2-penalty")
def temperature_last(dice: Dice) -> Fault:
    return planted(dice, "order", FILTER, words=["TopK", "TopP", "Temperature"])


@kind("top-k off by one", "torch", "smollm2-top-k", "qwen2")
def top_k_off(dice: Dice) -> Fault:
    return planted(
        dice,
        "value",
        FILTER,
        word="TopK",
        name="top_k",
        to=dice.studio.run(SETUPS[dice.setup]).settings["top_k"] + dice.rng.choice([1, -1]),
    )


@kind("top-k strict", "torch", "smollm2-top-k", "smollm2-ties-bf16")
def top_k_strict(dice: Dice) -> Fault:
    return planted(dice, "top-k-strict", FILTER)


@kind("top-p rule", "torch", *FLOAT32)
def top_p_rule(dice: Dice) -> Fault:
    return planted(dice, "top-p-rule", FILTER, which=dice.rng.choice(["crossing-dropped", "one-more", "unnormalised"]))


@kind("penalty rule", "torch", "qwen2-penalty")
def penalty_rule(dice: Dice) -> Fault:
    rules = ["generated-only", "stale", "twice", "divides", "reversed", "counted"]
    return planted(dice, "penalty-rule", FILTER, which=dice.rng.choice(rules))


@kind("penalty window", "torch", "qwen2-penalty")
def penalty_window(dice: Dice) -> Fault:
    return planted(dice, "penalty-rule", FILTER, which="window", window=dice.rng.choice([4, 8, 10]))


@kind("inverse CDF", "torch", *FLOAT32)
def inverse_cdf(dice: Dice) -> Fault:
    return planted(dice, "inverse-cdf", Expected(("sampler",), ("draws",)))


@kind("seed plus one", "torch", *FLOAT32)
def other_seed(dice: Dice) -> Fault:
    return planted(dice, "seed", Expected(("config", "rng"), ("draws",)), delta=dice.rng.choice([1, -1, 1000]))


@kind("one extra draw", "torch", *FLOAT32)
def extra_draw(dice: Dice) -> Fault:
    step = dice.rng.choice([0, dice.step()])
    return planted(
        dice, "extra-draw", Expected(("rng",), ("draws",), step, True), step=step, count=dice.rng.choice([1, 2])
    )


@kind("words used before", "torch", *FLOAT32)
def words_used(dice: Dice) -> Fault:
    return planted(dice, "words-used", Expected(("rng",), ("draws",)), count=dice.rng.choice([1, 100]))


@kind("wrong eos", "torch", *FLOAT32)
def wrong_eos(dice: Dice) -> Fault:
    step = dice.unseen_before
    return planted(dice, "stops", Expected(("stop",), ("stop",), step + 1), token=dice.tokens[step])


@kind("wrong eos as stated", "torch", *FLOAT32)
def stated_eos(dice: Dice) -> Fault:
    step = dice.unseen_before
    return planted(dice, "settings", Expected(("config",), ("stop",), step + 1), eos_token_id=dice.tokens[step])


@kind("prompt", "torch", *FLOAT32)
def other_prompt(dice: Dice) -> Fault:
    with_bos = dice.rng.choice([True, False])
    ids = dice.studio.run(SETUPS[dice.setup]).ids[0]
    wrong = [ids[0], *ids] if with_bos else [*ids[:3], *ids[4:]]
    return planted(dice, "prompt", Expected(("input",), ("prompt/token_ids",)), ids=wrong)
