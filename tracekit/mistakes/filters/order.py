"""Processors in another order than transformers', and what a cut leaves for the next one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.sampling.observed import Context
from tracekit.sampling.processor import Applied, FilterMistake, Processor, Rank, Stated, Steps, Variant, function
from tracekit.sampling.processors import BY_SETTING, GENERATE
from tracekit.sampling.scores import GONE, SMALLEST, Floats, softmax

CUTS = tuple(each for each in GENERATE if each.cut is not None)
TEMPERATURE, TOP_K, TOP_P = (BY_SETTING[name] for name in ("temperature", "top_k", "top_p"))
MEASURES = ("top_p", "min_p", "top_k")
"""Of several cuts, the one after which a late temperature is told: the one that it changes most."""


def _ordered(stated: Stated, *kinds: Processor) -> tuple[Applied, ...]:
    """The chain with these processors at its end, in this order."""
    rank = {kind.name: index for index, kind in enumerate(kinds)}
    moved = sorted((each for each in stated.chain if each.name in rank), key=lambda each: rank[each.name])
    return (*(each for each in stated.chain if each.name not in rank), *moved)


def _cuts(stated: Stated) -> list[Processor]:
    return [each.kind for each in stated.chain if each.kind in CUTS]


def _late_temperature(setting: str) -> FilterMistake:
    def variants(stated: Stated, steps: Steps | None) -> Iterator[Variant]:
        cuts = _cuts(stated)
        told = next((name for name in (*MEASURES, *(cut.setting for cut in cuts)) if BY_SETTING[name] in cuts), None)
        if told == setting and stated.has(TEMPERATURE.name):
            values = {"temperature": stated.settings["temperature"]}
            yield Variant(_ordered(stated, *cuts, TEMPERATURE), values)

    words = "temperature {temperature} is applied after the cuts, which see the distribution without it"
    about = ("temperature", setting)
    return FilterMistake(f"temperature_after_{setting}", words, variants, "temperature", about, Rank.ORDER)


def _top_p_first(stated: Stated, steps: Steps | None) -> Iterator[Variant]:
    if stated.has(TOP_K.name) and stated.has(TOP_P.name):
        yield Variant(_ordered(stated, TOP_P, TOP_K), {"top_p": stated.settings["top_p"]})


def _zeros(stated: Stated, steps: Steps | None) -> Iterator[Variant]:
    cuts = [index for index, each in enumerate(stated.chain) if each.kind in CUTS]
    if not cuts:
        return
    last = stated.chain[cuts[-1]]

    def zero(values: Floats, context: Context) -> Floats:
        out = last.apply(values, context)
        return np.where(out == GONE, 0.0, out)

    yield Variant(stated.replaced(last.name, zero), {"score": 0.0})


def _not_brought_to_one(stated: Stated, steps: Steps | None) -> Iterator[Variant]:
    """Removed tokens have probability 0 before top-p, and the others keep theirs."""
    at = next((index for index, each in enumerate(stated.chain) if each.kind is TOP_P), None)
    if at is None or all(each.kind in CUTS or each.kind is TEMPERATURE for each in stated.chain[:at]):
        return
    p = float(stated.settings["top_p"])

    def apply(values: Floats, context: Context) -> Floats:
        whole = values  # with what only a removal took away
        for each in stated.chain[:at]:
            before, values = values, each.apply(values, context)
            alive, gone = values > GONE, (values == GONE) & (before > GONE)
            if each.kind in CUTS:
                whole = np.where(gone, GONE, whole)
            elif not np.array_equal(before[alive], values[alive]):
                whole = each.apply(whole, context)
        mass = float(softmax(whole)[values > GONE].sum())
        found = p / max(mass, SMALLEST)
        return TOP_P.of(found, stated.settings).apply(values, context) if found < 1.0 else values

    yield Variant((function(apply), *stated.chain[at + 1 :]), {"top_p": p})


MISTAKES = (
    *(_late_temperature(cut.setting) for cut in CUTS),
    FilterMistake(
        "top_p_before_top_k",
        "top-p {top_p} measures the mass of all tokens, not of those that top-k left",
        _top_p_first,
        "top_p",
        ("top_p", "top_k"),
        Rank.ORDER,
    ),
    FilterMistake(
        "removed_mass_counts",
        "top-p {top_p} measures probabilities of which removed tokens' were set to 0 and the others kept as they were",
        _not_brought_to_one,
        "top_p",
        ("top_p",),
        Rank.ORDER,
    ),
    FilterMistake(
        "removed_scores_zero",
        "removed tokens get the score {score:g} instead of minus infinity",
        _zeros,
        "score",
        rank=Rank.ORDER,
    ),
)
