"""The way of a check: one base run, then each way to compute it, compared with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tracekit.align.rotary_order import in_order_of
from tracekit.auditing.audit import audit
from tracekit.checkpoints.stated import find_checkpoint, no_checkpoint, open_checkpoint
from tracekit.dtypes import UNIT_ROUNDOFF
from tracekit.errors import TraceError
from tracekit.formats.opening import open_trace
from tracekit.inspection.losses import NothingCompared
from tracekit.mistakes.culprits import explained_audit
from tracekit.selfcheck.variation import (
    BATCH,
    CHUNK,
    DTYPE,
    KEEP_PREFIX,
    PROMPT_IDS,
    REQUESTS,
    Checked,
    CheckFinding,
    Failed,
    Limit,
    NoLayers,
    NoSiteAudited,
    Outcome,
    PromptTooLong,
    Settings,
    Variation,
    Varied,
    Way,
)
from tracekit.selfcheck.views import as_generated, on_a_prefix, only
from tracekit.trace import Trace
from tracekit.verdict.cause import Cause
from tracekit.verdict.decide import diff
from tracekit.verdict.decision import Decision
from tracekit.verdict.evidence import AllEqual, TokensAlone
from tracekit.verdict.verdict import Verdict

CHUNKS = ("1", "2", "3")
"""Tokens at a time: one, two against one and one, and a number that leaves a rest."""
LONGEST = 4096
"""Positions of a prompt that is made to exceed a limit; the limits of most models are beyond it, and said."""
BEYOND = 8
"""Positions by which it does."""
Told = Callable[[CheckFinding], None]


def check(program: Varied, folder: Path, weights: str | None = None, told: Told = lambda finding: None) -> Checked:
    """Run a program in every way that it has and compare each with its first run. Traces stay in `folder`; `weights` is
    the checkpoint, if it is not where the trace says; `told` hears each finding as it is made.

    Raises TraceError where the first run fails.
    """
    with open_trace(program.record({}, folder / "base")) as base:
        findings = []
        for finding in _Check(program, folder, base, weights).findings():
            told(finding)
            findings.append(finding)
        first = base.sequences[0]
        return Checked(program.base, first.step_count, first.positions, tuple(findings))


@dataclass(frozen=True)
class _Check:
    """One check."""

    program: Varied
    folder: Path
    base: Trace
    weights: str | None

    def findings(self) -> Iterator[CheckFinding]:
        yield self._against_checkpoint()
        for name, values in self.program.values.items():
            for value in values:
                if name != DTYPE:
                    yield self._run(Variation(Way.SETTING, name, value), {name: value})
                elif _is_wider(value, str(self.base.config.get("dtype"))):
                    yield self._run(Variation(Way.WIDER_DTYPE, name, value), {name: value}, wider=True)
        yield from self._generated_as_prompt()
        yield from self._again()
        yield from self._long_prompts()

    def _generated_as_prompt(self) -> Iterator[CheckFinding]:
        first = self.base.sequences[0]
        if PROMPT_IDS not in self.program.settings or first.prompt_ids is None:
            return
        read = [*map(int, first.prompt_ids), *map(int, first.tokens[:-1])]
        settings = {PROMPT_IDS: ",".join(map(str, read))}

        def seen(trace: Trace) -> Trace:
            return as_generated(trace, first)

        if len(first.tokens) > 1:
            yield self._run(Variation(Way.AT_ONCE), settings, seen)
        if CHUNK in self.program.settings:
            for count in CHUNKS:
                yield self._run(Variation(Way.CHUNKS, CHUNK, count), settings | {CHUNK: count}, seen)

    def _again(self) -> Iterator[CheckFinding]:
        known = self.program.settings
        if REQUESTS in known:
            yield self._run(Variation(Way.SECOND_REQUEST), {REQUESTS: "2"}, lambda trace: only(trace, 1))
        length = 0 if self.base.sequences[0].prompt_ids is None else len(self.base.sequences[0].prompt_ids)
        if {REQUESTS, KEEP_PREFIX} <= known and length > 1:
            settings = {REQUESTS: "2", KEEP_PREFIX: str(length // 2)}
            variation = Variation(Way.PREFIX_REUSED, KEEP_PREFIX, str(length // 2))
            yield self._run(variation, settings, lambda trace: on_a_prefix(trace, 1, self.base.sequences[0]))
        if BATCH in known:
            yield self._run(Variation(Way.IN_A_BATCH, BATCH, "3"), {BATCH: "3"}, self._same_prompt)

    def _same_prompt(self, trace: Trace) -> Trace:
        """The sequence of a batch that has the base's prompt."""
        wanted = self.base.sequences[0].prompt_ids
        for place, sequence in enumerate(trace.sequences):
            ids = sequence.prompt_ids
            if ids is not None and wanted is not None and ids.tolist() == wanted.tolist():
                return only(trace, place)
        raise TraceError(f"{trace.path}: no sequence of the batch has the base run's prompt")

    def _long_prompts(self) -> Iterator[CheckFinding]:
        """Beyond each limit, one prompt read at once and in chunks; a limit that the base exceeds needs none."""
        first = self.base.sequences[0]
        if not {PROMPT_IDS, CHUNK} <= self.program.settings or first.prompt_ids is None:
            return
        for limit, length in _limits(self.base).items():
            variation = Variation(Way.LONG_PROMPT, value=str(length), limit=limit)
            if length < first.positions:
                continue
            if length + BEYOND > LONGEST:
                yield CheckFinding(variation, Outcome.NOT_TRIED, why=PromptTooLong(LONGEST))
                continue
            settings = {PROMPT_IDS: ",".join(map(str, _longer(self.base, length + BEYOND)))}
            try:
                path = self.program.record(settings, self.folder / f"long-{length}")
            except TraceError as error:
                yield CheckFinding(variation, Outcome.FAILED, why=Failed(str(error)))
                continue
            with open_trace(path) as whole:
                beside = _Check(self.program, self.folder, whole, self.weights)
                yield beside._run(variation, settings | {CHUNK: str(len(first.prompt_ids))})

    def _run(
        self,
        variation: Variation,
        settings: Settings,
        seen: Callable[[Trace], Trace] = lambda trace: trace,
        wider: bool = False,
    ) -> CheckFinding:
        """Run it so and compare. A run in a wider format is the reference, and the base is judged in its own."""
        words = (variation.way, variation.name, variation.value)
        try:
            path = self.program.record(settings, self.folder / "-".join(word for word in words if word))
            with open_trace(path) as trace:
                other = seen(trace)
                pair = (other, self.base) if wider else (self.base, other)
                verdict = diff(*pair, weights=self.weights)
                lost = () if verdict.coverage is None else verdict.coverage.lost
                if any(isinstance(each, NothingCompared) for each in lost):
                    return CheckFinding(variation, Outcome.NOT_TRIED, why=NoLayers())
        except (TraceError, IndexError) as error:
            return CheckFinding(variation, Outcome.FAILED, why=Failed(str(error)))
        return CheckFinding(variation, _outcome(verdict), verdict)

    def _against_checkpoint(self) -> CheckFinding:
        """What no way changes: the base run against its own checkpoint."""
        variation = Variation(Way.CHECKPOINT)
        path = self.weights or find_checkpoint(self.base)
        if path is None:
            return CheckFinding(variation, Outcome.NOT_TRIED, why=no_checkpoint(self.base))
        try:
            checkpoint = open_checkpoint(path)
            run, _ = in_order_of(checkpoint, self.base)
            found = explained_audit(run, checkpoint, audit(run, checkpoint))
        except TraceError as error:
            return CheckFinding(variation, Outcome.NOT_TRIED, why=Failed(str(error)))
        if not (found.clean or found.culprits):
            return CheckFinding(variation, Outcome.NOT_TRIED, why=NoSiteAudited(str(path)))
        judged = Outcome.WITHHELD if found.lost or found.non_finite is not None else Outcome.WITHIN_ROUNDING
        outcome = Outcome.FAULT if found.departs else judged
        return CheckFinding(variation, outcome, audit=found)


def _outcome(verdict: Verdict) -> Outcome:
    if verdict.decision is Decision.WITHHELD:
        return Outcome.WITHHELD
    if verdict.cause is Cause.NEAR_TIE:
        return Outcome.NEAR_TIE
    if verdict.decision is Decision.DIVERGENCE:
        return Outcome.FAULT
    equal = any(isinstance(each, AllEqual | TokensAlone) for each in verdict.evidence)
    return Outcome.EQUAL if equal else Outcome.WITHIN_ROUNDING


def _longer(base: Trace, length: int) -> list[int]:
    """The base's prompt and tokens, and after them tokens of the vocabulary at random: rows that repeat have errors
    that do, which the statistics of an audit take for a bias."""
    first = base.sequences[0]
    read = [*([] if first.prompt_ids is None else map(int, first.prompt_ids)), *map(int, first.tokens)]
    tokens = (base.config.get("model") or {}).get("vocab_size")
    if type(tokens) is not int or tokens < 1:
        return (read * (1 + length // len(read)))[:length]
    rest = np.random.default_rng(0).integers(0, tokens, max(0, length - len(read)))
    return [*read, *map(int, rest)][:length]


def _is_wider(dtype: str, base: str) -> bool:
    return UNIT_ROUNDOFF.get(dtype, 0.0) < UNIT_ROUNDOFF.get(base, 0.0)


def _limits(base: Trace) -> dict[Limit, int]:
    """Lengths from which the model computes something else, shortest first."""
    model = base.config.get("model") or {}
    scaling = model.get("rope_scaling")
    told = {
        Limit.SLIDING_WINDOW: model.get(Limit.SLIDING_WINDOW),
        Limit.ORIGINAL_POSITIONS: scaling.get(Limit.ORIGINAL_POSITIONS) if isinstance(scaling, dict) else None,
        Limit.POSITIONS: model.get(Limit.POSITIONS),
    }
    found = {limit: length for limit, length in told.items() if type(length) is int and length > 0}
    return dict(sorted(found.items(), key=lambda item: item[1]))
