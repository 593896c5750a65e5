"""What a checkpoint calls parameters that the program that loads it calls otherwise, as transformers renames some.

The digests say which tensors are the same; what stands before the names' common ends is then another spelling of one
prefix, and holds for tensors of other content, too: one that was changed is still the one of that name.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.dtypes import STORAGE
from tracekit.trace import Trace


def other_names(trace: Trace, checkpoint: Checkpoint) -> dict[str, str]:
    """Parameters of the trace that the checkpoint has under another name, and that name."""
    found = {name: checkpoint.find(name) for name in trace.weights}
    missing = [trace.weights[name] for name, theirs in found.items() if theirs is None]
    taken = set(found.values())
    free: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name in checkpoint.names if missing else ():
        if name not in taken:
            free[tuple(checkpoint.shape(name))].append(name)
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for weight in missing:
        if weight.digest is None or weight.dtype not in STORAGE:
            continue
        # Of quantised blocks nobody can say what they hold once loaded: they show no content.
        plain = (name for name in free[weight.shape] if checkpoint.file.quantisation(name) is None)
        same = [name for name in plain if checkpoint.may_hold(name, weight.dtype, weight.digest)]
        if len(same) == 1:
            ours, theirs = _before_their_common_end(weight.name, same[0])
            votes[ours][theirs] += 1
    out = {}
    for weight in missing:
        for ours in sorted((prefix for prefix in votes if weight.name.startswith(prefix)), key=len, reverse=True):
            theirs = votes[ours].most_common(1)[0][0] + weight.name.removeprefix(ours)
            if theirs in free[weight.shape]:
                out[weight.name] = theirs
                break
    return out


def _before_their_common_end(one: str, other: str) -> tuple[str, str]:
    """What is left of two dotted names without the parts at their ends that are equal."""
    mine, theirs = one.split("."), other.split(".")
    while mine and theirs and mine[-1] == theirs[-1]:
        mine.pop()
        theirs.pop()
    return ".".join([*mine, ""]) if mine else "", ".".join([*theirs, ""]) if theirs else ""
