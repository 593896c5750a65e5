"""What two runs say in numbers, where a text log is all that is left of one: lengths, counts, the tokens it lists.

No verdict follows from them. What differs is named all the same, and how far the listed tokens agree.
"""

from __future__ import annotations

import numpy as np

from tracekit.generations import counts, generated, generated_count
from tracekit.inspection.summary import lengths, sequence_summary
from tracekit.trace import Sequence, Trace


def is_counted(trace: Trace) -> bool:
    """Whether a text log is all that is left of the run."""
    return any(counts(sequence) for sequence in trace.sequences)


def counted_differences(reference: Trace, candidate: Trace) -> list[str]:
    """A line for each number that differs between sequences of the same index, and for the tokens that both have."""
    out = []
    if len(reference.sequences) != len(candidate.sequences):
        out.append(
            f"{len(reference.sequences)} sequences in the reference, {len(candidate.sequences)} in the candidate"
        )
    for one, other in zip(reference.sequences, candidate.sequences, strict=False):
        rows = sequence_summary(reference, one), sequence_summary(candidate, other)
        for key in lengths():
            numbers = rows[0][key], rows[1][key]
            if None not in numbers and numbers[0] != numbers[1]:
                said = f"{numbers[0]} in the reference, {numbers[1]} in the candidate"
                out.append(f"sequence {one.index}: {key.replace('_', ' ')}: {said}")
        out += _tokens(reference, one, candidate, other)
    return out


def _tokens(reference: Trace, one: Sequence, candidate: Trace, other: Sequence) -> list[str]:
    ours, theirs = generated(reference, one), generated(candidate, other)
    common = min(len(ours), len(theirs))
    if not common:
        return []
    apart = np.flatnonzero(ours[:common] != theirs[:common])
    if apart.size:
        at = int(apart[0])
        said = f"reference {ours[at]} | candidate {theirs[at]}"
        return [f"sequence {one.index}: tokens differ from step {at}: {said}; a text log does not say why"]
    most = max(generated_count(reference, one), generated_count(candidate, other))
    beyond = f"; those after it, up to step {most - 1}, are not recorded on both sides" if most > common else ""
    return [f"sequence {one.index}: the first {common} tokens are equal{beyond}"]
