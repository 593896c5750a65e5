"""A bisection as a person reads it."""

from __future__ import annotations

from tracekit.bisect.search import Bisected, BisectStep, Judgement
from tracekit.report.json import verdict_json
from tracekit.report.text import headline
from tracekit.report.words import sentence
from tracekit.trace import Json

FORMAT = 1
JUDGEMENTS = {
    Judgement.GOOD: "good",
    Judgement.BAD: "bad",
    Judgement.NEAR_TIE: "skipped, near-tie",
    Judgement.WITHHELD: "skipped, withheld",
    Judgement.NO_BUILD: "skipped, does not build",
    Judgement.NO_RUN: "skipped, does not run",
}


def step_text(step: BisectStep) -> str:
    """A build and what it is, in a line."""
    told = step.why or ("" if step.verdict is None or step.judgement is Judgement.GOOD else headline(step.verdict))
    return f"{JUDGEMENTS[step.judgement]}: {step.build}" + (f" ({told})" if told else "")


def bisect_text(found: Bisected) -> str:
    """The first bad build, with its divergence; or the builds that are left."""
    step = found.first_bad
    if step is None:
        lines = [f"CANNOT TELL  which of {len(found.between)} builds is the first bad one"]
        lines += [f"  {build}" for build in found.between]
        skipped = sum(each.build in found.between and each.index != found.bad for each in found.steps)
        return "\n".join([*lines, f"  {skipped} of them were skipped, {len(found.steps)} builds were tried"])
    lines = [f"FIRST BAD BUILD  {step.build}", f"  the build before it is good: {found.builds[found.good]}"]
    if step.verdict is not None:
        lines.append(f"  {headline(step.verdict)}")
        lines += [f"    {sentence(each)}" for each in step.verdict.evidence]
    if found.several:
        lines.append("  the bad build departs elsewhere: more was changed after this build")
    return "\n".join([*lines, f"  {len(found.steps)} of {len(found.builds) - 1} builds were tried"])


def bisect_json(found: Bisected) -> Json:
    """The whole bisection, ready for `json.dumps`."""
    return {
        "format": FORMAT,
        "builds": list(found.builds),
        "first_bad": None if found.first_bad is None else found.first_bad.build,
        "between": list(found.between),
        "several": found.several,
        "steps": [
            {
                "build": step.build,
                "judgement": step.judgement.value,
                "why": step.why,
                "verdict": None if step.verdict is None else verdict_json(step.verdict),
            }
            for step in found.steps
        ],
    }
