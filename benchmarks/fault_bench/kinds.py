"""Drawing faults: kind, place and size from a seeded generator, and what a verdict must say of each."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import tracekit
from benchmarks.fault_bench.fault import Fault
from benchmarks.fault_bench.setups import SETUPS, SHAPES, Shape
from benchmarks.fault_bench.studio import Studio


@dataclass
class Dice:
    """What a kind draws its place and size from. `setup` is the run it is to be planted in."""

    rng: random.Random
    studio: Studio
    setup: str

    @property
    def shape(self) -> Shape:
        """The model's."""
        return SHAPES[SETUPS[self.setup].model]

    def layer(self, first: int = 0) -> int:
        """A layer's number."""
        return self.rng.randrange(first, self.shape.layers)

    def step(self) -> int:
        """A late step: neither the first nor the last of those that have a forward call of their own."""
        return self.rng.randrange(2, len(self.tokens) - 1)

    def linear(self) -> str:
        """A linear layer of a decoder's block."""
        names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
        names += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
        return f"model.layers.{self.layer()}.{self.rng.choice(names)}"

    def norm(self) -> str:
        """A norm of a decoder's block."""
        return f"model.layers.{self.layer()}.{self.rng.choice(['input_layernorm', 'post_attention_layernorm'])}"

    def encoder_linear(self, *names: str) -> str:
        """A linear layer of the encoder."""
        every = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
        return (
            f"encoder.layer.{self.layer()}.{self.rng.choice(names or (*every, 'intermediate.dense', 'output.dense'))}"
        )

    def entry(self, site: str) -> tuple[int, int]:
        """Row and column of a linear layer's weight."""
        shape = self.shape
        kv = shape.kv_heads * shape.head_dim
        sizes = {
            "q_proj": (shape.heads * shape.head_dim, shape.hidden),
            "k_proj": (kv, shape.hidden),
            "v_proj": (kv, shape.hidden),
            "o_proj": (shape.hidden, shape.heads * shape.head_dim),
            "gate_proj": (shape.inner, shape.hidden),
            "up_proj": (shape.inner, shape.hidden),
            "down_proj": (shape.hidden, shape.inner),
        }
        rows, columns = sizes.get(site.rsplit(".", 1)[-1], (shape.hidden, shape.hidden))
        return self.rng.randrange(rows), self.rng.randrange(columns)

    @cached_property
    def tokens(self) -> list[int]:
        """The reference's tokens; empty for a run without steps."""
        with tracekit.open(self.studio.trace(self.setup, "reference")) as trace:
            return [int(token) for token in trace.sequences[0].tokens]

    @property
    def unseen_before(self) -> int:
        """A step from the third on whose token comes there for the first time."""
        tokens = self.tokens
        steps = [step for step in range(2, len(tokens) - 1) if tokens[step] not in tokens[:step]]
        return self.rng.choice(steps)


def core(layer: int) -> str:
    """The site of an attention core."""
    return f"model.layers.{layer}.self_attn.o_proj:in"


def gated(layer: int) -> str:
    """The site of a gated activation."""
    return f"model.layers.{layer}.mlp.down_proj:in"


Kind = Callable[[Dice], Fault]


@dataclass(frozen=True)
class Slot:
    """A kind, and the runs that it may be planted in."""

    name: str
    side: str
    setups: tuple[str, ...]
    draw: Kind


SLOTS: dict[str, Slot] = {}


def kind(name: str, side: str, *setups: str) -> Callable[[Kind], Kind]:
    """Registers a kind of fault."""

    def register(draw: Kind) -> Kind:
        assert name not in SLOTS, name
        SLOTS[name] = Slot(name, side, setups, draw)
        return draw

    return register
