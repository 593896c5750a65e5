"""Can the trace itself be trusted? What a recording that went wrong looks like, whatever the model did."""

from __future__ import annotations

from collections import Counter

import numpy as np
import xxhash

from tracekit.dtypes import is_float, to_float
from tracekit.generations import counts
from tracekit.trace import Array, Sequence, Trace

UNSEEN = "unseen"
"""Kind of the event of a step whose token is known and whose draw was not seen, with why; reason of a sequence's end
where not even the token was seen."""
LOOKED_AT = 8
"""Rows of each site that are looked at."""
LEAST_SITES = 4
LEAST_WIDTH = 4
SAME_SHARE = 0.25
"""Share of the sites that hold another site's values, from which buffers were overwritten before they were copied. A
model passes single tensors on, which the recorders notice; and a mistake that makes two sites alike is a mistake."""
CONSTANT_SHARE = 0.5
"""Share of the sites that hold one number throughout. Attention that gives zeros in every layer makes a sixth."""


def capture_problems(trace: Trace) -> list[str]:
    """Why no verdict can be reached from this trace, one line each; empty where it looks like a recording."""
    if any(counts(sequence) for sequence in trace.sequences):
        holds = "counts and token ids" if any(sequence.step_count for sequence in trace.sequences) else "counts only"
        return [f"{trace.path}: was read from a text log and holds {holds}; tracekit summary sets them side by side"]
    out = []
    for sequence in trace.sequences:
        problems = [*_problems(sequence), *_unseen(sequence)]
        out += [f"{trace.path}: sequence {sequence.index}: {problem}" for problem in problems]
    return out


def _unseen(sequence: Sequence) -> list[str]:
    """What the recorder did not see of how tokens came about."""
    why = {str(event.detail): event.step for event in reversed(sequence.events) if event.kind == UNSEEN}
    out = []
    if why:
        count = len({event.step for event in sequence.events if event.kind == UNSEEN})
        reason, step = min(why.items(), key=lambda item: item[1])
        said = f"how the token was drawn was not seen at {count} of {sequence.step_count} steps"
        out.append(f"{said}, step {step} first: {reason}")
    if sequence.end_reason == UNSEEN:
        out.append(f"recording ends at step {sequence.step_count}: {sequence.end_detail}")
    return out


def losses(trace: Trace) -> list[str]:
    """What the recorder of a trace meant to keep and the file does not hold, one line each."""
    out = []
    cut = not trace.sequences or any(sequence.end_reason is None for sequence in trace.sequences)
    if trace.status != "complete" and cut:
        out.append(f"{trace.path}: {trace.status_detail or 'was cut off'}")
    return out + lost_rows(trace)


def lost_rows(trace: Trace) -> list[str]:
    """Rows of sites that the recorder of a trace meant to keep and the file does not hold, one line each."""
    out = []
    ended = [(site.name, site.ended) for site in trace.sites.values() if site.ended]
    if ended:
        more = f" and {len(ended) - 1} more" if len(ended) > 1 else ""
        out.append(f"{trace.path}: {ended[0][0]}{more} ended before the sequence: {ended[0][1]}")
    return out + missing_positions(trace)


def missing_positions(trace: Trace) -> list[str]:
    """Sequences whose sites end before their last step was computed, a line each."""
    out = []
    for sequence in trace.sequences:
        if not sequence.sites or not sequence.step_count:
            continue
        needed = sequence.step(0).position + sequence.step_count
        if sequence.positions < needed:
            told = f"sites hold {sequence.positions} of {needed} positions; the others are not compared"
            out.append(f"{trace.path}: sequence {sequence.index}: {told}")
    return out


def written(trace: Trace) -> str:
    """What a file holds, as a recorder says it of one that it has just made."""
    steps = sum(sequence.step_count for sequence in trace.sequences)
    return f"{_counted(len(trace.sequences), 'sequence')}, {_counted(steps, 'step')}"


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def no_such_site(trace: Trace, pattern: str | None) -> str | None:
    """What to tell somebody who asked for sites by a pattern that is in no name; None where something was recorded."""
    if pattern is None or any(sequence.sites for sequence in trace.sequences):
        return None
    return f"--sites {pattern}: is in the name of no site of this program; only its steps are recorded"


def _problems(sequence: Sequence) -> list[str]:
    values = {name: _first_rows(sequence, name) for name in sequence.sites}
    floats = {name: rows for name, rows in values.items() if rows is not None}
    if len(floats) < LEAST_SITES:
        return []
    constant = [name for name, rows in floats.items() if _is_constant(rows, sequence.sites[name].dtype)]
    if len(constant) >= CONSTANT_SHARE * len(floats):
        said = f"{len(constant)} of {len(floats)} sites hold one number throughout, {constant[0]} first"
        return [f"{said}: nothing was captured; record again, with values that are computed before they are copied"]
    rest = [name for name in floats if name not in constant]
    digests = {name: xxhash.xxh3_64_intdigest(np.ascontiguousarray(floats[name]).tobytes()) for name in rest}
    counts = Counter(digests.values())
    same = [name for name in rest if counts[digests[name]] > 1]
    if len(rest) >= LEAST_SITES and len(same) >= SAME_SHARE * len(rest):
        said = f"{len(same)} of {len(floats)} sites hold the values of another site, {same[0]} first"
        return [f"{said}: buffers were overwritten before they were copied; record copies, not views"]
    return []


def _first_rows(sequence: Sequence, name: str) -> Array | None:
    """A few recorded rows of a float site that is wide enough to tell."""
    data = sequence.sites[name]
    if not is_float(data.dtype) or data.width < LEAST_WIDTH or not data.ranges:
        return None
    first, stop = data.ranges[0]
    return sequence.read(name, first, min(stop, first + LOOKED_AT))


def _is_constant(rows: Array, dtype: str) -> bool:
    values = to_float(rows, dtype)
    return bool(np.all(values == values.flat[0])) if values.size else True
