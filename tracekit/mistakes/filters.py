"""Which filter left these survivors? The stated chain of processors with one thing changed, tried on recorded steps.

Every rule here is a mistake that real ports made. A rule is named only if it leaves exactly the recorded survivors,
with their probabilities, at all steps that were recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.sampling import chain as sampling
from tracekit.sampling.chain import (
    GONE,
    MIN_P,
    NEW_LENGTH,
    NUCLEUS,
    PENALTY,
    RAS,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    Apply,
    Context,
    Processor,
)
from tracekit.sampling.fit import SMALLEST, TOLERANCE, misfit
from tracekit.sampling.replay import Observed
from tracekit.trace import Json

Floats = NDArray[Any]
SPOKEN = {
    "repetition_penalty": "repetition penalty",
    "temperature": "temperature",
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
    "typical_p": "typical-p",
    "no_repeat_ngram_size": "no-repeat n-gram",
    "min_new_tokens": "minimum of new tokens",
}


@dataclass(frozen=True)
class Rule:
    """A chain of processors that may have run in place of the stated one."""

    kind: str
    value: Any
    chain: tuple[Processor, ...]
    text: str

    def explanation(self, residual: float) -> Json:
        """As a verdict holds it; `residual` in nats of probability."""
        return {"kind": self.kind, "value": self.value, "residual": round(residual, 9), "text": self.text}


@dataclass(frozen=True)
class Search:
    """What was found: the rule, its largest misfit in nats, on how many steps; and what fits as well."""

    rule: Rule
    residual: float
    steps: int
    also: tuple[str, ...]

    def explanation(self) -> Json:
        """As a verdict holds it."""
        more: Json = {"steps": self.steps} | ({"also": list(self.also)} if self.also else {})
        return self.rule.explanation(self.residual) | more


def explain(stated: Json, steps: Sequence[Observed], first: Observed) -> Search | None:
    """The rule that left the recorded survivors of `first` and of all `steps`; None where none of them did."""
    usable = [seen for seen in steps if seen.logits is not None and seen.ids is not None]
    if first.logits is None or first.ids is None:
        return None
    found = _fitting(rules(stated), usable, first)
    found += _fitting((rule for rule in fitted(stated, usable, first) if not _named(rule, found)), usable, first)
    if not found:
        return None
    rule, residual = found[0]
    kinds = dict.fromkeys(other.text for other, _ in found[1:] if other.kind != rule.kind)
    return Search(rule, residual, len(usable), tuple(kinds))


def _named(rule: Rule, found: list[tuple[Rule, float]]) -> bool:
    """Whether a fitted number only says again what a rule without one has said."""
    words = rule.kind.removeprefix("repetition ")
    return any(words in other.kind for other, _ in found) or (bool(found) and " and " in rule.kind)


def _fitting(among: Iterable[Rule], usable: list[Observed], first: Observed) -> list[tuple[Rule, float]]:
    """The rules that left the survivors of all steps, with their largest misfit."""
    found = []
    for rule in among:
        if misfit(rule.chain, first) > TOLERANCE:
            continue
        residual = 0.0
        for seen in usable:
            residual = max(residual, misfit(rule.chain, seen))
            if residual > TOLERANCE:
                break
        else:
            found.append((rule, residual))
    return found


# -------------------------------------------------------------------- the stated chain with one thing changed


def rules(stated: Json) -> Iterator[Rule]:
    """Mistakes without a number of their own."""
    base = sampling.chain(stated)
    stops = stated.get("eos_token_id") or []
    stops = [int(token) for token in stops] if isinstance(stops, list) else [int(stops)]
    yield from _settings_lost(stated, base)
    yield from _top_p_rules(stated, base)
    yield from _top_k_rules(stated, base)
    yield from _order_rules(stated, base)
    if _has(base, MIN_P):
        share = float(stated["min_p"])
        text = "min-p measured as a share of the largest logit, not of the largest probability"
        yield Rule("min-p on logits", share, _replaced(base, MIN_P, _min_p_of_logits(share)), text)
    yield from _penalty_rules(stated, base)
    yield from _stop_rules(stated, base, stops)
    yield from _nucleus_rules(stated, base)


def _has(base: Sequence[Processor], name: str) -> bool:
    return any(each.name == name for each in base)


def _replaced(base: Sequence[Processor], name: str, apply: Apply) -> tuple[Processor, ...]:
    return tuple(Processor(each.name, each.settings, apply) if each.name == name else each for each in base)


def _settings_lost(stated: Json, base: list[Processor]) -> Iterator[Rule]:
    for kind in sampling.KINDS:
        if not _has(base, kind.name):
            continue
        number, spoken = stated[kind.setting], SPOKEN.get(kind.setting, kind.setting)
        rest = tuple(each for each in base if each.name != kind.name)
        yield Rule(f"{spoken} ignored", number, rest, f"{kind.setting} {number} is stated and not applied")
        late = tuple(_from_second(each) if each.name == kind.name else each for each in base)
        text = f"{kind.setting} {number} is not applied at the first step"
        yield Rule(f"{spoken} ignored at the first step", number, late, text)
    if _has(base, TEMPERATURE) and _has(base, TOP_P):
        swapped = stated | {"temperature": stated["top_p"], "top_p": stated["temperature"]}
        values = [swapped["temperature"], swapped["top_p"]]
        text = f"temperature and top-p are swapped: temperature {values[0]}, top_p {values[1]}"
        yield Rule("temperature and top-p swapped", values, tuple(sampling.chain(swapped)), text)


def _from_second(each: Processor) -> Processor:
    def apply(values: Floats, context: Context) -> Floats:
        return each.apply(values, context) if context.generated else values

    return Processor(each.name, each.settings, apply)


def _top_p_rules(stated: Json, base: list[Processor]) -> Iterator[Rule]:
    if not _has(base, TOP_P):
        return
    p = float(stated["top_p"])

    def drops(values: Floats, context: Context) -> Floats:
        above, probs = sampling.mass_above(values), sampling.softmax(values)
        return np.where((above + probs <= p) | (above == 0.0), values, GONE)

    def one_more(values: Floats, context: Context) -> Floats:
        kept = sampling.keep_top_p(values, p)
        rest = np.where(kept > GONE, GONE, values)
        if rest.max() > GONE:
            following = int(np.argmax(rest))
            kept[following] = values[following]
        return kept

    text = f"top-p {p} drops the token that crosses p; the smallest set of mass p or more keeps it"
    yield Rule("top-p drops the token that crosses p", p, _replaced(base, TOP_P, drops), text)
    text = f"top-p {p} keeps one token more than the one that crosses p"
    yield Rule("top-p keeps one token too many", p, _replaced(base, TOP_P, one_more), text)


def _top_k_rules(stated: Json, base: list[Processor]) -> Iterator[Rule]:
    if not _has(base, TOP_K):
        return
    k = int(stated["top_k"])

    def strict(values: Floats, context: Context) -> Floats:
        return np.where((values <= sampling.kth_largest(values, k)) & (values < values.max()), GONE, values)

    def exactly(values: Floats, context: Context) -> Floats:
        order = np.argsort(-values, kind="stable")
        return sampling.without(values, order[k:].tolist())

    text = f"top-k keeps {k + 1} where {k} are stated: > for >="
    more = _replaced(base, TOP_K, lambda values, context: sampling.keep_top_k(values, k + 1))
    yield Rule("top-k keeps k + 1", k + 1, more, text)
    text = f"top-k {k} drops the k-th token and what ties with it: <= for <"
    yield Rule("top-k drops the k-th", k, _replaced(base, TOP_K, strict), text)
    text = f"top-k keeps exactly {k}, by id, where several tie with the k-th"
    yield Rule("top-k without ties", k, _replaced(base, TOP_K, exactly), text)


def _order_rules(stated: Json, base: list[Processor]) -> Iterator[Rule]:
    def ordered(*names: str) -> tuple[Processor, ...]:
        rank = {name: index for index, name in enumerate(names)}
        moved = sorted((each for each in base if each.name in rank), key=lambda each: rank[each.name])
        return (*(each for each in base if each.name not in rank), *moved)

    cuts = [each.name for each in base if each.name in (TOP_K, TOP_P, MIN_P)]
    if _has(base, TEMPERATURE) and cuts:
        temperature = stated["temperature"]
        spoken = "top-p" if TOP_P in cuts else "min-p" if MIN_P in cuts else "top-k"
        text = f"temperature {temperature} divides after the cuts, which measure the untempered distribution"
        yield Rule(f"temperature after {spoken}", temperature, ordered(*cuts, TEMPERATURE), text)
    if TOP_K in cuts and TOP_P in cuts:
        text = "top-p measures the mass of all tokens, not of those that top-k left"
        yield Rule("top-p before top-k", stated["top_p"], ordered(TOP_P, TOP_K), text)
    if cuts:
        last = base[max(index for index, each in enumerate(base) if each.name in cuts)]

        def zero(values: Floats, context: Context) -> Floats:
            out = last.apply(values, context)
            return np.where(out == GONE, 0.0, out)

        chain = tuple(Processor(each.name, each.settings, zero) if each is last else each for each in base)
        yield Rule("removed tokens get 0", 0.0, chain, "removed tokens get the score 0 in place of minus infinity")


def _min_p_of_logits(share: float) -> Apply:
    return lambda values, context: np.where((values < share * values.max()) & (values < values.max()), GONE, values)


def _penalty_rules(stated: Json, base: list[Processor]) -> Iterator[Rule]:
    if not _has(base, PENALTY):
        return
    penalty = float(stated["repetition_penalty"])

    def changed(kind: str, value: Any, apply: Apply, text: str) -> Rule:
        return Rule(kind, value, _replaced(base, PENALTY, apply), f"repetition penalty {penalty} {text}")

    def of(history: Callable[[Context], Sequence[int]]) -> Apply:
        return lambda values, context: sampling.penalised(values, penalty, history(context))

    def to_seen(change: Callable[[Floats], Floats]) -> Apply:
        def apply(values: Floats, context: Context) -> Floats:
            out, seen = values.copy(), sampling.seen_tokens(context.history, values.size)
            out[seen] = change(out[seen])
            return out

        return apply

    def each_time(values: Floats, context: Context) -> Floats:
        out, (seen, counts) = values.copy(), np.unique(np.asarray(context.history, np.int64), return_counts=True)
        power = (penalty ** counts.astype(np.float64)).astype(values.dtype)
        out[seen] = np.where(out[seen] < 0, out[seen] * power, out[seen] / power)
        return out

    twice: Apply = lambda values, context: sampling.penalised(values, penalty**2, context.history)  # noqa: E731
    yield changed("penalty squared", penalty**2, twice, f"is applied twice, as {penalty**2:.6g}")
    yield changed("penalty divides negative logits", penalty, to_seen(lambda x: x / penalty), "divides negatives too")
    inverted = to_seen(lambda x: np.where(x < 0, x / penalty, x * penalty))
    yield changed("penalty inverted", 1 / penalty, inverted, "raises seen tokens in place of lowering them")
    generated = of(lambda context: context.generated)
    yield changed("penalty of generated tokens only", penalty, generated, "does not count the prompt")
    prompt = of(lambda context: context.history[: context.prompt])
    yield changed("penalty of the prompt only", penalty, prompt, "counts the prompt alone")
    stale = of(lambda context: context.history[: max(context.prompt, len(context.history) - 1)])
    yield changed("penalty stale by one token", 1, stale, "does not see the newest token")
    yield changed("penalty for each occurrence", penalty, each_time, "is applied once for each time a token was seen")
    for window in range(1, 65):
        last = of(lambda context, window=window: context.history[-window:])  # type: ignore[misc]
        yield changed("penalty window", window, last, f"counts the last {window} tokens alone")


def _stop_rules(stated: Json, base: list[Processor], stops: list[int]) -> Iterator[Rule]:
    cuts = [index for index, each in enumerate(base) if each.name in (TOP_K, TOP_P, MIN_P)]
    if stops and cuts:
        first = cuts[0]

        def escapes(values: Floats, context: Context) -> Floats:
            before = sampling.run(base[:first], values, context)
            after = sampling.run(base[first:], before, context)
            ids = sampling.seen_tokens(stops, values.size)
            after[ids] = before[ids]
            return after

        def untouched(values: Floats, context: Context) -> Floats:
            after, ids = sampling.run(base, values, context), sampling.seen_tokens(stops, values.size)
            after[ids] = values[ids]
            return after

        whole, raw = Processor("chain", {}, escapes), Processor("chain", {}, untouched)
        text = f"stop tokens {stops} are never removed"
        yield Rule("stop tokens escape the filter", stops, (whole,), text)
        yield Rule("stop tokens escape the filter", stops, (raw,), f"{text} and keep the logits that the model gave")
    number = stated.get("min_new_tokens")
    if _has(base, NEW_LENGTH) and number:
        one = _replaced(base, NEW_LENGTH, sampling._bar_until(int(number), stops[:1], new=True))
        text = f"below {number} new tokens only the first stop token, {stops[0]}, is barred"
        yield Rule("minimum length bars one stop token", stops[0], one, text)
        counted = _replaced(base, NEW_LENGTH, sampling._bar_until(int(number), stops, new=False))
        yield Rule("minimum length counts the prompt", number, counted, f"the prompt counts towards {number} tokens")
    for bound in (*range(1, 33), 48, 64, 128, 10**9) if stops and not number else ():
        barred = sampling.of_setting("min_new_tokens", bound, stated)
        text = f"stop tokens {stops} are barred " + (f"below {bound} new tokens" if bound < 10**9 else "throughout")
        yield Rule("stop tokens barred", None if bound == 10**9 else bound, (barred, *base), text)


STOPS_MASKED = "stop tokens masked"
"""Kind of the rule that early stop tokens are removed, where CosyVoice draws again."""


def _nucleus_rules(stated: Json, base: list[Processor]) -> Iterator[Rule]:
    """Mistakes in CosyVoice's sampler."""
    if not _has(base, NUCLEUS):
        return
    p, k = float(stated["top_p"]), int(stated["top_k"])
    stops, early = stated.get("stop_token_ids") or [], int(stated.get("min_len") or 0)
    if stops and early:
        barred = sampling.of_setting("min_new_tokens", early, {"eos_token_id": stops})
        text = f"stop tokens are removed before step {early} (min_len), where they are to be drawn again"
        yield Rule(STOPS_MASKED, early, (barred, *base), text)

    def drops(values: Floats, context: Context) -> Floats:
        above, probs = sampling.mass_above(values), sampling.softmax(values)
        kept = np.where((above + probs <= p) | (above == 0.0), values, GONE)
        return sampling.nucleus(kept, 1.0, k)

    text = f"top_p {p} drops the token that crosses it; the nucleus keeps it"
    yield Rule("nucleus drops the token that crosses p", p, _replaced(base, NUCLEUS, drops), text)


# -------------------------------------------------------------------- mistakes whose number is fitted


def fitted(stated: Json, steps: Sequence[Observed], first: Observed) -> Iterator[Rule]:
    """Another number than the stated one, read off the survivors."""
    temperature = _fit_temperature(stated, [first, *steps])
    if temperature is not None:
        yield _other(stated, "temperature", temperature)
    yield from _other_top_p(stated, steps)
    yield from _other_top_k(stated, steps, first)
    penalty = _fit_penalty(stated, [first, *steps])
    if penalty is not None:
        yield _other(stated, "repetition_penalty", penalty)
    yield from _other_min_p(stated, steps)
    yield from _suppressed(stated, first)
    if temperature is not None:
        tempered = stated | {"temperature": temperature}
        for rule in [*_other_top_p(tempered, steps), *_other_top_k(tempered, steps, first)]:
            text = f"temperature {temperature:g} in place of {stated.get('temperature', 1.0)}, and {rule.text}"
            yield Rule(f"temperature and {rule.kind}", [temperature, rule.value], rule.chain, text)


def _other(stated: Json, setting: str, number: Any, interval: tuple[float, float] | None = None) -> Rule:
    said = stated.get(setting)
    within = f", from the survivors between {interval[0]:.6g} and {interval[1]:.6g}" if interval else ""
    text = f"{setting} {number:g} in place of {'none' if said is None else said}{within}"
    chain = tuple(sampling.chain(stated | {setting: number}))
    return Rule(SPOKEN[setting], number, chain, text)


def _before(base: Sequence[Processor], name: str) -> list[Processor]:
    """The processors in front of one, whether it is in the chain or not."""
    order = [kind.name for kind in sampling.KINDS]
    return [each for each in base if each.name in order and order.index(each.name) < order.index(name)]


def _last_in_and_first_out(values: Floats, seen: Observed) -> tuple[int, int | None]:
    """The least of the survivors, and the best of the others that were still alive."""
    if seen.ids is None:
        raise ValueError("a step without survivors")
    kept = np.zeros(values.size, dtype=bool)
    kept[seen.ids] = True
    last = int(seen.ids[np.argmin(values[seen.ids])])
    rest = np.where(kept, GONE, values)
    following = int(np.argmax(rest))
    return last, following if rest[following] > GONE else None


def _mass_at_the_cut(values: Floats, seen: Observed) -> tuple[float, float]:
    """Mass of the survivors without and with the least of them; of equal scores, as many as survived."""
    if seen.ids is None:
        raise ValueError("a step without survivors")
    probs, least = sampling.softmax(values), values[seen.ids].min()
    above, each = float(probs[values > least].sum()), float(probs[values == least].max())
    kept = int((values[seen.ids] == least).sum())
    return above + (kept - 1) * each, above + kept * each


def _other_top_p(stated: Json, steps: Sequence[Observed]) -> Iterator[Rule]:
    if not stated.get("do_sample", True):
        return
    before = _before(sampling.chain(stated), TOP_P)
    low, high = 0.0, 1.0
    for seen in steps:
        if seen.logits is None:
            continue
        values = sampling.run(before, seen.logits, seen.context)
        without_last, with_last = _mass_at_the_cut(values, seen)
        low, high = max(low, without_last), min(high, 1.0 if _full(stated, seen) else with_last)
    if low < high < 1.0:
        yield _other(stated, "top_p", simplest(low, high), (low, high))


def _full(stated: Json, seen: Observed) -> bool:
    """Whether CosyVoice's nucleus may have ended for its count of tokens, which says nothing of its mass."""
    return stated.get("sampler") == RAS and seen.ids is not None and seen.ids.size >= int(stated.get("top_k", 25))


def _other_min_p(stated: Json, steps: Sequence[Observed]) -> Iterator[Rule]:
    if not stated.get("do_sample", True):
        return
    before = _before(sampling.chain(stated), MIN_P)
    low, high = 0.0, 1.0
    for seen in steps:
        if seen.logits is None:
            continue
        values = sampling.run(before, seen.logits, seen.context)
        share = np.exp(values.astype(np.float64) - float(values.max()))
        last, following = _last_in_and_first_out(values, seen)
        high = min(high, float(share[last]))
        low = max(low, float(share[following]) if following is not None else 0.0)
    if 0.0 < low < high:
        yield _other(stated, "min_p", simplest(low, high), (low, high))


def _other_top_k(stated: Json, steps: Sequence[Observed], first: Observed) -> Iterator[Rule]:
    if first.ids is None or not stated.get("do_sample", True):
        return
    most = max(int(seen.ids.size) for seen in [first, *steps] if seen.ids is not None)
    near = {most, int(first.ids.size), *(k for k in (1, 5, 10, 20, 25, 30, 40, 50, 64, 100) if k >= most)}
    for k in sorted(near - {stated.get("top_k")}):
        yield _other(stated, "top_k", k)


def _fit_temperature(stated: Json, steps: Sequence[Observed]) -> float | None:
    """From the ratios of survivors' probabilities: the spread of their scores over the spread of their logarithms."""
    before = _before(sampling.chain(stated), TEMPERATURE)
    over, under = 0.0, 0.0
    for seen in steps:
        if seen.logits is None or seen.ids is None or seen.probs is None or seen.ids.size < 2:
            continue
        values = sampling.run(before, seen.logits, seen.context)[seen.ids].astype(np.float64)
        logs = np.log(np.maximum(seen.probs.astype(np.float64), SMALLEST))
        sound = np.isfinite(values) & (seen.probs > SMALLEST)
        if sound.sum() < 2:
            continue
        values, logs = values[sound] - values[sound].mean(), logs[sound] - logs[sound].mean()
        over, under = over + float(values @ values), under + float(values @ logs)
    if under <= 0.0 or over <= 0.0:
        return None
    temperature = over / under
    rounded = simplest(temperature * (1 - 2e-5), temperature * (1 + 2e-5))
    return None if abs(rounded - float(stated.get("temperature") or 1.0)) < 1e-6 else rounded


def _fit_penalty(stated: Json, steps: Sequence[Observed]) -> float | None:
    """From seen and unseen survivors: their scores differ by the penalty once the others' have given the constant."""
    base = sampling.chain(stated)
    behind = [each for each in base if each.name == TEMPERATURE]
    temperature = float(behind[0].settings["temperature"]) if behind else 1.0
    found: list[float] = []
    for seen in steps:
        if seen.logits is None or seen.ids is None or seen.probs is None:
            continue
        known = np.isin(seen.ids, np.asarray(seen.context.history, dtype=np.int64))
        raw = seen.logits[seen.ids].astype(np.float64)
        logs = np.log(np.maximum(seen.probs.astype(np.float64), SMALLEST))
        if not known.any() or known.all():
            continue
        constant = np.median(logs[~known] - raw[~known] / temperature)
        score = (logs[known] - constant) * temperature
        sound = np.abs(raw[known]) > 0.1
        ratio = np.where(raw[known] > 0, raw[known] / score, score / raw[known])[sound]
        found += ratio[ratio > 0].tolist()
    if not found:
        return None
    penalty = float(np.median(found))
    rounded = simplest(penalty * (1 - 1e-4), penalty * (1 + 1e-4))
    return None if abs(rounded - float(stated.get("repetition_penalty") or 1.0)) < 1e-6 else rounded


def _suppressed(stated: Json, first: Observed) -> Iterator[Rule]:
    """A few tokens that the stated chain keeps are removed throughout."""
    if first.logits is None or first.ids is None:
        return
    base = sampling.chain(stated)
    expected, _ = sampling.survivors(sampling.run(base, first.logits, first.context))
    lost = np.setdiff1d(expected, first.ids)
    if 0 < lost.size <= 4:
        removed = sampling.of_setting("suppress_tokens", lost.tolist(), stated)
        yield Rule("tokens removed", lost.tolist(), (removed, *base), f"tokens {lost.tolist()} are removed throughout")
        yield Rule("tokens removed", lost.tolist(), (*base, removed), f"tokens {lost.tolist()} are removed at the end")


def simplest(low: float, high: float) -> float:
    """The number with the fewest decimals in (low, high]."""
    for digits in range(12):
        step = 10.0**-digits
        number = round(np.floor(high / step + 1e-9) * step, digits)
        if low < number <= high * (1 + 1e-12):
            return float(number)
    return float(high)
