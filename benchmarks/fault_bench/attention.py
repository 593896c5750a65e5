"""The attention core written out, with the places where ports go wrong as options.

Stands in for transformers' attention function of one layer; without options it computes the same as that, in another
order of operations, and is then the harmless twin that a fault is compared with bit by bit.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.fault_bench.patching import attribute


def core(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = True,
    window: int | None = None,
    scale: float = 1.0,
    future: int = 0,
    window_end: int = 0,
    lost_rows: int = 0,
    heads: str = "grouped",
    softmax: str = "float32",
    scores_in: str | None = None,
    cap: float | None = None,
    online: int = 0,
    layout: str = "heads",
) -> torch.Tensor:
    """[batch, rows, heads, head_dim] of queries [batch, heads, rows, head_dim] over all keys of the cache.

    `future` keys too many are seen, `window_end` keys too many at the window's far end, the first `lost_rows` of the
    cache are not seen. `heads`: how query heads find their KV head. `online`: running softmax over
    blocks of as many keys.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (_per_query_head(rows, groups, heads) for rows in (key, value))
    scores = _products(query, key, scores_in) * (scaling * scale)
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    if causal:
        rows, positions = scores.shape[-2:]
        at = torch.arange(positions - rows, positions)[:, None]
        seen = torch.arange(positions)[None, :]
        allowed = seen <= at + future
        if window is not None:
            allowed &= seen > at - window - window_end
        if lost_rows:
            allowed &= (seen >= lost_rows) | (seen == at)
        scores = scores.masked_fill(~allowed, -math.inf)
    if mask is not None and not causal:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask
    out = _online(scores, value, online) if online else _weighted(scores, value, softmax)
    out = out.to(query.dtype)
    if layout == "untransposed":  # [heads, rows] read as if it were [rows, heads]
        return out.reshape(out.shape[0], out.shape[2], out.shape[1], out.shape[3])
    return out.transpose(1, 2).contiguous()


def _per_query_head(rows: torch.Tensor, groups: int, heads: str) -> torch.Tensor:
    count = rows.shape[1]
    index = torch.arange(count * groups)
    chosen = {
        "grouped": index // groups,
        "repeated": index % count,
        "one-late": (index // groups + 1) % count,
        "stride": (index % groups) % count,
    }[heads]
    return rows[:, chosen]


def _products(query: torch.Tensor, key: torch.Tensor, dtype: str | None) -> torch.Tensor:
    if dtype is None:
        return torch.matmul(query, key.transpose(2, 3)).float()
    low: torch.dtype = getattr(torch, dtype)
    return torch.matmul(query.to(low), key.transpose(2, 3).to(low)).float()


def _weighted(scores: torch.Tensor, value: torch.Tensor, softmax: str) -> torch.Tensor:
    weights = torch.softmax(scores.to(getattr(torch, softmax)), dim=-1)
    return torch.matmul(weights.to(value.dtype), value)


def _online(scores: torch.Tensor, value: torch.Tensor, block: int) -> torch.Tensor:
    """Running maximum and sum, as flash attention keeps them."""
    most = torch.full_like(scores[..., :1], -1e30)
    total = torch.zeros_like(most)
    out = torch.zeros(*scores.shape[:-1], value.shape[-1])
    for first in range(0, scores.shape[-1], block):
        part = scores[..., first : first + block]
        now = torch.maximum(most, part.amax(dim=-1, keepdim=True))
        weights, shrink = torch.exp(part - now), torch.exp(most - now)
        total = total * shrink + weights.sum(dim=-1, keepdim=True)
        out = out * shrink + torch.matmul(weights, value[..., first : first + block, :].float())
        most = now
    return out / total


class _Interfaces:
    """Stands for transformers' table of attention functions in one modeling module."""

    def __init__(self, table: Any, layer: int | None, options: dict[str, Any]) -> None:
        self._table = table
        self._layer = layer
        self._options = options

    def get_interface(self, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
        original = self._table.get_interface(name, default)

        def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **more: Any) -> Any:
            if self._layer is not None and module.layer_idx != self._layer:
                return original(module, query, key, value, mask, scaling=scaling, **more)
            given = {"causal": module.is_causal, "window": more.get("sliding_window"), "cap": more.get("softcap")}
            return core(query, key, value, scaling, mask=mask, **(given | self._options)), None

        return attend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)


@contextmanager
def written_out(attention: Any, layer: int | None, **options: Any) -> Iterator[None]:
    """Let `core` with `options` stand in at `layer`, or at all. `attention` is any attention module of the model."""
    modeling = sys.modules[type(attention).__module__]
    table = modeling.ALL_ATTENTION_FUNCTIONS  # type: ignore[attr-defined]
    with attribute(modeling, "ALL_ATTENTION_FUNCTIONS", _Interfaces(table, layer, options)):
        yield
