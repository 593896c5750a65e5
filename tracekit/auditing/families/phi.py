"""Phi: both blocks of a layer read one LayerNorm, and their outputs are added to the stream together.

Source: transformers `modeling_phi.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracekit.auditing.families.decoder import LAYER, Decoder
from tracekit.auditing.families.family import beyond
from tracekit.auditing.not_audited import Lacks, NotAudited
from tracekit.auditing.operations.activation import Activation
from tracekit.auditing.operations.attention_core import Attention
from tracekit.auditing.operations.parallel_sum import ParallelSum
from tracekit.trace import INPUT_SUFFIX

if TYPE_CHECKING:
    from tracekit.auditing.recipe import Book

PARTS = {
    "": frozenset({"input_layernorm", "self_attn", "mlp"}),
    "self_attn": frozenset({"q_proj", "k_proj", "v_proj", "dense", "rotary_emb"}),
    "mlp": frozenset({"fc1", "fc2"}),
}


class Phi(Decoder):
    model_types = ("phi",)
    layer_norm_eps = "layer_norm_eps"
    settings = frozenset({"resid_pdrop"})
    usual_activation = "gelu_new"

    def wire(self, book: Book) -> None:
        found = {match["layer"]: match for match in map(LAYER.match, book.trace.sites) if match}
        for match in found.values():
            self._add_layer(book, match["layer"], match["stem"], int(match["index"]))

    def _add_layer(self, book: Book, layer: str, stem: str, index: int) -> None:
        norm, attention, mlp = f"{layer}.input_layernorm", f"{layer}.self_attn", f"{layer}.mlp"
        entry, merged, activated = norm + INPUT_SUFFIX, f"{attention}.dense{INPUT_SUFFIX}", f"{mlp}.fc2{INPUT_SUFFIX}"
        last = index + 1 == int(book.declared.get("num_hidden_layers") or -1)
        after = f"{stem}final_layernorm" if last else f"{stem}layers.{index + 1}.input_layernorm"
        inside = sorted(book.inside(layer))
        strange = next((name for part, known in PARTS.items() if (name := beyond(known, inside, part))), None)
        core, activation = self.core(book.declared, index, book.positions, book.prompt), self.activation(book.declared)
        if strange is not None or core is None or activation is None:
            unknown = NotAudited(Lacks.KNOWN_ATTENTION if core is None else Lacks.KNOWN_ACTIVATION)
            why = unknown if strange is None else NotAudited(Lacks.RECIPE_OF_PART, (strange,))
            book.why |= dict.fromkeys((entry, layer, merged, activated), why)
            return
        if index == 0:
            book.add_passing(entry, f"{stem}embed_tokens")
        for name in (*(f"{attention}.{part}" for part in ("q_proj", "k_proj", "v_proj")), f"{mlp}.fc1"):
            book.add_passing(name + INPUT_SUFFIX, norm)
        book.add((merged,), Attention(core), *(f"{attention}.{part}" for part in ("q_proj", "k_proj", "v_proj")))
        book.add((activated,), Activation(activation), f"{mlp}.fc1")
        book.add((layer, after + INPUT_SUFFIX), ParallelSum(), entry, f"{attention}.dense", f"{mlp}.fc2")
