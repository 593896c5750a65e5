"""Repetition penalty: positive scores of seen tokens are divided by it, negative ones multiplied.

Keskar et al. 2019 (CTRL); transformers' `RepetitionPenaltyLogitsProcessor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tracekit.formats.file_values import is_number
from tracekit.sampling.exercise import Exercise, NoRepeats, Value
from tracekit.sampling.observed import Context
from tracekit.sampling.other_numbers import another, simplest
from tracekit.sampling.processor import (
    Applied,
    Apply,
    Change,
    FilterMistake,
    Processor,
    Stated,
    Steps,
    Variant,
    by_number,
    instead,
)
from tracekit.sampling.scores import SMALLEST, Floats, rounding, seen_tokens

NAME, SETTING = "RepetitionPenaltyLogitsProcessor", "repetition_penalty"
TEMPERATURE = "TemperatureLogitsWarper"
WINDOWS = range(1, 65)
"""Windows that are tried: in tokens, the prompt's counted."""
SMALL_SCORE = 0.1
"""Scores nearer to zero than this say too little of what they were multiplied by."""


def penalised(values: Floats, penalty: float, history: Sequence[int]) -> Floats:
    """Scores with the penalty on the tokens of a history."""
    if penalty == 1.0 or not len(history):
        return values
    out = values.copy()
    seen = seen_tokens(history, values.size)
    out[seen] = np.where(out[seen] < 0, out[seen] * penalty, out[seen] / penalty)
    return out


# -------------------------------------------------------------------- mistakes


def _mistake(
    identity: str, words: str, change: Change, value: Callable[[float], Value] = lambda penalty: penalty
) -> FilterMistake:
    words = f"repetition penalty {{penalty:g}} {words}"
    return instead(identity, words, (NAME, SETTING, "penalty"), change, value=value)


def _of(history: Callable[[Context], Sequence[int]]) -> Change:
    return lambda penalty: lambda values, context: penalised(values, penalty, history(context))


def _to_seen(change: Callable[[Floats, float], Floats]) -> Change:
    def of(penalty: float) -> Apply:
        def apply(values: Floats, context: Context) -> Floats:
            out, seen = values.copy(), seen_tokens(context.history, values.size)
            out[seen] = change(out[seen], penalty)
            return out

        return apply

    return of


def _each_time(penalty: float) -> Apply:
    def apply(values: Floats, context: Context) -> Floats:
        out = values.copy()
        history = np.asarray(context.history, np.int64)
        seen, counts = np.unique(history[(history >= 0) & (history < values.size)], return_counts=True)
        power = (penalty ** counts.astype(np.float64)).astype(values.dtype)
        out[seen] = np.where(out[seen] < 0, out[seen] * power, out[seen] / power)
        return out

    return apply


def _windows(stated: Stated, steps: Steps | None) -> Iterator[Variant]:
    penalty = float(stated.settings[SETTING])
    for window in WINDOWS:
        change = _of(lambda context, window=window: context.history[-window:])  # type: ignore[misc]
        yield Variant(stated.replaced(NAME, change(penalty)), {"penalty": penalty, "window": window})


def _numbers(stated: Stated, steps: Steps) -> Iterator[float]:
    """From seen and unseen survivors: their scores differ by the penalty once the others have given the constant."""
    temperature = next((float(each.settings["temperature"]) for each in stated.chain if each.name == TEMPERATURE), 1.0)
    found: list[float] = []
    least = np.inf
    for seen in [steps.first, *steps.all]:
        if seen.logits is None or seen.ids is None or seen.probs is None:
            continue
        known = np.isin(seen.ids, np.asarray(seen.context.history, dtype=np.int64))
        raw = seen.logits[seen.ids].astype(np.float64)
        logs = np.log(np.maximum(seen.probs.astype(np.float64), SMALLEST))
        if not known.any() or known.all():
            continue
        constant = np.median(logs[~known] - raw[~known] / temperature)
        score = (logs[known] - constant) * temperature
        sound = np.abs(raw[known]) > SMALL_SCORE
        ratio = np.where(raw[known] > 0, raw[known] / score, score / raw[known])[sound]
        found += ratio[ratio > 0].tolist()
        least = min(least, rounding(len(stated.chain), raw / temperature) * temperature / np.abs(raw[known]).max())
    if not found:
        return
    penalty = float(np.median(found))
    # A number that is farther off than this changes a probability by more than rounding does.
    rounded = simplest(penalty * (1 - least / 2), penalty * (1 + least / 2))
    if rounded != float(stated.settings.get(SETTING) or 1.0):
        yield rounded


def _unexercised(each: Applied, done: Exercise) -> Iterator[object]:
    if not done.repeats:
        yield NoRepeats(SETTING, done.steps)


PROCESSOR = Processor(
    name=NAME,
    setting=SETTING,
    words="repetition penalty",
    place=50,
    arguments=("penalty",),
    make=by_number(_of(lambda context: context.history)),
    accepts=is_number,
    neutral=(1.0,),
    common=True,
    stretch=lambda numbers: max(float(numbers["penalty"]), 1.0 / float(numbers["penalty"])),
    unexercised=_unexercised,
    mistakes=(
        _mistake(
            "penalty_squared",
            "is applied twice, as {value:.6g}",
            lambda penalty: lambda values, context: penalised(values, penalty**2, context.history),
            lambda penalty: penalty**2,
        ),
        _mistake(
            "penalty_divides_negative_logits",
            "divides negative logits too",
            _to_seen(lambda scores, penalty: scores / penalty),
        ),
        _mistake(
            "penalty_inverted",
            "raises seen tokens instead of lowering them",
            _to_seen(lambda scores, penalty: np.where(scores < 0, scores / penalty, scores * penalty)),
            lambda penalty: 1 / penalty,
        ),
        _mistake(
            "penalty_of_generated_tokens_only", "does not count the prompt", _of(lambda context: context.generated)
        ),
        _mistake(
            "penalty_of_prompt_only",
            "counts the prompt alone",
            _of(lambda context: context.history[: context.prompt]),
        ),
        _mistake(
            "penalty_stale_by_one_token",
            "does not see the newest token",
            _of(lambda context: context.history[: max(context.prompt, len(context.history) - 1)]),
            lambda penalty: 1,
        ),
        _mistake("penalty_for_each_occurrence", "is applied once for each time that a token was seen", _each_time),
        FilterMistake(
            "penalty_window",
            "repetition penalty {penalty:g} counts the last {window} tokens alone",
            _windows,
            "window",
            (SETTING,),
        ),
        another(SETTING, _numbers),
    ),
)
