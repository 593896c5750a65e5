"""What a repro is made from, the input that a candidate is fed, and what came of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tracekit.align.sites import SequencePair
from tracekit.trace import Array, Draw, Json, Sequence
from tracekit.verdict.record import VerdictRecord
from tracekit.verdict.rule import ReproNeeds

DERIVED = ("token_ids", "vocabulary")
"""Inputs that a program makes itself of the others, where there are others."""


@dataclass(frozen=True)
class Command:
    """How a candidate is run."""

    words: tuple[str, ...]  # the program and its words; of a Python program, what follows `tracekit record [options]`
    folder: str  # working folder
    native: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)  # besides what tells it what to record
    recorder: tuple[str, ...] = (sys.executable, "-m", "tracekit_cli.main")  # runs `tracekit`, for a Python program


@dataclass(frozen=True)
class Case:
    """A group's example: two traces, what was said of them, and how the candidate is run again."""

    group: str  # the folder's name
    seed: int
    verdict: VerdictRecord
    reference: Path
    candidate: Path
    command: Command  # the candidate's, its seed filled in


class Uncut(StrEnum):
    """Why a run is not forced to the reference's tokens, or its prompt is not shortened."""

    FOLLOWS_NOTHING = "follows_nothing"
    ON_ITS_OWN = "on_its_own"
    OWN_PROMPT = "own_prompt"
    OTHER_PROMPT_NOT_FOLLOWED = "other_prompt_not_followed"
    PROMPT_AT_FAULT = "prompt_at_fault"
    KNOWN_FOR_IT_ALONE = "known_for_it_alone"
    WHOLE_PROMPT_NEEDED = "whole_prompt_needed"


@dataclass(frozen=True)
class Repro:
    """What was made, or why nothing was. Counts are those of the sequence at fault, before and after."""

    path: Path | None
    why: str | None = None
    prompt: tuple[int, int] = (0, 0)  # entries of the prompt
    steps: tuple[int, int] = (0, 0)
    runs: int = 0  # of the candidate
    uncut: Uncut | None = None  # None where everything was cut

    def to_json(self) -> Json:
        """Ready for `json.dumps`."""
        return {**asdict(self), "path": None if self.path is None else str(self.path)}


# -------------------------------------------------------------------- the input


@dataclass(frozen=True)
class Fed:
    """One sequence as a candidate is fed it."""

    parts: Mapping[str, Array]  # the prompt's tensors by name
    tokens: NDArray[np.int64]  # forced, one a step
    draws: tuple[tuple[Draw, ...], ...]  # of each step
    sampling: Json
    seed: int | None

    @property
    def prompt(self) -> Mapping[str, Array]:
        """The parts that can be cut: those that the others are made of."""
        own = {name: part for name, part in self.parts.items() if name not in DERIVED}
        return own or {name: part for name, part in self.parts.items() if name in DERIVED[:1]}

    @property
    def length(self) -> int:
        """Entries of the prompt."""
        return sum(len(part) for part in self.prompt.values())

    def cut(self, steps: int) -> Fed:
        """The first steps alone."""
        return replace(self, tokens=self.tokens[:steps], draws=self.draws[:steps])

    def with_part(self, name: str, part: Array) -> Fed:
        """Another prompt. What is made of its parts goes: a program makes it again."""
        kept = {key: value for key, value in self.parts.items() if key in self.prompt}
        return replace(self, parts={**kept, name: part})


@dataclass(frozen=True)
class Input:
    """What a candidate is fed: sequences in its own order, the last of which shows the fault."""

    before: tuple[Fed, ...]
    fed: Fed
    prompts: bool  # the prompts are forced
    draws: bool  # the draws are, too
    tokens: bool = True  # False: nothing is; the command runs as it is

    @property
    def sequence(self) -> int:
        """Index of the one that shows the fault."""
        return len(self.before)

    def lengths(self, whole: tuple[int, int]) -> tuple[int, int]:
        """Entries of the prompt and steps; those of the whole where nothing is forced."""
        return self.fed.length if self.prompts else whole[0], len(self.fed.tokens) if self.tokens else whole[1]


def whole_input(
    pairs: Iterable[SequencePair], pair: SequencePair, steps: int, needs: ReproNeeds, native: bool
) -> Input:
    """The reference's prompts, tokens and draws up to a step of a pair, for a candidate to follow.

    What comes before is skipped where the repro does not need it: only where its generator stands comes from there.
    """
    by_index = {each.candidate.index: each.reference for each in pairs}
    before = []
    for index in range(pair.candidate.index):
        fed = _fed(by_index[index]) if index in by_index else None
        before.append((fed or _fed(pair.candidate)).cut(1 << 30 if needs.needs_sequences_before and fed else 0))
    fed = _fed(pair.reference)
    longer = pair.candidate if pair.candidate.step_count > pair.reference.step_count else pair.reference
    tokens = np.asarray(longer.tokens, dtype=np.int64)
    fed = replace(fed, tokens=np.concatenate([fed.tokens, tokens[len(fed.tokens) :]]))
    return Input(tuple(before), fed.cut(steps), native and needs.forces_prompt, needs.forces_draws)


def _fed(sequence: Sequence) -> Fed:
    steps = tuple(sequence.step(index).draws for index in range(sequence.step_count))
    tokens = np.asarray(sequence.tokens, dtype=np.int64)
    return Fed(dict(sequence.inputs), tokens, steps, sequence.sampling, sequence.seed)
