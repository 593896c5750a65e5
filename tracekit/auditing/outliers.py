"""A site beside its peers: those of the same name in the other layers of the same run."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tracekit.auditing import operations
from tracekit.auditing.alike import alike_to, copies, sketch
from tracekit.auditing.evidence import Outlier, OutlierBySize, OutlierColumns
from tracekit.auditing.own_error import ODD, Own
from tracekit.auditing.recompute import Recomputation
from tracekit.auditing.rounding import Floats

EXACT_PEERS = 0.02
"""Size of error below which an engine's 16-bit arithmetic is emulated exactly: what is left are sums that lay next to a
tie. Then a site that is off is off by itself, though its error be within the bound of other engines' arithmetic."""
INEXACT = 0.05
"""Size of error from which it is not."""
PEER_RATIO, PEER_FLOOR = 10.0, 0.2
"""How much larger than three quarters of its peers', and how large at least, the error of such a site is. A size of 0.2
is one value in a hundred off by a unit in the last place, which is two of its bounds; sums next to a tie are rarer. How
many rows are larger decides (`_in_more_rows_than_ties`)."""
PEERS = 4
"""Sites of the same name in other layers that it takes to speak of peers."""

Peer = tuple[Recomputation, Own]


class Peers:
    """Sites of the same name in every layer of a run: one engine computes them alike."""

    def __init__(self) -> None:
        self._by_role: dict[str, list[Peer]] = {}

    def add(self, run: Recomputation, own: Own) -> None:
        role = re.sub(r"\d+", "*", own.recipe.site)
        self._by_role.setdefault(f"{run.sequence.index}:{role}", []).append((run, own))

    def inexact(self) -> list[list[Peer]]:
        """Groups in 16 bits of which none is wrong and none is exact."""
        groups = []
        for peers in self._groups():
            sound = [(run, own) for run, own in peers if not own.wrong and own.statistics.size > INEXACT]
            if len(sound) >= PEERS and len(sound) > len(peers) / 2:
                groups.append(sound)
        return groups

    def outliers(self) -> list[Peer]:
        """Those that are off where their peers are exact, in 16 bits."""
        out = []
        for peers in self._groups():
            usual = float(np.quantile([own.statistics.size for _, own in peers], 0.75))
            if usual <= EXACT_PEERS:
                owns = [own for _, own in peers]
                said = [_outlier(peer, usual, [other for other in owns if other is not peer[1]]) for peer in peers]
                out += [(run, replace(own, beside=why)) for (run, own), why in zip(peers, said, strict=True) if why]
        return out

    def _groups(self) -> list[list[Peer]]:
        """Those of 16 bits."""
        groups = [peers for peers in self._by_role.values() if len(peers) >= PEERS]
        return [peers for peers in groups if _unit(peers[0]) > operations.ACCUMULATOR]


def _unit(peer: Peer) -> float:
    run, own = peer
    return operations.unit(run.computed_in(own.recipe))


def _outlier(peer: Peer, usual: float, others: list[Own]) -> Outlier | None:
    run, own = peer
    statistics, least = own.statistics, max(PEER_FLOOR, PEER_RATIO * usual)
    if statistics.size > least and _in_more_rows_than_ties(run, own, least, others):
        return OutlierBySize(statistics.size)
    odd = _odd_columns(own, len(statistics.rows), statistics.odd, others)
    if odd.size:
        odd = odd[_odd_columns(own, *_of_distinct_rows(run, own, odd), others)]
    if odd.size and statistics.size <= EXACT_PEERS + float(np.sqrt(odd.size / len(statistics.odd))):
        return OutlierColumns(tuple(int(column) for column in odd), float(statistics.odd[odd[0]]))
    return None


def _odd_columns(own: Own, rows: Floats | float, share: Floats, others: list[Own]) -> NDArray[np.int64]:
    """Columns that differ from the emulated value in more rows than ties account for, by the `share` of so many rows.
    How many rows those of a column are is read off the other layers: on average, and how much more than a binomial
    count they scatter."""
    counts = np.concatenate([other.statistics.odd * len(other.statistics.rows) for other in others])
    mean = max(float(counts.mean()), 0.5 / counts.size)
    scatter = max(1.0, float(counts.var()) / mean)
    usual = min(mean / len(own.statistics.rows), 0.5)
    return np.flatnonzero(rows / scatter * _divergence(share, usual) > -math.log(own.level))


def _in_more_rows_than_ties(run: Recomputation, own: Own, least: float, others: list[Own]) -> bool:
    """Whether rows of at least this size are more than ties account for, by their share in the other layers. What a row
    has in common (a norm's scale, the sum of an attention row's weights) may lie next to a tie as a value does: then
    the whole row is off, and so is one that has the same values."""
    elsewhere = np.concatenate([other.statistics.rows for other in others])
    usual = max(float((elsewhere > least).mean()), 0.5 / len(elsewhere))
    windows = (run.result(own.recipe, window, run.inputs(own.recipe, window)).values for window in own.windows)
    weights = 1.0 / alike_to(np.concatenate([sketch(values) for values in windows]))
    share = np.asarray((weights * (own.statistics.rows > least)).sum() / weights.sum())
    return float(weights.sum() * _divergence(share, usual)) > -math.log(own.level)


def _divergence(share: Floats, usual: float) -> Floats:
    """D(share || usual), 0 where the share is no larger: of n cases at the usual rate, the probability that so large a
    share of them is hit is at most exp(-n D) (Chernoff 1952)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = share * np.log(share / usual) + np.where(
            share < 1, (1 - share) * np.log((1 - share) / (1 - usual)), 0.0
        )
    return np.where(share > usual, np.nan_to_num(apart, nan=0.0), 0.0)


def _of_distinct_rows(run: Recomputation, own: Own, columns: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """How many distinct rows there are in each column, and the share of them in which it differs from the emulated
    value. A token that comes again is computed again, and so is a column that is the same for all tokens: one tie, not
    as many as there are rows."""
    recipe, sketches, odd, values = own.recipe, [], [], []
    for window in own.windows:
        recorded = run.recorded(recipe.stored, window)
        result = run.result(recipe, window, run.inputs(recipe, window)).closest(recorded)
        gap = min((recorded - each for each in (result.values, *result.rounded)), key=operations.typical)
        odd.append(np.abs(gap[:, columns]) > ODD * np.sqrt(result.variance[:, columns]))
        sketches.append(sketch(result.values))
        values.append(result.values[:, columns])
    weights = 1.0 / np.maximum(alike_to(np.concatenate(sketches))[:, None], copies(np.concatenate(values)))
    distinct = weights.sum(axis=0)
    return distinct, np.asarray((weights * np.concatenate(odd)).sum(axis=0) / distinct)
