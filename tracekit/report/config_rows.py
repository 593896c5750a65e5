"""What both sides state of themselves, side by side."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

from tracekit.report.token_text import without_controls
from tracekit.trace import Json, Trace

LONGEST = 200
"""Characters of a value that are shown."""
RUN = ("implementation", "dtype", "device", "seed", "checkpoint")
PARTS = ("run", "sampling", "model", "versions", "recorder", "command")


def config_rows(traces: list[Trace], acting: Collection[str] = ()) -> list[Json]:
    """Parts with a row a setting: name, a value a trace, `mark`.

    `mark` is `acts` for a setting that means another thing on each side (`acting` has those, by the names that a
    verdict gives them), `differs` for one that is only written differently, `one side` for one that a side does not
    state.
    """
    tables = [dict(_settings(trace)) for trace in traces]
    parts: dict[str, list[Json]] = {}
    for part, name in sorted({key for table in tables for key in table}, key=_order(tables)):
        values = [table.get((part, name)) for table in tables]
        row = {"name": name, "values": values, "mark": _mark(part, name, values, acting)}
        parts.setdefault(part, []).append(row)
    return [{"part": part, "rows": rows} for part, rows in parts.items()]


def _order(tables: list[dict[tuple[str, str], str]]) -> Any:
    """By part, and within it as the traces state them."""
    seen = {key: rank for rank, key in enumerate(dict.fromkeys(key for table in tables for key in table))}
    return lambda key: (PARTS.index(key[0]), seen[key])


def _settings(trace: Trace) -> Iterator[tuple[tuple[str, str], str]]:
    """Everything that a trace states, flat."""
    first = trace.sequences[0] if trace.sequences else None
    seed = None if first is None else first.seed
    run = {**trace.config, "implementation": trace.implementation, "seed": seed}
    sampling = (first.sampling if first is not None else None) or trace.config.get("sampling")
    said: Json = {**trace.config, "run": {name: run.get(name) for name in RUN}, "sampling": sampling}
    for part in PARTS:
        rows = said.get(part)
        for name, value in rows.items() if isinstance(rows, dict) else ():
            if value is not None or part != "run":
                yield (part, str(name)), _text(name, value)


def _text(name: str, value: Any) -> str:
    if name == "argv" and isinstance(value, list):
        text = " ".join(str(word) for word in value)
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    plain = without_controls(text)
    return plain if len(plain) <= LONGEST else plain[: LONGEST - 1] + "…"


def _mark(part: str, name: str, values: list[str | None], acting: Collection[str]) -> str:
    if len(values) < 2:
        return ""
    if name in acting or f"{part}.{name}" in acting:
        return "acts"
    if None in values:
        return "one side"
    return "" if values[0] == values[1] else "differs"
