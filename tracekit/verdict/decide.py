"""The verdict: which step, which site, which draw, and why.

`reach` takes what the search found and names its cause. The audit, explanations and counterfactuals have their
places here (`culprits`, `explanation`, `margins`).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tracekit.align.renamed import in_one_language, recorded_as
from tracekit.align.rotary_order import in_one_order, in_order_of
from tracekit.align.sites import check_yardstick
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.compare.counted import counted_differences, is_counted
from tracekit.compare.search import ROWS, Finding, Search, Stage, search
from tracekit.compare.settings import (
    FILTER_SETTINGS,
    REPETITION_SETTINGS,
    STOP_SETTINGS,
    config_differences,
    weight_differences,
)
from tracekit.compare.yardstick import Noise, Oracle, Uncalibrated, Yardstick, used_calibration
from tracekit.extra.cosyvoice3.speech import SPEECH, TOKENS_A_SECOND
from tracekit.formats.name_map import NameMap, gguf_names
from tracekit.inspection.following import shortfalls, unrecorded_choices
from tracekit.inspection.non_finite import first_non_finite
from tracekit.inspection.sanity import capture_problems
from tracekit.inspection.settings import Difference
from tracekit.mistakes.culprits import ExplainedCulprit
from tracekit.mistakes.explanation import Explained, Explanation
from tracekit.mistakes.sites import gates, mask, norms, residuals, rotary, scores
from tracekit.report.words import sentence
from tracekit.report.words.culprits import culprit_json
from tracekit.report.words.explanations import explanation_json
from tracekit.trace import Json, Trace, resolve
from tracekit.verdict.attribution import Examination, checkpoint_of, examine, settle
from tracekit.verdict.counterfactual import (
    AS_STATED,
    Ruling,
    rule_draw,
    rule_filter,
    rule_stop,
    rule_token,
    run_margins,
)
from tracekit.verdict.coverage import Coverage, Share, compared_coverage
from tracekit.verdict.unexercised import unexercised

FORMAT = 1
MANY = 8
"""Entries of a setting that are shown one by one."""
EXPLAINED_BY = {
    "model.rope_theta": (rotary.THETA.id,),
    "model.rope_scaling": (rotary.SCALING_LEFT_OUT.id, rotary.DIVIDED.id, rotary.THETA.id),
    "model.rms_norm_eps": (norms.EPS.id,),
    "model.hidden_act": (gates.ACTIVATION.id,),
    "model.num_key_value_heads": (scores.HEAD_MAP.id,),
    "model.sliding_window": (mask.WINDOW.id, mask.WINDOW_IGNORED.id),
    **dict.fromkeys(FILTER_SETTINGS, (AS_STATED,)),
    **dict.fromkeys(("eos_token_id", "model.eos_token_id"), ("stop list",)),
    **dict.fromkeys(("max_new_tokens", "min_new_tokens", "max_length", "min_length"), ("length",)),
}
"""Settings, and the mistakes that they are the cause of."""


@dataclass(frozen=True)
class Verdict:
    """The answer of a diff. `to_json` has the stable keys."""

    verdict: str  # parity | divergence | withheld
    cause: str | None
    sequence: int | None
    step: int | None
    position: int | None
    site: str | None
    evidence: tuple[str, ...]
    explanation: Json | None
    culprits: tuple[Json, ...]
    token: Json | None
    margins: Json
    compared: Json
    unexercised: tuple[str, ...]
    unmatched: Json
    calibration: str
    differences: tuple[Difference, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())
    audit: Json | None = None
    drift: Json | None = None  # how the logits' error changes over the steps
    uncalibrated: tuple[str, ...] = field(
        default=()
    )  # sites that differ and that the oracle or the noise does not hold
    coverage: Coverage | None = None

    @property
    def exit_code(self) -> int:
        """As diff(1): 0 parity, 1 divergence, 2 trouble."""
        return {"parity": 0, "divergence": 1}.get(self.verdict, 2)

    def to_json(self) -> Json:
        """The whole verdict, ready for `json.dumps`."""
        return {
            "format": FORMAT,
            "verdict": self.verdict,
            "cause": self.cause,
            "sequence": self.sequence,
            "step": self.step,
            "position": self.position,
            "site": self.site,
            "evidence": list(self.evidence),
            "explanation": self.explanation,
            "culprits": list(self.culprits),
            "token": self.token,
            "margins": self.margins,
            "compared": self.compared,
            "coverage": None if self.coverage is None else self.coverage.to_json(),
            "unexercised": list(self.unexercised),
            "unmatched": self.unmatched,
            "calibration": self.calibration,
            "differences": [vars(difference) for difference in self.differences],
            "notes": list(self.notes),
            "audit": self.audit,
            "drift": self.drift,
            "uncalibrated": list(self.uncalibrated),
        }


@np.errstate(all="ignore")
def diff(
    reference: Trace,
    candidate: Trace,
    oracle: Trace | None = None,
    noise: list[Trace] | None = None,
    *,
    weights: str | None = None,
    audited: bool = True,
    names: NameMap | None = None,
) -> Verdict:
    """Compare a candidate with a reference. `oracle`: the reference in higher precision, forced onto its tokens;
    `noise`: more references under harmless variation; `weights`: the checkpoint, if it is not where the traces say;
    `audited=False` leaves the audit out; `names`: what one side calls otherwise than the other. Raises TraceError where
    the traces cannot be compared.
    """
    reference, candidate = in_common_names(reference, candidate, names, weights)
    yardstick = yardstick_of(reference, oracle, noise or [])
    problems = [problem for trace in (reference, candidate) for problem in capture_problems(trace)]
    if is_counted(reference) or is_counted(candidate):
        problems += counted_differences(reference, candidate)
    if problems:
        return _withheld(problems, yardstick.calibration)
    reference, candidate, known = in_one_order(reference, candidate)
    found = search(reference, candidate, yardstick)
    examination, note = None, None
    if audited and _differs(found):
        checkpoint, note = checkpoint_of(reference, candidate, weights)
        if checkpoint is not None:
            reference, candidate, more = _in_order_of(checkpoint, reference, candidate)
            known += more
            examination = examine(reference, candidate, checkpoint, found)
            if examination.harmless:
                found = search(reference, candidate, yardstick, examination.harmless.keys())
                known += examination.harmless.values()
    calibration, uncalibrated = used_calibration(yardstick)
    verdict = reach(reference, candidate, found, calibration, examination)
    said = known + ([] if note is None else [note])
    if uncalibrated:
        others = f" and {len(uncalibrated) - 1} more" if len(uncalibrated) > 1 else ""
        said.append(f"{uncalibrated[0]}{others}: not in the {yardstick.calibration} trace, judged without calibration")
    verdict = replace(verdict, notes=(*verdict.notes, *said), uncalibrated=uncalibrated)
    return _without_choices(verdict, candidate)


def _in_order_of(checkpoint: Checkpoint, reference: Trace, candidate: Trace) -> tuple[Trace, Trace, list[str]]:
    """Both sides in the order of the checkpoint's rows, where they were not compared with each other's."""
    first, ours = in_order_of(checkpoint, reference)
    second, theirs = in_order_of(checkpoint, candidate, reference)
    return first, second, ours + theirs


def _without_choices(verdict: Verdict, candidate: Trace) -> Verdict:
    """No parity where nobody knows what the candidate would have chosen: its tokens are the reference's own."""
    unknown = unrecorded_choices(candidate) if verdict.verdict == "parity" else []
    if not unknown:
        return verdict
    mend = "record it without --follow, or let it record the own choice of each step as an event `forced`"
    evidence = (*unknown, f"every other value that was compared is equal within rounding; {mend}")
    return replace(verdict, verdict="withheld", cause="capture", evidence=evidence)


def in_common_names(
    reference: Trace, candidate: Trace, names: NameMap | None, weights: str | None = None
) -> tuple[Trace, Trace]:
    """Two traces as a map of names says they are called; as they are without one. Raises TraceError."""
    names = names or gguf_names(reference, candidate)
    if names is None:
        return reference, candidate
    checkpoint, _ = checkpoint_of(reference, candidate, weights)
    return in_one_language((reference, candidate), names, checkpoint)


def yardstick_of(reference: Trace, oracle: Trace | None, noise: Seq[Trace]) -> Yardstick:
    """The best there is. Raises TraceError where it measures another run."""
    for trace, mend in (
        *((trace, f"record it with --follow {reference.path}") for trace in noise),
        *([(oracle, f"make it with `tracekit oracle {reference.path}`")] if oracle else []),
    ):
        check_yardstick(reference, trace, mend)
    return Oracle(oracle) if oracle else Noise(list(noise)) if noise else Uncalibrated()


def _withheld(problems: list[str], calibration: str) -> Verdict:
    """No verdict: the traces cannot be trusted."""
    return Verdict(
        verdict="withheld",
        cause="capture",
        sequence=None,
        step=None,
        position=None,
        site=None,
        evidence=tuple(problems),
        explanation=None,
        culprits=(),
        token=None,
        margins={},
        compared={},
        unexercised=(),
        unmatched={"reference": [], "candidate": [], "sequences": []},
        calibration=calibration,
    )


def _differs(found: Search) -> bool:
    """Whether any compared value did: of two equal runs neither is wrong by the other."""
    return bool(found.findings) or found.worst[1] is not None


def reach(
    reference: Trace, candidate: Trace, found: Search, calibration: str, examination: Examination | None = None
) -> Verdict:
    """Name the cause of what the search found and the audit made of it."""
    rounding: list[str] = []
    if examination is not None:
        found.findings, rounding = settle(found, examination, reference, candidate)
    differences = config_differences(reference, candidate)
    weights = weight_differences(reference, candidate)
    ruling = _rule(reference, candidate, found, differences, weights)
    finding = ruling.finding if ruling else None
    if ruling and finding and examination is not None:
        ruling.evidence.extend(_not_covered(finding, examination))
    unmatched = {
        "reference": list(found.alignment.unmatched_reference),
        "candidate": list(found.alignment.unmatched_candidate),
        "sequences": found.left_sequences,
    }
    coverage = compared_coverage(reference, candidate, found, _audited_share(examination))
    withheld = ruling is None and bool(coverage.lost)
    agreed = _parity_evidence(found)
    if withheld:
        agreed = [*coverage.lost, f"what there is agrees: {agreed[0]}"]
    notes = _notes(reference, candidate, found, ruling.cause if ruling else None, coverage.lost)
    return Verdict(
        verdict="divergence" if ruling else "withheld" if withheld else "parity",
        cause=ruling.cause if ruling else "capture" if withheld else None,
        sequence=finding.sequence if finding else None,
        step=finding.step if finding else None,
        position=finding.position if finding else None,
        site=finding.site if finding else None,
        evidence=tuple(ruling.evidence if ruling else agreed),
        explanation=ruling.explanation if ruling else None,
        culprits=_culprits(finding, examination),
        token=_token_json(found.token),
        margins=run_margins(reference, candidate) | (ruling.margins if ruling else {}),
        compared=found.compared,
        unexercised=tuple(unexercised(reference, candidate)),
        unmatched=unmatched,
        calibration=calibration,
        differences=tuple(differences),
        notes=tuple([*notes, *([] if withheld else coverage.lost), *rounding]),
        audit=_audit_json(examination),
        drift=found.drift,
        coverage=coverage,
    )


def _audited_share(examination: Examination | None) -> Share | None:
    if examination is None:
        return None
    sites = examination.clean | {culprit.site for culprit in examination.culprits} | set(examination.shared)
    return Share(len(sites), len(sites | examination.unknown.keys()))


def _culprits(finding: Finding | None, examination: Examination | None) -> tuple[Json, ...]:
    """All culprits, not only the first; without an audit, the site that the search found."""
    if examination is not None and (examination.culprits or examination.reference_culprits):
        rows = [culprit_json(culprit) for culprit in examination.culprits]
        return (*rows, *(culprit_json(culprit, "reference") for culprit in examination.reference_culprits))
    if finding is None or finding.stage not in (Stage.SITE, Stage.LOGITS):
        return ()
    return ({"site": finding.site, "step": finding.step, "position": finding.position},)


def _audit_json(examination: Examination | None) -> Json | None:
    if examination is None:
        return None
    return {
        "checkpoint": examination.checkpoint.path,
        "sites": len(examination.clean) + len(examination.culprits),
        "values": examination.values,
        "not_audited": dict(examination.unknown),
        "recipe_not_followed": list(examination.shared),
    }


def _parity_evidence(found: Search) -> list[str]:
    ratio, site = found.worst
    if not found.compared["values"] and "logits" not in found.ratios:
        return ["tokens alone were compared: no layer and no logits are recorded on both sides"]
    return [f"largest error {ratio:.1f}x its yardstick, at {site}"] if site else ["every compared value is equal"]


def _token_json(finding: Finding | None) -> Json | None:
    return None if finding is None else {"step": finding.step, **finding.facts}


def _silence_said(reference: Trace, candidate: Trace) -> list[str]:
    """Where a program's filter of silence makes sounds of another length than the tokens say."""
    out = []
    for one, other in zip(reference.sequences, candidate.sequences, strict=False):
        counts = SPEECH.dropped(one), SPEECH.dropped(other)
        for trace, sequence, count, others in (
            (reference, one, counts[0], counts[1]),
            (candidate, other, counts[1], counts[0]),
        ):
            if count and count != others:
                elsewhere = "the other side drops none" if not others else f"the other side drops {others}"
                out.append(
                    f"{trace.path}: sequence {sequence.index}: llm_job drops {count} silent tokens, those after the "
                    f"fifth in a row; {elsewhere}: {abs(count - (others or 0)) / TOKENS_A_SECOND:.2f} s of sound"
                )
    return out


def _notes(reference: Trace, candidate: Trace, found: Search, cause: str | None, lost: Seq[str]) -> list[str]:
    said = [f"{trace.path}: {trace.status_detail}" for trace in (reference, candidate) if trace.status_detail]
    notes = [note for note in said if note not in lost]
    notes += [line for trace in (reference, candidate) for line in shortfalls(trace)]
    notes += _silence_said(reference, candidate)
    notes += _not_finite(reference, candidate)
    if cause not in (None, "near-tie"):
        return notes  # the logits differ by more than rounding: what they move over a cut says nothing
    notes += [
        f"sequence {sequence}, step {step}: rounding moved a token across a cut of the filter"
        for sequence, step in found.ties[:3]
    ]
    return notes


def _not_finite(reference: Trace, candidate: Trace) -> list[str]:
    """NaN and infinities of either side; the same on both are compared as equal, which proves nothing."""
    found = [(trace, first) for trace in (reference, candidate) if (first := first_non_finite(trace)) is not None]
    said = [f"{trace.path}: {first.text()}" for trace, first in found]
    if len(found) == 2 and found[0][1].site == found[1][1].site and found[0][1].position == found[1][1].position:
        said.append("both sides are not finite from the same place on: equal there says that they fail alike")
    return said


def _rule(
    reference: Trace, candidate: Trace, found: Search, differences: list[Difference], weights: list[str]
) -> Ruling | None:
    first = found.first
    if weights and (first is None or first.stage is not Stage.INPUT):
        more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
        return Ruling("weights", [f"parameter {weights[0]}{more}: other bytes than the reference holds"], first)
    if first is None:
        return None
    rulers: dict[Stage, Callable[[Trace, Trace, Search, Finding], Ruling]] = {
        Stage.INPUT: _rule_input,
        Stage.SITE: _rule_layer,
        Stage.LOGITS: _rule_layer,
        Stage.SURVIVORS: rule_filter,
        Stage.DRAW: rule_draw,
        Stage.TOKEN: rule_token,
        Stage.STOP: rule_stop,
    }
    ruling = rulers[first.stage](reference, candidate, found, first)
    return _blame_config(ruling, first, differences)


def _blame_config(ruling: Ruling, first: Finding, differences: list[Difference]) -> Ruling:
    """A stated difference that acts where the divergence begins is its cause."""
    acts: dict[Stage, Callable[[str], bool]] = {
        Stage.SITE: lambda name: name.startswith("model.") and not name.endswith("eos_token_id"),
        Stage.LOGITS: lambda name: name.startswith("model.") and not name.endswith("eos_token_id"),
        Stage.SURVIVORS: lambda name: name in FILTER_SETTINGS,
        Stage.DRAW: lambda name: _acts_on_draws(name, first),
        Stage.TOKEN: lambda name: name in ("do_sample", "dtype", *REPETITION_SETTINGS),
        Stage.STOP: lambda name: name in STOP_SETTINGS or name == "model.eos_token_id",
    }
    rule = acts.get(first.stage)
    blamed = [difference for difference in differences if rule and rule(difference.name)]
    if ruling.explanation is not None and first.stage in (Stage.SITE, Stage.LOGITS, Stage.SURVIVORS, Stage.STOP):
        kind = str(ruling.explanation["kind"])
        blamed = [difference for difference in blamed if kind in EXPLAINED_BY.get(difference.name, ())]
    if not blamed:
        return ruling
    stated = [
        f"{item.name}: {_show(item.reference)} in the reference, {_show(item.candidate)} in the candidate"
        for item in blamed
    ]
    return replace(ruling, cause="config", evidence=stated + ruling.evidence)


def _acts_on_draws(name: str, first: Finding) -> bool:
    """Whether a setting decides what is drawn: from which seed, or, of CosyVoice's sampler, how often."""
    if first.facts.get("field") == "seed":
        return name in ("do_sample", "seed")
    return name in ("do_sample", *REPETITION_SETTINGS, "min_len", "stop_token_ids")


def _show(value: Any) -> str:
    if isinstance(value, list) and len(value) > MANY:
        return f"{value[0]} to {value[-1]} ({len(value)} of them)"
    return "not set" if value is None else str(value)


def _rule_rows(first: Finding) -> Ruling:
    """Rows were fed that no prompt entry tells of, or fewer than there are entries."""
    lengths, entries, found = first.facts["lengths"], first.facts["entries"], first.facts["unmatched"]
    evidence = [
        f"{side}: {rows} rows fed for {told} prompt entries"
        for side, rows, told in zip(("reference", "candidate"), lengths, entries, strict=True)
    ]
    if found is not None:
        side, rows = ("reference", "candidate")[found[0]], found[1]
        which = f"row {rows[0]}" if len(rows) == 1 else f"rows {', '.join(map(str, rows[:MANY]))}"
        verb = "equals" if len(rows) == 1 else "equal"
        if lengths[found[0]] > entries[found[0]]:
            evidence.append(f"{which} of the {side} {verb} no prompt entry's row on the other side: put in untold")
        else:
            evidence.append(f"{which} of the {side} {verb} no row of the other side, which left it out")
    else:
        evidence.append("which rows is not known: no site holds them on both sides")
    return Ruling("input", evidence, first)


def _rule_input(reference: Trace, candidate: Trace, found: Search, first: Finding) -> Ruling:
    if first.facts["input"] == ROWS:
        return _rule_rows(first)
    lengths, values = first.facts["lengths"], first.facts.get("values")
    evidence = [f"{first.facts['input']}: {lengths[0]} entries in the reference, {lengths[1]} in the candidate"]
    texts = first.facts.get("texts") or (None, None)
    if values:
        said = [_entry(value, text) for value, text in zip(values, texts, strict=True)]
        evidence.append(f"first difference at entry {first.position}: {said[0]} | {said[1]}")
    return Ruling("input", evidence + list(first.facts.get("more", [])), first)


def _entry(value: Any, text: str | None) -> str:
    if value is None:
        return "nothing"
    return str(value) if text is None else f'{value} "{text}"'


def _rule_layer(reference: Trace, candidate: Trace, found: Search, first: Finding) -> Ruling:
    culprit = first.facts.get("culprit")
    if isinstance(culprit, ExplainedCulprit):
        return _rule_culprit(reference, candidate, found, first, culprit)
    evidence = [f"error {first.ratio:.3g}x its yardstick (relative {first.error:.1e})"]
    if first.facts.get("passed_on"):
        evidence = [
            f"not computed in the candidate; in the reference it is {first.error:.1e} away from what is passed on"
        ]
    if "positions" in first.facts:
        evidence[0] += f", at {first.facts['wrong_positions']} of {first.facts['positions']} positions"
    evidence += _called(candidate, first) + _inputs_agree(reference, found, first)
    skipped = _passed_on(candidate, first)
    if skipped is not None:
        evidence.append(sentence(Explained(skipped)))
    return Ruling("layer", evidence, first, explanation=explanation_json(skipped))


def _passed_on(candidate: Trace, first: Finding) -> Explanation | None:
    """The candidate gave the very tensor of an earlier site where the reference computed something."""
    row = candidate.sites.get(first.site or "")
    source = first.facts.get("candidate_site")
    if row is None or row.same_as is None or source is None or source == first.site:
        return None
    return Explanation(residuals.SKIPPED, {"source": source})


def _not_covered(finding: Finding, examination: Examination) -> list[str]:
    """Why the audit has nothing to say of the very site that the comparison names."""
    sites = [str(site) for site in (finding.site, finding.facts.get("candidate_site"))]
    reason = next((examination.unknown[site] for site in sites if site in examination.unknown), None)
    return [] if reason is None else [f"the audit does not cover this site: {reason}"]


def _called(candidate: Trace, first: Finding) -> list[str]:
    """What the candidate itself calls the site, where a map of names was given."""
    said = recorded_as(candidate, first.facts.get("candidate_site", first.site or ""))
    return [] if said is None else [f"in the candidate it is {said}"]


def _rule_culprit(
    reference: Trace, candidate: Trace, found: Search, first: Finding, culprit: ExplainedCulprit
) -> Ruling:
    evidence = [culprit.evidence(), *_called(candidate, first), *_inputs_agree(reference, found, first)]
    explanation = culprit.explanation
    if explanation is not None:
        evidence.append(sentence(Explained(explanation)))
    if first.facts["side"] == "reference":
        evidence.insert(0, "it is the reference that departs from its checkpoint here, not the candidate")
    return Ruling("layer", evidence, first, explanation=explanation_json(explanation))


def _inputs_agree(reference: Trace, found: Search, first: Finding) -> list[str]:
    source = _input_of(reference, first.site or "")
    if source is None or source not in found.ratios:
        return []
    if source in found.off:
        return [f"its input {source} is off as well ({found.ratios[source]:.3g}x its yardstick)"]
    return [f"its input {source} agrees ({found.ratios[source]:.1f}x)"]


def _input_of(trace: Trace, site: str) -> str | None:
    row = trace.sites.get(site)
    return resolve(trace, row.input) if row and row.input else None
