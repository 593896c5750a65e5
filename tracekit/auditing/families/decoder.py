"""Decoders with the modules of Llama: the settings that they share, and the operations of one layer."""

from __future__ import annotations

import re
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from tracekit.auditing.activations import ACTIVATIONS
from tracekit.auditing.families.family import Family, beyond
from tracekit.auditing.not_audited import Lacks, NotAudited
from tracekit.auditing.operations.attention_core import Attention, Core
from tracekit.auditing.operations.embedding_table import Embedding
from tracekit.auditing.operations.gate import Gate
from tracekit.auditing.operations.norms import RmsNorm
from tracekit.auditing.operations.operation import Operation
from tracekit.auditing.operations.residual_sum import ResidualSum
from tracekit.auditing.rotary import Rotary, scaling_of
from tracekit.trace import INPUT_SUFFIX, Json, Site, resolve

if TYPE_CHECKING:
    from tracekit.auditing.recipe import Book

LAYER = re.compile(r"(?P<layer>(?P<stem>(?:.*\.)?)layers\.(?P<index>\d+))\.")
WINDOWED = frozenset({"sliding_window", "use_sliding_window", "layer_types", "max_window_layers"})
EXPERTS = frozenset(
    {
        *("num_experts", "num_local_experts", "num_experts_per_tok", "norm_topk_prob", "decoder_sparse_step"),
        *("moe_intermediate_size", "mlp_only_layers", "shared_expert_intermediate_size", "router_jitter_noise"),
    }
)
"""Settings of experts, which no recipe recomputes: what they give is taken as recorded."""

ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "rotary_emb"})
HEAD_NORMS = frozenset({"q_norm", "k_norm"})
FEED_FORWARD = frozenset({"gate_proj", "up_proj", "down_proj", "gate_up_proj"})
EVERY_COLUMN: tuple[tuple[int, int], ...] = ()


class Norms(Enum):
    """Where a layer's norms stand."""

    BEFORE = "before each block"  # Llama
    AROUND = "before and after each block"  # Gemma 2
    AFTER = "after each block"  # OLMo 2


LAYER_NORMS = {
    Norms.BEFORE: frozenset({"input_layernorm", "post_attention_layernorm"}),
    Norms.AROUND: frozenset(
        {
            *("input_layernorm", "post_attention_layernorm"),
            *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
        }
    ),
    Norms.AFTER: frozenset({"post_attention_layernorm", "post_feedforward_layernorm"}),
}


class Decoder(Family):
    """A decoder with Llama's modules. A family of this kin overrides what it does in another way."""

    norms: ClassVar[Norms] = Norms.BEFORE
    normed_heads: ClassVar[bool] = False
    """Whether queries and keys are normed before they are rotated."""
    plus_one: ClassVar[bool] = False
    """Whether the norms multiply by 1 + weight."""
    usual_activation: ClassVar[str] = "silu"
    """The gate's activation where none is declared."""

    def wire(self, book: Book) -> None:
        found = {match["layer"]: match for match in map(LAYER.match, book.trace.sites) if match}
        for layer, match in found.items():
            if f"{layer}.self_attn" in book.blocks:
                DecoderLayer(self, book, layer, match["stem"], int(match["index"])).add()

    # ---------------------------------------------------------------- modules

    def norm(self, site: Site, declared: Json, one_added: bool) -> Operation | NotAudited | None:
        layer = LAYER.match(site.name)
        inside = site.name[layer.end() :] if layer else site.name.rsplit(".", 1)[-1]
        names = LAYER_NORMS[self.norms] | {"norm"}
        if self.normed_heads:
            names = names | {f"self_attn.{norm}" for norm in HEAD_NORMS}
        if inside not in names or set(site.parameters) != {"weight"}:
            return None
        eps = declared.get("rms_norm_eps") or site.attributes.get("eps")
        return NotAudited(Lacks.EPS) if eps is None else RmsNorm(float(eps), self.plus_one and not one_added)

    # ---------------------------------------------------------------- numbers

    def activation(self, declared: Json) -> str | None:
        """The gate's activation; None where it is not known."""
        said = str(declared.get("hidden_activation") or declared.get("hidden_act") or self.usual_activation)
        return said if said in ACTIVATIONS else None

    def residual_factor(self, declared: Json) -> float:
        """What a block's output is multiplied by before it is added to the stream."""
        return 1.0

    def is_rotated(self, declared: Json, layer: int) -> bool:
        """Whether a layer has a rotary embedding."""
        return True

    def scale(self, declared: Json, head_dim: int) -> float:
        """Factor on the scores."""
        return float(float(head_dim) ** -0.5)

    def score_cap(self, declared: Json) -> float | None:
        """Soft cap of the scores."""
        return None

    def usual_kind(self, declared: Json, layer: int) -> str | None:
        """`sliding_attention` or `full_attention` where `config.json` has no `layer_types`; None where all layers are
        alike."""
        return None

    def unlisted_window(self, declared: Json, layer: int) -> int | None:
        """The sliding window of a layer whose kind is not declared. Raises KeyError where it is not known."""
        if not declared.get("use_sliding_window"):
            return None
        raise KeyError("layer_types")

    def local_theta(self, declared: Json) -> float | None:
        """The rotary theta of layers with a sliding window, where they have their own."""
        return None

    def layer_kind(self, declared: Json, layer: int) -> str | None:
        """`sliding_attention` or `full_attention`; None where all layers are alike."""
        kinds = declared.get("layer_types")
        if isinstance(kinds, list) and layer < len(kinds):
            return str(kinds[layer])
        return self.usual_kind(declared, layer)

    def window(self, declared: Json, layer: int) -> int | None:
        """Positions that a query of a layer sees, itself included; None where it sees all before it."""
        window = declared.get("sliding_window")
        if not window or declared.get("use_sliding_window") is False:
            return None
        kind = self.layer_kind(declared, layer)
        if kind is None:
            return self.unlisted_window(declared, layer)
        return int(window) if kind == "sliding_attention" else None

    def core(self, declared: Json, layer: int, positions: int = 0, prompt: int = 0) -> Core | None:
        """The attention core of a layer; None where its rotary embedding is not known, or not for a run of as many
        positions, the shortest prompt of so many."""
        heads = int(declared.get("num_attention_heads") or 0)
        if not heads or not (declared.get("head_dim") or declared.get("hidden_size")):
            return None
        head_dim = int(declared.get("head_dim") or int(declared["hidden_size"]) // heads)
        rotated = self.is_rotated(declared, layer)
        try:
            rotary = self.rotary(declared, head_dim, layer)
            rotary.frequencies()
            window = self.window(declared, layer)
            longest = int(declared.get("max_position_embeddings") or 1 << 62)
            if rotary.kind == "dynamic" and positions > longest:
                return None  # frequencies then depend on the length
            if rotary.kind == "longrope":
                first = int(dict(rotary.scaling)["original_max_position_embeddings"])
                rotary = replace(rotary, long=prompt > first)
                if prompt <= first < positions:
                    return None  # keys of the cache were rotated by others
        except (KeyError, TypeError, ValueError):
            return None
        return Core(
            heads=heads,
            kv_heads=int(declared.get("num_key_value_heads") or heads),
            head_dim=head_dim,
            rotary=rotary,
            scale=self.scale(declared, head_dim),
            window=window,
            softcap=self.score_cap(declared),
            rotate_queries=rotated,
            rotate_keys=rotated,
        )

    def rotary(self, declared: Json, head_dim: int, layer: int = 0) -> Rotary:
        """Rotary numbers of a `config.json` of transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`):
        local and global layers may have their own. Raises KeyError where they are not those of this layer."""
        kind = self.layer_kind(declared, layer)
        rope = declared.get("rope_parameters") or {}
        if kind is not None and isinstance(rope.get(kind), dict):
            rope = rope[kind]
        elif any(isinstance(value, dict) for value in rope.values()):
            raise KeyError("rope_parameters")  # of each kind of layer, and not of this one
        local, scaling = self.local_theta(declared), dict(declared.get("rope_scaling") or {})
        if local and kind == "sliding_attention" and not rope:
            return Rotary(local, head_dim)
        if scaling and kind == "sliding_attention" and not rope:
            raise KeyError("rope_scaling")  # of all layers or of the global ones alone
        scaling |= rope
        theta = float(scaling.pop("rope_theta", None) or declared.get("rope_theta") or 10000.0)
        partial = float(scaling.pop("partial_rotary_factor", None) or declared.get("partial_rotary_factor") or 1.0)
        if scaling.get("rope_type") == "proportional":  # all are rotated, some by nothing
            return Rotary(theta, head_dim, scaling_of(declared, scaling | {"partial_rotary_factor": partial}))
        return Rotary(theta, int(head_dim * partial), scaling_of(declared, scaling))


def full_every(usual: int, declared: Json, layer: int) -> str:
    """The kind of a layer where every n-th one attends to all positions and the others have a window."""
    pattern = int(declared.get("sliding_window_pattern") or declared.get("_sliding_window_pattern") or usual)
    return "sliding_attention" if (layer + 1) % pattern else "full_attention"


class DecoderLayer:
    """The operations between the modules of one layer, `{stem}layers.{index}`."""

    def __init__(self, family: Decoder, book: Book, layer: str, stem: str, index: int) -> None:
        self.family, self.book, self.layer, self.stem, self.index = family, book, layer, stem, index
        self.attention, self.mlp = f"{layer}.self_attn", f"{layer}.mlp"

    def add(self) -> None:
        """Attention core, gate, the two sums, and what is passed on between modules."""
        family, book, inside = self.family, self.book, sorted(self.book.inside(self.layer))
        found = beyond(LAYER_NORMS[family.norms] | {"self_attn", "mlp", "block_sparse_moe"}, inside)
        if found is not None:
            for name in (f"{self.layer}.post_attention_layernorm{INPUT_SUFFIX}", self.layer, *self._entry(self.index)):
                book.why[name] = NotAudited(Lacks.RECIPE_OF_PART, (found,))
            return
        self._streams(family.norms)
        if any(name.startswith(("mlp.gate_proj.", "mlp.gate_up_proj.", "mlp.down_proj.")) for name in inside):
            self._gate(beyond(FEED_FORWARD, inside, "mlp"))
        self._core(beyond(ATTENTION | (HEAD_NORMS if family.normed_heads else frozenset()), inside, "self_attn"))

    def _projections(self) -> tuple[str, ...]:
        fused = self.book.exists(f"{self.attention}.qkv_proj")
        return ("qkv_proj",) if fused else ("q_proj", "k_proj", "v_proj")

    def _ups(self) -> tuple[str, ...]:
        return ("gate_up_proj",) if self.book.exists(f"{self.mlp}.gate_up_proj") else ("gate_proj", "up_proj")

    def _entry(self, index: int) -> tuple[str, ...]:
        """Names of what goes into layer `index`; of what leaves the last one."""
        layer = f"{self.stem}layers.{index}"
        last = index == int(self.book.declared.get("num_hidden_layers") or -1)
        if last:
            return (f"{self.stem}norm{INPUT_SUFFIX}",)
        if self.family.norms is not Norms.AFTER:
            return (f"{layer}.input_layernorm{INPUT_SUFFIX}",)
        projections = DecoderLayer(self.family, self.book, layer, self.stem, index)._projections()
        return tuple(f"{layer}.self_attn.{part}{INPUT_SUFFIX}" for part in projections)

    def _branches(self) -> tuple[str, str]:
        """What attention and the feed-forward block give."""
        down = f"{self.mlp}.down_proj"
        return f"{self.attention}.o_proj", down if self.book.exists(down) else self.mlp

    def _streams(self, norms: Norms) -> None:
        book, layer = self.book, self.layer
        attended, fed = self._branches()
        entry = self._entry(self.index)
        self._first(entry)
        middle = {
            Norms.BEFORE: (f"{layer}.post_attention_layernorm{INPUT_SUFFIX}",),
            Norms.AROUND: (f"{layer}.pre_feedforward_layernorm{INPUT_SUFFIX}",),
            Norms.AFTER: tuple(f"{self.mlp}.{part}{INPUT_SUFFIX}" for part in self._ups()),
        }[norms]
        if norms is not Norms.AFTER:
            for part in self._projections():
                book.add_passing(f"{self.attention}.{part}{INPUT_SUFFIX}", f"{layer}.input_layernorm")
            before = "post_attention_layernorm" if norms is Norms.BEFORE else "pre_feedforward_layernorm"
            for part in self._ups():
                book.add_passing(f"{self.mlp}.{part}{INPUT_SUFFIX}", f"{layer}.{before}")
        if norms is not Norms.BEFORE:
            book.add_passing(f"{layer}.post_attention_layernorm{INPUT_SUFFIX}", attended)
            book.add_passing(f"{layer}.post_feedforward_layernorm{INPUT_SUFFIX}", fed)
            attended, fed = f"{layer}.post_attention_layernorm", f"{layer}.post_feedforward_layernorm"
        sums = ResidualSum(self.family.residual_factor(book.declared))
        book.add(middle, sums, entry[0], attended)
        book.add((layer, *self._entry(self.index + 1)), sums, middle[0], fed)

    def _first(self, entry: tuple[str, ...]) -> None:
        """What goes into the first layer: the embeddings."""
        book, table = self.book, f"{self.stem}embed_tokens"
        for name in entry[1:]:
            book.add_passing(name, entry[0])
        if self.index:
            return
        known = book.known.get(table)
        scaled = None if known is None else known.operation
        if known is None or not isinstance(scaled, Embedding) or scaled.factor == 1.0:
            book.add_passing(entry[0], table)
            return
        # Of the run itself: where the other trace multiplies in the module, its wiring says nothing of this one.
        stored = resolve(book.trace, entry[0])
        if stored is None:
            return
        here = replace(known, operation=replace(scaled, either=False))
        if stored == known.stored:
            book.known[table] = here
        else:
            book.known[entry[0]] = replace(here, site=entry[0], stored=stored)

    def _gate(self, found: str | None) -> None:
        book, name = self.book, f"{self.mlp}.down_proj{INPUT_SUFFIX}"
        activation = self.family.activation(book.declared)
        if found is not None:
            book.why[name] = NotAudited(Lacks.RECIPE_OF_PART, (found,))
            return
        if activation is None:
            book.why[name] = NotAudited(Lacks.KNOWN_ACTIVATION)
            return
        ups, columns = self._ups(), EVERY_COLUMN
        if len(ups) == 1:
            half = int(book.declared.get("intermediate_size") or 0)
            ups, columns = (ups[0], ups[0]), ((0, half), (half, 2 * half))
        table = book.arithmetic.gelu if activation.startswith("gelu") else None
        book.add((name,), Gate(activation, table), *(f"{self.mlp}.{part}" for part in ups), columns=columns)

    def _core(self, found: str | None) -> None:
        book, name = self.book, f"{self.attention}.o_proj{INPUT_SUFFIX}"
        core = self.family.core(book.declared, self.index, book.positions, book.prompt)
        if found is not None:
            book.why[name] = NotAudited(Lacks.RECIPE_OF_PART, (found,))
        elif book.arithmetic.unknown_cache is not None:
            book.why[name] = NotAudited(Lacks.RECIPE_OF_CACHE, (book.arithmetic.unknown_cache,))
        elif core is None:
            book.why[name] = NotAudited(Lacks.KNOWN_ATTENTION)
        else:
            parts, columns = self._projections(), EVERY_COLUMN
            if len(parts) == 1:
                parts, columns = parts * 3, core.fused_columns
            elif self.family.normed_heads:
                parts = ("q_norm", "k_norm", "v_proj")
                for norm, part in (("q_norm", "q_proj"), ("k_norm", "k_proj")):
                    book.add_passing(f"{self.attention}.{norm}{INPUT_SUFFIX}", f"{self.attention}.{part}")
            attention = Attention(core, book.arithmetic.cache, book.arithmetic.attention_sums or "float32")
            book.add((name,), attention, *(f"{self.attention}.{part}" for part in parts), columns=columns)
