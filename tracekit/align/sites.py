"""Which sequence, and which site, of one trace is which of the other."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from tracekit.trace import INPUT_SUFFIX, LOGITS, Sequence, Trace, TraceError, resolve, same_inputs

ROOT_SITE = "output"
"""The outermost module's own output, which has no path: it says nothing of the others' names."""


@dataclass(frozen=True)
class SitePair:
    """A stored site of the reference and the stored site of the candidate that holds the same thing."""

    name: str  # the reference's stored name, which reports show
    candidate: str
    order: int  # execution order in the reference


@dataclass(frozen=True)
class Alignment:
    """Site pairs in the reference's execution order, and the stored sites that found no partner."""

    pairs: tuple[SitePair, ...]
    unmatched_reference: tuple[str, ...]
    unmatched_candidate: tuple[str, ...]


def names(trace: Trace) -> dict[str, str]:
    """Every name that a trace can resolve to a stored site -> that site's name; inputs included, logits left out."""
    out = {}
    for name, site in trace.sites.items():
        for asked in (name, name + INPUT_SUFFIX) if site.input else (name,):
            stored = resolve(trace, asked)
            if stored is not None and stored != LOGITS:
                out[asked] = stored
    return out


def align_sites(reference: Trace, candidate: Trace) -> Alignment:
    """Pair sites by name, inputs by what the wiring resolves them to; a common prefix on one side is stripped. A module
    without a partner of its name has that with its parameter."""
    ours, theirs = names(reference), names(candidate)
    prefix_ours, prefix_theirs = _prefixes(ours, theirs)
    partner = {name.removeprefix(prefix_theirs): stored for name, stored in theirs.items()}
    found: dict[tuple[str, str], None] = {}
    for name, stored in ours.items():
        other = partner.get(name.removeprefix(prefix_ours))
        named = prefix_theirs + name.removeprefix(prefix_ours)
        if other is not None and same_inputs(name, reference.sites, candidate.sites, named):
            found[stored, other] = None
    ours_left = {name for name in ours if name.removeprefix(prefix_ours) not in partner}
    theirs_left = theirs.keys() - {prefix_theirs + name.removeprefix(prefix_ours) for name in ours}
    ours_by = _by_parameter(reference, ours_left, prefix_ours)
    theirs_by = _by_parameter(candidate, theirs_left, prefix_theirs)
    for key in sorted(ours_by.keys() & theirs_by.keys()):
        module, its = ours_by[key], theirs_by[key]
        for suffix in ("", INPUT_SUFFIX):
            if module + suffix in ours and its + suffix in theirs:
                found[ours[module + suffix], theirs[its + suffix]] = None
    sites = reference.sites
    pairs = [SitePair(one, other, sites[one].order if one in sites else -1) for one, other in found]
    matched, matched_theirs = {one for one, _ in found}, {other for _, other in found}
    return Alignment(
        tuple(sorted(pairs, key=lambda pair: pair.order)),
        _unmatched(reference, ours, matched, candidate, prefix_ours, prefix_theirs),
        _unmatched(candidate, theirs, matched_theirs, reference, prefix_theirs, prefix_ours),
    )


def _by_parameter(trace: Trace, modules: Collection[str], prefix: str) -> dict[tuple[str, str, str], str]:
    """Modules by their class and a parameter in its role that no other of them has: a head that shares the table of the
    embeddings has another name in every program."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name in modules:
        if (site := trace.sites.get(name)) is not None:
            for role, parameter in site.parameters.items():
                found.setdefault((site.module_class, role, parameter.removeprefix(prefix)), []).append(name)
    return {key: names[0] for key, names in found.items() if len(names) == 1}


def _unmatched(
    trace: Trace, stored_of: Mapping[str, str], matched: Collection[str], other: Trace, prefix: str, theirs: str
) -> tuple[str, ...]:
    """Stored sites of a trace without a partner, sorted. A head is none where the other side keeps its output as the
    logits alone and this side's logits are the same values: they are compared as logits."""
    left = {stored for stored in stored_of.values() if stored not in matched}
    if not any(sequence.logits_dtype for sequence in other.sequences):
        return tuple(sorted(left))
    heads = {name: stored for name, stored in stored_of.items() if stored in left}
    for name, stored in heads.items():
        kept_as = resolve(other, theirs + name.removeprefix(prefix))
        if kept_as == LOGITS and all(_are_logits(sequence, stored) for sequence in trace.sequences):
            left.discard(stored)
    return tuple(sorted(left))


def _are_logits(sequence: Sequence, site: str) -> bool:
    """Whether the rows of a site are the logits of the steps, bit for bit, and no others."""
    data = sequence.sites.get(site)
    if data is None or not sequence.step_count:
        return data is None
    first, stop = sequence.step(0).position, sequence.step(sequence.step_count - 1).position + 1
    if data.ranges != ((first, stop),) or stop - first != sequence.step_count or data.dtype != sequence.logits_dtype:
        return False
    for step in range(sequence.step_count):
        logits = sequence.logits(step, step + 1)
        if logits is None or logits.tobytes() != sequence.read(site, first + step, first + step + 1).tobytes():
            return False
    return True


def _prefixes(ours: Mapping[str, str], theirs: Mapping[str, str]) -> tuple[str, str]:
    """The prefixes to strip, `("model.", "")` say, that match most names, the fewest that do; none where exact names
    match."""
    ours, theirs = ({name: at for name, at in side.items() if name != ROOT_SITE} for side in (ours, theirs))
    if any(name in theirs for name in ours):
        return "", ""
    options = [("", "")]
    heads, their_heads = _heads(ours), _heads(theirs)
    options += [(head, "") for head in heads] + [("", head) for head in their_heads]
    options += [(head, other) for head in heads for other in their_heads]

    def matches(option: tuple[str, str]) -> int:
        stripped = {name.removeprefix(option[1]) for name in theirs}
        return sum(name.removeprefix(option[0]) in stripped for name in ours)

    return max(options, key=matches)


def _heads(names_of_one: Mapping[str, str]) -> list[str]:
    """Dotted beginnings that all names of a side share."""
    if not names_of_one:
        return []
    parts = [name.split(".") for name in names_of_one]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return [".".join(shared[:count]) + "." for count in range(1, len(shared) + 1)]


@dataclass(frozen=True)
class SequencePair:
    """Two sequences to compare; `index` is the reference's."""

    index: int
    reference: Sequence
    candidate: Sequence


def same_prompt(one: Sequence, other: Sequence) -> bool:
    """Whether both sequences started from the same token ids (or neither from any)."""
    ids, others = one.prompt_ids, other.prompt_ids
    if ids is None or others is None:
        return ids is None and others is None
    return bool(np.array_equal(ids, others))


def align_sequences(reference: Trace, candidate: Trace) -> tuple[list[SequencePair], list[int]]:
    """Pairs by prompt, in order; a candidate sequence whose prompt is nowhere is paired by index, so that the
    difference is reported. The second result lists the reference's sequences that were left without a partner.
    """
    free = list(candidate.sequences)
    pairs: dict[int, SequencePair] = {}
    for sequence in reference.sequences:
        match = next((other for other in free if same_prompt(sequence, other)), None)
        if match is not None:
            free.remove(match)
            pairs[sequence.index] = SequencePair(sequence.index, sequence, match)
    for other in free:
        if other.index < len(reference.sequences) and other.index not in pairs:
            pairs[other.index] = SequencePair(other.index, reference.sequences[other.index], other)
    left = [sequence.index for sequence in reference.sequences if sequence.index not in pairs]
    return [pairs[index] for index in sorted(pairs)], left


def check_yardstick(reference: Trace, other: Trace, mend: str) -> None:
    """Raises TraceError, with how to `mend` it, where a trace that is to measure the reference's rounding is not of the
    reference's model, prompts and tokens."""
    check_same_model(reference, other, align_sites(reference, other))
    shared = [
        (one, two) for one, two in zip(reference.sequences, other.sequences, strict=False) if same_prompt(one, two)
    ]
    if not shared and reference.sequences:
        raise TraceError(f"{other.path}: holds no sequence with a prompt of {reference.path}; {mend}")
    for one, two in shared:
        common = min(one.step_count, two.step_count)
        apart = np.flatnonzero(one.tokens[:common] != two.tokens[:common])
        if apart.size:
            where = f"sequence {one.index}, step {apart[0]} first"
            raise TraceError(f"{other.path}: holds other tokens than {reference.path} ({where}); {mend}")


def check_same_model(reference: Trace, candidate: Trace, alignment: Alignment) -> None:
    """Raises TraceError where the traces cannot be of the same model."""
    ours, theirs = reference.config.get("model") or {}, candidate.config.get("model") or {}
    for key in ("hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads"):
        if key in ours and key in theirs and ours[key] != theirs[key]:
            raise TraceError(
                f"{candidate.path}: is of another model than {reference.path}: {key} {theirs[key]}, not {ours[key]}; "
                "record both sides from the same checkpoint"
            )
    stored = [
        bool(trace.sequences and any(sequence.sites for sequence in trace.sequences))
        for trace in (reference, candidate)
    ]
    if all(stored) and not alignment.pairs:
        raise TraceError(
            f"{candidate.path}: shares no site name with {reference.path}; record both sides from the same checkpoint"
        )
