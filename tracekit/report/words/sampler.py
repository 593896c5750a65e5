"""Sentences of what is found of a sampler: survivors, draws, tokens, ends; and of what a run does not exercise."""

from __future__ import annotations

from tracekit.compare.findings import DrawField
from tracekit.report.words import template, words
from tracekit.sampling import exercise
from tracekit.sampling.processors import BY_SETTING
from tracekit.verdict.counterfactual import evidence
from tracekit.verdict.counterfactual.evidence import Judgement, Known, ProcessorRun
from tracekit.verdict.unexercised import NotExercised, Unshown

MANY = 5
"""Tokens that are listed."""


def _tokens(tokens: tuple[int, ...]) -> str:
    shown = ", ".join(str(token) for token in tokens[:MANY])
    return shown + (f" and {len(tokens) - MANY} more" if len(tokens) > MANY else "")


# -------------------------------------------------------------------- survivors


def _many(tokens: int | None) -> str:
    return "1 token" if tokens == 1 else f"{tokens} tokens"


def _survive(tokens: int) -> str:
    return f"{_many(tokens)} {'survives' if tokens == 1 else 'survive'}"


@words(evidence.SurvivorCounts)
def _counts(found: evidence.SurvivorCounts) -> str:
    ours, theirs = found.counts
    return f"{_survive(ours)} in the reference, {theirs} in the candidate"


@words(evidence.SurvivesAlone)
def _alone(found: evidence.SurvivesAlone) -> str:
    return f"only in the {found.side}: {_tokens(found.tokens)}"


@words(evidence.ProbabilitiesDiffer)
def _probabilities(found: evidence.ProbabilitiesDiffer) -> str:
    said = f"the same {found.count} tokens survive with different probabilities: up to {found.log_ratio:.2g} nats"
    return said if found.allowed is None else f"{said}; the logits' difference accounts for {found.allowed:.1e}"


@words(evidence.CutMissed)
def _cut(found: evidence.CutMissed) -> str:
    said = f"distance to the cut {found.distance:.2g}, logit error {found.error:.1e}"
    return f"{said}: rounding {'may have moved them' if found.within else 'cannot have moved them'} across it"


@words(evidence.NotFromLogits)
def _not_from_logits(found: evidence.NotFromLogits) -> str:
    whose = "the reference's" if found.reference_settings else "the"
    return f"the {found.side}'s survivors do not match its logits under {whose} declared settings"


template(
    evidence.ReferenceNotAsStated,
    "it is the reference that departs from its declared settings; the candidate follows its own",
)


def _run(one: ProcessorRun) -> str:
    return f"{one.name}({', '.join(f'{name}={value}' for name, value in one.settings)})"


@words(evidence.OtherProcessor)
def _other_processor(found: evidence.OtherProcessor) -> str:
    ours, theirs = found.processors
    return f"{_run(ours)} runs in the reference where {_run(theirs)} runs in the candidate"


@words(evidence.ProcessorLeaves)
def _leaves(found: evidence.ProcessorLeaves) -> str:
    ours, theirs = found.processors
    name = _run(ours) if _run(ours) == _run(theirs) else f"{_run(ours)} | {_run(theirs)}"
    return f"{name} leaves {_many(ours.survivors)} in the reference, {theirs.survivors} in the candidate"


@words(evidence.ProcessorOnOneSide)
def _on_one_side(found: evidence.ProcessorOnOneSide) -> str:
    return f"{_run(found.processor)} runs in the {found.side} alone"


@words(evidence.NotRecomputed)
def _not_recomputed(found: evidence.NotRecomputed) -> str:
    return f"not recomputed, unknown: {', '.join(found.names)} of the {found.side}"


# -------------------------------------------------------------------- draws


template(evidence.DrawCounts, "draws at step {step}: {counts[0]} in the reference, {counts[1]} in the candidate")
template(
    evidence.Redraws,
    "{draws} draws on both sides up to step {step}; stop tokens drawn again in the whole segment: {redraws[0]} in"
    " the reference, {redraws[1]} in the candidate",
)


def _and(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


@words(evidence.OtherDraw)
def _other_draw(found: evidence.OtherDraw) -> str:
    same = ["survivors"] if found.same_survivors else []
    # A generator that is not recorded on both sides is not said to be the same.
    same += [name.value for name in found.same] if found.field is DrawField.OP else []
    what = "a different sampling algorithm" if found.algorithm else "another draw"
    start = f"same {_and(same)}, {what}" if same else what
    field = "draws" if found.field is DrawField.COUNT else found.field.value
    return f"{start}: {field} {found.values[0]} in the reference, {found.values[1]} in the candidate"


@words(evidence.DrawsMoveOn)
def _move_on(found: evidence.DrawsMoveOn) -> str:
    ours, theirs = found.words
    return (
        f"the draw takes 2 words for each survivor, {ours} in the reference, {theirs} in the candidate: "
        "later draws begin elsewhere in the generator's stream, and no fault is needed for other tokens"
    )


@words(evidence.OffsetInRaces)
def _races(found: evidence.OffsetInRaces) -> str:
    races = "1 race" if found.races == 1 else f"{found.races} races"
    return f"the words are those of {races} over the vocabulary of {found.vocabulary}"


template(evidence.ShiftChanges, "the distance between the generators changes at later steps")


# -------------------------------------------------------------------- tokens

KNOWN = {
    Known.WITHIN_ROUNDING: "{what} differ by no more than rounding",
    Known.REFERENCE: "{what} are recorded in the reference only",
    Known.CANDIDATE: "{what} are recorded in the candidate only",
    Known.NEITHER: "{what} are recorded on neither side",
}


@words(evidence.OtherToken)
def _other_token(found: evidence.OtherToken) -> str:
    parts = {"survivors": found.survivors, "draws": found.draws}
    if set(parts.values()) == {Known.NEITHER}:
        return "another token; survivors and draws are recorded on neither side"
    same = " and ".join(what for what, known in parts.items() if known is Known.SAME)
    start = f"same {same}, another token" if same else "another token"
    lacks = [KNOWN[known].format(what=what) for what, known in parts.items() if known is not Known.SAME]
    return "; ".join([start, *lacks])


@words(evidence.TokenRanks)
def _ranks(found: evidence.TokenRanks) -> str:
    place = f"number {found.candidate} of its own logits in the candidate, number {found.reference} in the reference"
    always = "at each step" if found.largest == found.steps else f"at {found.largest} of {found.steps} steps"
    return f"the token is {place}, which takes the largest {always} up to here"


@words(evidence.BothUnseeded)
def _both_unseeded(found: evidence.BothUnseeded) -> str:
    names = " and ".join(found.generators)
    return f"another token: both sides draw from an unseeded generator ({names}), whose draws cannot be reproduced"


JUDGED = {
    Judgement.ROUNDING: "rounding decided",
    Judgement.NOT_THE_LOGITS: "the logits do not flip the token",
    Judgement.FAULT: "not a near-tie",
}


@words(evidence.TokenMarginMeasured)
def _margin(found: evidence.TokenMarginMeasured) -> str:
    return f"margin {found.margin:.2g} nats, measured error {found.error:.2g}: {JUDGED[found.judgement]}"


template(evidence.OwnDistribution, "each side's distribution gives its own token, with either side's draws")


@words(evidence.CutCrossed)
def _crossed(found: evidence.CutCrossed) -> str:
    why = "as each side's logits and settings give them" if found.follows else "within the logits' error of the cut"
    near = "" if found.distance is None else f"; the nearest is {found.distance:.2g} {found.unit} from the cut"
    return f"{_survive(found.tokens)} on one side only, {why}: rounding decided{near}"


template(
    evidence.DrawsUnknown,
    "the draws cannot be regenerated from what is recorded: a near-tie is neither shown nor excluded",
)


@words(evidence.Ends)
def _ends(found: evidence.Ends) -> str:
    said = [
        f"{count} tokens, end: {reason or 'not recorded'}"
        for count, reason in zip(found.tokens, found.reasons, strict=True)
    ]
    return f"all common tokens agree; reference {said[0]} | candidate {said[1]}"


# -------------------------------------------------------------------- what a run does not exercise


def _name(setting: str) -> str:
    processor = BY_SETTING.get(setting)
    return setting if processor is None else processor.words


@words(exercise.SettingOff)
def _off(found: exercise.SettingOff) -> str:
    return f"{_name(found.setting)} (off)"


@words(exercise.RemovedNothing)
def _removed_nothing(found: exercise.RemovedNothing) -> str:
    return f"{_name(found.setting)} {found.number} (removed nothing at {found.steps} steps)"


@words(exercise.NoRepeats)
def _no_repeats(found: exercise.NoRepeats) -> str:
    return f"{_name(found.setting)} on repeats (no token stood twice before any of {found.steps} steps)"


template(exercise.NothingRecorded, "the sampler's rules (its survivors, draws and events are not recorded)")
template(exercise.NoRedraw, "drawing a stop token again before min_len (none drawn so early at {steps} steps)")
template(exercise.NoRepetitionFallback, "repetition rule (no token repeated too often at {steps} steps)")
template(exercise.FilterNotReached, "{setting} {number} ({other} ended the nucleus at {steps} steps)")


UNSHOWN = {
    Unshown.OWN_TOKENS: "running on from tokens of its own (the candidate follows another trace)",
    Unshown.OWN_TOKENS_TOLD: "running on from tokens of its own (the candidate was told to follow another trace)",
    Unshown.DRAWS: "the candidate's random numbers (forced)",
    Unshown.PROMPT: "the candidate's prompt (forced)",
    Unshown.GENERATION: "generation (no steps recorded)",
    Unshown.LATER_POSITIONS: "positions after the first (one position)",
    Unshown.SLIDING_WINDOW: "sliding window ({window} > {positions} positions)",
    Unshown.ROPE_SCALING: "positions beyond the rope scaling's original length ({limit} > {positions} positions)",
    Unshown.PREFILL: "prefill (prompts of one token)",
    Unshown.DECODING: "decoding from the KV cache (one step)",
    Unshown.ONE_KV_HEAD: "KV-head mapping (one KV head for {heads} heads)",
    Unshown.ALL_KV_HEADS: "KV-head mapping ({heads} KV heads for {heads} heads)",
    Unshown.HALF_PRECISION: "16-bit numbers (a run in {dtype})",
    Unshown.SETTINGS: "sampling settings (the reference does not declare them)",
    Unshown.SAMPLING: "sampling (greedy, {steps} steps)",
    Unshown.TIES_AT_TOP: "ties of the largest logits (none at {steps} steps)",
    Unshown.ORDER_OF_TEMPERATURE: "order of temperature and top-p (temperature 1)",
    Unshown.TIES_AT_CUT: "ties at a cut (none at {steps} steps)",
    Unshown.ONE_SURVIVOR: "draws (one survivor at all {steps} steps)",
    Unshown.END: "the end of the generation (sequence {sequence} is cut off)",
    Unshown.STOP_TOKENS: "stop tokens (none sampled in {steps} steps)",
    Unshown.ALL_STOP_TOKENS: "all stop tokens ({met} of {of} sampled)",
    Unshown.LENGTH_LIMIT: "length limit ({setting} {limit} never reached)",
    Unshown.BATCHES: "batches (one sequence of {steps} steps)",
}


@words(NotExercised)
def _not_exercised(found: NotExercised) -> str:
    return UNSHOWN[found.what].format_map(dict(found.numbers))
