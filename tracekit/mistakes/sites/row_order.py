"""Rows of a projection as they lie where the two rotary layouts were mixed up, or heads were miscounted."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing.operations import Attention, Core, Floats
from tracekit.mistakes.registry import SiteMistake
from tracekit.mistakes.suspect import Case, Hypothesis, plainly

Order = NDArray[np.int64]
LINEAR = ("linear",)


def _core(case: Case) -> Core | None:
    """The attention core that the projection feeds."""
    fed = [recipe.operation for recipe in case.recipes.known if case.recipe.stored in recipe.inputs]
    return next((operation.core for operation in fed if isinstance(operation, Attention)), None)


def _same_heads(order: Callable[[int, int], Order]) -> Callable[[Case], Iterator[Hypothesis]]:
    def hypotheses(case: Case) -> Iterator[Hypothesis]:
        core = _core(case)
        if core is not None:
            yield plainly(_reordered, case, order(case.right.values.shape[1], core.head_dim))

    return hypotheses


def _other_heads(order: Callable[[int, int], Order]) -> Callable[[Case], Iterator[Hypothesis]]:
    def hypotheses(case: Case) -> Iterator[Hypothesis]:
        core, width = _core(case), case.right.values.shape[1]
        for heads in () if core is None else sorted({core.heads, core.kv_heads}):
            wide = width // heads
            if width % heads == 0 and core is not None and wide != core.head_dim and wide % 2 == 0:
                yield plainly(_reordered, case, order(width, wide), heads=heads)

    return hypotheses


def _reordered(case: Case, order: Order) -> Floats:
    return np.asarray(case.right.values[:, order])


def _interleaved(width: int, head: int) -> Order:
    """Columns 0, h/2, 1, h/2 + 1 ... of every head."""
    pairs = np.arange(head).reshape(2, head // 2).T.reshape(-1)
    return np.asarray((np.arange(0, width, head)[:, None] + pairs[None, :]).reshape(-1))


def _half_split(width: int, head: int) -> Order:
    return np.argsort(_interleaved(width, head))


INTERLEAVED = SiteMistake(
    "rows_interleaved",
    "rows in interleaved order instead of half-split",
    at=LINEAR,
    hypotheses=_same_heads(_interleaved),
)
HALF_SPLIT = SiteMistake(
    "rows_half_split", "rows in half-split order instead of interleaved", at=LINEAR, hypotheses=_same_heads(_half_split)
)
INTERLEAVED_OF_OTHER_HEADS = SiteMistake(
    "rows_interleaved_of_other_heads",
    "rows interleaved as if there were {heads} heads",
    main="heads",
    at=LINEAR,
    hypotheses=_other_heads(_interleaved),
)
HALF_SPLIT_OF_OTHER_HEADS = SiteMistake(
    "rows_half_split_of_other_heads",
    "rows half-split as if there were {heads} heads",
    main="heads",
    at=LINEAR,
    hypotheses=_other_heads(_half_split),
)
