"""What a parity does not prove: what these runs could not show, each with its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from tracekit.inspection.following import asked, shows_tokens
from tracekit.inspection.positions import prompt_length
from tracekit.sampling.chain import RAS, chain
from tracekit.sampling.exercise import Exercise, SettingOff, Value
from tracekit.sampling.observed import Observed
from tracekit.sampling.processor import Applied
from tracekit.sampling.processors import BY_SETTING, GENERATE
from tracekit.sampling.replay import observe
from tracekit.sampling.scores import GONE, working
from tracekit.trace import Json, Sequence, Trace

MOST_STEPS = 128
"""Steps that are looked at."""


class Unshown(StrEnum):
    """Something that a run could not show; `report.words.sampler` has the words, over the finding's numbers."""

    OWN_TOKENS = "own_tokens"
    OWN_TOKENS_TOLD = "own_tokens_told"  # to follow, and nothing shows that it did
    DRAWS = "draws"
    PROMPT = "prompt"
    GENERATION = "generation"
    LATER_POSITIONS = "later_positions"
    SLIDING_WINDOW = "sliding_window"
    ROPE_SCALING = "rope_scaling"
    PREFILL = "prefill"
    DECODING = "decoding"
    ONE_KV_HEAD = "one_kv_head"
    ALL_KV_HEADS = "all_kv_heads"
    HALF_PRECISION = "half_precision"
    SETTINGS = "settings"
    SAMPLING = "sampling"
    TIES_AT_TOP = "ties_at_top"
    ORDER_OF_TEMPERATURE = "order_of_temperature"
    TIES_AT_CUT = "ties_at_cut"
    ONE_SURVIVOR = "one_survivor"
    END = "end"
    STOP_TOKENS = "stop_tokens"
    ALL_STOP_TOKENS = "all_stop_tokens"
    LENGTH_LIMIT = "length_limit"
    BATCHES = "batches"


@dataclass(frozen=True)
class NotExercised:
    """What a run could not show, with its numbers by name."""

    what: Unshown
    numbers: tuple[tuple[str, Value], ...] = ()


def _not(what: Unshown, **numbers: Value) -> NotExercised:
    return NotExercised(what, tuple(numbers.items()))


def unexercised(reference: Trace, candidate: Trace | None = None) -> list[object]:
    """What these runs could not show, from settings and data of the reference, and from what was forced on the
    candidate."""
    return [*([] if candidate is None else _forced(candidate)), *_of_reference(reference)]


def _forced(candidate: Trace) -> Iterator[object]:
    told = asked(candidate)
    if told is None:
        return
    yield _not(Unshown.OWN_TOKENS if shows_tokens(candidate) else Unshown.OWN_TOKENS_TOLD)
    drawn = (each.step(index).draws for each in candidate.sequences for index in range(each.step_count))
    if told.draws and any(drawn):
        yield _not(Unshown.DRAWS)
    if told.inputs:
        yield _not(Unshown.PROMPT)


def _of_reference(reference: Trace) -> Iterator[object]:
    sequences = [sequence for sequence in reference.sequences if sequence.step_count]
    model = reference.config.get("model") or {}
    if not sequences:
        yield _not(Unshown.GENERATION)
        return
    settings = sequences[0].sampling
    yield from _positions(sequences, model)
    yield from _calls(sequences)
    yield from _heads(model)
    if reference.config.get("dtype") in ("float32", "float64"):
        yield _not(Unshown.HALF_PRECISION, dtype=reference.config["dtype"])
    yield from _by_settings(sequences)
    yield from _ends(sequences, settings)
    if len(reference.sequences) == 1:
        yield _not(Unshown.BATCHES, steps=sequences[0].step_count)


def _by_settings(sequences: list[Sequence]) -> Iterator[object]:
    """What the sampler did not have to do in any sequence, whatever the settings of each."""
    alike: list[list[Sequence]] = []
    for sequence in sequences:
        group = next((each for each in alike if each[0].sampling == sequence.sampling), None)
        if group is None:
            alike.append([sequence])
        else:
            group.append(sequence)
    first, *others = [list(_of_sampler(group[0].sampling, _look(group))) for group in alike]
    for each in first:
        if all(any(_about(each) == _about(other) for other in said) for said in others):
            yield each


def _of_sampler(settings: Json, done: Exercise) -> Iterator[object]:
    yield from _ras(settings, done) if settings.get("sampler") == RAS else _sampler(settings, done)


def _about(said: object) -> object:
    return said.what if isinstance(said, NotExercised) else said


def _positions(sequences: list[Sequence], model: Json) -> Iterator[object]:
    positions = max(sequence.positions or prompt_length(sequence) + sequence.step_count - 1 for sequence in sequences)
    if positions <= 1:
        yield _not(Unshown.LATER_POSITIONS)
    window = model.get("sliding_window")
    if isinstance(window, int) and window > positions:
        yield _not(Unshown.SLIDING_WINDOW, window=window, positions=positions)
    scaling = model.get("rope_scaling")
    if isinstance(scaling, dict):
        limit = scaling.get("original_max_position_embeddings")
        if isinstance(limit, int) and limit > positions:
            yield _not(Unshown.ROPE_SCALING, limit=limit, positions=positions)


def _calls(sequences: list[Sequence]) -> Iterator[object]:
    if max(prompt_length(sequence) for sequence in sequences) == 1:
        yield _not(Unshown.PREFILL)
    if max(sequence.step_count for sequence in sequences) == 1:
        yield _not(Unshown.DECODING)


def _heads(model: Json) -> Iterator[object]:
    heads, shared = model.get("num_attention_heads"), model.get("num_key_value_heads")
    if shared == 1:
        yield _not(Unshown.ONE_KV_HEAD, heads="all" if heads is None else heads)
    elif shared is not None and shared == heads:
        yield _not(Unshown.ALL_KV_HEADS, heads=heads)


# -------------------------------------------------------------------- what the sampler had to do


def _look(sequences: list[Sequence]) -> Exercise:
    done = Exercise(ends=tuple(sequence.end_reason for sequence in sequences))
    for sequence in sequences:
        tokens, processors = sequence.tokens, chain(sequence.sampling)
        for index in range(min(sequence.step_count, MOST_STEPS - done.steps)):
            _look_at(done, observe(sequence, index, tokens), processors)
            step = sequence.step(index)
            done.recorded |= bool(step.events or step.draws or step.survivors_id is not None)
            done.events |= {event.kind for event in step.events}
        if done.steps >= MOST_STEPS:
            break
    return done


def _look_at(done: Exercise, seen: Observed, processors: list[Applied]) -> None:
    done.steps += 1
    done.repeats += len(set(seen.context.history)) < len(seen.context.history)
    if seen.ids is not None:
        done.drawn += 1
        done.sure += seen.ids.size == 1
        done.sizes.add(int(seen.ids.size))
    if seen.logits is None:
        return
    done.filtered += 1
    top = np.partition(seen.logits, seen.logits.size - 2)[-2:] if seen.logits.size > 1 else np.array([0.0, 1.0])
    done.ties_at_top += bool(top[0] == top[1])
    before = working(seen.logits)
    for each in processors:
        after = each.apply(before, seen.context)
        gone = (after == GONE) & (before > GONE)
        done.removed[each.name] = done.removed.get(each.name, 0) + int(gone.sum())
        kept = after > GONE
        if each.kind.cut is not None and gone.any() and kept.any():
            more = each.kind is BY_SETTING["top_k"] and int(kept.sum()) > int(each.settings["top_k"])
            done.ties_at_cut += more or bool(before[gone].max() == before[kept].min())
        before = after


def _sampler(settings: Json, done: Exercise) -> Iterator[object]:
    if not settings:
        yield _not(Unshown.SETTINGS)
        return
    greedy = settings.get("do_sample") is False
    if greedy:
        yield _not(Unshown.SAMPLING, steps=done.steps)
        if done.filtered and not done.ties_at_top:
            yield _not(Unshown.TIES_AT_TOP, steps=done.filtered)
    yield from _processors(settings, done, greedy=greedy)
    if greedy:
        return
    if BY_SETTING["temperature"].off(settings) and not BY_SETTING["top_p"].off(settings):
        yield _not(Unshown.ORDER_OF_TEMPERATURE)
    cut = any(each.kind.cut is not None for each in chain(settings))
    if cut and done.filtered and not done.ties_at_cut:
        yield _not(Unshown.TIES_AT_CUT, steps=done.filtered)
    if done.drawn and done.sure == done.drawn:
        yield _not(Unshown.ONE_SURVIVOR, steps=done.drawn)


def _processors(settings: Json, done: Exercise, *, greedy: bool) -> Iterator[object]:
    """Those that most samplers have and this one does not, then what the steps did not show of the others."""
    known = [each for each in GENERATE if not (greedy and each.sampled)]
    yield from (SettingOff(each.setting) for each in known if each.common and each.off(settings))
    for each in chain(settings):
        yield from each.kind.unexercised(each, done)


def _ras(settings: Json, done: Exercise) -> Iterator[object]:
    """CosyVoice's sampler: which of its branches were not taken."""
    for each in chain(settings):
        yield from each.kind.unexercised(each, done)
    if done.recorded and "length" not in done.ends and settings.get("max_len") is not None:
        yield _not(Unshown.LENGTH_LIMIT, setting="max_len", limit=settings["max_len"])


def _ends(sequences: list[Sequence], settings: Json) -> Iterator[object]:
    reasons = [sequence.end_reason for sequence in sequences]
    stops = settings.get("eos_token_id") or settings.get("stop_token_ids")
    if None in reasons:
        yield _not(Unshown.END, sequence=reasons.index(None))
        return
    if "stop" not in reasons:
        yield _not(Unshown.STOP_TOKENS, steps=sum(sequence.step_count for sequence in sequences))
    elif isinstance(stops, list) and len(stops) > 1:
        met = {int(sequence.tokens[-1]) for sequence in sequences} & set(stops)
        if len(met) < len(stops):
            yield _not(Unshown.ALL_STOP_TOKENS, met=len(met), of=len(stops))
    if "length" not in reasons and settings.get("max_new_tokens") is not None:
        yield _not(Unshown.LENGTH_LIMIT, setting="max_new_tokens", limit=settings["max_new_tokens"])
