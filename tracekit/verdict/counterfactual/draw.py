"""Another draw: another sampling algorithm, or the generator at another place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.align.pair import Pair
from tracekit.align.sites import SequencePair
from tracekit.compare.findings import DrawDiffers, DrawField
from tracekit.compare.search import Search
from tracekit.mistakes import generator
from tracekit.mistakes.explanation import Explained, Explanation
from tracekit.torch_rng.transforms import race_words
from tracekit.trace import Draw
from tracekit.verdict.cause import Cause
from tracekit.verdict.counterfactual.algorithm import other_algorithm, with_filter
from tracekit.verdict.counterfactual.combinations import combinations
from tracekit.verdict.counterfactual.cut import cut_crossed, words_follow_survivors
from tracekit.verdict.counterfactual.evidence import DrawsMoveOn, OffsetInRaces, OtherDraw, ShiftChanges
from tracekit.verdict.counterfactual.filter import as_evidence
from tracekit.verdict.counterfactual.sides import both, sequences_of
from tracekit.verdict.ruling import Ruling

Rows = list[tuple[Draw, Draw]]
"""The last draw of each side, step by step."""


def rule_draw(traces: Pair, found: Search, first: DrawDiffers) -> Ruling:
    """Another draw from the same survivors."""
    pair = sequences_of(traces, first)
    margins = combinations(pair, first.step)
    words = _words_after_cut(pair, found, first)
    if words is not None:
        crossed = cut_crossed(pair, first.step), DrawsMoveOn(words)
        return Ruling(Cause.NEAR_TIE, first, crossed, margins=margins)
    algorithm = other_algorithm(pair, first.step)
    same = _same(pair, first)
    said = OtherDraw(first.field, first.values, same_survivors(pair, first.step), same, algorithm is not None)
    if algorithm is not None:
        algorithm = with_filter(pair, first.step, algorithm)
        return Ruling(Cause.SAMPLER, first, (said, *as_evidence(algorithm)), algorithm, margins)
    if first.field is DrawField.OP:
        return Ruling(Cause.SAMPLER, first, (said,), margins=margins)
    moved, more = _moved(pair, first)
    evidence = [] if moved is None else [Explained(moved), *more]
    return Ruling(Cause.RNG, first, (said, *evidence), moved, margins)


def _words_after_cut(pair: SequencePair, found: Search, first: DrawDiffers) -> tuple[int, int] | None:
    """How many words a draw takes on each side, where rounding moved a token over the cut and they are two for each
    survivor; None where that is not so. What such a draw gives may be drawn again on one side alone, which then has
    more draws: the last of those that both have is looked at."""
    steps = [side.step(first.step) for side in both(pair)]
    draw = min(len(step.draws) for step in steps) - 1 if first.field is DrawField.COUNT else first.draw
    if first.field not in (DrawField.WORDS, DrawField.COUNT) or draw is None or draw < 0:
        return None
    if (first.sequence, first.step) not in found.ties or not words_follow_survivors(pair, first.step, draw):
        return None
    ours, theirs = (step.draws[draw] for step in steps)
    alike = ours.op == theirs.op and (None in (ours.offset, theirs.offset) or ours.offset == theirs.offset)
    took, takes = ours.words, theirs.words
    return (took, takes) if alike and took is not None and takes is not None and took != takes else None


def same_survivors(pair: SequencePair, step: int) -> bool:
    """Whether both sides recorded the survivors of a step, and they are the same tokens."""
    ours, theirs = (side.step(step).survivors_id for side in both(pair))
    return ours is not None and theirs is not None and np.array_equal(np.sort(ours), np.sort(theirs))


def _same(pair: SequencePair, first: DrawDiffers) -> tuple[DrawField, ...]:
    """What both sides recorded of the draw and is equal, of what is compared before the field that differs."""
    if first.draw is None:
        return ()
    ours, theirs = (side.step(first.step).draws[first.draw] for side in both(pair))
    before = (DrawField.GENERATOR, DrawField.SEED, DrawField.OFFSET)
    known = [name for name in before if None not in (getattr(ours, name), getattr(theirs, name))]
    return tuple(name for name in known if getattr(ours, name) == getattr(theirs, name))


# -------------------------------------------------------------------- where the generator stood


def _moved(pair: SequencePair, first: DrawDiffers) -> tuple[Explanation | None, list[object]]:
    """What was done with the candidate's generator: another seed, re-seeded, or words drawn besides; and what more is
    known of that."""
    rows = [
        (one.draws[-1], other.draws[-1])
        for index in range(first.step, min(pair.reference.step_count, pair.candidate.step_count))
        if (one := pair.reference.step(index)).draws and (other := pair.candidate.step(index)).draws
    ]
    if first.field is DrawField.SEED or not rows:
        return _other_seed(rows), []
    if first.field is DrawField.GENERATOR:
        return _unseeded(rows), []
    ours, theirs = rows[0]
    if ours.offset is None or theirs.offset is None or ours.seed != theirs.seed:
        return None, []
    if theirs.offset == 0 and first.step > 0:
        return _reseeded(rows, first.step), []
    shift = theirs.offset - ours.offset
    if shift == 0:
        return None, []
    mistake = generator.EXTRA_DRAW if shift > 0 else generator.MISSING_DRAW
    said = Explanation(mistake, {"shift": shift, "words": abs(shift), "step": first.step})
    return said, [*_of_shift(pair, rows, first.step, shift)]


def _of_shift(pair: SequencePair, rows: Rows, step: int, shift: int) -> Iterator[object]:
    logits = pair.reference.step(step).logits
    if logits is not None and shift % race_words(logits.size) == 0:
        yield OffsetInRaces(abs(shift) // race_words(logits.size), int(logits.size))
    if any(one.offset is None or other.offset is None or other.offset - one.offset != shift for one, other in rows):
        yield ShiftChanges()


def _reseeded(rows: Rows, step: int) -> Explanation:
    every = len(rows) > 1 and all(other.offset == 0 for _, other in rows)
    mistake = generator.RESEEDED_EVERY_STEP if every else generator.RESEEDED
    return Explanation(mistake, {"seed": rows[0][1].seed, "step": step}, steps=len(rows) if every else 1)


def _unseeded(rows: Rows) -> Explanation | None:
    """Of a candidate whose generator seeded itself, where the reference's draws can be repeated."""
    if not all(one.seed is not None and other.seed is None for one, other in rows):
        return None
    return Explanation(generator.UNSEEDED, {"generator": rows[0][1].generator})


def _other_seed(rows: Rows) -> Explanation | None:
    seeds = [(one.seed, other.seed) for one, other in rows if one.seed is not None and other.seed is not None]
    if len({theirs - ours for ours, theirs in seeds}) != 1:
        return None
    return generator.other_seed(*seeds[0])
