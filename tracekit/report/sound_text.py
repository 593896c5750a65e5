"""Sounds as a table, the differences to those they are compared with beside them."""

from __future__ import annotations

from collections.abc import Iterable

from tracekit.extra.cosyvoice3.audio import COARSE, Sound, Spoken
from tracekit.extra.cosyvoice3.speech import TOKENS_A_SECOND
from tracekit.report.summary_text import aligned
from tracekit.trace import Json


def sound_notes(sounds: Iterable[Sound], spoken: Iterable[Spoken | None]) -> list[str]:
    """What to know before the numbers are compared."""
    out = [note for sound in sounds for note in _notes(sound)]
    return out + [
        f"{made.trace}: {made.dropped} of {made.tokens} tokens are silent ones after the fifth in a row, which llm_job "
        f"drops: {made.dropped / TOKENS_A_SECOND:.2f} s of sound"
        for made in spoken
        if made is not None and made.dropped
    ]


def _notes(sound: Sound) -> list[str]:
    out = []
    if sound.channels > 1:
        out.append(f"{sound.path}: {sound.channels} channels; RMS and maximum are over all of them")
    if sound.encoding in COARSE:
        out.append(f"{sound.path}: {COARSE[sound.encoding]} bits a sample; amplitudes are exact to {1 / 128:.4f} only")
    if sound.cut_short:
        out.append(f"{sound.path}: is cut short, its header promises more than these {sound.seconds:.2f} s")
    if sound.max_amplitude == 0.0:
        out.append(f"{sound.path}: is silent throughout")
    return out


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
