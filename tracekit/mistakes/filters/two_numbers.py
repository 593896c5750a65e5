"""Two settings that have other numbers: a temperature, which the ratios of probabilities show whatever is cut, and the
number of a cut after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tracekit.sampling.processor import FilterMistake, Rank, Stated, Steps, Variant
from tracekit.sampling.processors import BY_SETTING


def _numbers(setting: str) -> Iterator[FilterMistake]:
    return (mistake for mistake in BY_SETTING[setting].mistakes if mistake.rank is Rank.NUMBER)


def _both(setting: str) -> Callable[[Stated, Steps | None], Iterator[Variant]]:
    def variants(stated: Stated, steps: Steps | None) -> Iterator[Variant]:
        for first in (found for mistake in _numbers("temperature") for found in mistake.variants(stated, steps)):
            temperature = first.values["found"]
            tempered = stated.changed(temperature=temperature)
            for second in (found for mistake in _numbers(setting) for found in mistake.variants(tempered, steps)):
                said = {"temperature": temperature, "stated_temperature": first.values["stated"], **second.values}
                yield Variant(second.chain, said | {"used": (temperature, second.values["found"])})

    return variants


MISTAKES = tuple(
    FilterMistake(
        f"temperature_and_{setting}",
        "temperature {temperature:g} instead of {stated_temperature}, and "
        f"{setting} {{found:g}} instead of {{stated}}",
        _both(setting),
        "used",
        ("temperature", setting),
        Rank.TWO_NUMBERS,
    )
    for setting in ("top_p", "top_k")
)
