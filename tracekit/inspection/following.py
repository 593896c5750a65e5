"""Runs that were to follow another trace: what shows that they did, and whether their own choices are on record.

A recorder that follows says so in the log: `follow` of the first frame names itself (`follower`), `followed` of a
sequence's end counts the steps that went on with the other trace's token, and an event `forced` gives the own choice of
a step where that was another token. A program that says none of it may have followed, or may not.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from tracekit.trace import Json, Sequence, Step, Trace

FORCED = "forced"
"""Kind of the event of a step that took another trace's token: its detail says `instead_of` which of its own."""
MULTINOMIAL = "multinomial"
"""Kind of draw whose result is the token that was chosen."""


@dataclass(frozen=True)
class Asked:
    """What a run was told to follow."""

    trace: str
    draws: bool
    inputs: bool


@dataclass(frozen=True)
class ChoicesNotRecorded:
    """It is not known what a run that follows would have chosen by itself."""

    path: str
    sequence: int
    missing: int
    steps: int
    followed: str


@dataclass(frozen=True)
class NoStep:
    """A program that was to follow recorded no step."""

    followed: str


@dataclass(frozen=True)
class OtherToken:
    """The first token that is not the followed trace's."""

    sequence: int
    step: int
    token: int
    instead_of: int


@dataclass(frozen=True)
class TokensNotFollowed:
    """A program that was to follow has another token, or nothing shows that it followed."""

    followed: str
    apart: OtherToken | None
    forced_others: bool  # at other steps it did take the followed trace's token


@dataclass(frozen=True)
class DrawsNotRecorded:
    """A program that was to follow draws recorded none."""

    followed: str


@dataclass(frozen=True)
class OtherDraw:
    """A draw that is not the followed trace's; a place is seed and offset."""

    followed: str
    sequence: int
    step: int
    place: tuple[int | None, int | None]
    instead_of: tuple[int | None, int | None]


@dataclass(frozen=True)
class OtherInput:
    """A part of the prompt that is not the followed trace's."""

    followed: str
    name: str
    sequence: int
    recorded: bool


Shortfall = NoStep | TokensNotFollowed | DrawsNotRecorded | OtherDraw | OtherInput


def asked(trace: Trace) -> Asked | None:
    """What a run was told to follow, by its own record; None where it ran freely."""
    recorder, follow = (_object(trace.config.get(name)) for name in ("recorder", "follow"))
    path = follow.get("trace") or recorder.get("follow")
    if not isinstance(path, str):
        return None
    draws = follow.get("draws", recorder.get("follow_draws"))
    inputs = follow.get("inputs", recorder.get("follow_inputs"))
    # A recorder that cannot read what it is to follow forces nothing; it was asked all the same.
    return Asked(path, bool(draws or recorder.get("follow_draws")), bool(inputs or recorder.get("follow_inputs")))


def ask(config: Json, path: str, draws: bool, inputs: bool) -> Json:
    """A trace's config with what its program was told to follow, where it does not say so itself."""
    recorder = _object(config.get("recorder"))
    if recorder.get("follow") is not None or _object(config.get("follow")).get("trace") is not None:
        return config
    return config | {"recorder": recorder | {"follow": path, "follow_draws": draws, "follow_inputs": inputs}}


def followed_steps(sequence: Sequence) -> int | None:
    """Steps that went on with the other trace's token; None where the log does not say."""
    count = _object(sequence.info.get("followed")).get("tokens")
    return count if type(count) is int and count >= 0 else None


def shows_tokens(trace: Trace) -> bool:
    """Whether anything in the log shows that the run took another trace's tokens."""
    return any(
        (followed_steps(sequence) or 0) > 0
        or any(event.kind == FORCED for index in range(sequence.step_count) for event in sequence.step(index).events)
        for sequence in trace.sequences
    )


def own_choice(step: Step) -> int | None:
    """The token that a step of a run that follows chose by itself, where the step says it."""
    for event in step.events:
        if event.kind == FORCED and isinstance(event.detail, dict) and type(event.detail.get("instead_of")) is int:
            return int(event.detail["instead_of"])
    results = [draw.result for draw in step.draws]
    told = bool(results) and None not in results and step.draws[-1].op == MULTINOMIAL
    return results[-1] if told else None


def unrecorded_choices(trace: Trace) -> list[ChoicesNotRecorded]:
    """Sequences of a run that follows of which it is not known what it would have chosen by itself."""
    told = asked(trace)
    if told is None:
        return []
    if isinstance(_object(trace.config.get("follow")).get("follower"), str):
        return []  # a recorder that has no way to force a token without an event
    out = []
    for sequence in trace.sequences:
        steps = [sequence.step(index) for index in range(sequence.step_count)]
        choices = [own_choice(step) for step in steps]
        if followed_steps(sequence) is not None or not steps or any(_forced(step) for step in steps):
            continue
        missing = choices.count(None)
        if missing:
            out.append(ChoicesNotRecorded(trace.path, sequence.index, missing, len(steps), told.trace))
    return out


def shortfalls(trace: Trace, followed: Trace | None = None) -> list[Shortfall]:
    """What a run was told to follow and what nothing shows that it did. `followed` is the trace that it was told to
    follow, where it is at hand."""
    told = asked(trace)
    if told is None:
        return []
    return [
        *_tokens_not_followed(trace, told, followed),
        *(_draws_not_followed(told, trace, followed) if told.draws else []),
        *(_inputs_not_followed(told, trace, followed) if told.inputs else []),
    ]


def _tokens_not_followed(trace: Trace, told: Asked, followed: Trace | None) -> Iterator[Shortfall]:
    if not any(sequence.step_count for sequence in trace.sequences):
        yield NoStep(told.trace)
        return
    apart = None if followed is None else _first_other_token(trace.sequences, followed.sequences)
    forced = shows_tokens(trace)
    if apart is not None or not forced:
        yield TokensNotFollowed(told.trace, apart, forced)


def _first_other_token(ours: Seq[Sequence], theirs: Seq[Sequence]) -> OtherToken | None:
    for one, other in zip(ours, theirs, strict=False):
        common = min(one.step_count, other.step_count)
        apart = np.flatnonzero(one.tokens[:common] != other.tokens[:common])
        if apart.size:
            step = int(apart[0])
            return OtherToken(one.index, step, int(one.tokens[step]), int(other.tokens[step]))
    return None


def _draws_not_followed(told: Asked, trace: Trace, followed: Trace | None) -> Iterator[Shortfall]:
    drawn = [(each, index) for each in trace.sequences for index in range(each.step_count) if each.step(index).draws]
    if not drawn:
        yield DrawsNotRecorded(told.trace)
        return
    if followed is None:
        return
    for sequence, index in drawn:
        if sequence.index >= len(followed.sequences) or index >= followed.sequences[sequence.index].step_count:
            continue
        one, others = sequence.step(index).draws[0], followed.sequences[sequence.index].step(index).draws
        if others and (one.seed, one.offset) != (others[0].seed, others[0].offset):
            places = (one.seed, one.offset), (others[0].seed, others[0].offset)
            yield OtherDraw(told.trace, sequence.index, index, *places)
            return


def _inputs_not_followed(told: Asked, trace: Trace, followed: Trace | None) -> Iterator[Shortfall]:
    if followed is None:
        return
    for one, other in zip(trace.sequences, followed.sequences, strict=False):
        for name in other.inputs:
            if name not in one.inputs or not np.array_equal(one.inputs[name], other.inputs[name]):
                yield OtherInput(told.trace, name, one.index, name in one.inputs)
                return


def _forced(step: Step) -> bool:
    return any(event.kind == FORCED for event in step.events)


def _object(value: object) -> Json:
    return value if isinstance(value, dict) else {}
