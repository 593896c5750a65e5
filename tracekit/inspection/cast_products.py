"""Products whose operands were rounded on the way: a 16-bit site of a weight that the program holds in a finer format.

`torch.autocast` makes them; a program without it must give both operands one dtype.
"""

from __future__ import annotations

from collections.abc import Iterator

from tracekit.dtypes import SIXTEEN_BITS, UNIT_ROUNDOFF
from tracekit.trace import Trace


def is_cast(trace: Trace, weight: str | None, stored: str) -> bool:
    """Whether a site in this format comes from a weight that the program holds in a finer one."""
    held = trace.weights.get(weight or "")
    finer = held is not None and UNIT_ROUNDOFF.get(held.dtype, 1.0) < UNIT_ROUNDOFF.get(stored, 1.0)
    return finer and stored in SIXTEEN_BITS


def cast_products(trace: Trace) -> Iterator[str]:
    """The sites of such weights [outputs, inputs]; a norm may give what it likes, and so may a lookup."""
    for name, site in trace.sites.items():
        weight = site.parameters.get("weight")
        held = trace.weights.get(weight or "")
        if held is None or len(held.shape) != 2 or "Embedding" in site.module_class:
            continue
        if any(name in each.sites and is_cast(trace, weight, each.sites[name].dtype) for each in trace.sequences):
            yield name
