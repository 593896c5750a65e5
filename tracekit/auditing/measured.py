"""What a class of modules computes, measured on the reference: its rows say which of the usual operations it is.

A class of a program's own may be called anything. Which norm multiplies by its weight, and which by 1 + weight, is not
told by a name. The reference is asked, never the run that is under audit: it would confirm itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from tracekit.auditing.not_audited import Lacks, NotAudited
from tracekit.auditing.operations import all_operations
from tracekit.auditing.operations.operation import Module, Operation
from tracekit.auditing.operations.unmeasured import Unmeasured
from tracekit.auditing.own_error import own_error
from tracekit.auditing.recipe import Recipe, recipes
from tracekit.auditing.recompute import Parameters, Recomputation
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.trace import Trace

ROWS = 64
"""Positions of a site that are looked at."""
REFERENCES = ("torch.", "transformers.")
"""Packages whose classes are the reference, whoever runs them."""

Meaning = Operation | NotAudited
"""What a class computes, or why that is not known."""


def meant(recipe: Recipe, meanings: Mapping[str, Meaning]) -> Recipe | NotAudited:
    """The recipe with the operation that was measured for its class; or why there is none."""
    if not isinstance(recipe.operation, Unmeasured):
        return recipe
    meaning = meanings[recipe.operation.module_class]
    if isinstance(meaning, NotAudited):
        return meaning
    return replace(recipe, operation=meaning.with_eps(recipe.operation.eps))


def measured(
    trace: Trace, checkpoint: Checkpoint, wiring: Trace | None, unmeasured: Iterable[Recipe]
) -> dict[str, Meaning]:
    """What each class that names no operation computes, by class; or why that is not known."""
    classes = {each.operation.module_class for each in unmeasured if isinstance(each.operation, Unmeasured)}
    if not classes:
        return {}
    reference = trace if wiring is None else wiring
    parameters = Parameters(reference, checkpoint)
    runs = [Recomputation(sequence, parameters) for sequence in reference.sequences[:1]]
    found: dict[str, list[Recipe]] = {}
    for recipe in recipes(reference, checkpoint).known:
        if isinstance(recipe.operation, Unmeasured):
            found.setdefault(recipe.operation.module_class, []).append(recipe)
    out: dict[str, Meaning] = {}
    for name in sorted(classes):
        same = found.get(name, [])
        if not same or not (wiring is not None or _is_reference(name, trace)):
            out[name] = NotAudited(Lacks.MEASURED_CLASS, (name,))
        else:
            out[name] = _of_class(same, runs, parameters) or NotAudited(Lacks.FITTING_OPERATION, (name,))
    return out


def _is_reference(name: str, trace: Trace) -> bool:
    return trace.implementation == "python" and (name.startswith(REFERENCES) or "." not in name)


def _of_class(same: list[Recipe], runs: list[Recomputation], parameters: Parameters) -> Operation | None:
    """The operation that most modules of a class do, within their rounding bounds."""
    fits: dict[Operation, int] = {}
    seen = 0
    for recipe in same:
        for run in runs:
            asked = list(_options(recipe, run, parameters))
            seen += bool(asked)
            for option in asked:
                own = own_error(run, replace(recipe, operation=option), ROWS)
                if own is not None and not own.wrong:
                    plain = option.with_eps(0.0)  # each module has its own
                    fits[plain] = fits.get(plain, 0) + 1
    best = max(fits, key=lambda option: fits[option], default=None)
    return None if best is None or 2 * fits[best] <= seen else best


def _options(recipe: Recipe, run: Recomputation, parameters: Parameters) -> Iterator[Operation]:
    """What a module with these parameters may compute."""
    source, shape = run.sequence.sites.get(recipe.inputs[0]), parameters.shapes(recipe).get("weight")
    if source is None or shape is None or not parameters.has(recipe):
        return
    assert isinstance(recipe.operation, Unmeasured)
    module = Module(shape, run.width(recipe), source.width, "bias" in recipe.parameters, recipe.operation.eps)
    for operation in all_operations():
        yield from operation.candidates(module)
