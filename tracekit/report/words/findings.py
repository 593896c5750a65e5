"""Sentences of the search's findings, of what verdicts are founded on, and of their notes."""

from __future__ import annotations

import math

from tracekit.align.pair import Side
from tracekit.align.printed import PrintedOnly
from tracekit.align.renamed import Origin
from tracekit.align.rotary_order import RowsInPairs
from tracekit.auditing.declared_eps import EpsNotDeclared
from tracekit.auditing.elsewhere import FactorElsewhere
from tracekit.auditing.routing import RoutedOtherwise
from tracekit.checkpoints.stated import NoCheckpoint, SettingsOfTrace
from tracekit.compare.drift import Drift, Trend
from tracekit.compare.findings import (
    Chosen,
    InputDiffers,
    LogitsWrong,
    PartDiffers,
    PassedOn,
    SiteWrong,
    TokenDiffers,
)
from tracekit.report.words import sentence, template, words
from tracekit.report.words.numbers import MANY, ranges, times
from tracekit.verdict import evidence
from tracekit.verdict.attribution import (
    AddsUp,
    BeyondAddingUp,
    ComputesAsStated,
    EmbeddingScaled,
    NoAudit,
    OtherModel,
    SiteAtFault,
    Unreadable,
)
from tracekit.verdict.rule import Evidence


@words(Evidence)
def _evidence(found: Evidence) -> str:
    return found.words.format_map(vars(found))


# -------------------------------------------------------------------- what was fed


@words(InputDiffers)
def _input(found: InputDiffers) -> str:
    if found.relative is not None:
        return f"{found.name}: {found.lengths[0]} entries on both sides, off by {found.relative:.2g} (relative)"
    return f"{found.name}: {_lengths(found.lengths)}"


def _lengths(lengths: tuple[int, int]) -> str:
    return f"{lengths[0]} entries in the reference, {lengths[1]} in the candidate"


@words(PartDiffers)
def _part(found: PartDiffers) -> str:
    if found.lengths is not None:
        return f"{found.name}: {_lengths(found.lengths)}"
    texts = found.texts or ("", "")
    return f'{found.name}: "{texts[0]}" | "{texts[1]}"'


@words(evidence.EntryDiffers)
def _entry(found: evidence.EntryDiffers) -> str:
    shown = [
        "nothing" if value is None else str(value) if text is None else f'{value} "{text}"'
        for value, text in zip(found.values, found.texts, strict=True)
    ]
    return f"first difference at entry {found.entry}: {shown[0]} | {shown[1]}"


template(evidence.RowsFed, "{side}: {rows} rows fed for {entries} prompt entries")


@words(evidence.RowUnmatched)
def _row_unmatched(found: evidence.RowUnmatched) -> str:
    one = len(found.rows) == 1
    which = f"row {found.rows[0]}" if one else f"rows {', '.join(map(str, found.rows[:MANY]))}"
    verb = "matches" if one else "match"
    if found.added:
        return f"{which} of the {found.side} {verb} no prompt entry of the {found.side.other}: added, and not recorded"
    return f"{which} of the {found.side} {verb} no row of the {found.side.other}, which left it out"


template(evidence.RowsUnknown, "which rows differ is not known: no site holds them on both sides")


# -------------------------------------------------------------------- parameters and settings


@words(evidence.ParameterDiffers)
def _parameter(found: evidence.ParameterDiffers) -> str:
    more = f" and {found.more} more" if found.more else ""
    return f"parameter {found.name}{more}: bytes differ from the reference's"


@words(evidence.ParameterRelated)
def _related(found: evidence.ParameterRelated) -> str:
    return f"in the checkpoints, the reference's first and the candidate's second, {sentence(found.relation)}"


@words(evidence.SettingDiffers)
def _setting(found: evidence.SettingDiffers) -> str:
    return f"{found.name}: {_shown(found.reference)} in the reference, {_shown(found.candidate)} in the candidate"


def _shown(value: object) -> str:
    if isinstance(value, list) and len(value) > MANY:
        numbers = [each for each in value if type(each) is int]
        return f"[{ranges(numbers)}]" if len(numbers) == len(value) else f"{len(value)} entries, {value[0]} the first"
    return "not set" if value is None else str(value)


# -------------------------------------------------------------------- layers


@words(SiteWrong)
def _site_wrong(found: SiteWrong) -> str:
    return f"{_error(found.ratio, found.error)}, at {found.wrong} of {found.positions} positions"


@words(LogitsWrong)
def _logits_wrong(found: LogitsWrong) -> str:
    return _error(found.ratio, found.error)


def _error(ratio: float, error: float) -> str:
    return f"error is {times(ratio)} the tolerance (relative {error:.1e})"


@words(PassedOn)
def _passed_on(found: PassedOn) -> str:
    apart = f"{found.error:.1e} (relative)"
    return f"not computed in the candidate: it equals {found.candidate_site}; in the reference they are {apart} apart"


@words(SiteAtFault)
def _at_fault(found: SiteAtFault) -> str:
    return sentence(found.culprit.evidence)


template(evidence.ReferenceDeparts, "the reference departs from its checkpoint here, not the candidate")
template(
    evidence.PrecisionAlone,
    "a choice of precision: the formula is the declared one, and no token differs because of it",
)


@words(evidence.PrecisionMovesToken)
def _precision_moves_token(found: evidence.PrecisionMovesToken) -> str:
    margin = "" if found.token is None else f" by {found.token.margin:.2g} nats"
    return (
        f"a choice of precision: the formula is the declared one, but a token changed{margin}, more than rounding does"
    )


@words(Origin)
def _origin(found: Origin) -> str:
    return found.site if found.stop is None else f"{found.site}, columns {found.first} to {found.stop - 1}"


@words(evidence.RecordedAs)
def _recorded_as(found: evidence.RecordedAs) -> str:
    return f"in the candidate it is {sentence(found.origin)}"


template(evidence.InputAgrees, "its input {site} agrees ({ratio:.1f}× the tolerance)")


@words(evidence.InputOff)
def _input_off(found: evidence.InputOff) -> str:
    return f"its input {found.site} is wrong as well ({times(found.ratio)} the tolerance)"


@words(evidence.NotCovered)
def _not_covered(found: evidence.NotCovered) -> str:
    mend = "; --model FOLDER has the reference program judge it" if found.reason.reference_knows else ""
    return f"the audit does not cover this site: {sentence(found.reason)}{mend}"


# -------------------------------------------------------------------- tokens


@words(TokenDiffers)
def _token(found: TokenDiffers) -> str:
    sides = (Side.REFERENCE, found.reference), (Side.CANDIDATE, found.candidate)
    said = [f"{side} {_chosen(chosen)}" for side, chosen in sides]
    return f"tokens differ from step {found.step}: {said[0]} | {said[1]}"


def _chosen(chosen: Chosen) -> str:
    return str(chosen.id) if chosen.text is None else f'{chosen.id} "{chosen.text}"'.replace("\n", "\\n")


# -------------------------------------------------------------------- agreement


template(evidence.TokensAlone, "only tokens were compared: no layer and no logits are recorded on both sides")
template(evidence.LargestError, "largest error is {ratio:.1f}× the tolerance, at {site}")
template(evidence.AllEqual, "every compared value is equal")


@words(evidence.WhatIsThereAgrees)
def _there_agrees(found: evidence.WhatIsThereAgrees) -> str:
    return f"what was recorded agrees: {sentence(found.how)}"


@words(evidence.OthersAgree)
def _others_agree(found: evidence.OthersAgree) -> str:
    mend = "record it without --follow, or let it record its own choice at each step as an event `forced`"
    return f"every other compared value is equal within rounding; {mend}"


# -------------------------------------------------------------------- notes


@words(Drift)
def _drift(found: Drift) -> str:
    if found.kind is Trend.GROWTH:
        ends = f"from {found.before:.2g}× to {times(found.after, 2)} the tolerance"
        return f"the logits' error grows {ends} over {found.steps} steps"
    before = "next to nothing" if found.from_nothing else f"{times(found.before, 2)} the tolerance"
    return f"the logits' error is {before} before step {found.step}, {times(found.after, 2)} the tolerance from there"


template(evidence.TieMoved, "sequence {sequence}, step {step}: rounding moved a token across a cut of the filter")
template(evidence.RecorderNote, "{path}: {said}")


@words(EpsNotDeclared)
def _eps_not_declared(found: EpsNotDeclared) -> str:
    more = f" and {found.more} more" if found.more else ""
    return f"config.json declares no eps: {found.first}{more} judged with the eps that the program says it has"


@words(evidence.NotFinite)
def _not_finite(found: evidence.NotFinite) -> str:
    return f"{found.path}: {sentence(found.first)}"


template(
    evidence.NotFiniteAlike,
    "both sides are not finite from the same place on: there, equal means that both fail in the same way",
)


@words(NoAudit)
def _no_audit(found: NoAudit) -> str:
    place = "" if isinstance(found.why, Unreadable) else f"{found.path} "
    return f"not audited: {place}{sentence(found.why)}"


template(Unreadable, "{said}")
template(OtherModel, "is not what the reference ran with (give the checkpoint with --weights)")


@words(NoCheckpoint)
def _no_checkpoint(found: NoCheckpoint) -> str:
    if found.stated is None:
        return (
            "states no checkpoint; give --weights, or a torch program to judge it by (--reference, --module), or have "
            "the program state it: PyTorch does it by itself for a model of `from_pretrained`, Rust in "
            "`tracekit::describe`, any other program as `checkpoint` of the log's first frame"
        )
    also = " nor in the hub's cache" if found.on_hub else ""
    return f"states the checkpoint {found.stated}, which is not there, not beside {found.beside}{also}; give --weights"


template(SettingsOfTrace, "no config.json is beside {checkpoint}: the settings are those that the trace itself states")


@words(evidence.InStatedUnits)
def _in_stated_units(found: evidence.InStatedUnits) -> str:
    return (
        f"both sides state an arithmetic with a roundoff of {found.unit:.1g}, and no checkpoint was found to recompute "
        "it: smaller faults than that are not seen"
    )


@words(evidence.Uncalibrated)
def _uncalibrated(found: evidence.Uncalibrated) -> str:
    others = f" and {found.more} more" if found.more else ""
    return f"{found.site}{others}: not in the {found.calibration} trace, judged without calibration"


@words(PrintedOnly)
def _printed_only(found: PrintedOnly) -> str:
    sites = "1 site" if found.sites == 1 else f"{found.sites} sites"
    return (
        f"partial: {found.path} holds {sites} as they were printed, {found.columns} of {found.of} columns to "
        f"{found.decimals} decimals in the first; nothing else of them is compared"
    )


template(
    RowsInPairs,
    "{path}: the rows of q_proj and k_proj are in rotary pairs in {layers} layers, as in a GGUF file; they are "
    "read in the order of halves ({first} first)",
)


@words(EmbeddingScaled)
def _embedding_scaled(found: EmbeddingScaled) -> str:
    doubt = "" if found.seen else " or not at all, as later sites show"
    return (
        f"{found.site}: the {found.inside} multiplies the embeddings by {found.factor:.6g} in it, the "
        f"{found.inside.other} after it{doubt}; both are right, and the site is not compared"
    )


template(
    FactorElsewhere,
    "{site}: {factor:.6g} times what is recorded is the reference's value, as later sites show: the candidate "
    "multiplies at another place; both are right",
)


@words(RoutedOtherwise)
def _routed_otherwise(found: RoutedOtherwise) -> str:
    first, more = found.first, found.positions - 1
    place = f"sequence {first.sequence}, " if first.sequence else ""
    beyond = f" and {more} more" if more else ""
    said = (
        f"{first.router}: the candidate chose {_numbers(first.candidate)} where the reference chooses "
        f"{_numbers(first.reference)} of {first.among}, at {place}step {first.step}, "
        f"position {first.position}{beyond}: "
    )
    if first.near_tie:
        return f"{said}near-tie, scores {first.margin:.1e} apart; neither is wrong"
    over = f", {times(first.margin / first.rounding)} what rounding explains" if first.rounding else ""
    return f"{said}scores {first.margin:.2g} apart{over}"


def _numbers(experts: tuple[int, ...]) -> str:
    return ", ".join(map(str, experts))


@words(ComputesAsStated)
def _computes_as_stated(found: ComputesAsStated) -> str:
    read = ", ".join(f"{kind} at {held} weights" for held, kind in found.products.items())
    parts = [*([f"inputs rounded to {read}"] if read else []), *([f"a {found.cache} cache"] if found.cache else [])]
    who = (
        "both sides compute in the arithmetic that they state"
        if found.both
        else (f"{found.path} computes in the arithmetic that it states")
    )
    return (
        f"{who} ({'; '.join(parts)}): every site is within its bound "
        f"in it, though {found.site} is {found.ratio:.3g}× the tolerance from the other side's"
    )


@words(AddsUp)
def _adds_up(found: AddsUp) -> str:
    return (
        f"{found.site} is {times(found.ratio)} the tolerance, but no module up to it adds more than rounding to the "
        f"difference of its inputs: {times(found.share, 2)} the limit at most"
    )


@words(BeyondAddingUp)
def _beyond(found: BeyondAddingUp) -> str:
    if math.isinf(found.share):
        return (
            f"{found.site} is within its own rounding bound; whether its difference is rounding of earlier sites is "
            "not known: it was not recorded at the same positions on both sides"
        )
    return (
        f"{found.site} is within its own rounding bound, but one site up to it adds {times(found.share)} what rounding "
        "adds to the difference of its inputs: the cause is an operation that is not audited"
    )
