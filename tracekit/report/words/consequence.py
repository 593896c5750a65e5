"""What culprits do to the logits, and the tokens once they are mended."""

from __future__ import annotations

from collections.abc import Sequence

from tracekit.auditing.consequence import Consequence, Consequences, Repaired, StepTokens, TokensBy
from tracekit.report.words import fields_of, sentence, words
from tracekit.report.words.numbers import number, percent
from tracekit.trace import LOGITS, Json

LEAST_GAP = 0.01
"""Share of the error from which it is said that the shares do not add up."""


def where(found: Consequences) -> str:
    """What the shares are of."""
    return "the logits' error" if found.at == LOGITS else f"the error at {found.at}"


def share_text(one: Consequence, found: Consequences) -> str:
    """A group's share in words: `98 % of the logits' error`."""
    if one.share <= -LEAST_GAP:
        return f"cancels {percent(-one.share)} of {where(found)}"
    return f"{percent(one.share)} of {where(found)}"


@words(Consequences)
def _consequences(found: Consequences) -> str:
    at = "the logits" if found.at == LOGITS else f"logits are not recorded; {found.at}, the last site,"
    verb = "are" if found.at == LOGITS else "is"
    said = f"{at} {verb} off by {number(found.error, 2)} (relative)"
    said += f"; {percent(found.others.share)} of it is rounding at sites within their bounds"
    if abs(found.gap) >= LEAST_GAP:
        said += f"; the shares add up to {percent(1.0 - found.gap)}: errors interact"
    return said


@words(Repaired)
def _repaired(found: Repaired) -> str:
    which = "token" if found.by is TokensBy.SAMPLER else "largest logit"
    if found.before == found.after == found.steps:
        return f"no {which} differs from the reference's because of it, at {found.steps} steps"
    left = found.steps - found.after
    rest = f"; rounding alone decides the other{'s' if left > 1 else ''}" if left else ""
    return (
        f"mended: with the right values at the culprits, {found.after} of {found.steps} steps give the reference's "
        f"{which}, as recorded {found.before}; each step follows the candidate's own tokens{rest}"
    )


def consequence_lines(found: Consequences | None) -> list[str]:
    """How far the logits are off, and the tokens once all culprits are mended."""
    if found is None:
        return []
    if found.repaired is None:
        return [sentence(found)]
    return [sentence(found), sentence(found.repaired), *(f"  {line}" for line in _token_lines(found.repaired))]


def _token_lines(found: Repaired) -> list[str]:
    """The tokens of the shown steps; nothing where the candidate's are the reference's."""
    return [] if found.before == found.steps else token_columns(found.shown)


def token_columns(shown: Sequence[StepTokens]) -> list[str]:
    """Tokens of steps, a line a run, in columns."""
    rows = [["step", *(str(each.step) for each in shown)]]
    for name in ("reference", "mended", "candidate"):
        rows.append([name, *(str(getattr(each, name)) for each in shown)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(wide) for cell, wide in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def consequences_json(found: Consequences | None) -> Json | None:
    """`at`, `error`; `groups` and `others`: `sites`, `share`, `alone`; `gap`; `repaired`; `text`."""
    if found is None:
        return None
    out = fields_of(found)
    del out["type"]
    groups = [{name: one[name] for name in ("sites", "share", "alone")} for one in (*out["groups"], out["others"])]
    repaired = None
    if found.repaired is not None:
        tokens = [
            {name: getattr(each, name) for name in StepTokens.__dataclass_fields__} for each in found.repaired.shown
        ]
        repaired = fields_of(found.repaired) | {"shown": tokens, "text": sentence(found.repaired)}
        del repaired["type"]
    return out | {
        "groups": groups[:-1],
        "others": {"share": groups[-1]["share"], "alone": groups[-1]["alone"]},
        "gap": found.gap,
        "repaired": repaired,
        "text": sentence(found),
    }
