"""docs/museum.md: what became of each reported fault."""

from __future__ import annotations

from benchmarks.fault_bench.fault import Json
from benchmarks.fault_bench.museum import ABSENT

HEAD = """# The museum

Faults that people reported in public, each staged in one of the models here and given to `tracekit diff` with an
oracle. A row is one issue thread. `make museum` runs them again and writes this page.

A row is right when cause, site and step are those of what was planted; where the fault begins at one position, that
too. What was planted is checked apart from tracekit: the faulty run and a healthy one of the same program are compared
bit by bit, and must diverge at that place first.

"""


def page(faults: list[Json], controls: list[Json]) -> str:
    """The page of a run."""
    named = sum(row["ok"] for row in faults)
    text = (
        HEAD
        + f"**{named} of {len(faults)}** are named; {len(ABSENT)} more threads are listed with why they are not.\n\n"
    )
    text += _table(
        ["thread", "what was wrong", "run", "verdict", "explanation, margin", ""],
        [
            [row["thread"], row["name"], _where(row), row["found"], _why(row), "right" if row["ok"] else "**missed**"]
            for row in faults
        ],
    )
    missed = [row for row in faults if not row["ok"]]
    if missed:
        text += "\n## Missed\n\n"
        text += "".join(f"- {row['thread']}: due {row.get('expected') or 'nothing'}; {row['said']}\n" for row in missed)
    text += "\n## False alarms\n\nReported as faults, and none: a verdict must not name them.\n\n"
    text += _table(
        ["thread", "staged as", "run", "verdict", "margin", ""],
        [
            [
                row["thread"],
                row["name"],
                row["setup"],
                row["found"],
                row["margin"],
                "right" if row["ok"] else "**missed**",
            ]
            for row in controls
        ],
    )
    text += "\n## Not staged\n\n"
    return text + _table(["thread", "why not"], [[thread, why] for thread, why in ABSENT.items()])


def _where(row: Json) -> str:
    return f"{row['setup']}, {'Rust' if row['side'] == 'native' else 'PyTorch'}"


def _why(row: Json) -> str:
    return "; ".join(part for part in (row.get("explanation"), row.get("margin")) if part)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)
