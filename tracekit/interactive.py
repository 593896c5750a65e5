"""What a trace offers at a prompt besides its data: indexing, sites as arrays, short texts and tables of itself.

Every class of traces or sequences, those that read files and those that show another trace under other names, takes
these methods from here. They ask only for what `tracekit.trace` says a trace has.
"""

from __future__ import annotations

import difflib
import html
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, overload

import numpy as np

from tracekit.dtypes import to_float
from tracekit.errors import TraceError, UnknownName, printable
from tracekit.site_values import SiteValues, library
from tracekit.trace import (
    ENCODER,
    ENCODER_PREFIX,
    INPUT_SUFFIX,
    LOGITS,
    NO_TOKEN,
    Array,
    Blocks,
    Sequence,
    Trace,
    resolve_in,
)

if TYPE_CHECKING:
    import pandas

SHOWN = 8
"""Entries of a list that a repr shows."""
WIDEST = 60
"""Characters of a text that a repr shows."""


class Browsable:
    """Methods of a trace; see `tracekit.trace.Trace`."""

    def __len__(self: Trace) -> int:
        return len(self.sequences)

    def __bool__(self) -> bool:
        return True

    def __iter__(self: Trace) -> Iterator[Sequence]:
        return iter(self.sequences)

    @overload
    def __getitem__(self: Trace, index: int) -> Sequence: ...
    @overload
    def __getitem__(self: Trace, index: slice) -> Seq[Sequence]: ...
    def __getitem__(self: Trace, index: int | slice) -> Sequence | Seq[Sequence]:
        try:
            return self.sequences[index]
        except IndexError:
            held = len(self.sequences)
            raise IndexError(f"{self.path}: no sequence {index}; it holds {held}, counted from 0") from None

    def to_pandas(self: Trace) -> pandas.DataFrame:
        return library("pandas").DataFrame(_site_rows(self)).set_index("site")

    def __repr__(self: Trace) -> str:
        rows = [f"  [{each.index}] {_summary(each)}" for each in self.sequences[:SHOWN]]
        more = len(self.sequences) - SHOWN
        return "\n".join([f"<Trace {_headline(self)}", *rows, *([f"  and {more} more"] if more > 0 else [])]) + ">"

    def _repr_html_(self: Trace) -> str:
        rows = [(each.index, *_cells(each)) for each in self.sequences]
        return html_table(_headline(self), ("sequence", "prompt tokens", "steps", "positions", "end"), rows)


class BrowsableSequence:
    """Methods of a sequence; see `tracekit.trace.Sequence`."""

    def site(self: Sequence, name: str) -> SiteValues:
        stored = resolve_in(self.site_table, name, self.sites.__contains__) or name
        if stored == LOGITS and LOGITS not in self.sites:
            return _logits(self, name)
        if stored not in self.sites:
            raise UnknownName(f"{self.path}: sequence {self.index} has no values of site {name!r}{_near(self, name)}")
        data = self.sites[stored]
        for first, _ in data.ranges[:1]:
            self.read(stored, first, first + 1)  # the file claims the ranges: an archive checks them when it is read
        positions = np.concatenate([np.arange(0), *(np.arange(first, stop) for first, stop in data.ranges)])

        def read() -> Array:
            blocks = [to_float(self.read(stored, first, stop), data.dtype) for first, stop in data.ranges]
            return blocks[0] if len(blocks) == 1 else np.concatenate([np.empty((0, data.width), np.float32), *blocks])

        tokens = _tokens_at(self, positions, data.axis)
        return SiteValues(name, stored, data.dtype, positions, tokens, self.path, self.index, data.width, read)

    def blocks(self, _site: str, /) -> Blocks | None:
        """None: what a view shows of a site is not always what was stored."""
        return None

    def to_pandas(self: Sequence) -> pandas.DataFrame:
        return library("pandas").DataFrame(_step_rows(self)).set_index("step")

    def __repr__(self: Sequence) -> str:
        try:
            tokens = self.tokens.tolist()
            lines = [f"<Sequence {self.index} of {printable(self.path)}: {_summary(self)}"]
            lines += [f"  prompt {_quoted(self.prompt_text)}"] if self.prompt_text else []
            lines += [f"  tokens {_listed(map(str, tokens), len(tokens))}"] if tokens else []
            lines.append(f"  {len(self.sites)} sites: {_listed(map(printable, self.sites), len(self.sites))}")
        except TraceError as error:
            return f"<Sequence {self.index}: {error}>"
        return "\n".join(lines) + ">"

    def _repr_html_(self: Sequence) -> str:
        rows = [(name, data.dtype, data.rows, data.width) for name, data in self.sites.items()]
        title = f"sequence {self.index} of {self.path}: {_summary(self)}"
        return html_table(title, ("site", "dtype", "rows", "width"), rows)


def html_table(title: str, heads: Seq[str], rows: Iterable[Seq[object]]) -> str:
    """A small table for a notebook. Whatever stands in it is escaped: names and texts come out of files."""

    def line(cells: Seq[object], tag: str) -> str:
        shown = (html.escape("" if cell is None else printable(str(cell))) for cell in cells)
        return "<tr>" + "".join(f'<{tag} style="text-align:left">{cell}</{tag}>' for cell in shown) + "</tr>"

    head = f"<thead>{line(heads, 'th')}</thead>" if heads else ""
    body = "".join(line(row, "td") for row in rows)
    return f"<table><caption>{html.escape(printable(title))}</caption>{head}<tbody>{body}</tbody></table>"


def _headline(trace: Trace) -> str:
    versions = trace.config.get("versions") or {}
    engine = [f"{name} {versions[name]}" for name in ("torch", "candle") if name in versions]
    dtype = trace.config.get("dtype")
    about = [trace.implementation, *engine, *([str(dtype)] if dtype else [])]
    cut = "" if trace.status_detail is None else f"  ({trace.status_detail})"
    steps = sum(sequence.step_count for sequence in trace.sequences)
    counted = f"{len(trace.sites)} sites, {len(trace.weights)} parameters, {steps} steps"
    return printable(f"{trace.path}  {'  '.join(about)}  {counted}{cut}")


def _cells(sequence: Sequence) -> tuple[object, ...]:
    prompt = None if sequence.prompt_ids is None else len(sequence.prompt_ids)
    return prompt, sequence.step_count, sequence.positions, sequence.end_reason


def _summary(sequence: Sequence) -> str:
    prompt, steps, positions, end = _cells(sequence)
    said = [] if prompt is None else [f"{prompt} prompt tokens"]
    said += [f"{steps} steps", f"{positions} positions"]
    return ", ".join([*said, "not ended" if end is None else f"end: {printable(str(end))}"])


def _quoted(text: str) -> str:
    return repr(text if len(text) <= WIDEST else text[: WIDEST - 1] + "…")


def _listed(entries: Iterable[str], count: int) -> str:
    """The first of them, and how many more there are."""
    shown = [entry for entry, _ in zip(entries, range(SHOWN), strict=False)]
    return ", ".join(shown) + (f" and {count - SHOWN} more" if count > SHOWN else "")


def _logits(sequence: Sequence, name: str) -> SiteValues:
    """The logits of the steps as a site: a row a step."""
    dtype, count = sequence.logits_dtype, sequence.step_count
    rows = sequence.logits(0, 1) if count else None
    if dtype is None or rows is None:
        raise UnknownName(f"{sequence.path}: sequence {sequence.index} has no logits; record with --logits full")
    positions = np.array([sequence.step(index).position for index in range(count)], np.int64)

    def read() -> Array:
        values = sequence.logits(0, count)
        if values is None:
            raise TraceError(f"{sequence.path}: sequence {sequence.index}: some steps have no logits")
        return to_float(values, dtype)

    tokens = _tokens_at(sequence, positions, None)
    return SiteValues(name, LOGITS, dtype, positions, tokens, sequence.path, sequence.index, rows.shape[1], read)


def _tokens_at(sequence: Sequence, positions: Array, axis: str | None) -> Array:
    """i64 [rows]: the token that was fed at each position, `NO_TOKEN` where none is on record."""
    known = sequence.inputs.get(f"{ENCODER_PREFIX}token_ids") if axis == ENCODER else sequence.prompt_ids
    prompt = np.empty(0, np.int64) if known is None else known
    out = np.full(positions.size, NO_TOKEN, np.int64)
    pieces = [(0, prompt)]
    if axis != ENCODER and sequence.step_count:
        # Rows of a prompt that are no token's embedding may be missing from its ids: the first step says where it ends.
        length = sequence.step(0).position + 1
        pieces = [(0, prompt[:length]), (length, sequence.tokens)]
    for first, ids in pieces:
        inside = (positions >= first) & (positions < first + ids.size)
        out[inside] = ids[positions[inside] - first]
    return out


def _near(sequence: Sequence, name: str) -> str:
    """What to say of a name that has no values: why, or names that look like it."""
    row = sequence.site_table.get(name.removesuffix(INPUT_SUFFIX))
    if row is not None:
        return (
            f": {row.skipped}" if row.skipped else ", which the site table lists; it was not recorded in this sequence"
        )
    inputs = (site + INPUT_SUFFIX for site, known in sequence.site_table.items() if known.input)
    held = [
        site
        for site in dict.fromkeys([*sequence.site_table, *inputs, *sequence.sites])
        if site in sequence.sites
        or resolve_in(sequence.site_table, site, sequence.sites.__contains__) in sequence.sites
    ]
    near = difflib.get_close_matches(name, held, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(near)}?" if near else "; tracekit show lists the sites"


def _site_rows(trace: Trace) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name, site in trace.sites.items():
        data = next((sequence.sites[name] for sequence in trace.sequences if name in sequence.sites), None)
        stored = {"dtype": data and data.dtype, "rows": data and data.rows, "width": data and data.width}
        rows.append({"site": name, "class": site.module_class, "input": site.input, **stored})
    return rows


def _step_rows(sequence: Sequence) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for index in range(sequence.step_count):
        step = sequence.step(index)
        words = [draw.words for draw in step.draws if draw.words is not None]
        rows.append(
            {
                "step": index,
                "position": step.position,
                "token": step.token,
                "text": step.text,
                "survivors": None if step.survivors_id is None else int(step.survivors_id.size),
                "draws": len(step.draws),
                "words": sum(words),
            }
        )
    return rows
