"""What a class of modules computes, measured on the reference: its rows say which of the usual operations it is.

A class of a program's own may be called anything. Which norm multiplies by its weight, and which by 1 + weight, is not
told by a name. The reference is asked, never the run that is under audit: it would vouch for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from tracekit.auditing.own_error import own_error
from tracekit.auditing.recipe import Recipe, recipes
from tracekit.auditing.recompute import Parameters, Recomputation
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.trace import Trace

ROWS = 64
"""Positions of a site that are looked at."""
REFERENCES = ("torch.", "transformers.")
"""Packages whose classes are the reference, whoever runs them."""
NOT_MEASURED = "what the class {} computes is known from a reference only, and none was recorded here"
NONE_FITS = "what the class {} computes is no linear layer and no norm that is known"

Changed = dict[str, object]
"""Fields of a recipe."""


def measured(
    trace: Trace, checkpoint: Checkpoint, wiring: Trace | None, unmeasured: Iterable[Recipe]
) -> dict[str, Changed | str]:
    """What each class of the recipes computes, as the fields of a recipe that say so; or why that is not known."""
    classes = {recipe.class_of for recipe in unmeasured if recipe.class_of is not None}
    if not classes:
        return {}
    reference = trace if wiring is None else wiring
    parameters = Parameters(reference, checkpoint)
    runs = [Recomputation(sequence, parameters) for sequence in reference.sequences[:1]]
    found = [recipe for recipe in recipes(reference, checkpoint).known if recipe.class_of in classes]
    out: dict[str, Changed | str] = {}
    for name in sorted(classes):
        same = [recipe for recipe in found if recipe.class_of == name]
        if not same or not (wiring is not None or _is_reference(name, trace)):
            out[name] = NOT_MEASURED.format(name)
        else:
            out[name] = _of_class(same, runs, parameters) or NONE_FITS.format(name)
    return out


def _is_reference(name: str, trace: Trace) -> bool:
    return trace.implementation == "python" and (name.startswith(REFERENCES) or "." not in name)


def _of_class(same: list[Recipe], runs: list[Recomputation], parameters: Parameters) -> Changed | None:
    """The operation that most modules of a class do, within their rounding bounds."""
    fits: dict[int, int] = {}
    options: list[Changed] = []
    seen = 0
    for recipe in same:
        for run in runs:
            asked = list(_options(recipe, run, parameters))
            seen += bool(asked)
            for option in asked:
                if option not in options:
                    options.append(option)
                own = own_error(run, replace(recipe, **option), ROWS)  # type: ignore[arg-type]
                if own is not None and not own.wrong:
                    index = options.index(option)
                    fits[index] = fits.get(index, 0) + 1
    best = max(fits, key=lambda index: fits[index], default=None)
    return None if best is None or 2 * fits[best] <= seen else options[best]


def _options(recipe: Recipe, run: Recomputation, parameters: Parameters) -> Iterator[Changed]:
    """What a module with these parameters may compute."""
    checkpoint = parameters.checkpoint
    name = checkpoint.find(recipe.parameters["weight"])
    source = run.sequence.sites.get(recipe.inputs[0])
    if name is None or source is None or not parameters.has(recipe):
        return
    shape, widths = checkpoint.shape(name), (run.width(recipe), source.width)
    if len(shape) == 2 and shape in (widths, widths[::-1]):
        if shape == widths:
            yield {"kind": "linear", "class_of": None}
        if shape == widths[::-1]:
            yield {"kind": "linear", "transposed": True, "class_of": None}
    elif len(shape) == 1 and recipe.eps > 0.0 and widths[0] == widths[1] and widths[0] % shape[0] == 0:
        kinds = ("layer_norm",) if "bias" in recipe.parameters else ("rms_norm", "layer_norm")
        for kind in kinds:
            for plus_one in (False, True):
                yield {"kind": kind, "plus_one": plus_one, "class_of": None}
