"""The search: the first thing that is wrong, in the order in which a generation computes.

Config, weights, prompt and inputs, then step by step the sites in execution order, logits, survivors, draws, token,
stop. What is found are facts (`Finding`); their cause is `verdict`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np

from tracekit.align.fed_rows import fed_apart, unmatched_rows
from tracekit.align.sites import Alignment, SequencePair, SitePair, align_sequences, align_sites, check_same_model
from tracekit.compare import survivors
from tracekit.compare.drift import drift
from tracekit.compare.metrics import row_errors
from tracekit.compare.yardstick import Judged, Yardstick
from tracekit.dtypes import UNIT_ROUNDOFF
from tracekit.inspection.positions import prompt_length, step_of
from tracekit.inspection.site_rows import row_bytes, site_reader
from tracekit.sampling.observed import Observed
from tracekit.sampling.replay import observe
from tracekit.trace import Json, Sequence, Step, Trace


class Stage(IntEnum):
    """Where in a step something is found, in the order of the computation."""

    INPUT = 0
    SITE = 1
    LOGITS = 2
    SURVIVORS = 3
    DRAW = 4
    TOKEN = 5
    STOP = 6


@dataclass(frozen=True)
class Finding:
    """Something that differs beyond rounding."""

    sequence: int
    stage: Stage
    step: int | None
    position: int | None = None
    site: str | None = None
    order: int = 0
    ratio: float | None = None
    error: float | None = None
    facts: Json = field(default_factory=dict)

    @property
    def rank(self) -> tuple[int, int, int, int]:
        """Earlier findings have smaller ranks."""
        return (self.step or 0, int(self.stage), self.order, self.position or 0)


@dataclass
class Search:
    """Everything the search saw."""

    alignment: Alignment
    left_sequences: list[int]
    findings: list[Finding] = field(default_factory=list)
    compared: Json = field(default_factory=dict)
    compared_sites: set[SitePair] = field(default_factory=set)  # at one position of one sequence at least
    worst: tuple[float, str | None] = (0.0, None)  # largest site ratio of what was not found wrong
    token: Finding | None = None  # the first token that differs
    off: set[str] = field(default_factory=set)  # sites with a position that is wrong, victims included
    ratios: dict[str, float] = field(default_factory=dict)  # site -> largest site ratio
    logits_gap: float | None = None  # largest |difference| of a logit over the compared steps
    drift: Json | None = None  # how the logits' error changes over the steps
    ties: list[tuple[int, int]] = field(
        default_factory=list
    )  # (sequence, step) where rounding moved a token over a cut

    @property
    def first(self) -> Finding | None:
        """The divergence."""
        return min(self.findings, key=lambda finding: (finding.sequence, *finding.rank), default=None)


def search(
    reference: Trace, candidate: Trace, yardstick: Yardstick, harmless: Set[tuple[str, str]] = frozenset()
) -> Search:
    """Compare two traces. `harmless`: sites of both sides that hold the same thing at two stages of the computation,
    and are not compared. Raises TraceError where the traces cannot be of the same model."""
    alignment = align_sites(reference, candidate)
    check_same_model(reference, candidate, alignment)
    kept = tuple(pair for pair in alignment.pairs if (pair.name, pair.candidate) not in harmless)
    alignment = replace(alignment, pairs=kept)
    pairs, left = align_sequences(reference, candidate)
    result = Search(alignment, left)
    counts = {"sequences": len(pairs), "steps": 0, "steps_after_divergence": 0, "sites": 0, "values": 0}
    result.compared = counts
    for pair in pairs:
        _compare_sequence(result, pair, yardstick)
        if result.findings:
            break  # later sequences cannot hold an earlier divergence
    return result


def _compare_sequence(result: Search, pair: SequencePair, yardstick: Yardstick) -> None:
    one, other = pair.reference, pair.candidate
    finding = _input_difference(pair) or _rows_difference(pair, result.alignment)
    if finding is not None:
        result.findings.append(finding)
        return
    split = first_token_difference(one, other)
    common = min(one.step_count, other.step_count)
    steps = common if split is None else split + 1
    result.compared["steps"] += steps
    result.compared["steps_after_divergence"] += max(one.step_count, other.step_count) - steps
    prompt = prompt_length(one)
    stop = compared_positions(pair)
    _compare_sites(result, pair, yardstick, stop, prompt)
    result.findings += _passed_on(result.alignment, pair, stop, prompt)
    _compare_logits(result, pair, yardstick, steps, prompt)
    tokens = one.tokens, other.tokens
    tell = _tells_draws(one) and _tells_draws(other)
    for index in range(steps):
        seen = observe(one, index, tokens[0]), observe(other, index, tokens[1])
        _note_logits_gap(result, *seen)
        finding = _survivor_difference(result, pair, *seen)
        finding = finding or (_draw_finding(pair, one.step(index), other.step(index)) if tell else None)
        finding = finding or _choice_finding(pair, *seen, tokens[0][index] == tokens[1][index])
        if finding is not None:
            result.findings.append(finding)
            break
    chosen = next((found for found in result.findings if found.stage is Stage.TOKEN), None)
    result.token = chosen or result.token
    if split is not None:
        result.token = _token_finding(pair, split)
        result.findings.append(result.token)
    elif _stopped_apart(one, other):
        result.findings.append(_stop_finding(pair, common))


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


ROWS = "rows"
"""What was fed, where it is not what the prompt's entries say."""
TOKEN_IDS = "token_ids"
"""The prompt itself, before what it was put together from."""


def _text(sequence: Sequence, position: int) -> str | None:
    texts = sequence.texts
    return texts[position] if texts is not None and position < len(texts) else None


def _parts_apart(pair: SequencePair) -> list[str]:
    """What the prompt was put together from and is not the same: a speech token prompt, a text."""
    ours, theirs = pair.reference.inputs, pair.candidate.inputs
    out = []
    for name in ours:
        if name != TOKEN_IDS and name in theirs and not np.array_equal(ours[name], theirs[name]):
            counts = f"{len(ours[name])} entries in the reference, {len(theirs[name])} in the candidate"
            out.append(f"{name}: {counts}")
    for name in ("prompt_part", "tts_text"):
        texts = pair.reference.info.get(name), pair.candidate.info.get(name)
        if None not in texts and texts[0] != texts[1]:
            out.append(f'{name}: "{texts[0]}" | "{texts[1]}"')
    return out


def _input_difference(pair: SequencePair) -> Finding | None:
    ours, theirs = pair.reference.inputs, pair.candidate.inputs
    for name in sorted(ours, key=lambda name: name != TOKEN_IDS):
        if name not in theirs:
            continue
        one, other = ours[name], theirs[name]
        if one.shape == other.shape and np.array_equal(one, other):
            continue
        same = min(len(one), len(other))
        apart = np.flatnonzero([not np.array_equal(a, b) for a, b in zip(one[:same], other[:same], strict=True)])
        position = int(apart[0]) if apart.size else same
        facts: Json = {"input": name, "lengths": [len(one), len(other)]}
        if one.ndim == 1 and other.ndim == 1:
            facts["values"] = [int(side[position]) if position < len(side) else None for side in (one, other)]
        if name == TOKEN_IDS:
            facts["texts"] = [_text(side, position) for side in (pair.reference, pair.candidate)]
            facts["more"] = _parts_apart(pair)
        return Finding(pair.index, Stage.INPUT, 0, position, f"prompt/{name}", facts=facts)
    return None


def _rows_difference(pair: SequencePair, alignment: Alignment) -> Finding | None:
    """Other rows fed than the prompt's entries, on one side: which of them is known from the values alone."""
    fed = fed_apart(pair)
    if fed is None:
        return None
    found = unmatched_rows(pair, alignment, fed)
    facts: Json = {"input": ROWS, "lengths": list(fed.fed), "entries": list(fed.told), "unmatched": found}
    position = found[1][0] if found and found[1] else None
    return Finding(pair.index, Stage.INPUT, 0, position, f"prompt/{ROWS}", facts=facts)


def _compare_sites(result: Search, pair: SequencePair, yardstick: Yardstick, stop: int, prompt: int) -> None:
    for site in result.alignment.pairs:
        for first, last in common_ranges(pair, site, stop):
            judged = yardstick.judge(pair, site, first, last)
            if judged is None:
                continue
            result.compared["values"] += (last - first) * pair.reference.sites[site.name].width
            result.compared_sites.add(site)
            _note(result, pair, site, judged, first, prompt)
    result.compared["sites"] = len(result.compared_sites)


PASSED_ON_UNITS = 16.0
"""Roundoff units that two sites of the reference must be apart to be two values, not one in two roundings."""


def _passed_on(alignment: Alignment, pair: SequencePair, stop: int, prompt: int) -> list[Finding]:
    """Sites at which the candidate passes an earlier site's tensor on where the reference has another value: a layer
    that is skipped, a sum that is not taken. In 16 bits what is missing may be smaller than rounding adds up to."""
    partner = {site.candidate: site for site in alignment.pairs if site.candidate == site.name}
    out = []
    for site in alignment.pairs:
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
                at, facts = int(wrong[0]), {"candidate_site": site.candidate, "passed_on": True}
                place = step_of(first, prompt), first, site.name, site.order  # none of the rows is computed
                found = float(units[at]), float(apart[at]), facts
                out.append(Finding(pair.index, Stage.SITE, *place, *found))
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
        Finding(
            pair.index,
            Stage.SITE,
            step,
            position,
            site.name,
            site.order,
            float(max(judged.ratio[at], judged.site_ratio)),
            float(judged.error[at]),
            {"candidate_site": site.candidate, "wrong_positions": int(wrong.size), "positions": int(judged.wrong.size)},
        )
    )


def _compare_logits(result: Search, pair: SequencePair, yardstick: Yardstick, steps: int, prompt: int) -> None:
    judged = yardstick.judge_logits(pair, steps) if steps else None
    if judged is None:
        return
    result.ratios["logits"] = judged.site_ratio
    if result.drift is None:
        result.drift = drift(judged.ratio)
    wrong = np.flatnonzero(judged.wrong)
    if wrong.size:
        at = int(wrong[0])
        ratio, error = float(judged.ratio[at]), float(judged.error[at])
        result.findings.append(Finding(pair.index, Stage.LOGITS, at, prompt - 1 + at, "logits", 0, ratio, error))
    elif judged.site_ratio > result.worst[0]:
        result.worst = (judged.site_ratio, "logits")


def _note_logits_gap(result: Search, one: Observed, other: Observed) -> None:
    if one.logits is not None and other.logits is not None and one.logits.shape == other.logits.shape:
        gap = np.max(np.abs(one.logits.astype(np.float64) - other.logits.astype(np.float64)), initial=0.0)
        result.logits_gap = max(result.logits_gap or 0.0, float(gap))


def _survivor_difference(result: Search, pair: SequencePair, one: Observed, other: Observed) -> Finding | None:
    """Other survivors at a step than rounding of the logits explains."""
    facts, tied = survivors.difference(pair, one, other, result.logits_gap)
    if tied:
        result.ties.append((pair.index, one.index))
    if facts is None:
        return None
    position = pair.reference.step(one.index).position
    return Finding(pair.index, Stage.SURVIVORS, one.index, position, "survivors", facts=facts)


def _draw_finding(pair: SequencePair, one: Step, other: Step) -> Finding | None:
    facts = _draw_difference(one, other)
    return None if facts is None else Finding(pair.index, Stage.DRAW, one.index, one.position, "draws", facts=facts)


def _choice_finding(pair: SequencePair, one: Observed, other: Observed, forced: bool) -> Finding | None:
    """Another token chosen, though both sides went on with the same: one of them follows the other."""
    if not forced or one.token == other.token:
        return None
    facts: Json = {
        side: {"id": seen.token, "text": step.text if step.token == seen.token else None}
        for side, seen, step in (
            ("reference", one, pair.reference.step(one.index)),
            ("candidate", other, pair.candidate.step(other.index)),
        )
    }
    position = pair.reference.step(one.index).position
    return Finding(pair.index, Stage.TOKEN, one.index, position, "token", facts=facts)


def _tells_draws(sequence: Sequence) -> bool:
    """Whether any draw was recorded: a side that says nothing of them may have made them all the same."""
    return any(sequence.step(index).draws for index in range(sequence.step_count))


DRAW_FIELDS = ("generator", "seed", "offset", "op", "words")


def _draw_difference(one: Step, other: Step) -> Json | None:
    if len(one.draws) != len(other.draws):
        return {"field": "count", "values": [len(one.draws), len(other.draws)]}
    for index, (ours, theirs) in enumerate(zip(one.draws, other.draws, strict=True)):
        for name in DRAW_FIELDS:
            values: list[Any] = [getattr(ours, name), getattr(theirs, name)]
            if None not in values and values[0] != values[1]:
                return {"field": name, "values": values, "draw": index}
    return None


def _token_finding(pair: SequencePair, step: int) -> Finding:
    one, other = pair.reference.step(step), pair.candidate.step(step)
    facts: Json = {
        "reference": {"id": one.token, "text": one.text},
        "candidate": {"id": other.token, "text": other.text},
    }
    return Finding(pair.index, Stage.TOKEN, step, one.position, "token", facts=facts)


def _stopped_apart(one: Sequence, other: Sequence) -> bool:
    """One side stopped where the other went on; a side that was cut short (no end) proves nothing."""
    if one.step_count == other.step_count:
        return False
    shorter = one if one.step_count < other.step_count else other
    return shorter.end_reason is not None


def _stop_finding(pair: SequencePair, step: int) -> Finding:
    one, other = pair.reference, pair.candidate
    facts: Json = {"steps": [one.step_count, other.step_count], "reasons": [one.end_reason, other.end_reason]}
    position = prompt_length(one) - 1 + step
    return Finding(pair.index, Stage.STOP, step, position, "stop", facts=facts)
