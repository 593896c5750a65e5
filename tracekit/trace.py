"""The model of a trace: what one run of one implementation recorded.

`tracekit.open` returns a `Trace`, read from a log or from an archive; every later stage (align, metrics, divergence,
verdict, report) sees only this module. Arrays are read on demand and in blocks: a trace is never held in memory whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import TraceError as TraceError
from tracekit.site_values import SiteValues

if TYPE_CHECKING:
    import pandas

Array = NDArray[Any]
Json = dict[str, Any]

INPUT_SUFFIX = ":in"
ENCODER = "encoder"
"""Axis of a site whose rows are positions of the encoder's input."""
ENCODER_PREFIX = "encoder_"
"""What leads the name of a prompt input that the encoder is given: `encoder_token_ids`."""
LOGITS = "logits"
"""The site that stands for the logits of the steps."""
NOT_ASKED_FOR, NOT_THE_LOGITS = "not asked for", "not the logits"
"""Why a site holds no value where somebody wanted it so: reserved words of the site table (docs/format.md)."""
TENSORS_GIVEN = "tensors"
"""Attribute of a module: how many tensors of one shape it is called with, where they are several."""
TOKENS_GIVEN = "tokens_given"
"""Key of a sequence's `info`: the tokens behind its prompt were given, not chosen, so that no step is missing."""
NO_TOKEN = -1
"""Stands in a prompt's ids where a row is no token's embedding."""


@dataclass(frozen=True)
class Site:
    """One row of the site table: a named place whose value is recorded (docs/format.md, kind `sites`)."""

    name: str
    module_class: str
    order: int  # of execution within a forward call
    input: str | None = None
    """The site whose value is its input."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Role (`weight`, `bias`) -> name of the parameter."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Numbers that the module computes with, such as `eps`."""
    same_as: str | None = None
    """The site that holds the very same tensor."""
    recorded_as: str | None = None
    """`logits` where its values are kept as the steps' logits."""
    skipped: str | None = None
    """Why no value is stored."""
    ended: str | None = None
    """Why values stop being stored before the sequence ends."""
    partial: str | None = None
    """Why some calls stored none."""
    axis: str | None = None
    """What its rows are: None: positions of the sequence; `ENCODER`: positions of the encoder's input."""


OPTIONAL = ("input", "parameters", "attributes", "same_as", "recorded_as", "skipped", "ended", "partial", "axis")
"""Fields of a site that a row of the site table may leave out."""


@dataclass(frozen=True)
class Weight:
    """A parameter as the engine holds it; `digest` is XXH3-64 of its bytes, None where it was not hashed."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: int | None


@dataclass(frozen=True)
class Draw:
    """One use of a random generator. `offset` and `words` count 32-bit words since seeding; None where unknown."""

    step: int
    op: str  # torch's name: `multinomial`, `exponential_`
    generator: str  # `mt19937`, `philox`
    seed: int | None
    offset: int | None  # before the draw
    words: int | None  # that the draw took
    result: int | None  # the token, where the draw gave one


@dataclass(frozen=True)
class Event:
    """Something the sampler did besides drawing: a fallback, a stop mask, a retry."""

    step: int
    kind: str
    detail: Any


@dataclass(frozen=True)
class Step:
    """One sampled token. `survivors_*` are None where the trace does not know what could be drawn."""

    index: int  # from 0
    position: int  # of the row whose logits chose the token
    token: int
    text: str | None  # of the token
    logits: Array | None  # [V], the dtype the model gave
    topk_id: Array | None  # i64 [K]
    topk_logprob: Array | None  # f32 [K]
    survivors_id: Array | None  # i64 [n], descending probability
    survivors_prob: Array | None  # f32 [n]
    draws: tuple[Draw, ...]
    events: tuple[Event, ...]


@dataclass(frozen=True)
class SiteData:
    """What is stored of one site in one sequence: where it is, not the values."""

    name: str
    dtype: str  # torch's word: "float32", "bfloat16", "float8_e4m3fn"
    width: int
    ranges: tuple[tuple[int, int], ...]  # [first, stop) positions, ascending, disjoint
    axis: str | None = None  # as `Site.axis`

    @property
    def rows(self) -> int:
        """Rows stored, over all ranges."""
        return sum(stop - first for first, stop in self.ranges)

    def covers(self, first: int, stop: int) -> bool:
        """Whether every position of [first, stop) is recorded."""
        return any(begin <= first and stop <= end for begin, end in self.ranges)

    def shared(self, ranges: Seq[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """The parts of other ranges that are recorded here, too."""
        both = [(max(a, first), min(b, stop)) for a, b in ranges for first, stop in self.ranges]
        return tuple(sorted((first, stop) for first, stop in both if first < stop))


@dataclass(frozen=True)
class Blocks:
    """What is known of a site's stored values, a block of rows at a time. Each of its ranges is divided from its start
    into blocks of `rows`; arrays are 1-D, a block each, one range's after the other's."""

    ranges: tuple[tuple[int, int], ...]
    rows: int
    digest: Array  # u64, XXH3-64 of the bytes of the rows
    finite: Array  # bool: no NaN and no infinity

    @cached_property
    def first(self) -> Array:
        """i64, the first position of each block."""
        return np.concatenate([_NO_BLOCK, *(np.arange(first, stop, self.rows) for first, stop in self.ranges)])

    @cached_property
    def stop(self) -> Array:
        """i64, the position after the last one of each block."""
        counts = [-((first - stop) // self.rows) for first, stop in self.ranges]
        ends = np.repeat(np.array([stop for _, stop in self.ranges], dtype=np.int64), counts)
        return np.asarray(np.minimum(self.first + self.rows, ends))


_NO_BLOCK = np.empty(0, np.int64)


class Sequence(Protocol):
    """One generation inside a trace: one prompt, its forward calls, its steps."""

    @property
    def path(self) -> str:
        """The file that it lies in."""

    @property
    def index(self) -> int:
        """Its place in the trace, from 0."""

    @property
    def site_table(self) -> Mapping[str, Site]:
        """`Trace.sites` of the trace that it is in."""

    @property
    def prompt_ids(self) -> Array | None:
        """i64 [n], or None (a module without token inputs)."""

    @property
    def inputs(self) -> Mapping[str, Array]:
        """Every `prompt/...` tensor by its name without the prefix, `token_ids` included."""

    @property
    def prompt_text(self) -> str | None:
        """The prompt as text; None where only tokens were recorded."""

    @property
    def texts(self) -> Seq[str | None] | None:
        """Texts of the prompt's tokens, one each; None where there is none."""

    @property
    def sampling(self) -> Json:
        """What the program declares of its sampler, by transformers' names of the settings; empty where nothing is."""

    @property
    def seed(self) -> int | None:
        """What the generator was seeded with; None where it is not known."""

    @property
    def info(self) -> Json:
        """The rest of the sequence's metadata (`row`, `parent`, ...)."""

    @property
    def rng_state(self) -> bytes | None:
        """The generator's state before the first draw, as `torch.get_rng_state` gives it; None where not recorded."""

    @property
    def end_reason(self) -> str | None:
        """None: the trace ends inside this sequence."""

    @property
    def positions(self) -> int:
        """Positions covered by calls."""

    @property
    def step_count(self) -> int:
        """Steps recorded: the length of `tokens`."""

    @property
    def tokens(self) -> Array:
        """i64 [S]."""

    def step(self, index: int) -> Step:
        """Everything recorded of one step. Raises IndexError."""

    @property
    def events(self) -> Seq[Event]:
        """The events of all steps, in order; read without the steps' logits."""

    @property
    def end_detail(self) -> str | None:
        """What is to say of the end besides its reason."""

    @property
    def sites(self) -> Mapping[str, SiteData]:
        """What is stored, by site name. Aliases (`same_as`, wiring) are not in here; see `Trace.resolve`."""

    def read(self, site: str, first: int, stop: int) -> Array:
        """Rows of positions [first, stop) of a stored site, [rows, width], in the dtype it was recorded in.

        bfloat16 comes as uint16 and float8 as uint8 bits; `tracekit.dtypes.to_float` gives their values.
        Raises TraceError where a position is not covered.
        """

    def blocks(self, site: str) -> Blocks | None:
        """Digests of a stored site's values by blocks: noted when they were stored, or taken now where they may have
        changed since. None where neither is cheap."""

    def logits(self, first: int, stop: int) -> Array | None:
        """Raw logits of steps [first, stop), [steps, V], or None where none were recorded (bits as in `read`)."""

    @property
    def logits_dtype(self) -> str | None:
        """torch's word for the dtype of the logits; None where none were recorded."""

    def site(self, name: str) -> SiteValues:
        """All recorded values of a site, [rows, width], with the position and the token of each row.

        `name` may be an alias, an input (`X:in`) or `logits`, whose rows are the steps. Raises UnknownName, a
        KeyError, for a name that is not recorded in this sequence; it proposes those that are near.
        """

    def to_pandas(self) -> pandas.DataFrame:
        """A row a step: token, text, survivors and draws. Raises TraceError where pandas is not installed."""


class Trace(Protocol):
    """One run of one implementation: a collection of its sequences, `trace[0]` the first.

    A context manager; close it, or leave that to the garbage collector.
    """

    @property
    def path(self) -> str:
        """The file."""

    @property
    def implementation(self) -> str:
        """The program, by the word that it states: `python`, `native`, an engine's name."""

    @property
    def status(self) -> str:
        """`complete` or `recovered`."""

    @property
    def status_detail(self) -> str | None:
        """Of a recovered trace: what is there and where the file ends."""

    @property
    def config(self) -> Json:
        """`versions, device, dtype, model, sampling, seed, command, checkpoint, recorder`, each where recorded."""

    @property
    def weights(self) -> Mapping[str, Weight]:
        """The parameters as the engine holds them, by name; empty where they were not described."""

    @property
    def sites(self) -> Mapping[str, Site]:
        """The site table, by execution order, inputs and aliases included."""

    @property
    def sequences(self) -> Seq[Sequence]:
        """Its generations, in the order in which they began."""

    def __len__(self) -> int:
        """How many sequences it has."""

    def __bool__(self) -> bool:
        """True: a trace without a sequence is a trace."""

    def __iter__(self) -> Iterator[Sequence]:
        """Its sequences."""

    @overload
    def __getitem__(self, index: int) -> Sequence: ...
    @overload
    def __getitem__(self, index: slice) -> Seq[Sequence]: ...
    def to_pandas(self) -> pandas.DataFrame:
        """A row a site: class, input, dtype, rows, width. Raises TraceError where pandas is not installed."""

    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> Trace: ...
    def __exit__(self, *exc: object) -> None: ...


def same_inputs(name: str, one: Mapping[str, Site], other: Mapping[str, Site], other_name: str | None = None) -> bool:
    """Whether an input, `X:in`, is all that X is called with in both tables, or the first of as many tensors: a gated
    norm is given a gate beside it in one program, and their product in another. True for other sites.

    `other_name`: what it is called in the other table, where that is not `name`."""
    if not name.endswith(INPUT_SUFFIX):
        return True
    owners = (one.get(name.removesuffix(INPUT_SUFFIX)), other.get((other_name or name).removesuffix(INPUT_SUFFIX)))
    counts = {1 if owner is None else owner.attributes.get(TENSORS_GIVEN, 1) for owner in owners}
    return len(counts) == 1


def resolve(trace: Trace, name: str) -> str | None:
    """The stored site that `name` stands for, or None.

    `X:in` resolves by the wiring to the site that is X's input; a site with `same_as` to that other site. A name whose
    value is kept as the steps' logits resolves to `"logits"`. A site that was skipped in some calls, and stored in
    others, is stored. Cycles resolve to None.
    """
    return resolve_in(trace.sites, name, lambda site: any(site in sequence.sites for sequence in trace.sequences))


def resolve_in(table: Mapping[str, Site], name: str, stored: Callable[[str], bool]) -> str | None:
    """As `resolve`, by a site table and by what is stored."""
    seen: set[str] = set()
    while name not in seen:
        seen.add(name)
        site = table.get(name)
        if site is None:
            if not name.endswith(INPUT_SUFFIX):
                return None
            owner = table.get(name.removesuffix(INPUT_SUFFIX))
            if owner is None or owner.input is None:
                return None
            name = owner.input
        elif site.same_as is not None:
            name = site.same_as
        elif site.recorded_as == LOGITS:
            return LOGITS
        elif site.skipped is not None and not stored(name):
            return None
        else:
            return name
    return None


def site_from_row(row: Json) -> Site:
    """A row of the site table as JSON has it. Raises KeyError or TypeError where it is not one."""
    said = {name: row[name] for name in OPTIONAL if row.get(name) is not None}
    said |= {name: dict(said[name]) for name in ("parameters", "attributes") if name in said}
    return Site(str(row["name"]), str(row["class"]), int(row["order"]), **said)


def site_to_row(site: Site) -> Json:
    """The inverse of `site_from_row`; what is absent is left out."""
    row: Json = {"name": site.name, "class": site.module_class, "order": site.order}
    return row | {name: said for name in OPTIONAL if (said := getattr(site, name))}
