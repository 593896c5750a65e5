"""A program's own text log as a trace: the counts that it printed, and token ids where it printed those.

Two programs are known. Python's prints `LLM generated N speech tokens`; the native one prints
`LLM: stop token reached at step N (token id T)` and `Generated N speech tokens: [the first 20]`. Lines of token ids are
a list in brackets after the words `speech tokens` or `token ids`; one that is shorter than its count is the first of
what was generated. Prompt and text lengths are a number after the words that name them; `Prompt token length` and
`aligned_token_len` are said once for all segments, `Segment I token length` once a segment, before it or all at first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tracekit.extra.cosyvoice3.speech import PROMPT_SPEECH, STOPPED
from tracekit.formats.log import LogWriter
from tracekit.generations import COUNTS
from tracekit.trace import Json, TraceError

LINE_LIMIT = 1 << 20
"""Characters of a line that are looked at; a list of token ids of a minute's speech takes 9000."""
DIGITS = r"(\d{1,9})"
PYTHON = re.compile(rf"LLM generated {DIGITS} speech tokens?\b")
NATIVE = re.compile(rf"(?<!LLM )\bGenerated {DIGITS} speech tokens?\b")
STOP = re.compile(rf"LLM: stop token reached at step {DIGITS}\b(?: \(token id {DIGITS}\))?")
FORCED = re.compile(rf"Skipping LLM generation, using {DIGITS} forced tokens?\b")
SEGMENT = re.compile(rf"\bsegment {DIGITS} token[ _]len(?:gth)?\s*[:=]\s*{DIGITS}\b", re.I)
GENERATED = re.compile(rf"\bGen token {DIGITS}: {DIGITS}\b")
FOR_ALL = {
    "prompt_text_tokens": re.compile(rf"\bprompt[ _]token[ _]len(?:gth)?\s*[:=]\s*{DIGITS}\b", re.I),
    "prompt_speech_tokens": re.compile(rf"\baligned_token_len={DIGITS}\b"),
}
"""What a log says once for all segments that follow -> the line."""
SHAPE = re.compile(r"\bshape\b|\] ?-> ?\[")
"""A list in such a line is a tensor's shape."""
IDS = re.compile(
    r"(?P<prompt>prompt[ _])?(?:speech[ _]tokens?|token[ _]ids?)\b[^\[\]\d]{0,40}\[(?P<ids>[\d,\s]*)\]", re.I
)
LENGTHS = {
    "prompt_speech_tokens": re.compile(
        rf"prompt[ _]speech(?:[ _]tokens?)?(?:[ _]len(?:gth)?)?\s*[:=]?\s*{DIGITS}\b", re.I
    ),
    "prompt_text_tokens": re.compile(rf"prompt[ _]text(?:[ _]tokens?)?(?:[ _]len(?:gth)?)?\s*[:=]?\s*{DIGITS}\b", re.I),
    "tts_text_tokens": re.compile(
        rf"(?:tts[ _]text|(?<!prompt )(?<!prompt_)\btext)(?:[ _]tokens?)?(?:[ _]len(?:gth)?)?\s*[:=]?\s*{DIGITS}\b",
        re.I,
    ),
}
"""What a log may say of a segment's input -> the line."""


@dataclass
class Segment:
    """What a log says of one segment."""

    counts: Json = field(default_factory=dict)
    tokens: list[int] | None = None
    prompt_speech: list[int] | None = None


@dataclass(frozen=True)
class TextLog:
    """A log as it was read: which program wrote it, and its segments in order."""

    path: Path
    implementation: str
    segments: list[Segment]


def read_text_log(path: Path) -> TextLog:
    """Read a log line by line. Raises TraceError where it cannot be read, or holds what no one run says."""
    segments: list[Segment] = []
    open_segment = Segment()
    seen: set[str] = set()
    for_all: Json = {}
    texts: list[int] = []
    for line in _lines(path):
        _take_input(line, open_segment)
        for_all |= {name: int(said[1]) for name, pattern in FOR_ALL.items() if (said := pattern.search(line))}
        texts += [int(said[2]) for said in [SEGMENT.search(line)] if said]
        stop = STOP.search(line)
        if stop:
            seen.add("native")
            open_segment.counts["stop_step"] = int(stop[1])
            if stop[2]:
                open_segment.counts["stop_token"] = int(stop[2])
        forced = FORCED.search(line)
        if forced:
            seen.add("native")
            open_segment.counts |= {"generated_tokens": 0, "forced_tokens": int(forced[1])}
            segments.append(open_segment)
            open_segment = Segment()
        for side, pattern in (("python", PYTHON), ("native", NATIVE)):
            said = pattern.search(line)
            if said:
                seen.add(side)
                open_segment.counts["generated_tokens"] = int(said[1])
                segments.append(open_segment)
                open_segment = Segment()
    if "stop_step" in open_segment.counts:  # the program was stopped between its two lines
        segments.append(open_segment)
    for segment, text in zip(segments, texts, strict=False):
        segment.counts.setdefault("tts_text_tokens", text)
    for segment in segments:
        segment.counts = for_all | segment.counts
    _check(path, segments, seen)
    return TextLog(path, seen.pop(), segments)


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            while line := file.readline(LINE_LIMIT):
                yield line
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None


def _take_input(line: str, segment: Segment) -> None:
    drawn = GENERATED.search(line)
    if drawn and int(drawn[1]) == len(segment.tokens or []):
        segment.tokens = [*(segment.tokens or []), int(drawn[2])]
    ids = None if SHAPE.search(line) else IDS.search(line)
    if ids:
        numbers = [int(number) for number in ids["ids"].replace(",", " ").split() if len(number) < 10]
        if ids["prompt"]:
            segment.prompt_speech = numbers
        else:
            segment.tokens = numbers
        return
    for name, pattern in LENGTHS.items():
        said = pattern.search(line)
        if said:
            segment.counts[name] = int(said[1])


def _check(path: Path, segments: list[Segment], seen: set[str]) -> None:
    if len(seen) > 1:
        raise TraceError(f"{path}: holds lines of both programs; import the log of each side by itself")
    for index, segment in enumerate(segments):
        said = segment.counts.get("generated_tokens")
        if segment.tokens is not None and said is not None and len(segment.tokens) > said:
            raise TraceError(
                f"{path}: segment {index} says {said} speech tokens and lists {len(segment.tokens)}, which is more; "
                "give the log as the program wrote it"
            )


class TextLogs:
    """The log as counts, and token ids where it lists them."""

    reads = "text logs of CosyVoice programs (with a line such as `LLM generated N speech tokens`)"

    def knows(self, path: Path) -> bool:
        """Whether a file has a line that ends a segment."""
        ends = (PYTHON, NATIVE, STOP, FORCED)
        try:
            return path.is_file() and any(pattern.search(line) for line in _lines(path) for pattern in ends)
        except TraceError:
            return False

    def log(self, path: Path, scratch: Path) -> Path:
        read = read_text_log(path)
        with LogWriter(scratch / "counts.tklog") as writer:
            _write(read, writer)
        return scratch / "counts.tklog"


IMPORTER = TextLogs()


def _write(log: TextLog, writer: LogWriter) -> None:
    writer.open(
        log.implementation,
        command={"cwd": os.fspath(log.path.parent.resolve())},
        recorder={"level": "counts", "imported_from": log.path.name},
    )
    for index, segment in enumerate(log.segments):
        prompt = {} if segment.prompt_speech is None else {f"prompt/{PROMPT_SPEECH}": _ids(segment.prompt_speech)}
        writer.sequence(index, prompt, **{COUNTS: segment.counts | {"speech": True}})
        tokens = segment.tokens or []
        for step, token in enumerate(tokens):
            writer.step(index, step, step, token, {})
        stopped = "stop_step" in segment.counts
        writer.end_sequence(index, len(tokens), STOPPED if stopped else "done")


def _ids(numbers: list[int]) -> NDArray[np.int64]:
    return np.array(numbers, dtype=np.int64)
