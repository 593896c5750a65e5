"""A check as a person reads it: a line a variation, the faults with their place and evidence."""

from __future__ import annotations

from tracekit.report.json import verdict_json
from tracekit.report.text import headline
from tracekit.report.words import sentence
from tracekit.report.words.culprits import culprit_json
from tracekit.selfcheck.variation import Checked, CheckFinding, Limit, Outcome, Variation, Way
from tracekit.trace import Json

FORMAT = 1
WAYS = {
    Way.SETTING: "{name} {value}",
    Way.CHUNKS: "prompt and generated tokens, {value} at a time",
    Way.AT_ONCE: "prompt and generated tokens in one call",
    Way.SECOND_REQUEST: "the request a second time in one process",
    Way.PREFIX_REUSED: "a second time on the first {value} positions of the cache",
    Way.IN_A_BATCH: "in a batch of {value}",
    Way.WIDER_DTYPE: "in {value}",
    Way.LONG_PROMPT: "a prompt longer than {limit}, {value}, in chunks",
    Way.CHECKPOINT: "against its checkpoint",
}
OUTCOMES = {
    Outcome.EQUAL: "equal, bit for bit",
    Outcome.WITHIN_ROUNDING: "within rounding",
    Outcome.NEAR_TIE: "near-tie",
    Outcome.FAULT: "FAULT",
    Outcome.WITHHELD: "withheld",
    Outcome.FAILED: "FAILED",
    Outcome.NOT_TRIED: "not tried",
}
LIMITS = {
    Limit.SLIDING_WINDOW: "the sliding window",
    Limit.ORIGINAL_POSITIONS: "the positions before rotary scaling",
    Limit.POSITIONS: "the positions of the configuration",
}


def variation_text(variation: Variation) -> str:
    """What was varied, in words."""
    limit = None if variation.limit is None else LIMITS[variation.limit]
    return WAYS[variation.way].format(name=variation.name, value=variation.value, limit=limit)


def finding_text(finding: CheckFinding) -> str:
    """What came of a variation, in a line; of a fault, with its place and evidence below."""
    lines = [f"{variation_text(finding.variation)}: {OUTCOMES[finding.outcome]}"]
    if finding.why is not None:
        lines[0] += f" ({sentence(finding.why)})"
    if finding.outcome in (Outcome.FAULT, Outcome.WITHHELD, Outcome.NEAR_TIE) and finding.verdict is not None:
        lines.append(f"  {headline(finding.verdict)}")
        lines += [f"    {sentence(each)}" for each in finding.verdict.evidence]
        lines += [] if finding.verdict.token is None else [f"    {sentence(finding.verdict.token)}"]
    if finding.audit is not None:
        for culprit in finding.audit.culprits[:1]:
            more = len(finding.audit.culprits) - 1
            lines.append(f"  {culprit.site} at step {culprit.step}, position {culprit.position}")
            lines.append(f"    {sentence(culprit.evidence)}")
            if culprit.explanation is not None:
                lines.append(f"    explained: {sentence(culprit.explanation)}")
            lines += [f"    and {more} more sites"] if more else []
    return "\n".join(lines)


def check_text(checked: Checked) -> str:
    """How many variations there were, and what came of them."""
    faults, ties, failed, untried = (
        len(checked.of(outcome)) for outcome in (Outcome.FAULT, Outcome.NEAR_TIE, Outcome.FAILED, Outcome.NOT_TRIED)
    )
    tried = len(checked.findings) - untried
    head = f"{faults} of {tried} variations compute something else" if faults else f"none in {tried} variations"
    rest = ((ties, "near-ties"), (failed, "failed"), (untried, "not tried"))
    notes = [f"{count} {word}" for count, word in rest if count]
    told = f" ({', '.join(notes)})" if notes else ""
    return f"{head}{told}: {checked.steps} steps, {checked.positions} positions"


def check_json(checked: Checked) -> Json:
    """The whole check, ready for `json.dumps`."""
    return {
        "format": FORMAT,
        "base": checked.base,
        "steps": checked.steps,
        "positions": checked.positions,
        "findings": [_finding_json(finding) for finding in checked.findings],
    }


def _finding_json(finding: CheckFinding) -> Json:
    variation = finding.variation
    return {
        "way": variation.way.value,
        "name": variation.name,
        "value": variation.value,
        "limit": None if variation.limit is None else variation.limit.value,
        "outcome": finding.outcome.value,
        "why": None if finding.why is None else sentence(finding.why),
        "verdict": None if finding.verdict is None else verdict_json(finding.verdict),
        "culprits": [] if finding.audit is None else [culprit_json(culprit) for culprit in finding.audit.culprits],
        "text": finding_text(finding),
    }
