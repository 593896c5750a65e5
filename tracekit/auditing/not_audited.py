"""Why a site is not recomputed: what is not recorded, not declared, or not known."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Lacks(StrEnum):
    """What there is no recipe for, or what a recipe lacks. Beside each: what `NotAudited.of` holds."""

    # recorded
    STORED = "stored"  # why the recorder left it out
    INPUT = "input"
    SITE = "site"  # the site that it is computed from
    TOKENS = "tokens"  # of a table
    KIND = "kind"  # of operation
    SAME_POSITIONS = "same_positions"
    CACHED = "cached"  # without a cache, earlier positions are computed again
    FINITE = "finite"

    # of the model
    FAMILY = "family"  # no `model_type`
    RECIPE_OF_FAMILY = "recipe_of_family"  # `model_type`
    RECIPE_OF_SETTING = "recipe_of_setting"  # name, `model_type`
    RECIPE_OF_EXPERTS = "recipe_of_experts"
    RECIPE_OF_INPUT = "recipe_of_input"
    RECIPE_OF_CLASS = "recipe_of_class"  # class
    RECIPE_OF_PART = "recipe_of_part"  # a parameter or module that a layer has besides the known ones
    RECIPE_OF_CACHE = "recipe_of_cache"  # format
    TIED_HEAD = "tied_head"  # `model_type`, whose program may or may not tie its head as `config.json` says
    MEASURED_CLASS = "measured_class"  # class
    FITTING_OPERATION = "fitting_operation"  # class

    # of the checkpoint
    PARAMETER = "parameter"
    SHAPE = "shape"
    SETTING = "setting"  # name
    EPS = "eps"
    DECLARED_EPS = "declared_eps"  # the program's, a declared one
    HEADS = "heads"
    KNOWN_ACTIVATION = "known_activation"
    KNOWN_ATTENTION = "known_attention"
    ROWS = "rows"  # positions, rows of the table

    # of a reference program
    MODULE = "module"
    OWN_SHAPE = "own_shape"  # the reference's
    OWN_INPUTS = "own_inputs"  # tensors that the reference's module is called with


@dataclass(frozen=True)
class NotAudited:
    """Why a site is not recomputed."""

    lacks: Lacks
    of: tuple[str, ...] = ()

    @property
    def reference_knows(self) -> bool:
        """Whether what is missing is a recipe: a reference program judges the site without one."""
        return self.lacks in _WITHOUT_RECIPE


_WITHOUT_RECIPE = frozenset(
    {
        Lacks.RECIPE_OF_FAMILY,
        Lacks.RECIPE_OF_SETTING,
        Lacks.RECIPE_OF_EXPERTS,
        Lacks.RECIPE_OF_INPUT,
        Lacks.RECIPE_OF_CLASS,
        Lacks.RECIPE_OF_PART,
        Lacks.TIED_HEAD,
        Lacks.MEASURED_CLASS,
        Lacks.FITTING_OPERATION,
        Lacks.DECLARED_EPS,
    }
)
