"""The search: the first thing that is wrong, in the order in which a generation computes.

Config, weights, prompt and inputs, then step by step the sites in execution order, logits, survivors, draws, token,
stop. What is found are facts (`Finding`); their cause is `verdict`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, field, replace

import numpy as np

from tracekit.align.fed_rows import fed_apart, unmatched_rows
from tracekit.align.pair import Pair
from tracekit.align.sites import SequencePair, SitePair, check_same_model
from tracekit.compare import survivors
from tracekit.compare.drift import Drift, drift
from tracekit.compare.findings import (
    DRAWS,
    Chosen,
    DrawDiffers,
    DrawField,
    Finding,
    InputDiffers,
    LogitsWrong,
    PartDiffers,
    PassedOn,
    RowsDiffer,
    SiteWrong,
    StopDiffers,
    TokenDiffers,
    VocabulariesDiffer,
)
from tracekit.compare.metrics import row_errors
from tracekit.compare.yardstick import Judged, Yardstick
from tracekit.dtypes import UNIT_ROUNDOFF
from tracekit.inspection.losses import ProbabilitiesNotJudged, ProcessorsNotJudged, unrecorded_steps
from tracekit.inspection.positions import prompt_length, step_of
from tracekit.inspection.site_rows import logits_width, row_bytes, site_reader
from tracekit.sampling.chain import chain
from tracekit.sampling.observed import Observed
from tracekit.sampling.processor import Applied, run
from tracekit.sampling.replay import observe
from tracekit.sampling.scores import working
from tracekit.trace import LOGITS, Array, Sequence, Step


@dataclass(frozen=True)
class Counts:
    """How much was compared."""

    sequences: int = 0  # pairs of sequences
    steps: int = 0
    steps_after_divergence: int = 0  # of another input, and therefore not compared
    sites: int = 0
    values: int = 0


@dataclass
class Search:
    """Everything the search saw."""

    pair: Pair
    findings: list[Finding] = field(default_factory=list)
    compared: Counts = field(default_factory=Counts)
    compared_sites: set[SitePair] = field(default_factory=set)  # at one position of one sequence at least
    worst: tuple[float, str | None] = (0.0, None)  # largest site ratio of what was not found wrong
    token: TokenDiffers | None = None  # the first token that differs
    off: set[str] = field(default_factory=set)  # sites with a position that is wrong, victims included
    ratios: dict[str, float] = field(default_factory=dict)  # site -> largest site ratio
    logits_gap: float | None = None  # largest |difference| of a logit over the compared steps
    drift: Drift | None = None  # how the logits' error changes over the steps
    ties: list[tuple[int, int]] = field(
        default_factory=list
    )  # (sequence, step) where rounding moved a token over a cut
    probabilities: ProbabilitiesNotJudged | None = None  # survivors' that differ, where no logits tell how far they may
    processors: ProcessorsNotJudged | None = None  # of steps that do not say what they left
    begun: int = 0  # pairs of sequences that were compared

    @property
    def left(self) -> bool:
        """Whether there are sequences that were not compared."""
        return self.begun < len(self.pair.sequences)

    @property
    def first(self) -> Finding | None:
        """The divergence."""
        return min(self.findings, key=lambda finding: (finding.sequence, *finding.rank), default=None)

    @property
    def differs(self) -> bool:
        """Whether any compared value does: of two equal runs neither is wrong by the other."""
        return bool(self.findings) or self.worst[1] is not None


def search(pair: Pair, yardstick: Yardstick, harmless: Set[tuple[str, str]] = frozenset()) -> Search:
    """Compare two traces. `harmless`: sites of both sides that hold the same thing at two stages of the computation,
    and are not compared. Raises TraceError where the traces cannot be of the same model."""
    check_same_model(pair.reference, pair.candidate, pair.sites)
    result = Search(pair.without(frozenset(harmless)))
    result.compared = Counts(sequences=len(pair.sequences))
    go_on(result, yardstick)
    return result


def go_on(result: Search, yardstick: Yardstick) -> None:
    """Compare the next sequences, up to one in which something is found: later ones cannot hold an earlier divergence,
    unless what was found turns out to be none."""
    while result.left and not result.findings:
        result.begun += 1
        _compare_sequence(result, result.pair.sequences[result.begun - 1], yardstick)


def _compare_sequence(result: Search, pair: SequencePair, yardstick: Yardstick) -> None:
    one, other = pair.reference, pair.candidate
    finding = _input_difference(pair) or _rows_difference(pair, result.pair)
    if finding is not None:
        result.findings.append(finding)
        return
    split = first_token_difference(one, other)
    common = min(one.step_count, other.step_count)
    steps = common if split is None else split + 1
    done = result.compared
    left = max(one.step_count, other.step_count) - steps
    result.compared = replace(done, steps=done.steps + steps, steps_after_divergence=done.steps_after_divergence + left)
    prompt = prompt_length(one)
    stop = compared_positions(pair)
    _compare_sites(result, pair, yardstick, stop, prompt)
    result.findings += _passed_on(result.pair, pair, stop, prompt)
    result.findings += _vocabularies(pair, prompt) if steps else []
    _compare_logits(result, pair, yardstick, steps, prompt)
    result.findings += _sampled(result, pair, steps)
    if split is not None:
        result.token = _token_finding(pair, split)
        result.findings.append(result.token)
    elif _stopped_apart(one, other):
        result.findings.append(_stop_finding(pair, common))


def _sampled(result: Search, pair: SequencePair, steps: int) -> list[Finding]:
    """The first difference of survivors, draws or of a choice that was not taken."""
    one, other = pair.reference, pair.candidate
    tokens = one.tokens, other.tokens
    tell = _tells_draws(one) and _tells_draws(other)
    stated = chain(one.sampling), chain(other.sampling)
    for index in range(steps):
        seen = observe(one, index, tokens[0]), observe(other, index, tokens[1])
        _note_logits_gap(result, *seen)
        _note_processors(result, seen, stated, greedy=one.sampling.get("do_sample") is False)
        finding = _survivor_difference(result, pair, *seen)
        finding = finding or (_draw_difference(pair, one.step(index), other.step(index)) if tell else None)
        if finding is not None:
            return [finding]
        chosen = _choice_finding(pair, *seen, tokens[0][index] == tokens[1][index])
        if chosen is not None:
            result.token = chosen
            return [chosen]
    return []


def compared_positions(pair: SequencePair) -> int:
    """Positions that both sides computed from the same tokens; none where their inputs differ."""
    one, other = pair.reference, pair.candidate
    if _input_difference(pair) is not None or fed_apart(pair) is not None:
        return 0
    split = first_token_difference(one, other)
    steps = min(one.step_count, other.step_count) if split is None else split + 1
    behind = prompt_length(one) + max(steps - 1, 0) if steps else one.positions
    return min(one.positions, other.positions, behind)


def first_token_difference(one: Sequence, other: Sequence) -> int | None:
    """The first step whose token differs."""
    common = min(one.step_count, other.step_count)
    apart = np.flatnonzero(one.tokens[:common] != other.tokens[:common])
    return int(apart[0]) if apart.size else None


TOKEN_IDS = "token_ids"
"""The prompt itself, before what it was put together from."""


def _text(sequence: Sequence, position: int) -> str | None:
    texts = sequence.texts
    return texts[position] if texts is not None and position < len(texts) else None


def _parts_apart(pair: SequencePair) -> Iterator[PartDiffers]:
    """What the prompt was put together from and is not the same: a speech token prompt, a text."""
    ours, theirs = pair.reference.inputs, pair.candidate.inputs
    for name in ours:
        if name != TOKEN_IDS and name in theirs and not _alike(ours[name], theirs[name]):
            yield PartDiffers(name, lengths=(len(ours[name]), len(theirs[name])))
    for name in ("prompt_part", "tts_text"):
        one, other = pair.reference.info.get(name), pair.candidate.info.get(name)
        if one is not None and other is not None and one != other:
            yield PartDiffers(name, texts=(str(one), str(other)))


def _entry(values: Array, index: int) -> int | None:
    return int(values[index]) if index < len(values) else None


def _alike(one: Array, other: Array) -> bool:
    """Whether two inputs are the same; numbers (a spectrogram, an image), each but for one rounding on either side."""
    if one.shape != other.shape or one.dtype.kind != "f" or other.dtype.kind != "f":
        return one.shape == other.shape and np.array_equal(one, other)
    unit = max(float(np.finfo(each.dtype).eps) for each in (one, other))
    ours, theirs = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        near = np.abs(ours - theirs) <= unit * np.maximum(np.abs(ours), np.abs(theirs))
    return bool(np.all(near | (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))))


def _relative(one: Array, other: Array) -> float:
    ours, theirs = one.astype(np.float64), other.astype(np.float64)
    return float(np.linalg.norm(theirs - ours) / max(float(np.linalg.norm(ours)), np.finfo(np.float64).tiny))


def _input_difference(pair: SequencePair) -> InputDiffers | None:
    ours, theirs = pair.reference.inputs, pair.candidate.inputs
    for name in sorted(ours, key=lambda name: name != TOKEN_IDS):
        if name not in theirs:
            continue
        one, other = ours[name], theirs[name]
        if _alike(one, other):
            continue
        same = min(len(one), len(other))
        apart = np.flatnonzero([not _alike(a, b) for a, b in zip(one[:same], other[:same], strict=True)])
        position = int(apart[0]) if apart.size else same
        finding = InputDiffers(
            sequence=pair.index,
            step=0,
            position=position,
            site=f"prompt/{name}",
            name=name,
            lengths=(len(one), len(other)),
            relative=_relative(one, other) if one.shape == other.shape and one.dtype.kind == "f" else None,
        )
        if one.ndim == 1 and other.ndim == 1 and finding.relative is None:
            values = _entry(one, position), _entry(other, position)
            finding = replace(finding, values=values)
        if name == TOKEN_IDS:
            texts = _text(pair.reference, position), _text(pair.candidate, position)
            finding = replace(finding, texts=texts, parts=tuple(_parts_apart(pair)))
        return finding
    return None


def _rows_difference(pair: SequencePair, traces: Pair) -> RowsDiffer | None:
    """Other rows fed than the prompt's entries, on one side: which of them is known from the values alone."""
    fed = fed_apart(pair)
    if fed is None:
        return None
    found = unmatched_rows(pair, traces.sites, fed)
    return RowsDiffer(
        sequence=pair.index,
        step=0,
        position=found.rows[0] if found and found.rows else None,
        site="prompt/rows",
        fed=fed.fed,
        entries=fed.told,
        unmatched=found,
    )


def _compare_sites(result: Search, pair: SequencePair, yardstick: Yardstick, stop: int, prompt: int) -> None:
    values = 0
    for site in result.pair.sites.pairs:
        for first, last in common_ranges(pair, site, stop):
            judged = yardstick.judge(pair, site, first, last)
            if judged is None:
                continue
            values += (last - first) * pair.reference.sites[site.name].width
            result.compared_sites.add(site)
            _note(result, pair, site, judged, first, prompt)
    done = result.compared
    result.compared = replace(done, values=done.values + values, sites=len(result.compared_sites))


DONE = "done"
"""End of a call without steps, or of a dump: how the generation ended is not known."""
PASSED_ON_UNITS = 16.0
"""Roundoff units that two sites of the reference must be apart to be two values, not one in two roundings."""


def _passed_on(traces: Pair, pair: SequencePair, stop: int, prompt: int) -> list[Finding]:
    """Sites at which the candidate passes an earlier site's tensor on where the reference has another value: a layer
    that is skipped, a sum that is not taken. In 16 bits what is missing may be smaller than rounding adds up to."""
    partner = {site.candidate: site for site in traces.sites.pairs if site.candidate == site.name}
    out: list[Finding] = []
    for site in traces.sites.pairs:
        other = partner.get(site.candidate)
        if other is None or other.name == site.name or other.name not in pair.reference.sites:
            continue
        ranges = pair.reference.sites[other.name].shared(tuple(common_ranges(pair, site, stop)))
        for first, last in ranges:
            one, two = site_reader(pair.reference, site.name), site_reader(pair.reference, other.name)
            apart = row_errors(two, one, first, last, row_bytes(pair.reference, site.name)).relative
            dtypes = pair.reference.sites[site.name].dtype, pair.candidate.sites[site.candidate].dtype
            units = apart / max(UNIT_ROUNDOFF.get(dtype, 1.0) for dtype in dtypes)
            wrong = np.flatnonzero(units > PASSED_ON_UNITS)
            if wrong.size:
                at = int(wrong[0])
                out.append(
                    PassedOn(
                        sequence=pair.index,
                        step=step_of(first, prompt),  # none of the rows is computed
                        position=first,
                        site=site.name,
                        order=site.order,
                        candidate_site=site.candidate,
                        units=float(units[at]),
                        error=float(apart[at]),
                    )
                )
                break
    return out


def common_ranges(pair: SequencePair, site: SitePair, stop: int) -> Iterator[tuple[int, int]]:
    """Positions below `stop` that both sides recorded of a site, if it has one width on both."""
    ours, theirs = pair.reference.sites.get(site.name), pair.candidate.sites.get(site.candidate)
    if ours is None or theirs is None or (ours.width, ours.axis) != (theirs.width, theirs.axis):
        return
    # What an encoder computes, it computes before the first step, whatever comes after it.
    limit = stop if ours.axis is None else max(end for _, end in ours.ranges or ((0, 0),))
    for begin, end in ours.ranges:
        for start, finish in theirs.ranges:
            first, last = max(begin, start), min(end, finish, limit)
            if first < last:
                yield first, last


def _note(result: Search, pair: SequencePair, site: SitePair, judged: Judged, first: int, prompt: int) -> None:
    result.ratios[site.name] = max(result.ratios.get(site.name, 0.0), judged.site_ratio)
    wrong = np.flatnonzero(judged.wrong)
    if not wrong.size:
        if judged.site_ratio > result.worst[0]:
            result.worst = (judged.site_ratio, site.name)
        return
    result.off.add(site.name)
    at = int(wrong[0])
    position = first + at
    step = step_of(position, prompt) if pair.reference.sites[site.name].axis is None else 0
    result.findings.append(
        SiteWrong(
            sequence=pair.index,
            step=step,
            position=position,
            site=site.name,
            order=site.order,
            candidate_site=site.candidate,
            ratio=float(max(judged.ratio[at], judged.site_ratio)),
            error=float(judged.error[at]),
            wrong=int(wrong.size),
            positions=int(judged.wrong.size),
        )
    )


def _compare_logits(result: Search, pair: SequencePair, yardstick: Yardstick, steps: int, prompt: int) -> None:
    judged = yardstick.judge_logits(pair, steps) if steps else None
    if judged is None:
        return
    result.ratios[LOGITS] = judged.site_ratio
    if result.drift is None:
        result.drift = drift(judged.ratio)
    wrong = np.flatnonzero(judged.wrong)
    if wrong.size:
        at = int(wrong[0])
        result.findings.append(
            LogitsWrong(
                sequence=pair.index,
                step=at,
                position=prompt - 1 + at,
                site=LOGITS,
                ratio=float(judged.ratio[at]),
                error=float(judged.error[at]),
            )
        )
    elif judged.site_ratio > result.worst[0]:
        result.worst = (judged.site_ratio, LOGITS)


def _vocabularies(pair: SequencePair, prompt: int) -> list[Finding]:
    """Logits of other numbers of tokens: their common ones are compared."""
    ours, theirs = logits_width(pair.reference), logits_width(pair.candidate)
    if ours is None or theirs is None or ours == theirs:
        return []
    return [VocabulariesDiffer(sequence=pair.index, step=0, position=prompt - 1, site=LOGITS, tokens=(ours, theirs))]


def _note_logits_gap(result: Search, one: Observed, other: Observed) -> None:
    if one.logits is not None and other.logits is not None and one.logits.shape == other.logits.shape:
        gap = np.max(np.abs(one.logits.astype(np.float64) - other.logits.astype(np.float64)), initial=0.0)
        result.logits_gap = max(result.logits_gap or 0.0, float(gap))


def _note_processors(
    result: Search, seen: tuple[Observed, Observed], stated: tuple[list[Applied], list[Applied]], *, greedy: bool
) -> None:
    """A step at which processors were `stated` or ran and a side does not say what they left. Those that leave every
    score as it is on both sides (a minimum length that is reached) need not be known."""
    lacks = tuple(trace.path for trace, one in zip(result.pair.traces, seen, strict=True) if one.ids is None)
    if not lacks:
        return
    names = dict.fromkeys(str(each) for side in stated for each in side)
    ran = dict.fromkeys(str(row.get("class")) for one in seen for row in one.processors)
    if not (names or ran) or (names and all(map(_leaves_all, stated, seen))):
        return
    before = result.processors or ProcessorsNotJudged(lacks, tuple(names or ran), 0, greedy)
    result.processors = replace(before, steps=before.steps + 1)


def _leaves_all(processors: list[Applied], seen: Observed) -> bool:
    """Whether processors change no score of a step; False where its logits are not recorded."""
    if seen.logits is None:
        return False
    with np.errstate(all="ignore"):
        return np.array_equal(run(processors, seen.logits, seen.context), working(seen.logits), equal_nan=True)


def _survivor_difference(result: Search, pair: SequencePair, one: Observed, other: Observed) -> Finding | None:
    """Other survivors at a step than rounding of the logits explains."""
    kept = survivors.difference(pair, one, other, result.logits_gap)
    if kept.tied:
        result.ties.append((pair.index, one.index))
    if kept.unjudged is not None:
        _note_probabilities(result, pair, one, kept.unjudged)
    return kept.found


def _note_probabilities(result: Search, pair: SequencePair, one: Observed, nats: float) -> None:
    """A step at which the survivors' probabilities differ and are not judged."""
    before = result.probabilities
    if before is not None:
        result.probabilities = replace(before, more=before.more + 1, nats=max(before.nats, nats))
        return
    lacks = result.pair.traces[0 if one.logits is None else 1].path
    result.probabilities = ProbabilitiesNotJudged(lacks, pair.index, one.index, 0, nats)


def _draw_difference(pair: SequencePair, one: Step, other: Step) -> DrawDiffers | None:
    def differs(name: DrawField, values: tuple[int | str, int | str], draw: int | None = None) -> DrawDiffers:
        return DrawDiffers(
            sequence=pair.index,
            step=one.index,
            position=one.position,
            site=DRAWS,
            field=name,
            values=values,
            draw=draw,
        )

    if len(one.draws) != len(other.draws):
        return differs(DrawField.COUNT, (len(one.draws), len(other.draws)))
    for index, (ours, theirs) in enumerate(zip(one.draws, other.draws, strict=True)):
        for name in DRAW_FIELDS:
            first, second = getattr(ours, name), getattr(theirs, name)
            if first is not None and second is not None and first != second:
                return differs(name, (first, second), index)
    return None


def _choice_finding(pair: SequencePair, one: Observed, other: Observed, forced: bool) -> TokenDiffers | None:
    """Another token chosen, though both sides went on with the same: one of them follows the other."""
    if not forced or one.token == other.token:
        return None
    steps = pair.reference.step(one.index), pair.candidate.step(other.index)
    chosen = [
        Chosen(seen.token, step.text if step.token == seen.token else None)
        for seen, step in zip((one, other), steps, strict=True)
    ]
    return _other_token(pair, steps[0], chosen[0], chosen[1])


def _token_finding(pair: SequencePair, step: int) -> TokenDiffers:
    one, other = pair.reference.step(step), pair.candidate.step(step)
    return _other_token(pair, one, Chosen(one.token, one.text), Chosen(other.token, other.text))


def _other_token(pair: SequencePair, at: Step, reference: Chosen, candidate: Chosen) -> TokenDiffers:
    return TokenDiffers(
        sequence=pair.index,
        step=at.index,
        position=at.position,
        site="token",
        reference=reference,
        candidate=candidate,
    )


def _tells_draws(sequence: Sequence) -> bool:
    """Whether any draw was recorded: a side that says nothing of them may have made them all the same."""
    return any(sequence.step(index).draws for index in range(sequence.step_count))


DRAW_FIELDS = (DrawField.GENERATOR, DrawField.SEED, DrawField.OFFSET, DrawField.OP, DrawField.WORDS)
"""Names of what is compared of a draw."""


def _stopped_apart(one: Sequence, other: Sequence) -> bool:
    """One side stopped where the other went on; a side that was cut short (no end), is a call or a dump that says
    nothing of an end, or went on without a step recorded, proves nothing."""
    if one.step_count == other.step_count:
        return False
    shorter = one if one.step_count < other.step_count else other
    return shorter.end_reason not in (None, DONE) and unrecorded_steps(shorter) <= 0


def _stop_finding(pair: SequencePair, step: int) -> StopDiffers:
    one, other = pair.reference, pair.candidate
    return StopDiffers(
        sequence=pair.index,
        step=step,
        position=prompt_length(one) - 1 + step,
        site="stop",
        steps=(one.step_count, other.step_count),
        reasons=(one.end_reason, other.end_reason),
    )
