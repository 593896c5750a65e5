"""A site beside its peers: those of the same name in the other layers of the same run."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from tracekit import operations
from tracekit.own_error import Own
from tracekit.recompute import Recomputation

EXACT_PEERS = 0.02
"""Size of error below which an engine's 16-bit arithmetic is emulated exactly: what is left are sums that lay next to a
tie. Then a site that is off is off by itself, though its error be within the bound of other engines' arithmetic."""
INEXACT = 0.05
"""Size of error from which it is not."""
PEER_RATIO, PEER_FLOOR = 10.0, 0.2
"""How much larger than three quarters of its peers', and how large at least, the error of such a site is. SmolLM2's
sites in bfloat16, emulated, reach 0.04."""
PEERS = 4
"""Sites of the same name in other layers that it takes to speak of peers."""
ODD_COLUMN, ODD_ROWS = 0.15, 4
"""Share, and number, of rows in which a column of such a site differs. Of SmolLM2's half a million columns none
differs in more than 2 of 21; a weight that is 0.01 off shows in 8."""
GAIN_SPREADS, GAIN_UNITS = 8.0, 2.5
"""How far a gain in float32 is from the median of its peers', in median absolute deviations and in roundoff units, to
be another. Those of SmolLM2's norms lie 0.2 to 0.4 units from it, and none more than 3 median deviations."""

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
        for peers in self._groups(narrow=True):
            sound = [(run, own) for run, own in peers if not own.wrong and own.statistics.size > INEXACT]
            if len(sound) >= PEERS and len(sound) > len(peers) / 2:
                groups.append(sound)
        return groups

    def outliers(self) -> list[Peer]:
        """Those that are off where their peers are not: in 16 bits where they are exact, else by their gain."""
        out = []
        for peers in self._groups(narrow=True):
            usual = float(np.quantile([own.statistics.size for _, own in peers], 0.75))
            if usual <= EXACT_PEERS:
                out += [(run, replace(own, beside=said)) for run, own in peers if (said := _outlier(own, usual))]
        for peers in self._groups(narrow=False):
            out += _odd_gains(peers)
        return out

    def _groups(self, narrow: bool) -> list[list[Peer]]:
        return [
            peers
            for peers in self._by_role.values()
            if len(peers) >= PEERS and narrow == (_unit(peers[0]) > operations.ACCUMULATOR)
        ]


def _unit(peer: Peer) -> float:
    run, own = peer
    return operations.unit(run.computed_in(own.recipe))


def _odd_gains(peers: list[Peer]) -> list[Peer]:
    """Sites whose gain is not that of their peers."""
    gains = np.array([own.statistics.gain for _, own in peers])
    gaps = np.abs(gains - np.median(gains))
    limit = max(GAIN_SPREADS * float(np.median(gaps)), GAIN_UNITS * _unit(peers[0]))
    said = "own gain {:.8g}, {:.0f} times as far from 1 as the same site of other layers"
    usual = float(np.median(np.abs(gains)))
    return [
        (run, replace(own, beside=said.format(1.0 + own.statistics.gain, abs(own.statistics.gain) / usual)))
        for (run, own), gap in zip(peers, gaps, strict=True)
        if gap > limit and not own.wrong
    ]


def _outlier(own: Own, usual: float) -> str | None:
    statistics = own.statistics
    odd = np.flatnonzero((statistics.odd >= ODD_COLUMN) & (statistics.odd * len(statistics.rows) >= ODD_ROWS))
    if statistics.size > max(PEER_FLOOR, PEER_RATIO * usual):
        return f"own error {statistics.size:.2g}x its rounding bound, where the same site of other layers is exact"
    if odd.size and statistics.size <= EXACT_PEERS + float(np.sqrt(odd.size / len(statistics.odd))):
        more = f" and {odd.size - 1} more" if odd.size > 1 else ""
        share = statistics.odd[odd[0]]
        return f"column {odd[0]}{more} is off at {share:.0%} of the positions, where the rest of the site is exact"
    return None
