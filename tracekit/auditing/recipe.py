"""What each recorded site computes, from which other sites, and with which numbers.

Modules are read from their class and parameters; what lies between modules (residual sums, attention core, gate) from
the family that the checkpoint's `config.json` names (`families`). The numbers are those that it declares, not what an
engine says it used. Whatever the checkpoint's settings, its parameters or a site table name beyond what a recipe
reckons with means that there is no recipe, whether or not it was recorded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tracekit.auditing.block_formats import WITH_MINIMA, is_known
from tracekit.auditing.declared_eps import eps_of_layer_norms, states_another
from tracekit.auditing.families import family_of
from tracekit.auditing.families.family import stated_embedding_factor, token_table
from tracekit.auditing.not_audited import Lacks, NotAudited
from tracekit.auditing.operations import operation_of_class
from tracekit.auditing.operations.linear_layer import Linear
from tracekit.auditing.operations.norms import Norm
from tracekit.auditing.operations.operation import Operation
from tracekit.auditing.operations.passed_on import PassedOn
from tracekit.auditing.operations.unmeasured import Unmeasured
from tracekit.auditing.stated_arithmetic import Stated
from tracekit.checkpoints.checkpoint import PREFIXES, Checkpoint
from tracekit.inspection.positions import prompt_length
from tracekit.trace import INPUT_SUFFIX, LOGITS, NOT_ASKED_FOR, Site, Trace, resolve

HEAD = "lm_head"
"""The module that gives the logits, where the family is not known."""
EXPERT = re.compile(r"Expert|Router|MoE|Moe")


@dataclass(frozen=True)
class Recipe:
    """What one site computes. `stored` is where its value is: another site's where the run passed that very tensor on,
    which is how a residual that is dropped, or a layer that is skipped, shows."""

    site: str
    stored: str
    operation: Operation
    inputs: tuple[str, ...] = ()  # stored sites
    parameters: Mapping[str, str] = field(default_factory=dict)  # role -> name
    columns: tuple[tuple[int, int] | None, ...] = ()  # of each input, where a fused projection gives several

    @property
    def kind(self) -> str:
        """The id of its operation."""
        return self.operation.kind

    @property
    def plain(self) -> bool:
        """Whether a repro's own tests can compute it."""
        return self.operation.in_repro and not self.columns


@dataclass(frozen=True)
class Recipes:
    """Recipes in execution order, and why the other stored sites have none."""

    known: tuple[Recipe, ...]
    unknown: Mapping[str, NotAudited]


def recipes(trace: Trace, checkpoint: Checkpoint, wiring: Trace | None = None) -> Recipes:
    """Recipes of a trace's stored sites. `wiring`: another trace whose site table says what feeds what, where this
    one's does not."""
    book = Book(trace, checkpoint, wiring)
    for site in trace.sites.values():
        book.add_module(site)
    book.add_logits()
    if book.family is not None and book.not_known() is None:
        book.family.wire(book)
    known = sorted(book.known.values(), key=lambda recipe: order_of(trace, recipe.site))
    return Recipes(tuple(known), book.reasons())


def order_of(trace: Trace, name: str) -> int:
    """Where in a forward call a site comes; an input that is no row of the site table comes with its module."""
    row = trace.sites.get(name) or trace.sites.get(name.removesuffix(INPUT_SUFFIX))
    return 1 << 20 if row is None else row.order


class Book:
    """Recipes while they are being collected."""

    def __init__(self, trace: Trace, checkpoint: Checkpoint, wiring: Trace | None) -> None:
        self.trace, self.checkpoint, self.wiring = trace, checkpoint, wiring
        self.declared = checkpoint.config
        self.known: dict[str, Recipe] = {}
        self.why: dict[str, NotAudited] = {}
        self.stored = {name for sequence in trace.sequences for name in sequence.sites}
        self.positions = max((sequence.positions for sequence in trace.sequences), default=0)
        self.prompt = min(map(prompt_length, trace.sequences), default=0)
        self.blocks = {name.rpartition(".")[0].removesuffix(INPUT_SUFFIX) for name in self._named()}
        self.family = family_of(self.declared)
        self.arithmetic = Stated.of(trace)
        self._inside: dict[str, set[str]] = {}

    def _named(self) -> set[str]:
        """Names of sites on either side, stored or not, and of the checkpoint's parameters."""
        tables = [self.trace.sites, {} if self.wiring is None else self.wiring.sites]
        return {name for table in tables for name in table} | set(self.checkpoint.names)

    def inside(self, layer: str) -> set[str]:
        """Names below a layer, without its own: of the checkpoint's parameters, and of modules with parameters."""
        if not self._inside:
            names = set(self.checkpoint.names)
            for table in (self.trace.sites, {} if self.wiring is None else self.wiring.sites):
                names |= {name for row in table.values() for name in row.parameters.values()}
            for name in names:
                for match in re.finditer(r"\.\d+\.", name):
                    self._inside.setdefault(name[: match.end() - 1], set()).add(name[match.end() :])
        options = {prefix + layer for prefix in PREFIXES} | {layer.removeprefix(prefix) for prefix in PREFIXES}
        return set().union(*(self._inside.get(option, set()) for option in options))

    def resolve(self, name: str) -> str | None:
        """The stored site of a name; by the other trace's wiring where this one does not say."""
        found = resolve(self.trace, name)
        if found is None and self.wiring is not None:
            other = resolve(self.wiring, name)
            found = None if other is None or other == LOGITS else resolve(self.trace, other)
        return found if found == LOGITS or found in self.stored else None

    def reasons(self) -> dict[str, NotAudited]:
        """Sites that no recipe covers, and why."""
        covered = {recipe.stored for recipe in self.known.values()}
        out = {name: why for name, why in self.why.items() if name not in self.known and name not in covered}
        for name in sorted(self.stored - covered - out.keys()):
            out[name] = self._reason(name)
        for row in self.trace.sites.values():
            if row.skipped is not None and row.name not in self.stored and row.skipped != NOT_ASKED_FOR:
                out.setdefault(row.name, NotAudited(Lacks.STORED, (row.skipped,)))
        return out

    def _reason(self, name: str) -> NotAudited:
        site = self.trace.sites.get(name)
        if site is not None and (EXPERT.search(site.module_class) or ".experts" in name):
            return NotAudited(Lacks.RECIPE_OF_EXPERTS)
        if name.endswith(INPUT_SUFFIX) or site is None or site.module_class == "input":
            return self.not_known() or NotAudited(Lacks.RECIPE_OF_INPUT)
        return NotAudited(Lacks.RECIPE_OF_CLASS, (site.module_class,))

    def not_known(self) -> NotAudited | None:
        """Why nothing between modules is recomputed; None where the family is known."""
        said = self.declared.get("model_type")
        if said is None:
            return NotAudited(Lacks.FAMILY)
        if self.family is None:
            return NotAudited(Lacks.RECIPE_OF_FAMILY, (str(said),))
        unread, unstated = self.family.unread(self.declared), self.family.unstated(self.declared)
        if unread is not None:
            return NotAudited(Lacks.RECIPE_OF_SETTING, (unread, str(said)))
        return None if unstated is None else NotAudited(Lacks.SETTING, (unstated,))

    # ---------------------------------------------------------------- modules

    def add_module(self, site: Site) -> None:
        """A site whose class and parameters say what it computes."""
        stored = self.resolve(site.name)
        if stored is None or site.same_as is not None:
            return
        site = self._of_the_reference(site)
        if "weight" not in site.parameters:
            return
        name = LOGITS if stored == LOGITS else site.name
        source = self.resolve(site.name + INPUT_SUFFIX)
        recipe = self._module(replace(site, name=name), stored, None if source == LOGITS else source)
        if isinstance(recipe, NotAudited):
            self.why[name] = recipe
        elif recipe is not None:
            self.known[name] = recipe

    def _of_the_reference(self, site: Site) -> Site:
        """The row with what the reference's says of the module: its class, as that side's program has it, and numbers.
        A candidate's own say what it did, not what it should have done."""
        other = None if self.wiring is None else self.wiring.sites.get(site.name)
        parameters: Mapping[str, str] = site.parameters
        if site.name.rsplit(".", 1)[-1] == HEAD and "weight" not in parameters:
            parameters = {"weight": f"{site.name}.weight"}
        if other is None:
            return replace(site, parameters=parameters)
        return replace(
            site,
            parameters=parameters or other.parameters,
            module_class=other.module_class if other.parameters else site.module_class,
            attributes=other.attributes or site.attributes,
        )

    def _module(self, site: Site, stored: str, source: str | None) -> Recipe | NotAudited | None:
        """The recipe of a module, why there is none, or None where its class says nothing."""
        known = operation_of_class(site.module_class) if "defined_in" not in site.attributes else None
        last = site.name.rsplit(".", 1)[-1]
        if (known is not None and known.reads_tokens) or (self.family is not None and self.family.is_table(last)):
            return self._table(site, stored, last)
        operation = self._operation(site, known)
        if source is None:
            return None if operation is None or isinstance(operation, Unmeasured) else NotAudited(Lacks.INPUT)
        if not isinstance(operation, Operation):
            return operation
        if isinstance(operation, Linear):
            operation = self._as_stated(operation, site)
        return Recipe(site.name, stored, operation, (source,), site.parameters)

    def _as_stated(self, operation: Linear, site: Site) -> Linear:
        """A product with its inputs in the format that the engine states for the weight's."""
        held = self.trace.weights.get(site.parameters.get("weight", ""))
        read_as = None if held is None else self.arithmetic.products.get(held.dtype)
        if held is None or read_as is None or not is_known(read_as, held.shape[-1]):
            return operation
        return replace(operation, inputs_as=read_as, minima=held.dtype in WITH_MINIMA)

    def _operation(self, site: Site, known: type[Operation] | None) -> Operation | NotAudited | None:
        """The operation of a module with its numbers, why there is none, or None where its class says nothing."""
        if known is not None:
            return self._as_declared(known.of_module(site.attributes))
        if self.family is not None:
            norm = self.family.norm(site, self.declared, self.checkpoint.file.one_added)
            if norm is not None:
                return norm
        eps = float(site.attributes.get("eps") or 0.0)
        if set(site.parameters) > {"weight", "bias"}:
            return None
        return self._undeclared(eps) or Unmeasured(_class_of(site), eps)

    def _as_declared(self, operation: Operation | NotAudited) -> Operation | NotAudited:
        """A norm with the eps that the checkpoint declares: what a program's module holds is what it used."""
        if not isinstance(operation, Norm):
            return operation
        name = None if self.family is None else self.family.layer_norm_eps
        eps = None if name is None else self.declared.get(name)
        eps = eps_of_layer_norms(self.declared) if eps is None else float(eps)
        if eps is not None:
            return operation.with_eps(eps)
        return self._undeclared(operation.eps) or operation

    def _undeclared(self, eps: float) -> NotAudited | None:
        """Why a norm with this eps of the program's own is not known: the checkpoint declares others."""
        other = states_another(self.declared, eps)
        return None if other is None else NotAudited(Lacks.DECLARED_EPS, (f"{eps:g}", f"{other[0]} {other[1]:g}"))

    def _table(self, site: Site, stored: str, last: str) -> Recipe | NotAudited:
        if self.family is None:
            table = token_table(last, stated_embedding_factor(self.declared))
        else:
            table = self.family.table(last, self.declared)
        return NotAudited(Lacks.TOKENS) if table is None else Recipe(site.name, stored, table, (), site.parameters)

    def add_logits(self) -> None:
        """The logits, where they are not the head's own output but follow from it."""
        head = self.resolve(HEAD if self.family is None else self.family.head)
        if head is None or head == LOGITS or not any(sequence.logits_dtype for sequence in self.trace.sequences):
            return
        why = self.not_known()
        if why is not None:
            self.why[LOGITS] = why
        elif self.family is not None:
            self.known[LOGITS] = Recipe(LOGITS, LOGITS, self.family.logits(self.declared), (head,))

    # ---------------------------------------------------------------- between modules

    def add_passing(self, name: str, source: str) -> None:
        """A module's input that the run holds apart from what it should be."""
        stored, expected = self.resolve(name), self.resolve(source)
        if stored is not None and expected is not None and stored != expected:
            self.known[name] = Recipe(name, stored, PassedOn(), (expected,))

    def add(
        self,
        names: tuple[str, ...],
        operation: Operation,
        *inputs: str,
        columns: tuple[tuple[int, int] | None, ...] = (),
    ) -> None:
        """A recipe of the first of `names` that is recorded; the others are the same value, passed on. `columns` of
        each input, where it is not all of them."""
        found = [name for name in names if self.resolve(name) not in (None, LOGITS)]
        if not found:
            return
        name, stored = found[0], self.resolve(found[0])
        assert stored is not None
        sources = [self.resolve(source) for source in inputs]
        missing = [source for source, held in zip(inputs, sources, strict=True) if held in (None, LOGITS)]
        if missing:
            self.why[name] = NotAudited(Lacks.SITE, (missing[0],))
        else:
            held = tuple(source for source in sources if source is not None)
            self.known[name] = Recipe(name, stored, operation, held, columns=columns)
        for other in found[1:]:
            self.add_passing(other, name)

    def exists(self, name: str) -> bool:
        """Whether a module is there, recorded or not."""
        tables = [self.trace.sites, {} if self.wiring is None else self.wiring.sites]
        return any(name in table for table in tables) or self.checkpoint.find(f"{name}.weight") is not None


def _class_of(site: Site) -> str:
    """The name of a class and where it is defined, where that is told."""
    place = site.attributes.get("defined_in")
    return site.module_class if place is None else f"{place}.{site.module_class}"
