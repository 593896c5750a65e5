"""What the computation had and a file does not hold.

Lost is what a recorder meant to keep: steps after the end of a cut file, positions of a site that stopped being stored.
It withholds PARITY, and so does what a recorder says it left out. What nobody asked for is counted and said, no more.
"""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.inspection.known_positions import MaskNotRecorded, WeightsChanged
from tracekit.inspection.positions import prompt_length
from tracekit.trace import NOT_ASKED_FOR, NOT_THE_LOGITS, TOKENS_GIVEN, Sequence, Trace

CODES = ("int8", "uint8", "float8_e4m3fn", "float8_e5m2")
"""What quantised weights are held in; packed ones of 4 bits as bytes."""


@dataclass(frozen=True)
class CutOff:
    """A file that ends before its recording does, or a recording before its program."""

    path: str
    detail: str | None


@dataclass(frozen=True)
class SitesEnded:
    """Sites that stopped being stored before their sequence ended."""

    path: str
    first: str
    more: int
    reason: str


@dataclass(frozen=True)
class PositionsMissing:
    """A sequence whose sites end before its last step was computed."""

    path: str
    sequence: int
    held: int
    needed: int


@dataclass(frozen=True)
class LooksAhead:
    """A model whose positions see later ones: only those of the prompt's call can be computed again."""

    path: str
    sequence: int
    judged: int
    held: int


@dataclass(frozen=True)
class LogitsNotJudged:
    """Recorded logits that a reference program gives in another shape, or not at all."""

    path: str
    sequence: int
    positions: int | None
    """Of the reference's logits; None where it gives none."""
    tokens: int | None
    recorded: int
    """How many tokens the recorded logits are of."""


@dataclass(frozen=True)
class SequencesNotRun:
    """Sequences that a reference program cannot be run on."""

    first: str
    """The first of them and why."""
    more: int


@dataclass(frozen=True)
class CallByCall:
    """A trace that has each call of a generation as a sequence of its own, without steps, beside one that has its
    steps."""

    path: str
    sequence: int
    """The one that was compared: the first call alone."""
    alone: int
    """Sequences of the trace that are compared with nothing."""
    steps: int
    """Of the other trace."""


@dataclass(frozen=True)
class StepsNotRecorded:
    """A generation without a recorded step that computed positions behind its prompt, beside one that has its steps."""

    path: str
    sequence: int
    positions: int
    """Behind the prompt."""
    steps: int
    """Of the other trace."""


@dataclass(frozen=True)
class NothingCompared:
    """Two traces that share no step and no value."""

    path: str


@dataclass(frozen=True)
class SequencesAlone:
    """Sequences of the reference that the candidate has none for: nothing of them was compared."""

    path: str
    sequences: tuple[int, ...]
    other: str


@dataclass(frozen=True)
class ResultsNotCompared:
    """A run without steps of which both sides hold outputs of modules behind all that was compared, under names that
    the other lacks: what the runs gave was compared with nothing."""

    path: str
    sequence: int
    site: str
    """The last of the reference's."""
    other: str
    """Of the candidate's."""


@dataclass(frozen=True)
class Rows:
    """What a site's rows are."""

    width: int
    axis: str | None
    """As `Site.axis`."""


@dataclass(frozen=True)
class SitesUnlike:
    """Sites that both sides recorded, in another width each or along another axis: compared with nothing."""

    path: str
    sequence: int
    site: str
    """The first."""
    reference: Rows
    candidate: Rows
    more: int


@dataclass(frozen=True)
class ProbabilitiesNotJudged:
    """Steps at which the survivors' probabilities differ by more than their own rounding, where a side has no logits:
    what those differ by is not known."""

    path: str
    """Of a trace that lacks them."""
    sequence: int
    step: int
    """The first."""
    more: int
    nats: float
    """The largest difference."""


@dataclass(frozen=True)
class ProcessorsNotJudged:
    """Compared steps without the scores that the logits processors left, on one side or both: of what these did, only
    the token is compared. A greedy one is the largest score's, and a wrong number may leave it so; a drawn one depends
    on every probability, so that it is said, no more."""

    paths: tuple[str, ...]
    """Of the sides that lack them."""
    processors: tuple[str, ...]
    steps: int
    greedy: bool


@dataclass(frozen=True)
class CallsLeftOut:
    """What a program computed and its recorder says that it left out: frames `lost` of its log (docs/format.md)."""

    path: str
    what: str
    """In the recorder's words."""
    by_chance: bool = False
    """Whether another run may have recorded this and left out what is here."""


Loss = (
    CutOff
    | CallsLeftOut
    | SitesEnded
    | PositionsMissing
    | LooksAhead
    | MaskNotRecorded
    | WeightsChanged
    | LogitsNotJudged
    | SequencesNotRun
    | CallByCall
    | StepsNotRecorded
    | NothingCompared
    | SequencesAlone
    | ResultsNotCompared
    | SitesUnlike
    | ProbabilitiesNotJudged
    | ProcessorsNotJudged
)


def losses(trace: Trace) -> list[Loss]:
    """What the recorder of a trace meant to keep and the file does not hold."""
    stopped = bool(trace.config.get("troubles"))
    cut = stopped or not trace.sequences or any(sequence.end_reason is None for sequence in trace.sequences)
    ends: list[Loss] = [CutOff(trace.path, trace.status_detail)] if trace.status != "complete" and cut else []
    return [*ends, *left_out(trace), *lost_rows(trace)]


def lost_rows(trace: Trace) -> list[Loss]:
    """Rows of sites that the recorder of a trace meant to keep and the file does not hold."""
    ended = [(site.name, site.ended) for site in trace.sites.values() if site.ended]
    return [*(SitesEnded(trace.path, name, len(ended) - 1, why) for name, why in ended[:1]), *missing_positions(trace)]


def unrecorded_steps(sequence: Sequence) -> int:
    """Positions that a generation computed behind its prompt where no step of it is recorded."""
    if sequence.step_count or sequence.info.get(TOKENS_GIVEN):
        return 0
    return sequence.positions - prompt_length(sequence)


def missing_positions(trace: Trace) -> list[PositionsMissing]:
    """Sequences whose sites end before their last step was computed."""
    out = []
    for sequence in trace.sequences:
        if not sequence.sites or not sequence.step_count:
            continue
        needed = sequence.step(0).position + sequence.step_count
        if sequence.positions < needed:
            out.append(PositionsMissing(trace.path, sequence.index, sequence.positions, needed))
    return out


def left_out(trace: Trace) -> list[CallsLeftOut]:
    """Calls that a recorder says it left out."""
    by_chance = trace.config.get("by_chance") or []
    return [CallsLeftOut(trace.path, what, what in by_chance) for what in trace.config.get("lost") or [] if what]


def quantised(trace: Trace) -> tuple[str, ...]:
    """Weights that a program holds in fewer than 16 bits: codes, or a format of 8 bits."""
    return tuple(name for name, held in trace.weights.items() if held.dtype in CODES and "weight" in name)


def without_value(trace: Trace) -> dict[str, str]:
    """Sites that hold no value, or none in some calls, though nobody chose so; and why."""
    found = ((site.name, site.skipped or site.partial) for site in trace.sites.values())
    return {name: why for name, why in found if why is not None and why not in (NOT_ASKED_FOR, NOT_THE_LOGITS)}
