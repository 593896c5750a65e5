"""Routers that chose other experts than the reference's own scores say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class OtherExperts:
    """At one position a router chose other experts than the reference does from what was recorded before it."""

    router: str
    """The reference's module in which they are chosen."""
    choice: int
    """Which choice of the reference's program it is, in its order."""
    among: int
    """Experts that it chooses from; groups of them, in a router that chooses a group first."""
    sequence: int
    step: int
    position: int
    reference: tuple[int, ...]
    """Experts that the reference's scores choose there and the candidate did not."""
    candidate: tuple[int, ...]
    """Those that the candidate took in their place."""
    taken: tuple[int, ...]
    """All experts that the candidate took."""
    margin: float
    """By how much the scores of these are apart, as the reference compares them."""
    rounding: float
    """What rounding may add to that: within it the choice is a near-tie."""

    @property
    def near_tie(self) -> bool:
        """Whether rounding alone decides between them: neither is wrong."""
        return self.margin <= self.rounding


@dataclass(frozen=True)
class RoutedOtherwise:
    """What one router chose otherwise at several positions, near-ties or not."""

    first: OtherExperts
    positions: int
    """How many there are."""


def routed(found: Iterable[OtherExperts]) -> tuple[RoutedOtherwise, ...]:
    """One note a router, of near-ties and of others."""
    groups: dict[tuple[str, bool], list[OtherExperts]] = {}
    for each in found:
        groups.setdefault((each.router, each.near_tie), []).append(each)
    return tuple(RoutedOtherwise(group[0], len(group)) for group in groups.values())
