"""Sounds as a table, the differences to those they are compared with beside them."""

from __future__ import annotations

from tracekit.report.summary_text import aligned
from tracekit.trace import Json


def sound_text(rows: list[Json], notes: list[str]) -> str:
    """The rows of `tracekit.extra.cosyvoice3.audio.sound_row`; amplitudes are fractions of full scale."""
    heads = ["file", "seconds", "rate", "channels", "RMS", "maximum"]
    compared = len(rows) > 1
    several = len({row["compared_with"] for row in rows if row["compared_with"]}) > 1
    heads += ["compared with"] if several else []
    heads += ["longer by", "louder by", "largest difference"] if compared else []
    spoken = rows[0]["tokens"] is not None
    heads += ["trace", "tokens", "at 25 a second"] if spoken else []
    with_whom = [[row["compared_with"] or ""] if several else [] for row in rows]
    cells = [
        _measured(row) + with_whom[index] + (_apart(row) if compared else []) + (_spoken(row) if spoken else [])
        for index, row in enumerate(rows)
    ]
    return "\n".join([aligned(cells, heads), *(f"note: {note}" for note in notes)])


def _measured(row: Json) -> list[str]:
    numbers = [str(row["sample_rate"]), str(row["channels"]), f"{row['rms']:.6f}", f"{row['max_amplitude']:.6f}"]
    return [row["file"], f"{row['seconds']:.2f}", *numbers]


def _apart(row: Json) -> list[str]:
    apart = row["difference"]
    if apart is None:
        return ["", "", ""]
    loud, largest = apart["rms_db"], apart["max_difference"]
    return [
        f"{round(apart['seconds'], 2) + 0.0:+.2f} s",
        "not comparable" if loud is None else f"{round(loud, 2) + 0.0:+.2f} dB",
        "not comparable" if largest is None else f"{largest:.6f}",
    ]


def _spoken(row: Json) -> list[str]:
    return [row["trace"], str(row["tokens"]), f"{row['token_seconds']:.2f} s"]
