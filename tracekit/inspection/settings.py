"""What a trace and a checkpoint's configuration state of a model and its sampler, in one spelling."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tracekit.trace import Json, Trace

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads")
"""What two descriptions of one model agree on."""


EPS_SETTINGS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")

MODEL_SETTINGS = (
    "rope_theta",
    "rope_scaling",
    *EPS_SETTINGS,
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


Setting: TypeAlias = bool | int | float | str | Sequence["Setting"] | Mapping[str, "Setting"] | None
"""What a configuration may state: a number, a word, a list (of stop tokens) or a table (of rotary scaling)."""


@dataclass(frozen=True)
class Difference:
    """A setting that the two sides state differently."""

    name: str
    reference: Setting
    candidate: Setting


def declared_differences(declared: Json, trace: Trace) -> list[Difference]:
    """Hyper-parameters that a checkpoint's `config.json` declares and the engine says it used otherwise."""
    used = in_effect(trace.config.get("model") or {}, declared)
    plain = as_used(declared)
    return [
        Difference(f"model.{name}", plain[name], used[name])
        for name in MODEL_SETTINGS
        if name in plain and name in used
        if not same_setting(plain_setting(f"model.{name}", plain[name]), plain_setting(f"model.{name}", used[name]))
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
    parameters = plain.pop("rope_parameters", None)
    rope = dict(parameters) if isinstance(parameters, dict) else {}
    if rope:
        plain.setdefault("rope_theta", rope.pop("rope_theta", None))
        plain.setdefault("rope_scaling", rope if rope.get("rope_type", "default") != "default" else None)
    heads, width = plain.get("num_attention_heads"), plain.get("hidden_size") or 0
    if heads:
        plain.setdefault("num_key_value_heads", heads)
        if isinstance(heads, int) and isinstance(width, int):
            plain.setdefault("head_dim", width // heads)
    if "use_sliding_window" in plain:
        plain.setdefault("sliding_window", None)
    plain = in_effect(plain, {})
    return {
        name: value for name, value in plain.items() if value is not None or name in ("rope_scaling", "sliding_window")
    }


def plain_setting(name: str, value: Setting) -> Setting:
    """One spelling for what means the same: 7 and [7], no scaling and default scaling."""
    if name.endswith("eos_token_id"):
        return sorted(value) if isinstance(value, list) else [value]
    if name == "model.rope_scaling" and isinstance(value, dict):
        if value.get("rope_type", value.get("type")) in (None, "default"):
            return None
        return {key: number for key, number in value.items() if key not in ("type", "rope_theta")}
    return value


def same_setting(one: Setting, other: Setting) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float) and one != other:
        # A number that went through float32 on one side still is the same setting.
        with contextlib.suppress(OverflowError):  # an integer beyond all floats
            return abs(one - other) <= 1e-6 * max(abs(one), abs(other))
    return bool(one == other)
