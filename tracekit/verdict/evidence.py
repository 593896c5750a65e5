"""What a verdict is founded on, besides the findings of the search and the explanation of a mistake."""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.align.pair import Side
from tracekit.align.renamed import Origin
from tracekit.auditing.not_audited import NotAudited
from tracekit.checkpoints.relations import Relation
from tracekit.compare.search import Search
from tracekit.trace import LOGITS
from tracekit.verdict.ruling import TokenMargin

# -------------------------------------------------------------------- parameters, settings, prompts


@dataclass(frozen=True)
class ParameterDiffers:
    """A parameter of other bytes."""

    name: str
    more: int  # how many other parameters, too


@dataclass(frozen=True)
class ParameterRelated:
    """How the candidate's parameter came from the reference's, in the checkpoints that the two sides state."""

    relation: Relation


@dataclass(frozen=True)
class SettingDiffers:
    """A stated setting that acts where the divergence begins."""

    name: str
    reference: object
    candidate: object


@dataclass(frozen=True)
class EntryDiffers:
    """The first entry of a prompt's tensor that differs; None where a side has none."""

    entry: int
    values: tuple[int | None, int | None]
    texts: tuple[str | None, str | None]


@dataclass(frozen=True)
class RowsFed:
    """How many rows one side was fed for its prompt."""

    side: Side
    rows: int
    entries: int


@dataclass(frozen=True)
class RowUnmatched:
    """Rows that the other side does not have."""

    side: Side
    rows: tuple[int, ...]
    added: bool  # besides the prompt's entries; else the other side left them out


@dataclass(frozen=True)
class RowsUnknown:
    """No site shows which rows are the others."""


# -------------------------------------------------------------------- layers


@dataclass(frozen=True)
class ReferenceDeparts:
    """The fault is the reference's."""


@dataclass(frozen=True)
class RecordedAs:
    """What the candidate itself calls the site."""

    origin: Origin


@dataclass(frozen=True)
class InputAgrees:
    """What went into the site is within the tolerance."""

    site: str
    ratio: float  # error over tolerance


@dataclass(frozen=True)
class InputOff:
    """What went into the site is beyond the tolerance."""

    site: str
    ratio: float


@dataclass(frozen=True)
class NotCovered:
    """The audit does not look at the site."""

    reason: NotAudited


@dataclass(frozen=True)
class PrecisionAlone:
    """Nothing but choices of precision differs, and no token."""


@dataclass(frozen=True)
class PrecisionMovesToken:
    """A token changed because of choices of precision, by more than rounding."""

    token: TokenMargin | None


# -------------------------------------------------------------------- agreement


@dataclass(frozen=True)
class TokensAlone:
    """Only tokens were compared."""


@dataclass(frozen=True)
class LargestError:
    """The largest error of all that is within its tolerance."""

    ratio: float
    site: str


@dataclass(frozen=True)
class AllEqual:
    """Every compared value is equal."""


def agreement(found: Search) -> TokensAlone | LargestError | AllEqual:
    """How far two traces without a divergence agree."""
    ratio, site = found.worst
    if not found.compared.values and LOGITS not in found.ratios:
        return TokensAlone()
    return AllEqual() if site is None else LargestError(ratio, site)


@dataclass(frozen=True)
class WhatIsThereAgrees:
    """Something is lost, and what was not agrees."""

    how: TokensAlone | LargestError | AllEqual


@dataclass(frozen=True)
class OthersAgree:
    """All but the candidate's own choices, which are not recorded."""


# -------------------------------------------------------------------- notes


@dataclass(frozen=True)
class TieMoved:
    """A step at which rounding moved a token over a cut of the filter."""

    sequence: int
    step: int


@dataclass(frozen=True)
class RecorderNote:
    """What a recorder says of its own file."""

    path: str
    said: str


@dataclass(frozen=True)
class NotFinite:
    """The first value of a trace that is no finite number."""

    path: str
    first: object


@dataclass(frozen=True)
class NotFiniteAlike:
    """Both sides are not finite from the same place on."""


@dataclass(frozen=True)
class InStatedUnits:
    """Both sides state a coarse arithmetic, and nothing recomputes sites in it: they are judged in its unit."""

    unit: float


@dataclass(frozen=True)
class Uncalibrated:
    """Sites that the oracle or the noise does not hold."""

    site: str
    more: int
    calibration: str
