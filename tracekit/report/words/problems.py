"""Sentences of what is wrong with a trace itself: capture, losses, runs that were to follow another, text logs."""

from __future__ import annotations

from tracekit.compare.counted import CountDiffers, ListedTokenDiffers, ListedTokensEqual, SequenceCountsDiffer
from tracekit.extra.cosyvoice3.speech import SilenceDropped
from tracekit.inspection.following import (
    ChoicesNotRecorded,
    DrawsNotRecorded,
    NoStep,
    OtherDraw,
    OtherInput,
    TokensNotFollowed,
)
from tracekit.inspection.known_positions import MaskNotRecorded, WeightsChanged
from tracekit.inspection.losses import (
    CallByCall,
    CallsLeftOut,
    CutOff,
    LogitsNotJudged,
    LooksAhead,
    NothingCompared,
    PositionsMissing,
    ProbabilitiesNotJudged,
    ProcessorsNotJudged,
    ResultsNotCompared,
    Rows,
    SequencesAlone,
    SequencesNotRun,
    SitesEnded,
    SitesUnlike,
    StepsNotRecorded,
)
from tracekit.inspection.non_finite import NonFinite
from tracekit.inspection.sanity import (
    ConstantSites,
    CountsOnly,
    DrawsUnseen,
    EndedInError,
    RecordingEnds,
    SharedValues,
    SitesNotFound,
    Uncached,
)
from tracekit.report.words import template, words
from tracekit.trace import ENCODER

# -------------------------------------------------------------------- capture


@words(CountsOnly)
def _counts_only(found: CountsOnly) -> str:
    holds = "counts and token ids" if found.token_ids else "counts only"
    return f"{found.path}: was read from a text log and holds {holds}; tracekit summary sets them side by side"


template(
    ConstantSites,
    "{path}: sequence {sequence}: {constant} of {sites} sites hold one number throughout, {first} first: nothing "
    "was captured; record again, and compute the values before they are copied",
)
template(
    SharedValues,
    "{path}: sequence {sequence}: {shared} of {sites} sites hold the values of another site, {first} first: "
    "buffers were overwritten before they were copied; record copies, not views",
)
template(
    DrawsUnseen,
    "{path}: sequence {sequence}: how the token was drawn was not seen at {unseen} of {steps} steps, step "
    "{first_step} first: {reason}",
)
template(RecordingEnds, "{path}: sequence {sequence}: recording ends at step {step}: {reason}")


# -------------------------------------------------------------------- losses


@words(CutOff)
def _cut_off(found: CutOff) -> str:
    return f"{found.path}: {found.detail or 'was cut off'}"


@words(SitesEnded)
def _sites_ended(found: SitesEnded) -> str:
    more = f" and {found.more} more" if found.more else ""
    return f"{found.path}: {found.first}{more} ended before the sequence: {found.reason}"


@words(PositionsMissing)
def _positions(found: PositionsMissing) -> str:
    held = f"{found.held} of {found.needed}"
    return f"{found.path}: sequence {found.sequence}: sites hold {held} positions; the others are not compared"


@words(LogitsNotJudged)
def _logits_not_judged(found: LogitsNotJudged) -> str:
    where = f"{found.path}: sequence {found.sequence}"
    if found.tokens is None:
        return f"{where}: the reference gives no logits; the recorded ones are not judged"
    if found.tokens != found.recorded:
        said = f"of {found.tokens} tokens, the recorded ones of {found.recorded}"
    else:
        said = f"of {found.positions} positions only"
    return f"{where}: the reference's logits are {said}; they are not judged"


template(
    Uncached,
    "{path}: sequence {sequence} was generated without a cache: from position {first} on, what attention read of "
    "earlier positions was computed again and is not recorded; recipes judge it up to there",
)


@words(LooksAhead)
def _looks_ahead(found: LooksAhead) -> str:
    judged = f"{found.judged} of {found.held} positions are judged, those of the prompt"
    return f"{found.path}: sequence {found.sequence}: a position sees later ones in this model: {judged}"


template(CallsLeftOut, "{path}: not recorded: {what}")

template(
    MaskNotRecorded,
    "{path}: sequence {sequence}: from position {position} on, calls were given an attention mask that a trace cannot "
    "hold (it is no yes or no for each pair of positions); they are not judged",
)


@words(SequencesNotRun)
def _not_run(found: SequencesNotRun) -> str:
    return found.first + (f"; nor on {found.more} more" if found.more else "")


@words(WeightsChanged)
def _changed(found: WeightsChanged) -> str:
    more = f", and {found.more} more sequences" if found.more else ""
    return (
        f"{found.path}: sequence {found.sequence}: from position {found.position} on{more}: computed after the program "
        "had changed the weights; they are not judged"
    )


template(
    CallByCall,
    "{path}: sequence {sequence} is one call without a step, and {alone} more stand alone: the {steps} steps of the "
    "other side are compared with nothing; record the program's loop with its steps",
)


template(
    StepsNotRecorded,
    "{path}: sequence {sequence}: {positions} positions were computed behind its prompt and no step is recorded: the "
    "{steps} steps of the other side are compared with nothing; record what its sampler chooses",
)


template(NothingCompared, "{path} and the candidate share no recorded step and no recorded value: nothing was compared")


@words(EndedInError)
def _ended_in_error(found: EndedInError) -> str:
    raised = f": {found.detail}" if found.detail else ""
    return f"{found.path}: sequence {found.sequence} ended in an error of its program{raised}"


template(
    ResultsNotCompared,
    "{path}: sequence {sequence}: {site} has no partner, nor has the candidate's {other}, and both are behind all that "
    "was compared: what the runs gave is compared with nothing; give a map of their names (--names)",
)


@words(SitesUnlike)
def _unlike(found: SitesUnlike) -> str:
    which = found.site + (f" and {found.more} more" if found.more else "")
    return (
        f"{found.path}: sequence {found.sequence}: {which}: {_rows(found.reference)} in the reference, "
        f"{_rows(found.candidate)} in the candidate: compared with nothing; record the same values on both sides"
    )


def _rows(rows: Rows) -> str:
    of = "the encoder's input" if rows.axis == ENCODER else "the sequence"
    return f"{rows.width} numbers a position of {of}"


@words(SequencesAlone)
def _alone(found: SequencesAlone) -> str:
    more = len(found.sequences) - 1
    which = f"sequence {found.sequences[0]}" + (f" and {more} more" if more else "")
    return (
        f"{found.path}: no partner in {found.other} for {which}, compared with nothing; record both sides with the "
        "same prompts"
    )


@words(ProbabilitiesNotJudged)
def _probabilities(found: ProbabilitiesNotJudged) -> str:
    more = f" and {found.more} more steps" if found.more else ""
    return (
        f"{found.path}: sequence {found.sequence}, step {found.step}{more}: the survivors' probabilities differ "
        f"by up to {found.nats:.2g} nats; without logits on both sides they are not judged; record the logits"
    )


@words(ProcessorsNotJudged)
def _processors(found: ProcessorsNotJudged) -> str:
    return (
        f"{' and '.join(found.paths)}: what {', '.join(found.processors)} left is not recorded at {found.steps} "
        "compared steps and is judged by the tokens alone; record it as the steps' survivors (docs/format.md)"
    )


template(SitesNotFound, "--sites {pattern}: matches no site in this program; only its steps are recorded")


@words(NonFinite)
def _non_finite(found: NonFinite) -> str:
    kinds = [f"{count} {word}" for count, word in ((found.nan, "NaN"), (found.infinite, "infinite")) if count]
    several = f"sequence {found.sequence}, " if found.sequence else ""
    place = f"{several}step {found.step}, position {found.position}"
    counted = f"{' and '.join(kinds)} of {found.width} values"
    where = f"at {found.positions} of {found.of_positions} positions"
    return f"not finite: {found.site} first, at {place}: {counted}; {where}; {_went_in(found)}"


def _went_in(found: NonFinite) -> str:
    if found.source is None or found.source_finite is None:
        return "its input is not recorded, and every value recorded before it is finite"
    if found.source_finite:
        return f"its input {found.source} is finite (largest {found.source_largest:.3g})"
    return f"its input {found.source} is not finite either"


# -------------------------------------------------------------------- runs that were to follow another


template(
    ChoicesNotRecorded,
    "{path}: sequence {sequence}: own choices not recorded at {missing} of {steps} steps of a run that was told "
    "to follow {followed}: its tokens may all be forced ones",
)
template(NoStep, "--follow {followed}: the program recorded no step, so it followed nothing")


@words(TokensNotFollowed)
def _tokens(found: TokensNotFollowed) -> str:
    asked, apart = f"--follow {found.followed}", found.apart
    if apart is None:
        return f"{asked}: nothing in the log shows that the program followed it"
    tokens = f"{apart.token} instead of {apart.instead_of}"
    said = f"sequence {apart.sequence} has token {tokens} at step {apart.step}"
    return (
        f"{asked}: {said}, though other tokens were forced" if found.forced_others else f"{asked}: {_DID_NOT}: {said}"
    )


_DID_NOT = "the program did not follow"


@words(DrawsNotRecorded)
def _no_draws(found: DrawsNotRecorded) -> str:
    asked = f"--follow-draws {found.followed}"
    return f"{asked}: no draw of the program is recorded, so nothing shows that it followed them"


@words(OtherDraw)
def _draw(found: OtherDraw) -> str:
    return (
        f"--follow-draws {found.followed}: {_DID_NOT}: sequence {found.sequence}, step {found.step} draws from "
        f"{_place(found.place)} instead of {_place(found.instead_of)}"
    )


def _place(place: tuple[int | None, int | None]) -> str:
    return f"seed {place[0]}, offset {place[1]}"


@words(OtherInput)
def _input(found: OtherInput) -> str:
    differs = "differs" if found.recorded else "is not recorded"
    return f"--follow-inputs {found.followed}: {_DID_NOT}: prompt/{found.name} of sequence {found.sequence} {differs}"


# -------------------------------------------------------------------- text logs


template(SequenceCountsDiffer, "{reference} sequences in the reference, {candidate} in the candidate")


@words(CountDiffers)
def _count(found: CountDiffers) -> str:
    sides = f"{found.reference} in the reference, {found.candidate} in the candidate"
    return f"sequence {found.sequence}: {found.what.replace('_', ' ')}: {sides}"


@words(ListedTokenDiffers)
def _listed(found: ListedTokenDiffers) -> str:
    sides = f"reference {found.reference} | candidate {found.candidate}"
    return f"sequence {found.sequence}: tokens differ from step {found.step}: {sides}; a text log does not say why"


@words(ListedTokensEqual)
def _listed_equal(found: ListedTokensEqual) -> str:
    said = f"sequence {found.sequence}: the first {found.tokens} tokens are equal"
    if found.generated == found.tokens:
        return said
    return f"{said}; those after it, up to step {found.generated - 1}, are not recorded on both sides"


# -------------------------------------------------------------------- after the tokens


@words(SilenceDropped)
def _silence(found: SilenceDropped) -> str:
    elsewhere = f"the other side drops {found.dropped_elsewhere or 'none'}"
    return (
        f"{found.path}: sequence {found.sequence}: llm_job drops {found.dropped} silent tokens, those after the fifth "
        f"in a row; {elsewhere}: {found.seconds:.2f} s of sound"
    )
