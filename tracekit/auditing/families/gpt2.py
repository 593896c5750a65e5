"""GPT-2: learned positions, LayerNorms, one projection for queries, keys and values, an MLP without a gate.

Source: transformers `modeling_gpt2.py`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tracekit.auditing.activations import ACTIVATIONS
from tracekit.auditing.families.family import Family, beyond
from tracekit.auditing.not_audited import Lacks, NotAudited
from tracekit.auditing.operations.activation import Activation
from tracekit.auditing.operations.attention_core import Attention, Core
from tracekit.auditing.operations.learned_positions import LearnedPositions
from tracekit.auditing.operations.operation import Operation
from tracekit.auditing.operations.residual_sum import ResidualSum
from tracekit.auditing.rotary import Rotary
from tracekit.trace import INPUT_SUFFIX, Json

if TYPE_CHECKING:
    from tracekit.auditing.recipe import Book

LAYER = re.compile(r"(?P<layer>(?P<stem>(?:.*\.)?)h\.(?P<index>\d+))\.")
PARTS = {
    "": frozenset({"ln_1", "attn", "ln_2", "mlp"}),
    "attn": frozenset({"c_attn", "c_proj", "bias", "masked_bias"}),  # the mask is in some files
    "mlp": frozenset({"c_fc", "c_proj"}),
}


class GPT2(Family):
    model_types = ("gpt2",)
    layer_norm_eps = "layer_norm_epsilon"
    settings = frozenset(
        {
            *("n_layer", "n_positions", "activation_function", "layer_norm_epsilon", "scale_attn_weights"),
            *("scale_attn_by_inverse_layer_idx", "attn_pdrop", "resid_pdrop"),
        }
    )

    def table(self, last: str, declared: Json) -> Operation | None:
        return LearnedPositions() if last == "wpe" else super().table(last, declared)

    def core(self, declared: Json, layer: int) -> Core | None:
        """The attention core of a layer; None where the sizes do not make one."""
        width, heads = int(declared.get("n_embd") or 0), int(declared.get("n_head") or 0)
        if not heads or width % heads:
            return None
        head_dim = width // heads
        scale = head_dim**-0.5 if declared.get("scale_attn_weights", True) else 1.0
        if declared.get("scale_attn_by_inverse_layer_idx"):
            scale /= layer + 1
        rotary = Rotary(10000.0, head_dim)
        return Core(heads, heads, head_dim, rotary, scale, rotate_queries=False, rotate_keys=False)

    def wire(self, book: Book) -> None:
        found = {match["layer"]: match for match in map(LAYER.match, book.trace.sites) if match}
        for match in found.values():
            self._add_layer(book, match["layer"], match["stem"], int(match["index"]))

    def _add_layer(self, book: Book, layer: str, stem: str, index: int) -> None:
        last = index + 1 == int(book.declared.get("n_layer") or -1)
        entry = f"{layer}.ln_1{INPUT_SUFFIX}"
        after = f"{stem}ln_f{INPUT_SUFFIX}" if last else f"{stem}h.{index + 1}.ln_1{INPUT_SUFFIX}"
        inside = sorted(book.inside(layer))
        strange = next((name for part, known in PARTS.items() if (name := beyond(known, inside, part))), None)
        if strange is not None:
            for name in (f"{layer}.ln_2{INPUT_SUFFIX}", layer, entry):
                book.why[name] = NotAudited(Lacks.RECIPE_OF_PART, (strange,))
            return
        if index == 0:
            self._add_positions(book, f"{stem}wpe")
            book.add((entry,), ResidualSum(), f"{stem}wte", f"{stem}wpe")
        book.add_passing(f"{layer}.attn.c_attn{INPUT_SUFFIX}", f"{layer}.ln_1")
        book.add_passing(f"{layer}.mlp.c_fc{INPUT_SUFFIX}", f"{layer}.ln_2")
        self._add_core(book, layer, index)
        book.add((f"{layer}.ln_2{INPUT_SUFFIX}",), ResidualSum(), entry, f"{layer}.attn.c_proj")
        activation, into = str(book.declared.get("activation_function") or "gelu_new"), f"{layer}.mlp.c_proj"
        if activation in ACTIVATIONS:
            book.add((f"{into}{INPUT_SUFFIX}",), Activation(activation), f"{layer}.mlp.c_fc")
        else:
            book.why[f"{into}{INPUT_SUFFIX}"] = NotAudited(Lacks.KNOWN_ACTIVATION)
        book.add((layer, after), ResidualSum(), f"{layer}.ln_2{INPUT_SUFFIX}", into)

    def _add_positions(self, book: Book, table: str) -> None:
        """Positions that have no row in the table cannot be looked up."""
        found = book.checkpoint.find(f"{table}.weight")
        rows = book.positions if found is None else book.checkpoint.shape(found)[0]
        if book.positions > rows and book.known.pop(table, None) is not None:
            book.why[table] = NotAudited(Lacks.ROWS, (str(book.positions), str(rows)))

    def _add_core(self, book: Book, layer: str, index: int) -> None:
        core, name, fused = (
            self.core(book.declared, index),
            f"{layer}.attn.c_proj{INPUT_SUFFIX}",
            f"{layer}.attn.c_attn",
        )
        if core is None:
            book.why[name] = NotAudited(Lacks.HEADS)
        else:
            book.add((name,), Attention(core), fused, fused, fused, columns=core.fused_columns)
