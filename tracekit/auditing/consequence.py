"""What culprits do to the logits: the share of their error that each makes, and the tokens once all are mended.

A site's own error is what it holds less what the reference computes there from what was recorded before it. The
reference, run over the candidate's tokens with the own errors of all sites added, gives the candidate's logits; with
none, its own; with those of some sites, what these sites do. Types only: a reference program works them out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from tracekit.auditing.audit import Audit
from tracekit.trace import Trace


@dataclass(frozen=True)
class Consequence:
    """What the own errors of a group of sites do where the logits are compared, every other site right.

    With E the candidate's logits less the reference's, each step less its mean (which moves no probability), and E_g
    the same with only the group's errors added: `share` is <E_g, E> / <E, E>, `alone` |E_g| / |E|. Shares of all groups
    add up to 1 where errors do not interact; one below 0 takes away from the others'.
    """

    sites: tuple[str, ...]
    share: float
    alone: float


class TokensBy(StrEnum):
    """How tokens were taken from logits."""

    SAMPLER = "sampler"  # settings and draws as recorded; they give back every recorded token
    LARGEST = "largest"  # the largest logit


@dataclass(frozen=True)
class StepTokens:
    """The tokens of one step, each after the candidate's own tokens."""

    step: int
    reference: int
    mended: int
    candidate: int


@dataclass(frozen=True)
class Repaired:
    """The tokens that come out with the right values at all culprits, all other own errors of the candidate left in.

    Each step follows the candidate's own tokens: it proves what the token is there, not how a run of its own goes on.
    """

    by: TokensBy
    steps: int
    before: int
    """Steps at which the candidate has the reference's token."""
    after: int
    """The same with the culprits mended. What is missing was decided by sites within their rounding bounds."""
    sequence: int
    shown: tuple[StepTokens, ...]
    """Steps of that sequence, up to the first at which the candidate's token is another than the reference's."""


@dataclass(frozen=True)
class Consequences:
    """What every culprit of a trace does to its logits."""

    at: str
    """`logits`, or the last recorded site where they are not recorded."""
    error: float
    """Relative, |E| over the reference's, over all sequences."""
    groups: tuple[Consequence, ...]
    others: Consequence
    """All recorded sites that are within their bounds: what rounding does."""
    repaired: Repaired | None
    """None where no logits are recorded."""

    @property
    def gap(self) -> float:
        """What the shares lack to 1: how far errors interact."""
        return 1.0 - self.others.share - sum(group.share for group in self.groups)

    def of(self, site: str) -> Consequence | None:
        """That of the group of a site."""
        return next((group for group in self.groups if site in group.sites), None)

    def share(self, site: str) -> float:
        """The share of the group of a site; 0 of a site that is no culprit."""
        group = self.of(site)
        return 0.0 if group is None else group.share


Weigher = Callable[[Sequence[Collection[str]]], Consequences | None]
"""Groups of sites -> what each does; None where that cannot be worked out: values that are not finite, no error, a site
that the reference does not have."""


@runtime_checkable
class Weighing(Protocol):
    """An auditor with a reference program to run again."""

    def weigher(self, trace: Trace, found: Audit) -> Weigher:
        """What the culprits of a trace do to its logits. `found`: the audit of the trace. Calling it raises TraceError
        where the program does not run on the trace's tokens."""
