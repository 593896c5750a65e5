"""What a family of models says of its layers, and when it says nothing.

A setting of `config.json` that may change what a layer computes and that the family does not read means that the layer
is not known: it is not recomputed, and nothing is said of it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar

from tracekit.auditing.not_audited import NotAudited
from tracekit.auditing.operations.embedding_table import Embedding
from tracekit.auditing.operations.operation import Operation
from tracekit.auditing.operations.passed_on import PassedOn
from tracekit.trace import Json, Site

if TYPE_CHECKING:
    from tracekit.auditing.recipe import Book

READ = frozenset(
    {
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
        *("intermediate_size", "vocab_size", "rms_norm_eps", "hidden_act", "hidden_activation"),
        *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "max_position_embeddings"),
        *("attention_bias", "mlp_bias", "tie_word_embeddings"),
    }
)
"""Settings that every family reads, or that its parameters and widths follow from."""
WITHOUT_EFFECT = frozenset(
    {
        *("attention_dropout", "attn_implementation", "_attn_implementation", "attn_implementation_internal"),
        *("_attn_implementation_autoset", "cache_implementation", "output_attentions", "experts_implementation"),
        *("router_aux_loss_coef", "initializer_range", "temperature", "original_max_position_embeddings"),
        *("base_model_tp_plan", "layer_norm_eps", "norm_eps"),
    }
)
"""Settings that say nothing of what a layer computes, though their names might."""
TOKEN_TABLES = ("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "speech_embedding")
"""Last name of an embedding that is looked up by token ids."""
TELLING = re.compile(
    "scal|mult|norm|cap|clip|rope|rotary|position|bias|attn|attention|layer|resid|gate|sink|window|chunk|expert|moe"
    "|factor|parallel|quant|interleav|lora|adapter|theta|pattern|bidirectional|causal"
)
"""What is in the name of a setting that may change what a layer computes."""


class Family(ABC):
    """How the layers of some `model_type`s are put together. Subclasses are found by walking this package: one more is
    one new file. `declared` is the checkpoint's `config.json`."""

    model_types: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[frozenset[str]] = frozenset()
    """What it reads of `config.json` beyond `READ`."""
    needed: ClassVar[frozenset[str]] = frozenset()
    """Settings that its layers depend on and whose defaults are the program's."""
    layer_norm_eps: ClassVar[str | None] = None
    """The setting that is the eps of all its torch LayerNorms; None where they have one of their own."""
    head: ClassVar[str] = "lm_head"
    """The module that gives the logits."""

    def unread(self, declared: Json) -> str | None:
        """The first setting that may change what a layer computes and that the family does not read."""
        known = READ | WITHOUT_EFFECT | self.settings
        told = (name for name, value in declared.items() if value and TELLING.search(name) and name not in known)
        return next(told, None)

    def unstated(self, declared: Json) -> str | None:
        """A setting of `needed` that is not declared."""
        return min((name for name in self.needed if name not in declared), default=None)

    @abstractmethod
    def wire(self, book: Book) -> None:
        """Add recipes of what the operations between modules compute to the book."""

    def is_table(self, last: str) -> bool:
        """Whether a module is an embedding though its class does not say so; `last`: the last part of its name."""
        return False

    def table(self, last: str, declared: Json) -> Operation | None:
        """What an embedding looks up; None where that is not recorded."""
        return token_table(last, self.embedding_factor(declared))

    def embedding_factor(self, declared: Json) -> float:
        """What embeddings are multiplied by before the first layer."""
        return stated_embedding_factor(declared)

    def norm(self, site: Site, declared: Json, one_added: bool) -> Operation | NotAudited | None:
        """The norm that a module of a class of the family's own computes, or why it is not known; None where the
        module is no norm. `one_added`: the checkpoint stores 1 + weight of norms that multiply by that."""
        return None

    def logits(self, declared: Json) -> Operation:
        """What makes the logits of the head's output."""
        return PassedOn()


def token_table(last: str, factor: float) -> Operation | None:
    """The table of the token embeddings; None of another table."""
    if last not in TOKEN_TABLES:
        return None
    return Embedding(factor, either=factor != 1.0) if last == "embed_tokens" else Embedding()


def stated_embedding_factor(declared: Json) -> float:
    """The factor of the embeddings that a `config.json` declares; 1 where it declares none."""
    return float(declared.get("embedding_multiplier") or 1.0)


def beyond(known: Collection[str], names: Collection[str], part: str = "") -> str | None:
    """The first of a layer's parameters or modules (`self_attn.sinks`) that is not known; `part`: a block of the layer
    whose modules are meant, where it is not the layer itself."""
    for name in names:
        first, *rest = name.split(".")
        if part and (first != part or not rest):
            continue
        module = rest[0] if part else first
        if module not in known or (part and len(rest) > 1 and rest[1] not in ("weight", "bias", "inv_freq")):
            return name
    return None
