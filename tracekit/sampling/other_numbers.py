"""The mistake that a setting has another number than is stated; the number is read off the recorded survivors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tracekit.sampling.exercise import Value
from tracekit.sampling.observed import Observed
from tracekit.sampling.processor import FilterMistake, Rank, Stated, Steps, Variant, run
from tracekit.sampling.scores import GONE, Floats, softmax

Interval = tuple[float, float]


def another(setting: str, numbers: Callable[[Stated, Steps], Iterator[float]]) -> FilterMistake:
    """The mistake where the survivors leave some numbers to try."""

    def variants(stated: Stated, steps: Steps | None) -> Iterator[Variant]:
        for found in [] if steps is None else numbers(stated, steps):
            yield _other_number(stated, setting, found)

    words = f"{setting} {{found:g}} instead of {{stated}}"
    return FilterMistake(setting, words, variants, "found", (setting,), rank=Rank.NUMBER)


def within(setting: str, interval: Callable[[Stated, Steps], Interval | None]) -> FilterMistake:
    """The mistake where the survivors leave an interval, of which the number with the fewest decimals is named."""

    def variants(stated: Stated, steps: Steps | None) -> Iterator[Variant]:
        bounds = None if steps is None else interval(stated, steps)
        if bounds is not None:
            yield _other_number(stated, setting, simplest(*bounds), low=bounds[0], high=bounds[1])

    words = f"{setting} {{found:g}} instead of {{stated}}; the survivors allow {{low:.6g}} to {{high:.6g}}"
    return FilterMistake(setting, words, variants, "found", (setting,), rank=Rank.NUMBER)


def _other_number(stated: Stated, setting: str, found: Any, **more: Value) -> Variant:
    said = stated.settings.get(setting)
    values = {"found": found, "stated": "none" if said is None else said, **more}
    return Variant(stated.changed(**{setting: found}).chain, values)


def simplest(low: float, high: float) -> float:
    """The number with the fewest decimals in (low, high]."""
    for digits in range(12):
        step = 10.0**-digits
        number = round(np.floor(high / step + 1e-9) * step, digits)
        if low < number <= high * (1 + 1e-12):
            return float(number)
    return float(high)


# -------------------------------------------------------------------- what survivors say of a cut


def mass_interval(
    place: int, stated: Stated, steps: Steps, ended: Callable[[Observed], bool] = lambda seen: False
) -> Interval | None:
    """The masses p of which the smallest set of mass p or more is what survived, at every step, (low, high].

    `place`: the filter's in the order of the chain. `ended`: steps whose survivors another rule may have ended.
    """
    before = stated.before(place)
    low, high = 0.0, 1.0
    for seen in steps.all:
        if seen.logits is None or seen.ids is None:
            continue
        values = run(before, seen.logits, seen.context)
        last = seen.ids[np.argmin(values[seen.ids])]
        probs, least = softmax(values), values[last]
        # Of equal scores, as many as survived.
        above, each = float(probs[values > least].sum()), float(probs[last])
        kept = int((values[seen.ids] == least).sum())
        low = max(low, above + (kept - 1) * each)
        high = high if ended(seen) else min(high, above + kept * each)
    return (low, high) if low < high < 1.0 else None


def last_in_and_first_out(values: Floats, seen: Observed) -> tuple[int, int | None]:
    """The survivor of the smallest score, and the best of the other tokens that were still alive."""
    if seen.ids is None:
        raise ValueError("a step without survivors")
    kept = np.zeros(values.size, dtype=bool)
    kept[seen.ids] = True
    last = int(seen.ids[np.argmin(values[seen.ids])])
    rest = np.where(kept, GONE, values)
    following = int(np.argmax(rest))
    return last, following if rest[following] > GONE else None


def counts(steps: Steps, usual: tuple[int, ...]) -> Iterator[float]:
    """Numbers of tokens that a filter by count may have kept: the most that survived anywhere, and the usual ones from
    there on. `usual` are those that programs have as defaults."""
    if steps.first.ids is None:
        return
    most = max(int(seen.ids.size) for seen in [steps.first, *steps.all] if seen.ids is not None)
    yield from sorted({most, int(steps.first.ids.size), *(k for k in usual if k >= most)})
