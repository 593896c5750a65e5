"""Settings that are stated and do not arrive where they act, or arrive in each other's place."""

from __future__ import annotations

from collections.abc import Iterator

from tracekit.sampling.exercise import Value
from tracekit.sampling.observed import Context
from tracekit.sampling.processor import Applied, FilterMistake, Processor, Rank, Stated, Steps, Variant
from tracekit.sampling.processors import GENERATE
from tracekit.sampling.scores import Floats


def _number(stated: Stated, setting: str) -> Value:
    number = stated.settings[setting]
    return tuple(number) if isinstance(number, list) else number


def _ignored(processor: Processor) -> FilterMistake:
    def variants(stated: Stated, steps: Steps | None) -> Iterator[Variant]:
        if stated.has(processor.name):
            rest = tuple(each for each in stated.chain if each.kind is not processor)
            yield Variant(rest, {"stated": _number(stated, processor.setting)})

    words = f"{processor.setting} {{stated}} is not applied"
    return FilterMistake(f"{processor.setting}_ignored", words, variants, "stated", (processor.setting,), Rank.LOST)


def _late(processor: Processor) -> FilterMistake:
    def variants(stated: Stated, steps: Steps | None) -> Iterator[Variant]:
        if stated.has(processor.name):
            chain = tuple(_from_second(each) if each.kind is processor else each for each in stated.chain)
            yield Variant(chain, {"stated": _number(stated, processor.setting)})

    words = f"{processor.setting} {{stated}} is not applied at the first step"
    identity = f"{processor.setting}_ignored_at_first_step"
    return FilterMistake(identity, words, variants, "stated", (processor.setting,), Rank.LOST)


def _from_second(each: Applied) -> Applied:
    def apply(values: Floats, context: Context) -> Floats:
        return each.apply(values, context) if context.generated else values

    return Applied(each.kind, each.settings, apply)


def _swapped(stated: Stated, steps: Steps | None) -> Iterator[Variant]:
    temperature, p = stated.settings.get("temperature"), stated.settings.get("top_p")
    if all(stated.has(name) for name in ("TemperatureLogitsWarper", "TopPLogitsWarper")):
        chain = stated.changed(temperature=p, top_p=temperature).chain
        yield Variant(chain, {"used": (p, temperature), "temperature": p, "top_p": temperature})


MISTAKES = (
    *(make(processor) for processor in GENERATE for make in (_ignored, _late)),
    FilterMistake(
        "temperature_and_top_p_swapped",
        "temperature and top-p are swapped: temperature {temperature}, top_p {top_p}",
        _swapped,
        "used",
        ("temperature", "top_p"),
        Rank.LOST,
    ),
)
