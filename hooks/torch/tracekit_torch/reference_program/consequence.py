"""What each culprit does to the logits: the reference in float64 with the own errors of some sites added.

A site's own error is what was recorded less what the reference computes from what was recorded before it. Added at
their sites, all of them together give the candidate's logits, since each site then holds what was recorded; those of
one culprit alone, every other site right, give what that culprit does; all but the culprits', the repaired run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tracekit.auditing.audit import Audit
from tracekit.auditing.consequence import Consequence, Consequences, Repaired, StepTokens, TokensBy, Weigher
from tracekit.sampling.drawing import gives, own_way, trials
from tracekit.sampling.replay import Streams, observe
from tracekit.trace import LOGITS, NO_TOKEN, Sequence, Trace
from tracekit_torch.reference_program.loading import forward_of, on_its_tokens
from tracekit_torch.reference_program.replay import Floats, Replay
from tracekit_torch.reference_program.routing import Forced, near_ties

SHOWN = 8
"""Steps whose tokens are shown."""
LEAST = 1e-12
"""Relative error of the logits that float64 arithmetic makes by itself, and more."""

Errors = Mapping[str, NDArray[np.float32]]
"""Own errors by site, [rows, width] of its recorded rows."""


def weigher(model: nn.Module, trace: Trace, found: Audit) -> Weigher:
    """Works out what groups of sites do to the logits of a trace, by the reference `model` in float64. `found`: its
    audit by that model."""
    factors = {each.site: each.factor for each in found.elsewhere}

    def weigh(groups: Seq[Collection[str]]) -> Consequences | None:
        runs = []
        for sequence in trace.sequences:
            with np.errstate(all="ignore"), on_its_tokens(trace, sequence):
                runs.append(_weighed(model, trace, sequence, groups, factors, near_ties(found, sequence)))
        return _together([run for run in runs if run is not None], groups)

    return weigh


class Disturbed(Replay):
    """The reference with errors added at sites, and nothing put in."""

    _added: Errors
    _asked: str
    _kept: dict[int, Floats]

    def values(self, added: Errors, at: str) -> Floats:
        """What site `at` holds with these errors added, [rows, width] of its recorded rows."""
        self._added, self._asked, self._kept = added, at, {}
        self.run()
        return np.concatenate([self._kept[first] for first in sorted(self._kept)])

    def _found(self, name: str, stored: str, parts: list[torch.Tensor]) -> None:
        error, first = self._added.get(name), 0
        for part, (start, _) in zip(parts, self._sequence.sites[stored].ranges, strict=True):
            if error is not None:
                part.add_(torch.from_numpy(error[first : first + len(part)]).reshape(part.shape))
            first += len(part)
            if name == self._asked:
                self._kept[start] = part.reshape(len(part), -1).to(torch.float64, copy=True).numpy()

    def _logits(self, output: Any) -> None:
        if self._asked == LOGITS:
            positions = [self._sequence.step(index).position for index in range(self._sequence.step_count)]
            logits: Floats = output.logits[0, positions].to(torch.float64).numpy()
            self._kept[0] = logits + self._added.get(LOGITS, 0.0)


class Weighed:
    """What the groups, and all other sites together, do in one sequence."""

    def __init__(self, sequence: Sequence, met: Collection[str], at: str, right: Floats, wrong: Floats) -> None:
        self.sequence, self.met, self.at, self.right, self.wrong = sequence, met, at, right, wrong
        self.mended = right
        self._error = self._centred(wrong - right)
        self.squares = float(np.vdot(self._error, self._error))
        self.size = float(np.vdot(right, right))
        self.products: list[float] = []
        self.alone: list[float] = []

    def add(self, values: Floats) -> None:
        """What site `at` holds with the next group's errors added."""
        error = self._centred(values - self.right)
        self.products.append(float(np.vdot(error, self._error)))
        self.alone.append(float(np.vdot(error, error)))

    def _centred(self, error: Floats) -> Floats:
        """What is added to all logits of a step moves no probability."""
        return error - error.mean(axis=1, keepdims=True) if self.at == LOGITS else error


def _weighed(
    model: nn.Module,
    trace: Trace,
    sequence: Sequence,
    groups: Seq[Collection[str]],
    factors: Mapping[str, float],
    forced: Forced,
) -> Weighed | None:
    """None where a value is not finite, or nothing was met."""
    forward = forward_of(model, trace, sequence)
    exact = Replay(model, sequence, forward, factors, forced)
    exact.run()
    own = {name: (site.recorded - site.values).astype(np.float32) for name, site in exact.sites.items()}
    if not own or not all(np.isfinite(error).all() for error in own.values()):
        return None
    at = LOGITS if LOGITS in own else list(own)[-1]
    disturbed = Disturbed(model, sequence, forward, forced=forced)

    def values(sites: Collection[str]) -> Floats:
        return disturbed.values({name: error for name, error in own.items() if name in sites}, at)

    out = Weighed(sequence, own.keys(), at, values(()), exact.sites[at].recorded)
    for group in groups:
        out.add(values(group))
    out.mended = values(own.keys() - {site for group in groups for site in group})
    out.add(out.mended)
    return out


def _together(runs: list[Weighed], groups: Seq[Collection[str]]) -> Consequences | None:
    """All sequences; None where their logits are the reference's, or the reference does not have all of the sites."""
    met = {site for run in runs for site in run.met}
    runs = [run for run in runs if run.at == runs[0].at]
    squares, size = sum(run.squares for run in runs), sum(run.size for run in runs)
    if not squares > LEAST**2 * size or not all(site in met for group in groups for site in group):
        return None
    found = [
        Consequence(
            tuple(sorted(group)),
            sum(run.products[index] for run in runs) / squares,
            (sum(run.alone[index] for run in runs) / squares) ** 0.5,
        )
        for index, group in enumerate([*groups, ()])
    ]
    error = (squares / size) ** 0.5
    return Consequences(runs[0].at, error, tuple(found[:-1]), found[-1], _repaired(runs))


# -------------------------------------------------------------------- tokens


def _repaired(runs: list[Weighed]) -> Repaired | None:
    if runs[0].at != LOGITS:
        return None
    by = (
        TokensBy.SAMPLER
        if all(_sampled(run.sequence, None) == _own_choices(run.sequence) for run in runs)
        else TokensBy.LARGEST
    )
    rows = [_tokens(run, by) for run in runs]
    everything = [row for each in rows for row in each]
    wrong = [any(row.reference != row.candidate for row in each) for each in rows]
    shown = wrong.index(True) if any(wrong) else 0
    until = next((row.step for row in rows[shown] if row.reference != row.candidate), len(rows[shown]))
    return Repaired(
        by,
        len(everything),
        before=sum(row.candidate == row.reference for row in everything),
        after=sum(row.mended == row.reference for row in everything),
        sequence=runs[shown].sequence.index,
        shown=tuple(rows[shown][: until + 1][-SHOWN:]),
    )


def _tokens(run: Weighed, by: TokensBy) -> list[StepTokens]:
    if by is TokensBy.SAMPLER:
        chosen = _sampled(run.sequence, run.right), _sampled(run.sequence, run.mended), _own_choices(run.sequence)
    else:
        chosen = _largest(run.right), _largest(run.mended), _largest(run.wrong)
    return [StepTokens(step, *tokens) for step, tokens in enumerate(zip(*chosen, strict=True))]


def _sampled(sequence: Sequence, logits: Floats | None) -> list[int]:
    """The token of every step that the recorded settings and draws give from other logits [steps, vocabulary], or from
    the recorded ones; -1 where it hangs on what was not recorded."""
    tokens, streams, stated = sequence.tokens, Streams(sequence), sequence.sampling
    out = []
    for step in range(sequence.step_count):
        seen = observe(sequence, step, tokens)
        plain = replace(seen, logits=seen.logits if logits is None else logits[step], ids=None, probs=None)
        drawn = trials([plain], stated, streams)
        token = gives(own_way(stated), drawn[0]) if drawn else None
        out.append(NO_TOKEN if token is None else token)
    return out


def _own_choices(sequence: Sequence) -> list[int]:
    """What the candidate itself chose at every step."""
    tokens = sequence.tokens
    return [observe(sequence, step, tokens).token for step in range(sequence.step_count)]


def _largest(logits: Floats) -> list[int]:
    return [int(token) for token in logits.argmax(axis=1)]
