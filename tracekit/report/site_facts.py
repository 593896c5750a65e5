"""Everything that a page says of one site, as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from tracekit.align.sites import Alignment
from tracekit.auditing.evidence import Statistic
from tracekit.report.error_map import OwnErrors, SiteErrors, Worst
from tracekit.report.layers import layer_of
from tracekit.report.token_text import without_controls
from tracekit.report.words.culprits import NAMES
from tracekit.report.words.numbers import times
from tracekit.trace import LOGITS, Json, Sequence, Trace


def ordered_sites(trace: Trace, errors: Mapping[str, SiteErrors], owns: Mapping[str, OwnErrors]) -> list[str]:
    """Sites with numbers in execution order, the logits last."""
    names = dict.fromkeys([*errors, *owns])
    order = {name: site.order for name, site in trace.sites.items()}
    return sorted(names, key=lambda name: (name == LOGITS, order.get(name, order.get(name.removesuffix(":in"), -1))))


def site_facts(
    site: str,
    sides: list[tuple[Trace, Sequence]],
    errors: SiteErrors | None,
    own: OwnErrors | None,
    alignment: Alignment | None,
) -> Json:
    """One site's facts: `name`, `layer`, and rows of label and text for the panel."""
    trace, _ = sides[0]
    row = trace.sites.get(site)
    partner = None
    if alignment is not None:
        partner = next((pair.candidate for pair in alignment.pairs if pair.name == site), None)
    stored = [site, partner or site]
    rows: list[tuple[str, str]] = []
    if row is not None:
        rows.append(("class", row.module_class))
        rows += [("input", row.input)] if row.input else []
        rows += [("parameters", ", ".join(row.parameters.values()))] if row.parameters else []
    rows += _stored(site, stored, sides)
    if partner not in (None, site):
        rows.append(("candidate's name", str(partner)))
    rows += _worst(errors)
    rows += (
        [] if own is None else [("local error", f"{times(own.size)} the rounding bound over all rows{_beyond(own)}")]
    )
    return {"name": site, "layer": layer_of(site), "rows": [[label, without_controls(text)] for label, text in rows]}


def _stored(site: str, stored: list[str], sides: list[tuple[Trace, Sequence]]) -> list[tuple[str, str]]:
    if site == LOGITS:
        return [("dtype", _alike(sequence.logits_dtype or "" for _, sequence in sides))]
    data = [sequence.sites.get(name) for name, (_, sequence) in zip(stored, sides, strict=False)]
    known = [one for one in data if one is not None]
    if not known:
        return []
    return [("dtype", _alike(one.dtype for one in known)), ("width", _alike(f"{one.width:,}" for one in known))]


def _alike(texts: Iterable[str]) -> str:
    """One text where both sides say the same."""
    return " | ".join(dict.fromkeys(texts))


def _worst(errors: SiteErrors | None) -> list[tuple[str, str]]:
    if errors is None:
        return []
    if errors.worst is None:
        return [("against the reference", "equal, bit for bit")]
    worst: Worst = errors.worst
    found = worst.detail
    rows = [
        ("worst at", f"step {worst.step}, position {worst.position}"),
        ("relative error", _short(found.relative)),
        ("largest error", f"{_short(found.max_abs)} at index {found.max_index:,}"),
        ("cosine", f"{found.cosine:.9g}"),
        ("norm ratio", f"{found.norm_ratio:.9g}"),
    ]
    return rows + ([("finite on one side only", f"{found.non_finite:,} elements")] if found.non_finite else [])


def _beyond(own: OwnErrors) -> str:
    if own.over <= 1.0 or own.statistic is Statistic.SIZE:
        return ""
    return f"; its {NAMES[own.statistic]} is {times(own.over)} its limit"


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "not finite"
