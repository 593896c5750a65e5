"""Two orders of a head's rows: halves apart, as Hugging Face has them, and rotary pairs side by side, as GGUF has them.

llama.cpp's converter puts the rows of `q_proj` and `k_proj` in pairs, and engines that run from such a file rotate
neighbours. With both in that order and pairs rotated, attention computes the very same: no fault. A run that holds its
queries and keys so is read in the other side's order; everything after is compared and audited as it is, so that a
fault beside it still shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tracekit.align.pair import Pair
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.checkpoints.rotary_pairs import halves
from tracekit.dtypes import to_float
from tracekit.trace import INPUT_SUFFIX, Array, Json, Sequence, Trace, Weight, resolve
from tracekit.trace_view import SequenceView, TraceView

Floats = NDArray[np.float64]

QUERIES = re.compile(r"(?P<attention>(?:.*\.)?self_attn\.)q_proj$")
AFTER = ("o_proj:in", "o_proj")
"""Sites that show what attention made of its queries and keys."""
ROWS = 16
"""Positions whose values decide in which order a projection is."""
APART, NEAR = 0.5, 0.25
"""Relative error from which two recordings are not in one order, and below which they are: a gain of 1.2 leaves 0.2,
another order 1.4."""


@dataclass(frozen=True)
class RowsInPairs:
    """A trace whose queries and keys are read in the order of halves."""

    path: str
    layers: int
    first: str  # site


@np.errstate(all="ignore")
def in_one_order(pair: Pair) -> tuple[Pair, list[object]]:
    """Both sides with the queries and keys of a side that holds them in rotary pairs in the order of halves, and a note
    of it: only where queries and keys of a layer both are so, and what attention made of them can be compared."""
    reference, candidate = pair.traces
    called = {site.name: site.candidate for site in pair.sites.pairs}
    config = (reference.config.get("model") or {}) | (candidate.config.get("model") or {})
    if pair.first is None:
        return pair, []
    ours, theirs = _stated(reference), _stated(candidate)
    if ours or theirs:
        return pair.seen_as(reordered(reference, ours), reordered(candidate, theirs)), _notes(
            (reference, ours), (candidate, theirs)
        )
    one, other = pair.first.reference, pair.first.candidate

    def both(site: str) -> tuple[Floats, Floats] | None:
        if site not in one.sites or called.get(site) not in other.sites:
            return None
        ranges = other.sites[called[site]].shared(one.sites[site].ranges)
        if not ranges or one.sites[site].width != other.sites[called[site]].width:
            return None
        return _rows(one, site, *ranges[0]), _rows(other, called[site], *ranges[0])

    for attention in _attentions(reference):
        if not any(attention + after in called for after in AFTER):
            continue
        for side, turned in ((theirs, False), (ours, True)):
            found = _in_pairs(attention, both, config, turned)
            side |= {(site if turned else called[site]): heads for site, heads in found.items()}
    if not ours and not theirs:
        return pair, []
    views = reordered(reference, ours), reordered(candidate, theirs)
    return pair.seen_as(*views), _notes((reference, ours), (candidate, theirs))


@np.errstate(all="ignore")
def in_order_of(checkpoint: Checkpoint, trace: Trace, wiring: Trace | None = None) -> tuple[Trace, list[object]]:
    """A trace with queries and keys in the order of a checkpoint's rows, where it holds both of a layer in rotary
    pairs, and a note of it. `wiring`: a trace that says what feeds what where this one does not."""
    stated = _stated(trace)
    if stated:
        return reordered(trace, stated), _notes((trace, stated))
    sequence = next((each for each in trace.sequences if each.sites), None)
    if sequence is None:
        return trace, []

    def both(site: str) -> tuple[Floats, Floats] | None:
        source = resolve(trace, site + INPUT_SUFFIX)
        if source is None and wiring is not None:
            source = resolve(wiring, site + INPUT_SUFFIX)
        weight, bias = (checkpoint.find(f"{site}.{role}") for role in ("weight", "bias"))
        if source not in sequence.sites or site not in sequence.sites or weight is None or source is None:
            return None
        ranges = sequence.sites[site].shared(sequence.sites[source].ranges)
        if not ranges or checkpoint.shape(weight) != (sequence.sites[site].width, sequence.sites[source].width):
            return None
        right = _rows(sequence, source, *ranges[0]) @ checkpoint.values(weight).astype(np.float64).T
        return right + (0.0 if bias is None else checkpoint.values(bias)), _rows(sequence, site, *ranges[0])

    config = checkpoint.config | (trace.config.get("model") or {})
    found: dict[str, int] = {}
    for attention in _attentions(trace):
        layer = _in_pairs(attention, both, config, False)
        if not layer and not found:
            break  # an engine does it in every layer
        found |= layer
    return reordered(trace, found), _notes((trace, found))


def _stated(trace: Trace) -> dict[str, int]:
    """Queries and keys with their heads, of an engine that says that it holds them in rotary pairs."""
    said = trace.config.get("arithmetic")
    if not isinstance(said, dict) or said.get("rotary") != "pairs":
        return {}
    model = trace.config.get("model") or {}
    heads = model.get("num_attention_heads"), model.get("num_key_value_heads") or model.get("num_attention_heads")
    out: dict[str, int] = {}
    for attention in _attentions(trace):
        for name, count in zip((f"{attention}q_proj", f"{attention}k_proj"), heads, strict=True):
            widths = {each.sites[name].width for each in trace.sequences if name in each.sites}
            if type(count) is int and count > 0 and all(width % (2 * count) == 0 for width in widths):
                out[name] = count
    return out


def _attentions(trace: Trace) -> list[str]:
    """Prefixes of the modules that hold a `q_proj`, without norms of heads: their weights would change places, too."""
    found = [match["attention"] for name in trace.sites if (match := QUERIES.match(name))]
    return [name for name in found if f"{name}q_norm" not in trace.sites]


def _in_pairs(
    attention: str, both: Callable[[str], tuple[Floats, Floats] | None], config: Mapping[str, Any], turned: bool
) -> dict[str, int]:
    """Queries and keys of one layer with their heads, if the second side of both holds them in rotary pairs; the first,
    if `turned`."""
    heads = config.get("num_attention_heads"), config.get("num_key_value_heads") or config.get("num_attention_heads")
    out = {}
    for site, count in zip((f"{attention}q_proj", f"{attention}k_proj"), heads, strict=True):
        values = both(site)
        if values is None or type(count) is not int or count < 1 or values[0].shape[1] % (2 * count):
            return {}
        first, second = values[::-1] if turned else values
        if not (_apart(first, second) > APART and _apart(first, halves(second.T, count).T) < NEAR):
            return {}
        out[site] = count
    return out


def _apart(one: Floats, other: Floats) -> float:
    """Relative error, the median over the rows; nothing where a row is not finite."""
    with np.errstate(all="ignore"):
        errors = np.linalg.norm(other - one, axis=1) / np.maximum(np.linalg.norm(one, axis=1), 1e-290)
    errors = errors[np.isfinite(errors)]
    return float(np.median(errors)) if errors.size else 0.0


def _rows(sequence: Sequence, site: str, first: int, stop: int) -> Floats:
    values = to_float(sequence.read(site, first, min(stop, first + ROWS)), sequence.sites[site].dtype)
    return values.astype(np.float64)


def _notes(*sides: tuple[Trace, Mapping[str, int]]) -> list[object]:
    return [RowsInPairs(trace.path, len(sites) // 2, next(iter(sites))) for trace, sites in sides if sites]


def _in_halves(config: Json) -> Json:
    """A trace's config without the statement that its queries and keys are in rotary pairs."""
    said = config.get("arithmetic")
    if not isinstance(said, dict):
        return config
    return config | {"arithmetic": {name: value for name, value in said.items() if name != "rotary"}}


def reordered(trace: Trace, sites: Mapping[str, int]) -> Trace:
    """The trace with these sites, each of so many heads, read in the order of halves."""
    return cast(Trace, ReorderedTrace(trace, sites)) if sites else trace


class _ReorderedSequence(SequenceView):
    """A sequence in which some sites' columns are read in the order of halves."""

    def __init__(self, sequence: Sequence, sites: Mapping[str, int]) -> None:
        super().__init__(sequence)
        self._heads = sites

    def read(self, site: str, first: int, stop: int) -> Array:
        """As `tracekit.trace.Sequence`."""
        rows = self.inner.read(site, first, stop)
        heads = self._heads.get(site)
        return rows if heads is None else np.ascontiguousarray(halves(rows.T, heads).T)


class ReorderedTrace(TraceView):
    """A trace whose queries and keys are read in the order of halves. Digests of their parameters are left out: they
    are of the rows as the engine holds them."""

    def __init__(self, trace: Trace, sites: Mapping[str, int]) -> None:
        super().__init__(trace, [_ReorderedSequence(sequence, sites) for sequence in trace.sequences])
        self.heads = sites
        self.config = _in_halves(trace.config)
        self.weights: Mapping[str, Weight] = {
            name: replace(weight, digest=None) if name.rpartition(".")[0] in sites else weight
            for name, weight in trace.weights.items()
        }
