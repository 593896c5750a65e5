"""A trace under the names of the other side: sites renamed, fused ones taken apart into their columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

from tracekit.align.rotary_order import ReorderedTrace
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.formats.name_map import NameMap
from tracekit.trace import INPUT_SUFFIX, Array, Blocks, Sequence, Site, SiteData, Trace, TraceError, Weight
from tracekit.trace_view import SequenceView, TraceView


class Elsewhere:
    """What other traces and the checkpoint know of the sites that a map speaks of."""

    def __init__(self, traces: Iterable[Trace] = (), checkpoint: Checkpoint | None = None) -> None:
        self._checkpoint = checkpoint
        self._widths: dict[str, int] = {}
        self._sites: dict[str, Site] = {}
        for trace in traces:
            self._sites = {**trace.sites, **self._sites}
            for sequence in trace.sequences:
                self._widths.update({name: data.width for name, data in sequence.sites.items()})

    def width(self, name: str) -> int | None:
        """How wide a site is, by its values or by the rows of its weight; None where neither is known."""
        found = self._parameter(name, "weight")
        if name in self._widths or found is None or self._checkpoint is None:
            return self._widths.get(name)
        return self._checkpoint.shape(found)[0]

    def module(self, row: Site) -> Site:
        """The row, with class and parameters where it has none: an engine may record a fused layer by hand."""
        if row.parameters:
            return row
        known = self._sites.get(row.name)
        if known is not None and known.parameters:
            return replace(row, module_class=known.module_class, parameters=known.parameters)
        roles = {role: name for role in ("weight", "bias") if (name := self._parameter(row.name, role))}
        return replace(row, module_class="Linear", parameters=roles) if "weight" in roles else row

    def _parameter(self, name: str, role: str) -> str | None:
        return None if self._checkpoint is None else self._checkpoint.find(f"{name}.{role}")


@dataclass(frozen=True)
class Origin:
    """Where a site's values are recorded: a stored site, and which of its columns."""

    site: str
    first: int
    stop: int | None  # None: all of them


def named(trace: Trace, names: NameMap, elsewhere: Elsewhere) -> Trace:
    """The trace under the names that the map gives; itself where the map speaks of none of its sites. Raises TraceError
    where the parts of a fused site do not add up to it."""
    book = _Book(trace, names, elsewhere)
    return cast(Trace, _NamedTrace(trace, book)) if book.parts else trace


def in_one_language(traces: tuple[Trace, Trace], names: NameMap, checkpoint: Checkpoint | None) -> tuple[Trace, Trace]:
    """Both sides of a pair under the names that they have in common. Raises TraceError as `named` does."""
    one, other = (named(trace, names, Elsewhere(traces, checkpoint)) for trace in traces)
    return one, other


def recorded_as(trace: Trace, site: str) -> Origin | None:
    """What the program that was recorded calls a site, and which of its columns it is; None where it calls it so."""
    trace = trace.inner if isinstance(trace, ReorderedTrace) else trace
    return trace.book.origins.get(site) if isinstance(trace, _NamedTrace) else None


class _Book:
    """What is called how."""

    def __init__(self, trace: Trace, names: NameMap, elsewhere: Elsewhere) -> None:
        self.trace, self.names, self.elsewhere = trace, names, elsewhere
        stored = {name: data.width for sequence in trace.sequences for name, data in sequence.sites.items()}
        self.parts: dict[str, tuple[str, ...]] = {}
        self.origins: dict[str, Origin] = {}  # new name -> where it is
        self.widths: dict[str, int] = {}  # new name -> columns, of the parts of fused sites
        for name in dict.fromkeys([*trace.sites, *stored]):
            owner = name.removesuffix(INPUT_SUFFIX)
            parts = names.parts(owner)
            if parts is None or parts == (owner,) or any(part in trace.sites for part in parts):
                continue
            self.parts[owner] = parts
            if name == owner:
                self._place(name, parts, stored.get(name))
            elif name in stored:
                self.origins[parts[0] + INPUT_SUFFIX] = Origin(name, 0, None)

    def _place(self, name: str, parts: tuple[str, ...], width: int | None) -> None:
        if len(parts) == 1:
            if width is not None:
                self.origins[parts[0]] = Origin(name, 0, None)
            return
        found = [self.elsewhere.width(part) for part in parts]
        known = [columns for columns in found if columns is not None]
        if width is not None and (len(known) < len(found) or sum(known) != width):
            said = " + ".join("?" if columns is None else str(columns) for columns in found)
            raise TraceError(
                f"{self.names.path}: {name} of {self.trace.path} is {width} wide, its parts {', '.join(parts)} are "
                f"{said}; name the parts that it is made of, in their order"
            )
        first = 0
        for part, columns in zip(parts, found, strict=True):
            if columns is None:
                continue
            self.widths[part] = columns
            if width is not None:
                self.origins[part] = Origin(name, first, first + columns)
            first += columns

    def new(self, name: str | None) -> str | None:
        """The name, or that of the first part: all parts of a site have one input."""
        if name is None:
            return None
        suffix = INPUT_SUFFIX if name.endswith(INPUT_SUFFIX) else ""
        parts = self.parts.get(name.removesuffix(INPUT_SUFFIX))
        return name if parts is None else parts[0] + suffix

    def rows(self, site: Site) -> Iterator[Site]:
        """A row of the site table under its new name, or one for each part."""
        row = replace(site, input=self.new(site.input), same_as=self.new(site.same_as))
        owner = site.name.removesuffix(INPUT_SUFFIX)
        parts = self.parts.get(owner)
        if parts is None:
            yield row
        elif owner != site.name:
            yield replace(row, name=parts[0] + INPUT_SUFFIX)
        else:
            for part in parts:
                inside = row.input or (
                    parts[0] + INPUT_SUFFIX if f"{owner}{INPUT_SUFFIX}" in self.trace.sites else None
                )
                moved = _moved(row.parameters, owner, part)
                yield self.elsewhere.module(replace(row, name=part, input=inside, parameters=moved))

    def weights(self, weight: Weight) -> Iterator[Weight]:
        """A parameter under its new name, or one without a digest for each part."""
        owner, _, leaf = weight.name.rpartition(".")
        parts = self.parts.get(owner) or self.names.parts(owner)
        if parts is None:
            yield weight
        elif len(parts) == 1:
            yield replace(weight, name=f"{parts[0]}.{leaf}")
        else:
            for part in parts:
                shape = (self.widths.get(part, 0), *weight.shape[1:])
                yield replace(weight, name=f"{part}.{leaf}", shape=shape, digest=None)


def _moved(parameters: Mapping[str, str], owner: str, part: str) -> dict[str, str]:
    return {
        role: part + name.removeprefix(owner) if name.startswith(owner + ".") else name
        for role, name in parameters.items()
    }


class _NamedSequence(SequenceView):
    """A sequence whose sites have other names."""

    def __init__(self, sequence: Sequence, book: _Book, site_table: Mapping[str, Site]) -> None:
        super().__init__(sequence)
        self.site_table = site_table
        self._origins: dict[str, Origin] = {}
        taken = {origin.site for origin in book.origins.values()}
        self.sites: dict[str, SiteData] = {name: data for name, data in sequence.sites.items() if name not in taken}
        for name, origin in book.origins.items():
            data = sequence.sites.get(origin.site)
            if data is not None:
                width = data.width if origin.stop is None else origin.stop - origin.first
                self.sites[name] = replace(data, name=name, width=width)
                self._origins[name] = origin

    def read(self, site: str, first: int, stop: int) -> Array:
        """As `tracekit.trace.Sequence`."""
        origin = self._origins.get(site)
        if origin is None:
            return self.inner.read(site, first, stop)
        rows = self.inner.read(origin.site, first, stop)
        return rows if origin.stop is None else rows[:, origin.first : origin.stop]

    def blocks(self, site: str) -> Blocks | None:
        """As `tracekit.trace.Sequence`: of whole sites."""
        origin = self._origins.get(site)
        if origin is None:
            return self.inner.blocks(site)
        return self.inner.blocks(origin.site) if origin.stop is None else None


class _NamedTrace(TraceView):
    """A trace whose sites have other names."""

    def __init__(self, trace: Trace, book: _Book) -> None:
        self.book = book
        self.sites = {row.name: row for site in trace.sites.values() for row in book.rows(site)}
        self.weights = {row.name: row for weight in trace.weights.values() for row in book.weights(weight)}
        super().__init__(trace, [_NamedSequence(sequence, book, self.sites) for sequence in trace.sequences])
