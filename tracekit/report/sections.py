"""A pair of traces, or one trace, as the numbers and words of a section of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tracekit.align.pair import Pair
from tracekit.align.rotary_order import in_order_of
from tracekit.align.sites import Alignment, SequencePair
from tracekit.auditing.audit import audit
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.checkpoints.stated import find_checkpoint, no_checkpoint, open_checkpoint
from tracekit.compare.search import compared_positions
from tracekit.compare.side_by_side import token_tables
from tracekit.mistakes.culprits import ExplainedAudit, explained_audit
from tracekit.report import charts
from tracekit.report.audit import audit_text
from tracekit.report.config_rows import config_rows
from tracekit.report.contents import header, sequence_row
from tracekit.report.error_map import (
    OwnErrors,
    SiteErrors,
    compared_steps,
    levels,
    limits_of,
    own_errors_of_pair,
    own_errors_of_trace,
    site_errors,
)
from tracekit.report.logit_table import logit_table
from tracekit.report.site_facts import ordered_sites, site_facts
from tracekit.report.token_rows import TokenTexts, alone_rows, token_rows
from tracekit.report.token_text import lines_without_controls, without_controls
from tracekit.report.verdict_words import audit_words, measured_against, recorded_words, verdict_words
from tracekit.report.words import sentence
from tracekit.report.words.culprits import culprit_json
from tracekit.trace import Json, Sequence, Trace
from tracekit.verdict.attribution import checkpoint_of
from tracekit.verdict.decide import yardstick_of
from tracekit.verdict.record import CulpritRecord, VerdictRecord

ALL_STEPS = 1 << 40
LONGEST_PROMPT = 2000
"""Characters of a prompt that are shown."""
OVER_YARDSTICK, OVER_BOUND = "error over yardstick", "local error over bound"
SIZE_LINE, ROW_LINE = 5.0, 8.0
"""Own error over its bound, of a site and of a row, from which a map shows it as large. The audit's own limits are each
site's, and lower."""


@dataclass(frozen=True)
class Compared:
    """Two open traces, the verdict on them, and the verdict as a person reads it."""

    title: str  # a tab's name; a postmortem's group by its name
    pair: Pair
    verdict: VerdictRecord
    text: str
    oracle: Trace | None = None
    noise: tuple[Trace, ...] = ()  # more references under harmless variation
    weights: str | None = None  # the checkpoint, if it is not where the traces say
    audited: bool = True  # False: own errors are not worked out
    names: tuple[str, str] | None = None  # of the two traces, where they are not shown by their paths


@dataclass(frozen=True)
class Alone:
    """One open trace without another to compare it with."""

    title: str
    trace: Trace
    weights: str | None = None


@dataclass
class Section:
    """What the template shows (`view`), what the page's script reads (`sites`, `maps`), and the tables of the maps."""

    view: Json
    sites: list[Json] = field(default_factory=list)  # `site_facts`
    maps: list[ErrorTable] = field(default_factory=list)
    layers: Json | None = None  # a figure
    culprits: list[str] = field(default_factory=list)

    def data(self, cells: int) -> Json:
        """For the page's script. `cells`: the most that each map may have."""
        return {
            "sites": self.sites,
            "maps": [table.to_json([site["name"] for site in self.sites], cells) for table in self.maps],
            "layers": self.layers,
            "steps": charts.steps_figure([table.limits[0] for table in self.maps]),
            "culprits": [row for row, site in enumerate(self.sites) if site["name"] in self.culprits],
        }


@dataclass(frozen=True)
class ErrorTable:
    """One map: ratios by site and step."""

    label: str
    limits: tuple[float, float]  # a site's on average, and a single position's
    ratios: NDArray[np.float32]  # [sites, steps], NaN where unknown

    def to_json(self, sites: list[str], cells: int) -> Json:
        """The codes, and the figure that they are put in."""
        found = levels(self.ratios.astype(np.float64), self.ratios.shape[1], cells)
        figure = charts.error_map_figure(found, self.limits, sites)
        return {"label": self.label, "figure": figure, **found.to_json()}


# -------------------------------------------------------------------- two traces


def pair_section(shown: Compared) -> Section:
    """Everything of a pair. Raises TraceError where the traces cannot be compared."""
    one, other = shown.pair.traces
    asked = shown.verdict.sequence
    compared = (None if asked is None else shown.pair.sequence(asked)) or shown.pair.first
    checkpoint, _ = checkpoint_of(one, other, shown.weights)
    texts = TokenTexts(() if compared is None else (compared.reference, compared.candidate), checkpoint)
    tables = token_tables(shown.pair, ALL_STEPS)
    for table in tables:
        if compared is not None and table.sequence == compared.index:
            texts.add(table)
    section = Section(
        {
            "title": shown.title,
            "kind": "pair",
            "roles": ["Reference", "Candidate"],
            "sides": _named(_heads([("Reference", one), ("Candidate", other), *_oracle(shown.oracle)]), shown.names),
            "words": verdict_words(shown.verdict),
            "text": lines_without_controls(shown.text),
            "sequence": None if compared is None else compared.index,
            "prompts": [] if compared is None else _prompts(compared.reference, compared.candidate),
            "tokens": [token_rows(table) for table in tables],
            "logits": [] if compared is None else _logits(shown.verdict, compared, texts),
            "config": config_rows([one, other], shown.verdict.differences),
        }
    )
    reason = _no_layers(shown, compared)
    if reason is not None or compared is None:
        section.view |= {"no_map": reason, "map": None, "layers": None}
        return section
    _add_errors(section, shown, compared, checkpoint)
    return section


def _add_errors(section: Section, shown: Compared, compared: SequencePair, checkpoint: Checkpoint | None) -> None:
    one, other = shown.pair.traces
    alignment = shown.pair.sites
    yardstick = yardstick_of(one, shown.oracle, shown.noise)
    errors = site_errors(compared, alignment, yardstick)
    owns: dict[str, OwnErrors] = {}
    if shown.audited and checkpoint is not None:
        owns = own_errors_of_pair(compared, other, one, alignment, checkpoint)
    sites = ordered_sites(one, errors, owns)
    sides = [(one, compared.reference), (other, compared.candidate)]
    limits = limits_of(yardstick.calibration)
    _fill(section, sites, sides, errors, owns, alignment, limits, compared_steps(compared))
    _accuse(section, shown.verdict.culprits)
    _add_layers(section, sites, errors, owns, limits[0])
    steps, longest = compared_steps(compared), max(compared.reference.step_count, compared.candidate.step_count)
    section.view["map"] = {
        "sites": len(sites),
        "steps": steps,
        "left": longest - steps,
        "sequences": len(one.sequences),
        "yardstick": measured_against(yardstick.calibration),
        "limits": limits,
    }


def _no_layers(shown: Compared, compared: SequencePair | None) -> str | None:
    """Why there is no map of errors; None where there is one."""
    if compared is None:
        return "No sequence of the candidate starts from a prompt of the reference."
    for role, sequence in (("reference", compared.reference), ("candidate", compared.candidate)):
        if not sequence.sites:
            return f"The {role} recorded no layers; record it with --level all to see where the error begins."
    if compared_positions(compared) == 0:
        return "The prompts differ, so no position was computed from the same tokens."
    return None


def _logits(verdict: VerdictRecord, compared: SequencePair, texts: TokenTexts) -> list[Json]:
    """The logits of the steps that matter: where the tokens differ, where the first thing is wrong, or the tightest."""
    wanted: dict[int, str] = {}
    if verdict.token is not None:
        wanted[verdict.token.step] = "where the tokens differ"
    if verdict.step is not None:
        wanted.setdefault(verdict.step, "where the first thing is wrong")
    if not wanted and verdict.narrowest is not None and verdict.narrowest[0] == compared.index:
        wanted[verdict.narrowest[1]] = "where the two largest logits are nearest to each other"
    found = [(logit_table((compared.reference, compared.candidate), step, texts), why) for step, why in wanted.items()]
    return [table | {"why": why} for table, why in found if table is not None]


# -------------------------------------------------------------------- one trace


def alone_section(alone: Alone) -> Section:
    """What is in a trace, and its audit where there is a checkpoint. Raises TraceError where `weights` holds none."""
    trace = alone.trace
    path = alone.weights or find_checkpoint(trace)
    checkpoint = None if path is None else open_checkpoint(path, trace)
    if checkpoint is not None:
        trace, _ = in_order_of(checkpoint, trace)
    sequence = trace.sequences[0] if trace.sequences else None
    recorded = sequence is not None and bool(sequence.sites)
    found = explained_audit(trace, checkpoint, audit(trace, checkpoint)) if checkpoint and recorded else None
    if found is not None and not (found.clean or found.culprits):
        found = None
    texts = TokenTexts(() if sequence is None else (sequence,), checkpoint)
    section = Section(
        {
            "title": alone.title,
            "kind": "trace",
            "roles": ["Trace"],
            "sides": _heads([("Trace", trace)]),
            "words": recorded_words(trace) if found is None else audit_words(found),
            "text": lines_without_controls(audit_text(found, trace, checkpoint))
            if found is not None and checkpoint
            else "",
            "sequence": None if sequence is None else sequence.index,
            "prompts": [] if sequence is None else _prompts(sequence),
            "tokens": [alone_rows(one) for one in trace.sequences],
            "logits": [] if sequence is None else _last_logits(sequence, texts),
            "config": config_rows([trace]),
        }
    )
    if found is None or checkpoint is None or sequence is None:
        section.view |= {"no_map": _not_audited(trace, path, recorded), "map": None, "layers": None}
        return section
    _add_own(section, trace, sequence, checkpoint, found)
    return section


def _add_own(section: Section, trace: Trace, sequence: Sequence, checkpoint: Checkpoint, found: ExplainedAudit) -> None:
    owns = own_errors_of_trace(trace, sequence, checkpoint)
    sites, steps = ordered_sites(trace, {}, owns), max(1, sequence.step_count)
    _fill(section, sites, [(trace, sequence)], {}, owns, None, (ROW_LINE, ROW_LINE), steps)
    _accuse(section, [CulpritRecord.from_json(culprit_json(culprit)) for culprit in found.culprits])
    _add_layers(section, sites, {}, owns, SIZE_LINE)
    section.view["map"] = {"sites": len(sites), "steps": steps, "left": 0, "sequences": len(trace.sequences)}
    section.view["map"] |= {
        "yardstick": "Every site is recomputed in float64 from its recorded input.",
        "limits": (ROW_LINE, ROW_LINE),
    }


def _not_audited(trace: Trace, path: str | None, recorded: bool) -> str:
    if not recorded:
        return "The trace holds no layers; record it with --level all to have them audited."
    if path is None:
        return f"The trace {sentence(no_checkpoint(trace))}."
    return "No site of this trace can be audited against the checkpoint."


def _last_logits(sequence: Sequence, texts: TokenTexts) -> list[Json]:
    if not sequence.step_count:
        return []
    table = logit_table((sequence,), 0, texts)
    return [] if table is None else [table | {"why": "the first one"}]


# -------------------------------------------------------------------- both


def _fill(
    section: Section,
    sites: list[str],
    sides: list[tuple[Trace, Sequence]],
    errors: Mapping[str, SiteErrors],
    owns: Mapping[str, OwnErrors],
    alignment: Alignment | None,
    limits: tuple[float, float],
    steps: int,
) -> None:
    """The sites' facts and the tables of their errors."""
    section.sites = [site_facts(site, sides, errors.get(site), owns.get(site), alignment) for site in sites]
    if errors:
        section.maps.append(ErrorTable(OVER_YARDSTICK, limits, _table(sites, errors, steps)))
    if owns:
        section.maps.append(ErrorTable(OVER_BOUND, (ROW_LINE, ROW_LINE), _table(sites, owns, steps)))


def _table(
    sites: list[str], found: Mapping[str, SiteErrors] | Mapping[str, OwnErrors], steps: int
) -> NDArray[np.float32]:
    missing = np.full(steps, np.nan)
    rows = [found[site].ratio if site in found else missing for site in sites]
    with np.errstate(over="ignore"):
        return np.array(rows, dtype=np.float32).reshape(len(sites), steps)


def _accuse(section: Section, culprits: Iterable[CulpritRecord]) -> None:
    """Mark the culprits among the sites, and say what the mistake of each is; of a site that has two, the first."""
    first: dict[str, CulpritRecord] = {}
    for culprit in culprits:
        first.setdefault(culprit.site, culprit)
    for site in section.sites:
        if site["name"] in first:
            label, text = _mistake(first[site["name"]])
            site["rows"].insert(0, [label, without_controls(text)])
            section.culprits.append(site["name"])


def _mistake(culprit: CulpritRecord) -> tuple[str, str]:
    """Label and text. A site that was not audited is the first that is off; whose fault that is, nobody knows."""
    if culprit.explanation is not None:
        return "at fault", culprit.explanation.text
    return ("first off", "by more than rounding") if culprit.own is None else ("at fault", "an error of its own")


def _add_layers(
    section: Section,
    sites: list[str],
    errors: Mapping[str, SiteErrors],
    owns: Mapping[str, OwnErrors],
    limit: float,
) -> None:
    """Own error by layer; without an audit, the error against the reference."""
    values = {site: own.size for site, own in owns.items()}
    if not owns:
        values = {site: float(np.nanmax(found.ratio)) for site, found in errors.items()}
    values = {site: value for site, value in values.items() if math.isfinite(value)}
    label, line = (OVER_BOUND, SIZE_LINE) if owns else (OVER_YARDSTICK, limit)
    section.layers = charts.layers_figure(sites, values, section.culprits, line, label)
    section.view["layers"] = {"own": bool(owns), "limit": line}
    section.view["no_map"] = None


def _heads(traces: list[tuple[str, Trace]]) -> list[Json]:
    """A row a trace: role and what it is."""
    rows = []
    for role, trace in traces:
        found = header(trace)
        versions = found["versions"]
        engine = next((f"{name} {versions[name]}" for name in ("torch", "candle") if name in versions), "")
        steps = sum(sequence.step_count for sequence in trace.sequences)
        ends = [sequence_row(sequence)["end"] or "cut off" for sequence in trace.sequences]
        about = {"engine": engine, "steps": steps, "ends": ", ".join(dict.fromkeys(ends))}
        rows.append({"role": role, **found, **about, "path": without_controls(found["path"])})
    return rows


def _named(rows: list[Json], names: tuple[str, str] | None) -> list[Json]:
    """The rows with the names that the traces are to have, in place of their paths."""
    return rows if names is None else [row | {"path": name} for row, name in zip(rows, names, strict=False)] + rows[2:]


def _oracle(trace: Trace | None) -> list[tuple[str, Trace]]:
    return [] if trace is None else [("Oracle", trace)]


def _prompts(*sequences: Sequence) -> list[str]:
    """The prompt, once where all sides have the same."""
    texts = [sequence_row(sequence)["prompt"] or "" for sequence in sequences]
    return [lines_without_controls(text[:LONGEST_PROMPT]) for text in dict.fromkeys(texts)]
