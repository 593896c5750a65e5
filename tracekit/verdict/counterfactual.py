"""Did the sampler do it? Filter, draw, token and stop, worked out again from what was recorded.

At the step where the sides part, the token is worked out from either side's logits with either side's draws: the
ingredient that flips it is the cause. What a side did otherwise than it states is looked for among the mistakes of
`mistakes.filters` and `mistakes.draws`, and named only if it reproduces every step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.align.pair import Pair, Side
from tracekit.align.sites import SequencePair
from tracekit.compare.findings import DrawDiffers, DrawField, Finding, StopDiffers, SurvivorsDiffer, TokenDiffers
from tracekit.compare.search import Search, first_token_difference
from tracekit.mistakes import draws as draw_mistakes
from tracekit.mistakes import filters as filter_mistakes
from tracekit.mistakes.explanation import Explanation
from tracekit.sampling import chain as sampling
from tracekit.sampling import drawing
from tracekit.sampling.drawing import Trial, Way
from tracekit.sampling.exponential_race import lead, race_scores
from tracekit.sampling.fit import TOLERANCE, misfit, shares
from tracekit.sampling.observed import Observed
from tracekit.sampling.processor import run
from tracekit.sampling.replay import Streams, observations, observe, other_observations
from tracekit.trace import Json, Sequence, Trace
from tracekit.verdict.cause import Cause
from tracekit.verdict.ruling import (
    Combination,
    Flip,
    Margins,
    Narrowest,
    NarrowestCut,
    Ruling,
    RunMargins,
    Scale,
    TokenMargin,
)

NEAR = 2.0
"""A margin is crossed by rounding if it is at most this many times the measured error: both tokens may move."""
MARGIN_STEPS = 256
"""Steps that margins are measured on; the first ones, of each pair of traces."""
SIDES = ("reference", "candidate")
MANY_STOPS = 8
"""Stop tokens that are shown one by one."""
NEAR_SEED = 1 << 20
"""A seed that is off by more was not made from the stated one: a clock's, or a random device's."""


# -------------------------------------------------------------------- filter


def rule_filter(traces: Pair, first: SurvivorsDiffer) -> Ruling:
    """Other survivors, or other probabilities of the same ones, than the logits' error allows."""
    pair = _pair(traces, first)
    seen = [observe(side, first.step) for side in (pair.reference, pair.candidate)]
    evidence = _survivors_said(first)
    if first.cut_distance is not None and first.logit_error is not None:
        distance, error = first.cut_distance, first.logit_error
        moved = "rounding cannot have moved them" if distance > NEAR * error else "rounding alone might have moved them"
        evidence.append(f"distance to the cut {distance:.2g}, logit error {error:.1e}: {moved}")
    if first.departs is not None:
        whose = "the reference's" if _states_other(pair) else "the"
        evidence.append(f"the {first.departs}'s survivors do not match its own logits under {whose} declared settings")
    evidence += _processors_said(seen)
    evidence += _draws_said(pair, first.step)
    side, explanation = _explain_filter(pair, first.step)
    if side == 0:
        evidence.append("it is the reference that departs from its stated settings here, not the candidate")
    if explanation is not None:
        evidence.append(f"explained: {explanation['text']} (at {explanation['steps']} steps)")
        evidence += [f"what would leave the same: {other}" for other in explanation.pop("also_text", [])[:2]]
    evidence += _unknown_said((pair.reference, pair.candidate), seen)
    margins = replace(combinations(pair, first.step), cut_distance=first.cut_distance, logit_error=first.logit_error)
    return Ruling(Cause.FILTER, first, tuple(evidence), explanation, margins)


def _survivors_said(first: SurvivorsDiffer) -> list[str]:
    counts = first.counts
    if first.log_ratio is not None:
        said = f"the same {counts[0]} tokens survive, with other probabilities: up to {first.log_ratio:.2g} nats"
        return [f"{said}, where the logits alone could make {first.allowed:.1e}"]
    out = [f"{counts[0]} tokens survive in the reference, {counts[1]} in the candidate"]
    for ids, side in ((first.lost, "reference"), (first.gained, "candidate")):
        if ids:
            shown = ", ".join(str(token) for token in ids[:5])
            out.append(f"only in the {side}: {shown}" + (f" and {len(ids) - 5} more" if len(ids) > 5 else ""))
    return out


def _processors_said(seen: list[Observed]) -> list[str]:
    """The first processor that ran on one side alone, or left another number of tokens."""
    ours, theirs = seen[0].processors, seen[1].processors
    if not ours or not theirs:
        return []
    for one, other in zip(ours, theirs, strict=False):
        if one.get("class") != other.get("class"):
            said = f"{_spelt(one)} runs in the reference where {_spelt(other)} runs in the candidate"
            return [said]
        if one.get("survivors") != other.get("survivors"):
            numbers = f"{one.get('survivors')} tokens in the reference, {other.get('survivors')} in the candidate"
            name = _spelt(one) if _spelt(one) == _spelt(other) else f"{_spelt(one)} | {_spelt(other)}"
            return [f"{name} leaves {numbers}"]
    if len(ours) != len(theirs):
        longer = 0 if len(ours) > len(theirs) else 1
        extra = (ours, theirs)[longer][min(len(ours), len(theirs))]
        return [f"{_spelt(extra)} runs in the {SIDES[longer]} alone"]
    return []


def _draws_said(pair: SequencePair, step: int) -> list[str]:
    """Of CosyVoice's sampler, which may draw more than once a step: where the sides first drew another number of times,
    as long as they have the same tokens behind them."""
    if pair.reference.sampling.get("sampler") != sampling.RAS:
        return []
    split = first_token_difference(pair.reference, pair.candidate)
    most = min(side.step_count for side in _sides(pair)) if split is None else split + 1
    for later in range(step, most):
        counts = [len(side.step(later).draws) for side in _sides(pair)]
        if counts[0] != counts[1]:
            return [f"draws at step {later}: {counts[0]} in the reference, {counts[1]} in the candidate"]
    counts = [sum(len(side.step(index).draws) for index in range(most)) for side in _sides(pair)]
    again = [_drawn_again(side) for side in _sides(pair)]
    if again[0] == again[1]:
        return []
    said = f"draws up to step {most - 1}: {counts[0]} on either side; stop tokens drawn again later: "
    return [said + f"{again[0]} in the reference, {again[1]} in the candidate"]


def _drawn_again(sequence: Sequence) -> int:
    """Draws of a stop token that came too early, in the whole of a segment."""
    steps = range(sequence.step_count)
    return sum(event.kind == "redraw" for index in steps for event in sequence.step(index).events)


def _spelt(row: Json) -> str:
    numbers = ", ".join(f"{name}={value}" for name, value in (row.get("settings") or {}).items())
    return f"{row.get('class')}({numbers})"


def _unknown_said(sides: tuple[Sequence, Sequence], seen: list[Observed]) -> list[str]:
    out = []
    for name, side, one in zip(SIDES, sides, seen, strict=True):
        unknown = sampling.unknown_settings(side.sampling)
        unknown += sampling.recorded_chain(one.processors, side.sampling)[1]
        if unknown:
            out.append(f"not worked out again, unknown: {', '.join(unknown)} of the {name}")
    return out


def _states_other(pair: SequencePair) -> bool:
    """Whether the candidate declares other settings than the reference."""
    one, other = _sides(pair)
    return bool(other.sampling) and sampling.chain(one.sampling) != sampling.chain(other.sampling)


AS_STATED = "settings as stated"
"""Kind of the explanation that a side did just what it states, which is not what the other one states."""


def _explain_filter(pair: SequencePair, step: int) -> tuple[int, Json | None]:
    """Which side departs (0 the reference, 1 the candidate), and how: from what it states itself, if it does."""
    departs = [not _does_as_stated(side, step) for side in _sides(pair)]
    side = 0 if departs[0] and not departs[1] else 1
    sequence = _sides(pair)[side]
    stated = sequence.sampling or pair.reference.sampling
    if not stated:
        return side, None
    if not departs[side]:
        return 1, _as_stated(pair)
    return side, _said(filter_mistakes.explain(stated, observations(sequence, step), observe(sequence, step)))


def _said(explanation: Explanation | None) -> Json | None:
    """As the verdict holds it yet."""
    from tracekit.report.words import sentence
    from tracekit.report.words.explanations import explanation_json

    said = explanation_json(explanation)
    if said is None or explanation is None:
        return None
    return said | {"also_text": [sentence(other) for other in explanation.also]}


def _does_as_stated(sequence: Sequence, step: int) -> bool:
    seen = observe(sequence, step)
    known = bool(sequence.sampling) and seen.ids is not None and seen.logits is not None
    return known and misfit(sampling.chain(sequence.sampling), seen) <= TOLERANCE


def _as_stated(pair: SequencePair) -> Json | None:
    one, other = (sampling.chain(side.sampling) for side in _sides(pair))
    ours, theirs = [str(each) for each in one], [str(each) for each in other]
    if ours == theirs:
        return None
    extra = ", ".join(each for each in theirs if each not in ours) or "nothing"
    missing = ", ".join(each for each in ours if each not in theirs) or "nothing"
    text = f"the candidate follows its own declared settings: {extra} in place of {missing}"
    return {"kind": AS_STATED, "value": theirs, "residual": 0.0, "text": text, "steps": 1}


# -------------------------------------------------------------------- draws and tokens


def rule_draw(traces: Pair, first: DrawDiffers) -> Ruling:
    """Another draw from the same survivors."""
    pair = _pair(traces, first)
    said = f"{first.field} {first.values[0]} in the reference, {first.values[1]} in the candidate"
    margins = combinations(pair, first.step)
    way = _explain_way(pair, first.step)
    if way is not None:
        evidence = [f"{_same(pair, first.step)}another sampling algorithm: {said}", f"explained: {way['text']}"]
        evidence += [f"what would give the same tokens: {other}" for other in way.pop("also_text", [])[:2]]
        return Ruling(Cause.SAMPLER, first, tuple(evidence), way, margins)
    if first.field is DrawField.OP:
        said = f"same generator, seed and offset, another draw: {said}"
        return Ruling(Cause.SAMPLER, first, (said,), margins=margins)
    evidence = [f"{_same(pair, first.step)}another draw: {said}"]
    moved = _explain_position(pair, first)
    if moved is not None:
        evidence.append(f"explained: {moved['text']}")
    return Ruling(Cause.RNG, first, tuple(evidence), moved, margins)


def _explain_way(pair: SequencePair, step: int) -> Json | None:
    """A way of drawing, other than the stated one, that gives back every token of the candidate."""
    stated = pair.reference.sampling or pair.candidate.sampling
    steps = observations(pair.candidate, step)
    vocabulary = _vocabulary(pair, step)
    among = drawing.trials(steps, stated, Streams(pair.candidate), vocabulary)
    if drawing.as_stated(among, stated):
        return None

    def further() -> list[Trial]:
        others = other_observations(pair.candidate, steps)
        return drawing.trials(others, stated, Streams(pair.candidate), vocabulary)

    found = draw_mistakes.explain(among, stated, further)
    said = _said(found)
    if found is None or said is None:
        return None
    return said | {"text": f"{said['text']} ({found.values['right']} of {found.values['of']} tokens)"}


def _vocabulary(pair: SequencePair, step: int) -> int | None:
    """Number of tokens, as a side's race over all of them shows it; CosyVoice's is over the nucleus."""
    for side in _sides(pair):
        draws = side.step(step).draws
        if draws and draws[-1].op == "multinomial" and draws[-1].words and side.sampling.get("sampler") != sampling.RAS:
            return draws[-1].words // 2
    return None


def _explain_position(pair: SequencePair, first: DrawDiffers) -> Json | None:
    """Where the candidate's generator stood: another seed, seeded anew, or words drawn besides."""
    step = first.step
    rows = [
        (one.draws[-1], other.draws[-1])
        for index in range(step, min(pair.reference.step_count, pair.candidate.step_count))
        if (one := pair.reference.step(index)).draws and (other := pair.candidate.step(index)).draws
    ]
    if first.field is DrawField.SEED or not rows:
        return _seed_moved(rows)
    if first.field is DrawField.GENERATOR:
        return _unseeded(rows)
    ours, theirs = rows[0]
    if ours.offset is None or theirs.offset is None or ours.seed != theirs.seed:
        return None
    if theirs.offset == 0 and step > 0:
        again = all(other.offset == 0 for _, other in rows)
        text = "the generator is seeded anew at each step" if again else f"the generator is seeded anew at step {step}"
        return {"kind": "seeded anew", "value": theirs.seed, "residual": 0, "text": text}
    shift = theirs.offset - ours.offset
    if shift == 0:
        return None
    steady = all(
        one.offset is not None and other.offset is not None and other.offset - one.offset == shift
        for one, other in rows
    )
    what = "more" if shift > 0 else "fewer"
    text = f"{abs(shift)} {'word' if abs(shift) == 1 else 'words'} {what} drawn before step {step}"
    logits = pair.reference.step(step).logits
    if logits is not None and shift % (2 * logits.size) == 0:
        races = abs(shift) // (2 * logits.size)
        text += f": {races} {'race' if races == 1 else 'races'} over the vocabulary of {logits.size}"
    text += "" if steady else ", and the distance changes later"
    return {"kind": "extra draw" if shift > 0 else "missing draw", "value": shift, "residual": 0, "text": text}


def _unseeded(rows: list[tuple[Any, Any]]) -> Json | None:
    """Of a candidate whose generator seeded itself, where the reference's draws can be repeated."""
    if not all(one.seed is not None and other.seed is None for one, other in rows):
        return None
    text = (
        f"the candidate draws from {rows[0][1].generator}, an unseeded generator: its draws cannot be reproduced; "
        "seed it, or draw with tracekit::rng::TorchRng"
    )
    return {"kind": "unseeded", "value": rows[0][1].generator, "residual": 0, "text": text}


def _seed_moved(rows: list[tuple[Any, Any]]) -> Json | None:
    deltas = {other.seed - one.seed for one, other in rows if one.seed is not None and other.seed is not None}
    if len(deltas) != 1:
        return None
    delta = (deltas.pop() + 2**63) % 2**64 - 2**63  # a seed below zero is taken mod 2^64
    if abs(delta) < NEAR_SEED:
        text = f"the generator was seeded with the reference's seed {'+' if delta >= 0 else '-'} {abs(delta)}"
    else:
        text = (
            f"the generator was seeded with {rows[0][1].seed}, which has nothing to do with {rows[0][0].seed}: unseeded"
        )
    return {"kind": "seed", "value": delta, "residual": 0, "text": text}


def _same(pair: SequencePair, step: int) -> str:
    """That the survivors are the same, where both sides recorded them."""
    return "same survivors, " if all(side.step(step).survivors_id is not None for side in _sides(pair)) else ""


def _token_said(pair: SequencePair, step: int) -> str:
    """What is the same on both sides of a step with two tokens, and what nobody recorded."""
    steps = [side.step(step) for side in _sides(pair)]
    told = {
        "survivors": [one.survivors_id is not None for one in steps],
        "draws": [bool(one.draws) for one in steps],
    }
    same = " and ".join(what for what, sides in told.items() if all(sides))
    if not any(map(any, told.values())):
        return "another token; survivors and draws are recorded on neither side"
    lacks = [
        f"{what} are recorded on neither side"
        if not any(sides)
        else f"{what} are recorded in the {SIDES[sides[1]]} only"
        for what, sides in told.items()
        if not all(sides)
    ]
    return "; ".join([f"same {same}, another token" if same else "another token", *lacks])


def rule_token(traces: Pair, found: Search, first: TokenDiffers) -> Ruling:
    """Another token from the same survivors and draws: a near-tie where that can be proved, else the sampler."""
    pair = _pair(traces, first)
    step = first.step
    margins = replace(combinations(pair, step), token=token_margins(pair, step))
    measured, flips = margins.token, margins.flips
    near = measured is not None and abs(measured.margin) <= NEAR * measured.error
    if measured is not None and near and flips is Flip.LOGITS:
        said = f"margin {measured.margin:.2g} nats, measured error {measured.error:.2g}: rounding decided"
        proof = "each side's own logits give its token, with either side's draws"
        return Ruling(Cause.NEAR_TIE, first, (said, proof), margins=margins)
    if measured is None and flips is Flip.LOGITS and (first.sequence, step) in found.ties:
        return Ruling(Cause.NEAR_TIE, first, tuple(_cut_evidence(pair, step)), margins=margins)
    evidence = [_token_said(pair, step)]
    way = _explain_way(pair, step)
    drawn = [side.step(step).draws for side in _sides(pair)]
    if way is None and all(drawn) and all(draws[-1].seed is None for draws in drawn):
        names = " and ".join(dict.fromkeys(draws[-1].generator for draws in drawn))
        said = f"same survivors, another token: both sides draw from an unseeded generator ({names})"
        return Ruling(Cause.RNG, first, (f"{said}, which cannot be reproduced",), margins=margins)
    evidence += _processors_said([observe(side, step) for side in _sides(pair)])
    if way is None and flips is None:
        way = _explain_seed(pair, step)
    if way is None and pair.reference.sampling.get("do_sample") is False:
        way = _explain_greedy(pair, step)
    if measured is not None:
        verdict = "the logits do not flip it" if near else "not a near-tie"
        evidence.append(f"margin {measured.margin:.2g} nats, measured error only {measured.error:.1e}: {verdict}")
    elif flips is None:
        evidence.append(
            "the draws cannot be made again from what was recorded: a near-tie is neither shown nor excluded"
        )
    if way is not None:
        evidence.append(f"explained: {way['text']}")
        evidence += [f"what would give the same tokens: {other}" for other in way.pop("also_text", [])[:2]]
    cause = Cause.RNG if way is not None and way["kind"] == "seed" else Cause.SAMPLER
    return Ruling(cause, first, tuple(evidence), way, margins)


def _cut_evidence(pair: SequencePair, step: int) -> list[str]:
    """A token that survives on one side only was drawn there, or its place in the race taken by another. The search has
    shown that each side's filter does as stated on its own logits."""
    one, other = observe(pair.reference, step), observe(pair.candidate, step)
    assert one.ids is not None and other.ids is not None
    apart = np.setxor1d(one.ids, other.ids).tolist()
    said = (
        f"{len(apart)} tokens survive on one side only, each side's own logits and settings say which: rounding decided"
    )
    if one.logits is not None:
        chain = sampling.chain(pair.reference.sampling)
        near = [cut.distances[apart].min() for cut in sampling.cuts(chain, one.logits, one.context)]
        if near and np.isfinite(min(near)):
            said += f"; nearest cut {min(near):.2g} away"
    return [said, "each side's own logits give its token, with either side's draws"]


def _explain_greedy(pair: SequencePair, step: int) -> Json | None:
    """Which processors give back every greedy token of the candidate: the recorded ones, or the stated ones changed."""
    stated = pair.reference.sampling
    steps = [seen for seen in observations(pair.candidate, step) if seen.logits is not None]
    ran, unknown = sampling.recorded_chain(observe(pair.candidate, step).processors, stated)
    return _said(filter_mistakes.explain_greedy(stated, steps, () if unknown else ran))


def _explain_seed(pair: SequencePair, step: int) -> Json | None:
    """Of a candidate that does not say where its generator was: the seed whose draws give back all of its tokens."""
    stated = pair.reference.seed
    if stated is None or pair.reference.sampling.get("do_sample") is False:
        return None
    streams = Streams(pair.candidate)
    among = drawing.trials(observations(pair.candidate, step), pair.reference.sampling, streams)
    if not among or among[0].seen.index != 0 or any(trial.words is not None for trial in among):
        return None
    seed = drawing.near_seed(among, streams, stated)
    if seed is None or seed == stated:
        return None
    text = f"seed {seed} in place of {stated} gives back all {len(among)} tokens"
    return {"kind": "seed", "value": seed - stated, "residual": 0, "text": text, "steps": len(among)}


# -------------------------------------------------------------------- the four combinations


def combinations(pair: SequencePair, step: int) -> Margins:
    """The step's token from either side's logits with either side's draws, and which ingredient flips it; nothing
    where that cannot be drawn again."""
    stated = pair.reference.sampling or pair.candidate.sampling
    seen = [observe(side, step) for side in (pair.reference, pair.candidate)]
    vocabulary = _vocabulary(pair, step)
    both = [
        drawing.trials([one], stated, Streams(side), vocabulary) for one, side in zip(seen, _sides(pair), strict=True)
    ]
    if not both[0] or not both[1]:
        return Margins()
    way = drawing.own_way(stated)
    ours, theirs = both[0][0], both[1][0]
    tokens: dict[tuple[int, int], int] = {}
    for row, distribution in enumerate((ours, theirs)):
        for column, draws in enumerate((ours, theirs)):
            token = _token_of(way, distribution, draws)
            if token is None:
                return Margins()
            tokens[row, column] = token
    sides = tuple(Side)
    rows = tuple(Combination(sides[row], sides[column], token) for (row, column), token in tokens.items())
    return Margins(combinations=rows, flips=_flips(tokens, seen, stated, way, (ours, theirs)))


def _token_of(way: Way, distribution: Trial, draws: Trial) -> int | None:
    if draws.words is None and way is not drawing.GREEDY:
        return None
    words = draws.words if draws.words is not None else np.zeros(0, np.uint32)
    return drawing.gives(way, Trial(distribution.seen, distribution.chance, words))


def _flips(
    tokens: dict[tuple[int, int], int], seen: list[Observed], stated: Json, way: Way, trials: tuple[Trial, Trial]
) -> Flip | None:
    if tokens[0, 0] != seen[0].token or tokens[1, 1] != seen[1].token:
        return Flip.SAMPLER
    if tokens[0, 0] == tokens[1, 1]:
        return None
    if tokens[0, 1] == tokens[1, 1] and tokens[1, 0] == tokens[0, 0]:
        return Flip.DRAWS
    if not (tokens[1, 0] == tokens[1, 1] and tokens[0, 1] == tokens[0, 0]):
        return Flip.LOGITS_AND_DRAWS
    # The distribution flips it: does the stated filter, on the candidate's logits, give the candidate's token too?
    if seen[1].logits is None or seen[1].ids is None or misfit(sampling.chain(stated), seen[0]) > 1e-2:
        return Flip.LOGITS  # no filter that could be worked out again stands between the logits and the token
    plain = Observed(seen[1].index, seen[1].logits, seen[1].context, None, None, seen[1].token, (), ())
    chance = drawing.chance_of(plain, stated)
    if chance is None:
        return Flip.LOGITS
    given = _token_of(way, Trial(plain, chance, None), trials[0])
    return Flip.LOGITS if given == tokens[1, 1] else Flip.FILTER


# -------------------------------------------------------------------- stop


def rule_stop(traces: Pair, first: StopDiffers) -> Ruling:
    """The same tokens, of which one side has more."""
    pair = _pair(traces, first)
    said = [
        f"{count} tokens, end: {reason or 'none recorded'}"
        for count, reason in zip(first.steps, first.reasons, strict=True)
    ]
    evidence = [f"all common tokens agree; reference {said[0]} | candidate {said[1]}"]
    explanation = _explain_stop(pair, traces.candidate, traces.reference)
    if explanation is not None:
        evidence.append(f"explained: {explanation['text']}")
    return Ruling(Cause.STOP, first, tuple(evidence), explanation)


def _explain_stop(pair: SequencePair, candidate: Trace, reference: Trace) -> Json | None:
    counts = [side.step_count for side in _sides(pair)]
    shorter = 0 if counts[0] < counts[1] else 1
    longer = 1 - shorter
    lists = [_stop_list(trace, side) for trace, side in zip((reference, candidate), _sides(pair), strict=True)]
    last = int(_sides(pair)[shorter].tokens[-1]) if counts[shorter] else None
    following = int(_sides(pair)[longer].tokens[counts[shorter]])
    ended = _sides(pair)[shorter].end_reason
    if ended == "stop" and last is not None and last in lists[shorter]:
        return _ignored(SIDES[longer], last, lists[longer])
    if counts[longer] == counts[shorter] + 1 and (following in lists[shorter] or ended == "length"):
        return _one_apart(pair, shorter, following in lists[shorter])
    if ended == "stop" and last is not None:
        return _unlisted(SIDES[shorter], last, lists[shorter], _sides(pair)[shorter])
    for side in (1, 0):
        limit = _sides(pair)[side].sampling.get("max_new_tokens")
        if limit is not None and _sides(pair)[side].end_reason == "length" and counts[side] != limit:
            text = f"the {SIDES[side]} ends by length after {counts[side]} tokens, where {limit} are stated"
            return {"kind": "length", "value": counts[side] - int(limit), "residual": 0, "text": text}
    return None


def _stop_list(trace: Trace, sequence: Sequence) -> list[int]:
    if sequence.sampling.get("sampler") == sampling.RAS:
        return [int(token) for token in sequence.sampling.get("stop_token_ids") or ()]
    eos = sequence.sampling.get("eos_token_id", (trace.config.get("model") or {}).get("eos_token_id"))
    return [int(token) for token in eos] if isinstance(eos, list) else [] if eos is None else [int(eos)]


def _listed(its: list[int]) -> str:
    return str(its) if len(its) <= MANY_STOPS else f"of {len(its)}, {its[0]} to {its[-1]},"


def _ignored(side: str, token: int, its: list[int]) -> Json:
    if token in its:
        text = f"the {side} goes on behind {token}, which its own stop list {_listed(its)} has"
        return {"kind": "stop token ignored", "value": token, "residual": 0, "text": text}
    text = f"the {side} goes on behind {token}: its stop list {_listed(its)} does not have it"
    return {"kind": "stop list", "value": token, "residual": 0, "text": text}


def _one_apart(pair: SequencePair, shorter: int, stop_follows: bool) -> Json | None:
    if stop_follows:
        text = f"the {SIDES[shorter]} does not give out its last token, the stop token"
        return {"kind": "last token left out", "value": -1, "residual": 0, "text": text}
    counts = [side.step_count for side in _sides(pair)]
    limits = [side.sampling.get("max_new_tokens") for side in _sides(pair)]
    limit = limits[0]
    if limit is None or limit != limits[1]:
        return None
    wrong = shorter if limit == counts[1 - shorter] else 1 - shorter
    delta = counts[wrong] - counts[1 - wrong]
    text = f"the {SIDES[wrong]} gives one token {'more' if delta > 0 else 'fewer'} than the limit of {limit}"
    return {"kind": "length", "value": delta, "residual": 0, "text": text}


def _unlisted(side: str, token: int, its: list[int], sequence: Sequence) -> Json:
    earlier = int((sequence.tokens[:-1] == token).sum())
    if earlier:
        text = (
            f"the {side} stops after {sequence.step_count} tokens, on {token}, behind which it went on {earlier} times"
        )
        return {"kind": "stopped early", "value": sequence.step_count, "residual": 0, "text": text}
    text = f"the {side} stops on {token}, which its stop list {_listed(its)} does not have"
    return {"kind": "stopped on another token", "value": token, "residual": 0, "text": text}


# -------------------------------------------------------------------- margins


def _pair(traces: Pair, finding: Finding) -> SequencePair:
    found = traces.sequence(finding.sequence)
    assert found is not None
    return found


def _sides(pair: SequencePair) -> tuple[Sequence, Sequence]:
    return pair.reference, pair.candidate


def token_margins(pair: SequencePair, step: int) -> TokenMargin | None:
    """How narrowly the reference chose its token over the candidate's, in nats, and how far the sides are apart.

    Greedy: the gap of the two scores. Sampled: the gap of the two in the exponential race, its draws made again from
    seed and offset. `error` is how far the sides' values of the two tokens are apart, added up.
    """
    one, other = observe(pair.reference, step), observe(pair.candidate, step)
    if one.ids is None or one.probs is None:
        return _greedy_margins(one, other, pair.reference.sampling)
    tokens = [one.token, other.token]
    if other.ids is None or other.probs is None or not (np.isin(tokens, one.ids) & np.isin(tokens, other.ids)).all():
        return None
    scores = _race(one, Streams(pair.reference))
    if scores is None:
        return None
    winner, runner = (float(scores[one.ids == token][0]) for token in tokens)
    ours, theirs = shares(one.probs), shares(other.probs)
    error = sum(abs(np.log(ours[one.ids == token][0]) - np.log(theirs[other.ids == token][0])) for token in tokens)
    return TokenMargin(Scale.RACE, winner - runner, float(error))


def _race(seen: Observed, streams: Streams) -> NDArray[np.float64] | None:
    if seen.ids is None or seen.probs is None:
        return None
    vocabulary = None if seen.logits is None else seen.logits.size
    return race_scores(seen.ids, seen.probs, seen.draws, streams, vocabulary)


def _greedy_margins(one: Observed, other: Observed, stated: Json) -> TokenMargin | None:
    if one.logits is None or other.logits is None or one.logits.shape != other.logits.shape:
        return None
    processors = sampling.chain(stated | {"do_sample": False})
    ours, theirs = (
        run(processors, side.logits, side.context).astype(np.float64)  # type: ignore[arg-type]
        for side in (one, other)
    )
    tokens = [one.token, other.token]
    if not np.isfinite(ours[tokens]).all() or not np.isfinite(theirs[tokens]).all():
        return None
    error = float(np.abs(ours[tokens] - theirs[tokens]).sum())
    return TokenMargin(Scale.LOGITS, float(ours[one.token] - ours[other.token]), error)


def run_margins(traces: Pair) -> RunMargins | None:
    """How narrowly the compared steps went; None where no logits say."""
    out = RunMargins(0)
    left = MARGIN_STEPS
    for pair in traces.sequences:
        if left <= 0:
            break
        steps, out = _pair_margins(out, pair, left)
        left -= steps
    return None if out == RunMargins(0) else replace(out, steps=MARGIN_STEPS - left)


def _pair_margins(out: RunMargins, pair: SequencePair, most: int) -> tuple[int, RunMargins]:
    split = first_token_difference(pair.reference, pair.candidate)
    common = min(pair.reference.step_count, pair.candidate.step_count)
    steps = min(most, common if split is None else split + 1)
    streams = Streams(pair.reference)
    processors = sampling.chain(pair.reference.sampling)
    tokens = [side.tokens for side in _sides(pair)]
    for index in range(steps):
        one, other = observe(pair.reference, index, tokens[0]), observe(pair.candidate, index, tokens[1])
        if one.logits is None or one.logits.size < 2:
            continue
        error = _logit_error(one, other)
        if error is not None:
            out = replace(out, error=max(out.error or 0.0, error))
        top = np.sort(np.partition(one.logits, one.logits.size - 2)[-2:]).astype(np.float64)
        gap = Narrowest(float(top[1] - top[0]), pair.index, index, error)
        if _is_least(gap.value, out.logit_gap):
            out = replace(out, logit_gap=gap)
        for cut in sampling.cuts(processors, one.logits, one.context):
            distance, token = cut.nearest
            if _is_least(distance, out.cut):
                found = NarrowestCut(distance, pair.index, index, str(cut.processor), cut.unit, token, error)
                out = replace(out, cut=found)
        scores = _race(one, streams)
        if scores is not None and scores.size > 1:
            race = Narrowest(lead(scores), pair.index, index)
            if _is_least(race.value, out.race):
                out = replace(out, race=race)
    return steps, out


def _is_least(value: float, before: Narrowest | NarrowestCut | None) -> bool:
    return bool(np.isfinite(value)) and (before is None or value < before.value)


def _logit_error(one: Observed, other: Observed) -> float | None:
    if one.logits is None or other.logits is None or one.logits.shape != other.logits.shape:
        return None
    with np.errstate(invalid="ignore"):
        apart = np.abs(one.logits.astype(np.float64) - other.logits.astype(np.float64))
    return float(np.nanmax(apart, initial=0.0))
