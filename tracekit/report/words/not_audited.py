"""Why sites are not recomputed."""

from __future__ import annotations

from tracekit.auditing.not_audited import Lacks, NotAudited
from tracekit.report.words import words

WORDS = {
    Lacks.STORED: "not recorded: {}",
    Lacks.INPUT: "its input is not recorded",
    Lacks.SITE: "{} is not recorded",
    Lacks.TOKENS: "what it looks up is not recorded",
    Lacks.KIND: "what a module of the kind {} computes is not recorded",
    Lacks.SAME_POSITIONS: "its inputs are not recorded at the same positions",
    Lacks.CACHED: "without a cache, what it read of earlier positions was computed again and is not recorded",
    Lacks.FINITE: "its inputs are not finite",
    Lacks.FAMILY: "no config.json says of which family the model is",
    Lacks.RECIPE_OF_FAMILY: "the operations between the modules of a {} are not known",
    Lacks.RECIPE_OF_SETTING: "config.json declares {}, which no recipe of a {} reads",
    Lacks.RECIPE_OF_EXPERTS: "what experts and their router compute is not recomputed",
    Lacks.RECIPE_OF_INPUT: "no recipe covers this input of a module",
    Lacks.RECIPE_OF_CLASS: "no recipe covers this {}",
    Lacks.RECIPE_OF_PART: "the layer has {}, which no recipe covers",
    Lacks.RECIPE_OF_CACHE: "the cache holds {}, which no recipe covers",
    Lacks.MEASURED_CLASS: "what the class {} computes is known from a reference only, and none was recorded here",
    Lacks.FITTING_OPERATION: "what the class {} computes is no linear layer and no norm that is known",
    Lacks.TIED_HEAD: "config.json ties the head, the checkpoint has one of its own, and which a {} takes is not known",
    Lacks.PARAMETER: "the checkpoint has no parameter of that name",
    Lacks.SHAPE: "its shape is not that of the checkpoint's parameter",
    Lacks.SETTING: "the checkpoint does not declare {}",
    Lacks.EPS: "its eps is not stated",
    Lacks.DECLARED_EPS: "the program has the eps {}, config.json declares {}, and which is right a reference says",
    Lacks.HEADS: "the checkpoint does not declare the heads of attention",
    Lacks.KNOWN_ACTIVATION: "config.json declares an activation that is not known",
    Lacks.KNOWN_ATTENTION: "the checkpoint declares a rotary embedding or a window that is not known",
    Lacks.ROWS: "the run has {} positions, the table {} rows",
    Lacks.MODULE: "the reference has no module of that name that runs",
    Lacks.OWN_SHAPE: "the reference gives {} there",
    Lacks.OWN_INPUTS: "the reference calls this module with another number of tensors: {}",
}


@words(NotAudited)
def _not_audited(why: NotAudited) -> str:
    return WORDS[why.lacks].format(*why.of)
