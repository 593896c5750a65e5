"""`vocabulary`: the two sides draw over vocabularies of different sizes, such as a padded and a trimmed output layer.

It shows in the logits where both sides recorded them, else in the draws. torch's exponential race takes two words of
the generator for every token, also for padding that no text has. Over another number of tokens, every token gets
another random number, and every later draw begins elsewhere in the stream.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tracekit.compare.findings import DrawDiffers, DrawField, VocabulariesDiffer
from tracekit.trace import Sequence
from tracekit.verdict.cause import Cause
from tracekit.verdict.rule import Case, CauseRule, Evidence, Grouping, Luck, ReproNeeds, Shows
from tracekit.verdict.ruling import Ruling

VOCABULARY = Cause("vocabulary")
RACE = "multinomial"
"""Kind of draw that takes two words for every token."""


@dataclass(frozen=True)
class VocabularySizes(Evidence):
    """How many tokens each side draws over."""

    words: ClassVar[str] = (
        "the reference draws over {reference} tokens, the candidate over {candidate}: one of them pads or trims the "
        "output layer; compare its rows, and vocab_size, on both sides"
    )
    reference: int
    candidate: int


def _holds(case: Case, ruling: Ruling | None) -> Ruling | None:
    first = case.first
    if ruling is None and isinstance(first, VocabulariesDiffer):
        return Ruling(VOCABULARY, first, (VocabularySizes(*first.tokens),))
    if ruling is None or ruling.cause != Cause.RNG or ruling.explanation is not None:
        return None
    if not isinstance(first, DrawDiffers) or first.field is not DrawField.WORDS:
        return None
    pair = case.pair.sequence(first.sequence)
    if pair is None:
        return None
    sizes = _raced_over(pair.reference), _raced_over(pair.candidate)
    if sizes[0] is None or sizes[1] is None or sizes[0] == sizes[1]:
        return None
    return replace(ruling, cause=VOCABULARY, evidence=(*ruling.evidence, VocabularySizes(sizes[0], sizes[1])))


def _raced_over(sequence: Sequence) -> int | None:
    """Tokens that every draw of a sequence is over; None where that is no vocabulary: it changes from step to step, as
    where survivors alone are drawn from, or is too small for the tokens that were chosen or survived."""
    steps = [sequence.step(index) for index in range(sequence.step_count)]
    counts = {draw.words for step in steps for draw in step.draws if draw.op == RACE}
    count = counts.pop() if len(counts) == 1 else None
    if count is None or count % 2:
        return None
    largest = [step.token for step in steps]
    largest += [
        int(step.survivors_id.max()) for step in steps if step.survivors_id is not None and step.survivors_id.size
    ]
    return count // 2 if max(largest) < count // 2 else None


RULE = CauseRule(
    VOCABULARY,
    order=75,
    holds=_holds,
    headline="The two sides draw over vocabularies of different sizes",
    grouping=Grouping(Luck.DRAWS, proven_by_tokens=True),
    repro=ReproNeeds(Shows.DRAWS, needs_sequences_before=True),
)
