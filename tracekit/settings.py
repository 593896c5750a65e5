"""What the two sides state of themselves: settings and weight digests, and where they differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tracekit.trace import Json, Trace

NEUTRAL: Json = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
}
"""What a sampling setting is where it is not given."""

FILTER_SETTINGS = (*NEUTRAL, "do_sample", "no_repeat_ngram_size")
REPETITION_SETTINGS = ("win_size", "tau_r")
"""Of CosyVoice's sampler: when a token is drawn again from everything."""
STOP_SETTINGS = (
    "max_new_tokens",
    "min_new_tokens",
    "max_length",
    "min_length",
    "eos_token_id",
    "min_len",
    "max_len",
    "stop_token_ids",
)
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads")
"""What two descriptions of one model agree on."""
MODEL_SETTINGS = (
    "rope_theta",
    "rope_scaling",
    "rms_norm_eps",
    "hidden_act",
    "head_dim",
    "num_key_value_heads",
    "intermediate_size",
    "tie_word_embeddings",
    "sliding_window",
)


SWITCHES: dict[str, tuple[bool, tuple[str, ...]]] = {
    "use_sliding_window": (False, ("sliding_window", "max_window_layers")),
}
"""Setting that turns others off -> its value that does, and those."""
ONLY_SAMPLED = ("temperature", "top_k", "top_p", "min_p", "typical_p")
"""Sampling settings that greedy decoding does not apply."""


@dataclass(frozen=True)
class Difference:
    """A setting that the two sides state differently."""

    name: str
    reference: Any
    candidate: Any


def config_differences(reference: Trace, candidate: Trace) -> list[Difference]:
    """Settings that differ: dtype, seed, sampling and lengths, and the model's hyper-parameters as used."""
    ours, theirs = reference.config, candidate.config
    pairs = [("dtype", ours.get("dtype"), theirs.get("dtype")), ("seed", _seed(reference), _seed(candidate))]
    one, other = _sampling(reference), _sampling(candidate)
    greedy = one.get("do_sample") is False and other.get("do_sample") is False
    for name in (*(() if greedy else (*FILTER_SETTINGS, *REPETITION_SETTINGS)), *STOP_SETTINGS):
        if one and other and (name in NEUTRAL or (name in one and name in other)):
            pairs.append((name, one.get(name), other.get(name)))
    stated = ours.get("model") or {}, theirs.get("model") or {}
    models = in_effect(stated[0], stated[1]), in_effect(stated[1], stated[0])
    pairs += [
        (f"model.{name}", models[0][name], models[1][name])
        for name in MODEL_SETTINGS
        if name in models[0] and name in models[1]
    ]
    if "eos_token_id" in models[0] and "eos_token_id" in models[1] and "eos_token_id" not in one:
        pairs.append(("model.eos_token_id", models[0]["eos_token_id"], models[1]["eos_token_id"]))
    return [
        Difference(name, first, second)
        for name, first, second in pairs
        if not _same(_plain(name, first), _plain(name, second))
        and not (name in ("dtype", "seed") and None in (first, second))
    ]


def _seed(trace: Trace) -> int | None:
    return trace.sequences[0].seed if trace.sequences else None


def _sampling(trace: Trace) -> Json:
    return trace.sequences[0].sampling if trace.sequences else {}


def _plain(name: str, value: Any) -> Any:
    """One spelling for what means the same: missing and neutral, 7 and [7], no scaling and default scaling."""
    if name in NEUTRAL and value in (None, NEUTRAL[name]):
        return NEUTRAL[name]
    if name.endswith("eos_token_id"):
        return sorted(value) if isinstance(value, list) else [value]
    if name == "model.rope_scaling" and isinstance(value, dict):
        if value.get("rope_type", value.get("type")) in (None, "default"):
            return None
        return {key: number for key, number in value.items() if key not in ("type", "rope_theta")}
    return value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        # A number that went through float32 on one side still is the same setting.
        return abs(one - other) <= 1e-6 * max(abs(one), abs(other))
    return bool(one == other)


def weight_differences(reference: Trace, candidate: Trace) -> list[str]:
    """Parameters of the same name, dtype and shape whose bytes differ, unless one side stores them transposed."""
    out = []
    transposed = _stored_transposed(reference) ^ _stored_transposed(candidate)
    for name, weight in reference.weights.items():
        other = candidate.weights.get(name)
        if other is None or None in (weight.digest, other.digest) or name in transposed:
            continue
        if (weight.dtype, weight.shape) == (other.dtype, other.shape) and weight.digest != other.digest:
            out.append(name)
    return out


def _stored_transposed(trace: Trace) -> set[str]:
    """Weights of transformers' `Conv1D`, [inputs, outputs] where a linear layer's is [outputs, inputs]."""
    return {
        parameter
        for site in trace.sites.values()
        if site.module_class == "Conv1D"
        for role, parameter in site.parameters.items()
        if role == "weight"
    }


def declared_differences(declared: Json, trace: Trace) -> list[Difference]:
    """Hyper-parameters that a checkpoint's `config.json` declares and the engine says it used otherwise."""
    used = in_effect(trace.config.get("model") or {}, declared)
    plain = as_used(declared)
    return [
        Difference(f"model.{name}", plain[name], used[name])
        for name in MODEL_SETTINGS
        if name in plain and name in used
        if not _same(_plain(f"model.{name}", plain[name]), _plain(f"model.{name}", used[name]))
    ]


def other_sizes(declared: Json, trace: Trace) -> str | None:
    """How a checkpoint's `config.json` declares another model than the trace's, or None: `hidden_size 576, not 64`."""
    used = trace.config.get("model") or {}
    apart = (name for name in SIZES if name in declared and name in used and declared[name] != used[name])
    return next((f"{name} {declared[name]}, not {used[name]}" for name in apart), None)


def in_effect(model: Json, other: Json) -> Json:
    """`model` with None for what a switch of its own turns off; a switch that it does not state is that of `other`, a
    description of the same model."""
    out = dict(model)
    for switch, (off, names) in SWITCHES.items():
        if model.get(switch, other.get(switch)) is off:
            out |= {name: None for name in names if name in out}
    return out


def as_used(declared: Json) -> Json:
    """A `config.json` of transformers 4 or 5 in the words that traces use: theta and scaling apart, defaults there."""
    plain = dict(declared)
    rope = dict(plain.pop("rope_parameters", None) or {})
    if rope:
        plain.setdefault("rope_theta", rope.pop("rope_theta", None))
        plain.setdefault("rope_scaling", rope if rope.get("rope_type", "default") != "default" else None)
    heads = plain.get("num_attention_heads")
    if heads:
        plain.setdefault("num_key_value_heads", heads)
        plain.setdefault("head_dim", int(plain.get("hidden_size") or 0) // int(heads))
    if "use_sliding_window" in plain:
        plain.setdefault("sliding_window", None)
    plain = in_effect(plain, {})
    return {
        name: value for name, value in plain.items() if value is not None or name in ("rope_scaling", "sliding_window")
    }
