"""Rows of a projection as they lie where the two rotary layouts were mixed up, or heads were miscounted."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing.operations import Attention, Core
from tracekit.mistakes.explanation import Value
from tracekit.mistakes.registry import Complexity, SiteMistake
from tracekit.mistakes.sites.outputs import column_order, moved_columns
from tracekit.mistakes.sites.weights import columns, multiplied
from tracekit.mistakes.suspect import Case, Hypothesis, Made, plainly

Order = NDArray[np.int64]
LINEAR = ("linear",)
BIAS_IN_PLACE = ", the bias as it was"
MOST_HEADS = 64
DIRECTIONS = 32
"""Drawn directions of the output that the columns of heads are told apart by."""


def _core(case: Case) -> Core | None:
    """The attention core that the projection feeds."""
    fed = [recipe.operation for recipe in case.recipes.known if case.recipe.stored in recipe.inputs]
    return next((operation.core for operation in fed if isinstance(operation, Attention)), None)


def _same_heads(order: Callable[[int, int], Order]) -> Callable[[Case], Iterator[Hypothesis]]:
    def hypotheses(case: Case) -> Iterator[Hypothesis]:
        core = _core(case)
        if core is not None:
            yield from _reordered(case, order(case.right.values.shape[1], core.head_dim))

    return hypotheses


def _other_heads(order: Callable[[int, int], Order]) -> Callable[[Case], Iterator[Hypothesis]]:
    def hypotheses(case: Case) -> Iterator[Hypothesis]:
        core, width = _core(case), case.right.values.shape[1]
        for heads in () if core is None else sorted({core.heads, core.kv_heads}):
            wide = width // heads
            if width % heads == 0 and core is not None and wide != core.head_dim and wide % 2 == 0:
                yield from _reordered(case, order(width, wide), heads=heads)

    return hypotheses


def _reordered(case: Case, order: Order, **values: Value) -> Iterator[Hypothesis]:
    """The rows with their bias, or without it."""
    matrix = case.run.parameters.matrix(case.recipe)
    weight, bias = matrix.weight[order], matrix.bias
    yield plainly(multiplied, case, weight, None if bias is None else bias[order], **values, bias="")
    if bias is not None:
        yield plainly(multiplied, case, weight, bias, **values, bias=BIAS_IN_PLACE)


def _weight_rows(case: Case) -> Iterator[Hypothesis]:
    """Any order of the rows, where the bias stayed in its own."""
    if case.run.parameters.matrix(case.recipe).bias is not None:
        yield Hypothesis(lambda: _rows_alone(case))


def _rows_alone(case: Case) -> Made | None:
    matrix = case.run.parameters.matrix(case.recipe)
    order = None if matrix.bias is None else column_order(case, matrix.bias)
    if order is None:
        return None
    return multiplied(case, matrix.weight[order], matrix.bias), moved_columns(order)


def _column_blocks(case: Case) -> Iterator[Hypothesis]:
    """The columns of heads in another order."""
    fed = next((one for one in case.recipes.known if one.stored == case.recipe.inputs[0]), None)
    operation = None if fed is None else fed.operation
    if isinstance(operation, Attention):
        yield Hypothesis(lambda: _heads_exchanged(case, operation.core.head_dim))


def _heads_exchanged(case: Case, width: int) -> Made | None:
    """Which head's columns each head of the input meets: products of every head with every head's columns, of which a
    least-squares fit picks one each."""
    x, matrix = case.inputs[0], case.run.parameters.matrix(case.recipe)
    heads = columns(case) // width
    if not 1 < heads <= MOST_HEADS or case.recorded.shape[0] * DIRECTIONS < 2 * heads * heads:
        return None
    of_heads = _columns_of(heads, columns(case), x.shape[1])
    if of_heads is None:
        return None
    directions = np.random.default_rng(0).standard_normal((matrix.weight.shape[0], DIRECTIONS))
    mixed = (directions.T @ matrix.weight)[:, of_heads]
    products = np.einsum("rhc,dgc->rdhg", x[:, of_heads], mixed)
    wanted = (case.recorded - (0.0 if matrix.bias is None else matrix.bias)) @ directions
    if not (np.isfinite(products).all() and np.isfinite(wanted).all()):
        return None
    found = np.linalg.lstsq(products.reshape(-1, heads * heads), wanted.reshape(-1), rcond=None)[0]
    order = found.reshape(heads, heads).argmax(axis=1)
    moved = int(np.sum(order != np.arange(heads)))
    if len(np.unique(order)) < heads or not moved:
        return None
    weight = matrix.weight.copy()
    weight[:, of_heads] = matrix.weight[:, of_heads[order]]
    return multiplied(case, weight, matrix.bias), {"moved": moved, "heads": heads}


def _columns_of(heads: int, width: int, wide: int) -> Order | None:
    """The columns that are each head's, [heads, columns], those of its blocks' smallest values with them; None where
    a block is of two heads."""
    if width % heads or (wide - width) % heads:
        return None
    parts = np.arange(width).reshape(heads, -1), np.arange(width, wide).reshape(heads, -1)
    return np.hstack(parts)


def _interleaved(width: int, head: int) -> Order:
    """Columns 0, h/2, 1, h/2 + 1 ... of every head."""
    pairs = np.arange(head).reshape(2, head // 2).T.reshape(-1)
    return np.asarray((np.arange(0, width, head)[:, None] + pairs[None, :]).reshape(-1))


def _half_split(width: int, head: int) -> Order:
    return np.argsort(_interleaved(width, head))


INTERLEAVED = SiteMistake(
    "rows_interleaved",
    "rows in interleaved order instead of half-split{bias}",
    at=LINEAR,
    hypotheses=_same_heads(_interleaved),
)
HALF_SPLIT = SiteMistake(
    "rows_half_split",
    "rows in half-split order instead of interleaved{bias}",
    at=LINEAR,
    hypotheses=_same_heads(_half_split),
)
INTERLEAVED_OF_OTHER_HEADS = SiteMistake(
    "rows_interleaved_of_other_heads",
    "rows interleaved as if there were {heads} heads{bias}",
    main="heads",
    at=LINEAR,
    hypotheses=_other_heads(_interleaved),
)
HALF_SPLIT_OF_OTHER_HEADS = SiteMistake(
    "rows_half_split_of_other_heads",
    "rows half-split as if there were {heads} heads{bias}",
    main="heads",
    at=LINEAR,
    hypotheses=_other_heads(_half_split),
)
WEIGHT_ROWS = SiteMistake(
    "weight_rows_permuted",
    "rows of the weight permuted: {moved} of {columns}, the bias as it was",
    main="moved",
    at=LINEAR,
    complexity=Complexity.VECTOR,
    hypotheses=_weight_rows,
)
HEAD_COLUMNS = SiteMistake(
    "head_columns_permuted",
    "the weight's columns of {moved} of {heads} heads in another order",
    main="moved",
    at=LINEAR,
    complexity=Complexity.VECTOR,
    hypotheses=_column_blocks,
)
