"""The arithmetic that an engine states in its trace, where it is another one than the checkpoint's formula in float32.

`arithmetic` of a trace's config (docs/format.md): `products`, the format that the inputs of a product are rounded to,
by the format of the weight; `cache`, the dtype of cached keys and values; `attention_sums`, the dtype in which
attention adds up values; `gelu`, the format of a table that GELU is looked up in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tracekit.dtypes import UNIT_ROUNDOFF
from tracekit.trace import Trace

BLOCKS = 2.0**-7
"""Unit roundoff of blocks of 8 bits: half a step of 127 in the largest value, which in 32 normal ones is twice the
usual size."""
PRODUCTS = {"F16": UNIT_ROUNDOFF["float16"], "BF16": UNIT_ROUNDOFF["bfloat16"]}
"""The same of formats of a product's inputs that are no blocks."""


@dataclass(frozen=True)
class Stated:
    """What a trace says; nothing where it says nothing."""

    products: Mapping[str, str] = field(default_factory=dict)
    cache: str | None = None
    attention_sums: str | None = None
    gelu: str | None = None
    """The format of a table that GELU is looked up in."""
    unknown_cache: str | None = None
    """A cache of a format whose rounding nobody here reckons with."""

    @property
    def coarse(self) -> bool:
        """Whether it rounds more than float32 does."""
        dtypes = (self.cache, self.attention_sums, self.gelu)
        return bool(self.products) or any(UNIT_ROUNDOFF[dtype] > UNIT_ROUNDOFF["float32"] for dtype in dtypes if dtype)

    @property
    def unit(self) -> float:
        """Unit roundoff of its coarsest rounding, relative to values of usual size; 0 where it states none."""
        dtypes = [*(UNIT_ROUNDOFF[each] for each in (self.cache, self.attention_sums, self.gelu) if each)]
        return max([0.0, *dtypes, *(PRODUCTS.get(read, BLOCKS) for read in self.products.values())])

    @classmethod
    def of(cls, trace: Trace) -> Stated:
        """The arithmetic that a trace's config states."""
        said = trace.config.get("arithmetic")
        if not isinstance(said, dict):
            return cls()
        products = said.get("products")
        rows = products.items() if isinstance(products, dict) else ()
        cache, sums, gelu = said.get("cache"), said.get("attention_sums"), said.get("gelu")
        known = isinstance(cache, str) and cache in UNIT_ROUNDOFF
        return cls(
            {str(held): str(read) for held, read in rows},
            cache if known else None,
            sums if isinstance(sums, str) and sums in UNIT_ROUNDOFF else None,
            gelu if isinstance(gelu, str) and gelu in UNIT_ROUNDOFF else None,
            None if known or cache is None else str(cache),
        )
