"""The public face: diff and audit. Paths or traces go in; what comes out shows itself at a prompt.

The last stage of the core: here alone a verdict and its words are put together, since no stage imports a later one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from tracekit.align.renamed import Elsewhere, named
from tracekit.align.rotary_order import in_order_of
from tracekit.auditing import audit as auditing
from tracekit.auditing.audit import HoldsParameters
from tracekit.auditing.consequence import Weighing
from tracekit.auditing.not_audited import NotAudited
from tracekit.auditing.routing import routed
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.checkpoints.stated import borrowed_settings, find_checkpoint, no_checkpoint, open_checkpoint
from tracekit.compare.kld import kld
from tracekit.errors import TraceError
from tracekit.formats.name_map import NameMap, gguf_names, read_names
from tracekit.formats.opening import open_trace
from tracekit.inspection.known_positions import MaskNotRecorded, WeightsChanged
from tracekit.inspection.sanity import ended_in_error, unseen
from tracekit.interactive import Browsable, html_table
from tracekit.mistakes.culprit_groups import by_consequence
from tracekit.mistakes.culprits import ExplainedAudit, explained_audit
from tracekit.report.audit import audit_json, audit_text
from tracekit.report.json import verdict_json
from tracekit.report.quantised import quantised_json, quantised_lines
from tracekit.report.text import verdict_text
from tracekit.report.words import sentence
from tracekit.trace import Json, Trace
from tracekit.verdict import decide
from tracekit.verdict.quantised import Quantised, quantised

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

File: TypeAlias = str | os.PathLike[str]
TraceOrPath: TypeAlias = File | Trace
"""A trace that is open already, or the file that it is in, which is closed again."""
Auditor: TypeAlias = auditing.Auditor
RECORDED = (".h5", ".tklog")


@dataclass(frozen=True, repr=False)
class Verdict(decide.Verdict):
    """The answer of a diff, and how it reads. Its `repr` is what `tracekit diff` prints."""

    text: str = field(default="", compare=False)
    """What `tracekit diff` prints: the cause and the place first, then the evidence."""

    def to_json(self) -> Json:
        """The whole verdict, ready for `json.dumps`; its keys are stable and documented in `docs/verdict.md`."""
        return verdict_json(self)

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        told = self.to_json()
        where = [f"{name} {told[name]}" for name in ("sequence", "step", "position") if told[name] is not None]
        token = told["token"]
        rows = [("at", ", ".join([*where, *([told["site"]] if told["site"] else [])]))] if where else []
        rows += [("evidence", line) for line in told["evidence"]]
        sides = [f"{side} {token[side]['id']}" for side in ("reference", "candidate")] if token else []
        rows += [("tokens differ", f"from step {token['step']}: {' | '.join(sides)}")] if token else []
        rows += [("note", note) for note in told["notes"]]
        cause = "" if self.cause is None else f"  {self.cause}"
        return html_table(f"{told['verdict'].upper()}{cause}", (), rows)


@dataclass(frozen=True, repr=False)
class Audit(ExplainedAudit):
    """One trace against its checkpoint, and how it reads. Its `repr` is what `tracekit audit` prints."""

    text: str = field(default="", compare=False)
    """What `tracekit audit` prints."""
    told: Mapping[str, Any] = field(default_factory=dict, compare=False)
    quantised: Quantised | None = None
    """What the quantisation costs and what the engine adds, where the original was given."""

    def to_json(self) -> Json:
        """The whole audit, ready for `json.dumps`."""
        return dict(self.told)

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        rows = []
        for each in self.culprits:
            why = "not explained" if each.explanation is None else sentence(each.explanation)
            rows.append((each.site, each.step, each.position, f"{each.own.statistics.size:.3g}", why))
        heads = ("site", "step", "position", "local error / rounding bound", "explanation")
        title = f"{self.told['trace']}  against  {self.told['checkpoint']}: {self.told['verdict']}"
        return html_table(title, heads if rows else (), rows)


def diff(
    reference: TraceOrPath,
    candidate: TraceOrPath,
    oracle: TraceOrPath | None = None,
    noise: TraceOrPath | Iterable[TraceOrPath] | None = None,
    *,
    weights: File | None = None,
    names: NameMap | File | None = None,
    audited: bool = True,
    by: Auditor | None = None,
) -> Verdict:
    """Compare a candidate with a reference: the first step, site or draw where they diverge, and why.

    Args:
        reference: the run that is taken as right.
        candidate: the run under test.
        oracle: the reference again in higher precision, forced onto its tokens, as `tracekit oracle` makes it. It tells
            rounding from a fault.
        noise: one or more runs of the reference under harmless variation, which tell the same less sharply.
        weights: the checkpoint, if it is not where the traces say: a Hugging Face folder, a `.safetensors` or a GGUF
            file.
        names: a map where the two sides use different module names, or the TOML file that it is in.
        audited: whether sites are recomputed from the checkpoint, to tell a faulty module from those that inherit.
        by: what judges the sites that no recipe covers: `tracekit_torch.by_reference(folder)` runs the reference
            program, of any model.

    Raises:
        TraceError: a file cannot be read, or the two runs cannot be compared.
    """
    with ExitStack() as stack:
        one, other = _opened(stack, reference), _opened(stack, candidate)
        truth = None if oracle is None else _opened(stack, oracle)
        more = [_opened(stack, each) for each in _each(noise)]
        given = None if weights is None else os.fspath(weights)
        found = decide.diff(one, other, truth, more, weights=given, audited=audited, names=_map_of(names), by=by)
        return Verdict(**_fields(found), text=verdict_text(found, one, other, truth))


def audit(
    trace: TraceOrPath,
    weights: File | None = None,
    *,
    names: NameMap | File | None = None,
    by: Auditor = auditing.audit,
    original: File | None = None,
) -> Audit:
    """Recompute every recorded site in float64 from its recorded input and the checkpoint; no reference run is needed.

    Args:
        trace: the run.
        weights: the checkpoint, if it is not where the trace says: a Hugging Face folder, or a file of safetensors,
            PyTorch, TorchScript, GGUF or ONNX.
        names: a map of the engine's module names to the checkpoint's, or the TOML file that it is in.
        by: what recomputes the sites. The default follows recipes, in numpy; `tracekit_torch.by_reference(folder)` runs
            the reference program, of any model.
        original: what a quantised checkpoint was made of, or a recording of a run with that: the audit then says what
            the quantisation costs and what the engine adds, layer by layer.

    Raises:
        TraceError: a file cannot be read, the checkpoint is of another model, or no site can be recomputed.
    """
    with ExitStack() as stack:
        run = _opened(stack, trace)
        checkpoint = _held_by(run, by) if weights is None else open_checkpoint(weights, run)
        called = gguf_names(run) if names is None else _map_of(names)
        if called is not None:
            run = named(run, called, Elsewhere(checkpoint=checkpoint))
        run, notes = in_order_of(checkpoint, run)
        found = by(run, checkpoint)
        ended = ended_in_error(run)
        if not (found.clean or found.culprits):
            unknown = next((one for one in found.lost if isinstance(one, MaskNotRecorded | WeightsChanged)), None)
            if unknown is not None:
                raise TraceError(sentence(unknown))
            why = _why(found.unknown) or "".join(f"; {sentence(each)}" for each in ended) or "; record with --level all"
            raise TraceError(f"{run.path}: holds no site that can be audited against {checkpoint.path}{why}")
        notes += borrowed_settings(checkpoint)
        said = (*notes, *found.notes, *found.elsewhere, *routed(found.routed), *unseen(run), *ended)
        found = replace(explained_audit(run, checkpoint, found), notes=said)
        if isinstance(by, Weighing):
            culprits, told = by_consequence(found.culprits, by.weigher(run, found))
            found = replace(found, culprits=tuple(culprits), consequences=told)
        beside = None if original is None else _quantised(run, checkpoint, os.fspath(original))
        told = audit_json(found, run, checkpoint) | {"quantised": quantised_json(beside)}
        text = "\n".join([audit_text(found, run, checkpoint), *quantised_lines(beside)])
        return Audit(**_fields(found), text=text, told=told, quantised=beside)


def _opened(stack: ExitStack, trace: TraceOrPath) -> Trace:
    """A trace; one that is opened here is closed with the stack."""
    return stack.enter_context(open_trace(trace)) if isinstance(trace, str | os.PathLike) else trace


def _checkpoint_of(trace: Trace) -> str:
    """Where the checkpoint that a trace states is."""
    path = find_checkpoint(trace)
    if path is None:
        raise TraceError(f"{trace.path}: {sentence(no_checkpoint(trace))}")
    return path


def _held_by(trace: Trace, by: Auditor) -> Checkpoint:
    """The checkpoint that a trace states; without one, what the reference program itself holds."""
    if find_checkpoint(trace) is None and isinstance(by, HoldsParameters):
        return open_checkpoint(by.parameters(trace), trace)
    return open_checkpoint(_checkpoint_of(trace), trace)


def _quantised(run: Trace, held: Checkpoint, original: str) -> Quantised:
    """`original`: a checkpoint, or a recording of a run with it."""
    if Path(original).suffix not in RECORDED:
        return quantised(run, held, original)
    with open_trace(original) as reference:
        return quantised(run, held, _checkpoint_of(reference), kld(reference, run))


def _each(traces: TraceOrPath | Iterable[TraceOrPath] | None) -> Iterable[TraceOrPath]:
    """Several traces; one alone, whose sequences could be iterated over as well, is one trace."""
    if traces is None:
        return ()
    return (traces,) if isinstance(traces, str | os.PathLike | Browsable) else cast(Iterable[TraceOrPath], traces)


def _map_of(names: NameMap | File | None) -> NameMap | None:
    return read_names(names) if isinstance(names, str | os.PathLike) else names


def _fields(found: DataclassInstance) -> dict[str, Any]:
    return {each.name: getattr(found, each.name) for each in fields(found)}


def _why(unknown: Mapping[str, NotAudited]) -> str:
    """Why most sites were not audited."""
    if not unknown:
        return ""
    reason, count = Counter(unknown.values()).most_common(1)[0]
    return f"; of {count} of its {len(unknown)} sites: {sentence(reason)}"
