"""`config`: stated settings differ, and act where the divergence begins. Overrules what they bring about."""

from __future__ import annotations

from dataclasses import replace

from tracekit.compare.findings import DrawDiffers, DrawField, Finding, Stage
from tracekit.compare.settings import FILTER_SETTINGS, STOP_SETTINGS
from tracekit.inspection.settings import EPS_SETTINGS
from tracekit.mistakes import stops
from tracekit.mistakes.filters import AS_STATED
from tracekit.mistakes.sites import gates, mask, norms, rotary, scores
from tracekit.sampling.chain import REPETITION_SETTINGS
from tracekit.verdict.cause import Cause
from tracekit.verdict.evidence import SettingDiffers
from tracekit.verdict.outcome import Agreement
from tracekit.verdict.rule import Case, CauseRule, Grouping, Luck, ReproNeeds
from tracekit.verdict.ruling import Ruling

EXPLAINED_BY = {
    "model.rope_theta": (rotary.THETA.id,),
    "model.rope_scaling": (
        *(rotary.SCALING_LEFT_OUT.id, rotary.DIVIDED.id, rotary.THETA.id),
        *(rotary.FACTOR_LEFT_OUT.id, rotary.FACTOR.id, rotary.OTHER_DIVISORS.id),
    ),
    **dict.fromkeys((f"model.{name}" for name in EPS_SETTINGS), (norms.EPS.id,)),
    "model.hidden_act": (gates.ACTIVATION.id,),
    "model.num_key_value_heads": (scores.HEAD_MAP.id,),
    "model.sliding_window": (mask.WINDOW.id, mask.WINDOW_IGNORED.id),
    **dict.fromkeys(FILTER_SETTINGS, (AS_STATED.id,)),
    **dict.fromkeys(("eos_token_id", "model.eos_token_id"), (stops.LIST.id,)),
    **dict.fromkeys(("max_new_tokens", "min_new_tokens", "max_length", "min_length"), (stops.LENGTH.id,)),
}
"""Settings, and the ids of the mistakes that they are the cause of."""
EXPLAINABLE = (Stage.SITE, Stage.LOGITS, Stage.SURVIVORS, Stage.STOP)
"""Where an explanation by another mistake clears a setting."""


def _holds(case: Case, ruling: Ruling | None) -> Ruling | None:
    first = case.first
    if ruling is None or first is None or ruling.cause == Cause.WEIGHTS:
        return None
    blamed = [difference for difference in case.differences if _acts(difference.name, first)]
    if ruling.explanation is not None and first.stage in EXPLAINABLE:
        mistake = ruling.explanation.mistake.id
        blamed = [difference for difference in blamed if mistake in EXPLAINED_BY.get(difference.name, ())]
    if not blamed:
        return None
    stated = tuple(SettingDiffers(item.name, item.reference, item.candidate) for item in blamed)
    return replace(ruling, cause=Cause.CONFIG, evidence=stated + ruling.evidence)


def _acts(name: str, first: Finding) -> bool:
    """Whether a setting acts at the stage of the computation at which the sides diverge."""
    if first.stage in (Stage.SITE, Stage.LOGITS):
        return name.startswith("model.") and not name.endswith("eos_token_id")
    if first.stage is Stage.SURVIVORS:
        return name in FILTER_SETTINGS
    if isinstance(first, DrawDiffers):
        return _acts_on_draws(name, first)
    if first.stage is Stage.TOKEN:
        return name in ("do_sample", "dtype", *REPETITION_SETTINGS)
    return first.stage is Stage.STOP and (name in STOP_SETTINGS or name == "model.eos_token_id")


def _acts_on_draws(name: str, first: DrawDiffers) -> bool:
    """Whether a setting decides what is drawn: from which seed, or, of CosyVoice's sampler, how often."""
    if first.field is DrawField.SEED:
        return name in ("do_sample", "seed")
    return name in ("do_sample", *REPETITION_SETTINGS, "min_len", "stop_token_ids")


RULE = CauseRule(
    Cause.CONFIG,
    order=90,
    holds=_holds,
    headline="Settings differ, and act where the runs part",
    grouping=Grouping(Luck.AGREE, Agreement.SETTINGS, proven_by_tokens=True, stands_alone=True),
    repro=ReproNeeds(why_none="the two sides were run with other settings; run them with the same ones"),
)
