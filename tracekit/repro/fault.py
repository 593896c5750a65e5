"""A fault as it can be looked for in any run of the candidate, and what is kept of it as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tracekit.formats.log import TensorLike
from tracekit.repro.failing_run import Input
from tracekit.repro.rerun import Recording
from tracekit.trace import Json, Trace


class NoRepro(Exception):
    """Why none is made, in one sentence."""


@dataclass(frozen=True)
class Evidence:
    """What a run that shows the fault leaves: four files' tensors, and what the tests compare."""

    check: Json
    input: Mapping[str, TensorLike]
    parameters: Mapping[str, TensorLike]
    expected: Mapping[str, TensorLike]
    actual: Mapping[str, TensorLike]
    settings: Json = field(default_factory=dict)  # numbers beside the parameters
    declared: Json | None = None  # the checkpoint's `config.json`


class Fault(Protocol):
    """One cause at one place."""

    @property
    def recording(self) -> Recording:
        """What a run has to record for it to be seen."""

    @property
    def steps(self) -> int:
        """Steps that the candidate has to be fed for it to show."""

    def trusts(self, trace: Trace, fed: Input) -> bool:
        """Whether what is right can be told for any prompt, by a run on the reference's own; if not, it is not cut."""

    def shown(self, trace: Trace, fed: Input) -> int | None:
        """Steps that had to be fed for it to show in this run; None where it does not."""

    def evidence(self, trace: Trace, fed: Input) -> Evidence:
        """What the last run leaves."""
