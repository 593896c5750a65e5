"""What each recorded site computes, from which other sites, and with which numbers.

Modules are read from their class and parameters; what lies between modules (residual sums, attention core, gate) from
the recipe of the Llama family, which also covers Mistral, Qwen2 and the CosyVoice3 language model. The numbers are from
the checkpoint's `config.json` as it declares them, not from what an engine says it used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tracekit.operations import ACTIVATIONS, Core, Rotary
from tracekit.trace import INPUT_SUFFIX, Json, Site, Trace, resolve

DECODERS = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "cosyvoice3")
"""`model_type` of the decoders whose layers are built as the recipe says."""
TOKEN_TABLES = ("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "speech_embedding")
"""Last name of an embedding that is looked up by token ids."""
LAYER = re.compile(r"(?P<layer>(?P<stem>(?:.*\.)?)layers\.(?P<index>\d+))\.input_layernorm$")


@dataclass(frozen=True)
class Recipe:
    """What one site computes. `stored` is where its value is: another site's where the run passed that very tensor on,
    which is how a residual that is dropped, or a layer that is skipped, shows."""

    site: str
    stored: str
    kind: str  # identity, embedding, linear, rms_norm, layer_norm, residual, gate, attention
    inputs: tuple[str, ...] = ()  # stored sites
    parameters: Mapping[str, str] = field(default_factory=dict)  # role -> name
    eps: float = 0.0
    plus_one: bool = False
    activation: str = "silu"
    core: Core | None = None


@dataclass(frozen=True)
class Recipes:
    """Recipes in execution order, and why the other stored sites have none."""

    known: tuple[Recipe, ...]
    unknown: Mapping[str, str]


def recipes(trace: Trace, declared: Json, wiring: Trace | None = None) -> Recipes:
    """Recipes of a trace's stored sites. `wiring`: another trace whose site table says what feeds what, where this
    one's does not."""
    book = _Book(trace, wiring)
    for site in trace.sites.values():
        book.add_module(site, declared)
    if book.is_decoder(declared):
        found = [match for match in map(LAYER.match, trace.sites) if match]
        for match in found:
            book.add_layer(match["layer"], match["stem"], int(match["index"]), declared)
        for stem in {match["stem"] for match in found}:
            last = max(int(match["index"]) for match in found if match["stem"] == stem)
            book.add_passing(f"{stem}norm:in", f"{stem}layers.{last}")
    known = sorted(book.known.values(), key=lambda recipe: order_of(trace, recipe.site))
    return Recipes(tuple(known), book.reasons())


def order_of(trace: Trace, name: str) -> int:
    """Where in a forward call a site comes; an input that is no row of the site table comes with its module."""
    row = trace.sites.get(name) or trace.sites.get(name.removesuffix(INPUT_SUFFIX))
    return 1 << 20 if row is None else row.order


class _Book:
    """Recipes while they are being collected."""

    def __init__(self, trace: Trace, wiring: Trace | None) -> None:
        self.trace, self.wiring = trace, wiring
        self.known: dict[str, Recipe] = {}
        self.why: dict[str, str] = {}
        self.stored = {name for sequence in trace.sequences for name in sequence.sites}

    def resolve(self, name: str) -> str | None:
        """The stored site of a name; by the other trace's wiring where this one does not say."""
        found = resolve(self.trace, name)
        if found is None and self.wiring is not None:
            other = resolve(self.wiring, name)
            found = None if other is None or other == "logits" else resolve(self.trace, other)
        return found if found == "logits" or found in self.stored else None

    def is_decoder(self, declared: Json) -> bool:
        return declared.get("model_type") in (None, *DECODERS)

    def reasons(self) -> dict[str, str]:
        """Sites that no recipe covers, and why."""
        covered = {recipe.stored for recipe in self.known.values()}
        out = {name: why for name, why in self.why.items() if name not in self.known}
        for name in sorted(self.stored - covered - out.keys()):
            site = self.trace.sites.get(name)
            kind = "input of a module" if name.endswith(INPUT_SUFFIX) else site.module_class if site else "site"
            out[name] = f"no recipe covers this {kind}"
        return out

    def add_module(self, site: Site, declared: Json) -> None:
        """A site whose class and parameters say what it computes."""
        stored = self.resolve(site.name)
        kind = _kind(site.module_class)
        if stored is None or kind is None or site.same_as is not None or "weight" not in site.parameters:
            return
        name = "logits" if stored == "logits" else site.name
        if kind == "embedding":
            if site.name.rsplit(".", 1)[-1] in TOKEN_TABLES:
                self.known[name] = Recipe(name, stored, kind, (), site.parameters)
            else:
                self.why[name] = "what it looks up is not recorded"
            return
        source = self.resolve(site.name + INPUT_SUFFIX)
        if source is None or source == "logits":
            self.why[name] = "its input is not recorded"
            return
        eps = _declared_eps(kind, site, declared)
        plus_one = site.module_class.startswith("Gemma")
        self.known[name] = Recipe(name, stored, kind, (source,), site.parameters, eps=eps, plus_one=plus_one)

    def add_layer(self, layer: str, stem: str, index: int, declared: Json) -> None:
        """Attention core, gate, the two sums of one decoder layer, and what is passed on between modules."""
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        self.add_passing(f"{layer}.input_layernorm:in", f"{stem}layers.{index - 1}" if index else f"{stem}embed_tokens")
        for part in ("q_proj", "k_proj", "v_proj"):
            self.add_passing(f"{attention}.{part}:in", f"{layer}.input_layernorm")
        for part in ("gate_proj", "up_proj"):
            self.add_passing(f"{mlp}.{part}:in", f"{layer}.post_attention_layernorm")
        stream = f"{layer}.post_attention_layernorm:in"
        self._add(stream, Recipe("", "", "residual"), f"{layer}.input_layernorm:in", f"{attention}.o_proj")
        self._add(layer, Recipe("", "", "residual"), stream, f"{mlp}.down_proj")
        activation = str(declared.get("hidden_act") or "silu")
        if activation in ACTIVATIONS:
            gate = Recipe("", "", "gate", activation=activation)
            self._add(f"{mlp}.down_proj:in", gate, f"{mlp}.gate_proj", f"{mlp}.up_proj")
        core = declared_core(declared, index)
        if core is None:
            self.why[f"{attention}.o_proj:in"] = "the checkpoint declares a rotary embedding that is not known"
        else:
            normed = resolve(self.trace, f"{attention}.q_norm") is not None
            names = ("q_norm", "k_norm", "v_proj") if normed else ("q_proj", "k_proj", "v_proj")
            parts = [f"{attention}.{part}" for part in names]
            self._add(f"{attention}.o_proj:in", Recipe("", "", "attention", core=core), *parts)

    def add_passing(self, name: str, source: str) -> None:
        """A module's input that the run holds apart from what it should be."""
        stored, expected = self.resolve(name), self.resolve(source)
        if stored is not None and expected is not None and stored != expected:
            self.known[name] = Recipe(name, stored, "identity", (expected,))

    def _add(self, name: str, recipe: Recipe, *inputs: str) -> None:
        stored, sources = self.resolve(name), [self.resolve(source) for source in inputs]
        if stored is None or stored == "logits":
            return
        found = tuple(source for source in sources if source is not None)
        if len(found) < len(inputs):
            self.why[name] = "not all of its inputs are recorded"
            return
        self.known[name] = replace(recipe, site=name, stored=stored, inputs=found)


def _kind(module_class: str) -> str | None:
    if module_class in ("Linear", "Embedding", "LayerNorm"):
        return {"Linear": "linear", "Embedding": "embedding", "LayerNorm": "layer_norm"}[module_class]
    return "rms_norm" if module_class.endswith("RMSNorm") else None


def _declared_eps(kind: str, site: Site, declared: Json) -> float:
    stated = site.attributes.get("eps", 1e-5)
    name = {"rms_norm": "rms_norm_eps", "layer_norm": "layer_norm_eps"}.get(kind, "")
    return float(declared.get(name) or stated)


def declared_core(declared: Json, layer: int) -> Core | None:
    """The attention core that a `config.json` declares for a layer; None where its rotary embedding is not known."""
    heads = int(declared.get("num_attention_heads") or 0)
    if not heads:
        return None
    head_dim = int(declared.get("head_dim") or int(declared["hidden_size"]) // heads)
    rotary = declared_rotary(declared, head_dim)
    try:
        rotary.frequencies()
    except (KeyError, TypeError, ValueError):
        return None
    return Core(
        heads=heads,
        kv_heads=int(declared.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        rotary=rotary,
        scale=1.0 / math.sqrt(head_dim),
        window=_declared_window(declared, layer),
    )


def declared_rotary(declared: Json, head_dim: int) -> Rotary:
    """Rotary numbers of a `config.json` of transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`)."""
    rope = declared.get("rope_parameters") or {}
    scaling = {**(declared.get("rope_scaling") or {}), **rope}
    theta = float(scaling.pop("rope_theta", None) or declared.get("rope_theta") or 10000.0)
    partial = float(scaling.pop("partial_rotary_factor", None) or declared.get("partial_rotary_factor") or 1.0)
    return Rotary(theta, int(head_dim * partial), tuple(sorted(scaling.items())))


def _declared_window(declared: Json, layer: int) -> int | None:
    window = declared.get("sliding_window")
    if not window or declared.get("use_sliding_window") is False:
        return None
    kinds = declared.get("layer_types")
    if isinstance(kinds, list) and layer < len(kinds):
        return int(window) if kinds[layer] == "sliding_attention" else None
    if declared.get("model_type") == "qwen2":
        if not declared.get("use_sliding_window"):
            return None
        return int(window) if layer >= int(declared.get("max_window_layers") or 0) else None
    return int(window)
