"""What a parity does not prove: what these runs could not show, each with its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tracekit.inspection.following import asked, shows_tokens
from tracekit.inspection.positions import prompt_length
from tracekit.sampling import chain as sampling
from tracekit.sampling.observed import Observed
from tracekit.sampling.processors import BY_SETTING
from tracekit.sampling.replay import observe
from tracekit.sampling.scores import GONE, working
from tracekit.trace import Json, Sequence, Trace

MOST_STEPS = 128
"""Steps that are looked at."""


def unexercised(reference: Trace, candidate: Trace | None = None) -> list[str]:
    """What these runs could not show, from settings and data of the reference, and from what was forced on the
    candidate."""
    return [*([] if candidate is None else _forced(candidate)), *_of_reference(reference)]


def _forced(candidate: Trace) -> Iterator[str]:
    told = asked(candidate)
    if told is None:
        return
    if shows_tokens(candidate):
        yield "running on from tokens of its own (the candidate follows another trace)"
    else:
        yield "running on from tokens of its own (the candidate was told to follow another trace)"
    drawn = (each.step(index).draws for each in candidate.sequences for index in range(each.step_count))
    if told.draws and any(drawn):
        yield "the candidate's random numbers (forced)"
    if told.inputs:
        yield "the candidate's prompt (forced)"


def _of_reference(reference: Trace) -> list[str]:
    sequences = [sequence for sequence in reference.sequences if sequence.step_count]
    model = reference.config.get("model") or {}
    if not sequences:
        return ["generation (no steps recorded)"]
    settings = sequences[0].sampling
    done = _look(sequences)
    return [
        *_positions(sequences, model),
        *_calls(sequences),
        *_heads(model),
        *_numbers(reference),
        *(_ras(sequences, settings) if settings.get("sampler") == sampling.RAS else _sampler(settings, done)),
        *_ends(sequences, settings),
        *([f"batches (one sequence of {sequences[0].step_count} steps)"] if len(reference.sequences) == 1 else []),
    ]


def _positions(sequences: list[Sequence], model: Json) -> Iterator[str]:
    positions = max(sequence.positions or prompt_length(sequence) + sequence.step_count - 1 for sequence in sequences)
    if positions <= 1:
        yield "positions behind the first (one position)"
    window = model.get("sliding_window")
    if isinstance(window, int) and window > positions:
        yield f"sliding window ({window} > {positions} positions)"
    scaling = model.get("rope_scaling")
    if isinstance(scaling, dict):
        limit = scaling.get("original_max_position_embeddings")
        if isinstance(limit, int) and limit > positions:
            yield f"positions beyond the rope scaling's original length ({limit} > {positions} positions)"


def _calls(sequences: list[Sequence]) -> Iterator[str]:
    lengths = [prompt_length(sequence) for sequence in sequences]
    if max(lengths) == 1:
        yield "prefill (prompts of one token)"
    if max(sequence.step_count for sequence in sequences) == 1:
        yield "decoding from the KV cache (one step)"


def _heads(model: Json) -> Iterator[str]:
    heads, shared = model.get("num_attention_heads"), model.get("num_key_value_heads")
    if shared == 1:
        yield f"KV-head mapping (one KV head for {heads} heads)" if heads else "KV-head mapping (one KV head)"
    elif shared is not None and shared == heads:
        yield f"KV-head mapping ({shared} KV heads for {heads} heads)"


def _numbers(reference: Trace) -> Iterator[str]:
    dtype = reference.config.get("dtype")
    if dtype in ("float32", "float64"):
        yield f"16-bit numbers (a run in {dtype})"


# -------------------------------------------------------------------- what the sampler had to do


@dataclass
class Done:
    """What the sampler's parts did at the steps that were looked at."""

    steps: int = 0
    filtered: int = 0  # steps whose processors could be worked out
    removed: dict[str, int] = field(default_factory=dict)  # processor -> tokens removed
    ties_at_cut: int = 0
    ties_at_top: int = 0
    repeats: int = 0  # steps whose history holds a token twice
    sure: int = 0  # steps with one survivor
    drawn: int = 0


def _look(sequences: list[Sequence]) -> Done:
    done = Done()
    for sequence in sequences:
        tokens = sequence.tokens
        for index in range(min(sequence.step_count, MOST_STEPS - done.steps)):
            _look_at(done, observe(sequence, index, tokens), sequence.sampling)
        if done.steps >= MOST_STEPS:
            break
    return done


def _look_at(done: Done, seen: Observed, settings: Json) -> None:
    done.steps += 1
    done.repeats += len(set(seen.context.history)) < len(seen.context.history)
    if seen.ids is not None:
        done.drawn += 1
        done.sure += seen.ids.size == 1
    if seen.logits is None:
        return
    done.filtered += 1
    top = np.partition(seen.logits, seen.logits.size - 2)[-2:] if seen.logits.size > 1 else np.array([0.0, 1.0])
    done.ties_at_top += bool(top[0] == top[1])
    before = working(seen.logits)
    for each in sampling.chain(settings):
        after = each.apply(before, seen.context)
        gone = (after == GONE) & (before > GONE)
        done.removed[each.name] = done.removed.get(each.name, 0) + int(gone.sum())
        kept = after > GONE
        if gone.any() and kept.any():
            more = each.kind is BY_SETTING["top_k"] and int(kept.sum()) > int(each.settings["top_k"])
            done.ties_at_cut += more or bool(before[gone].max() == before[kept].min())
        before = after


def _sampler(settings: Json, done: Done) -> Iterator[str]:
    if not settings:
        yield "sampling settings (the reference does not state them)"
        return
    if settings.get("do_sample") is False:
        yield f"sampling (greedy, {done.steps} steps)"
        if done.filtered and not done.ties_at_top:
            yield f"ties of the largest logits (none at {done.filtered} steps)"
        yield from _penalty(settings, done)
        return
    yield from _off(settings)
    yield from _without_effect(settings, done)
    yield from _penalty(settings, done)
    if settings.get("temperature") in (None, 1.0) and settings.get("top_p") not in (None, 1.0):
        yield "order of temperature and top-p (temperature 1)"
    cut = any(not BY_SETTING[name].off(settings) for name in ("top_k", "top_p", "min_p"))
    if cut and done.filtered and not done.ties_at_cut:
        yield f"ties at a cut (none at {done.filtered} steps)"
    if done.drawn and done.sure == done.drawn:
        yield f"draws (one survivor at all {done.drawn} steps)"


def _off(settings: Json) -> Iterator[str]:
    if settings.get("temperature") in (None, 1.0):
        yield "temperature (1)"
    for name, spoken in (("top_k", "top-k"), ("top_p", "top-p"), ("min_p", "min-p")):
        if BY_SETTING[name].off(settings):
            yield f"{spoken} (off)"


def _without_effect(settings: Json, done: Done) -> Iterator[str]:
    shown = {BY_SETTING[name].name: BY_SETTING[name].words for name in ("top_k", "top_p", "min_p")}
    for each in sampling.chain(settings):
        if each.name in shown and done.filtered and not done.removed.get(each.name):
            number = next(iter(each.settings.values()))
            yield f"{shown[each.name]} {number} (removed nothing at {done.filtered} steps)"


def _penalty(settings: Json, done: Done) -> Iterator[str]:
    if BY_SETTING["repetition_penalty"].off(settings):
        yield "repetition penalty (off)"
    elif not done.repeats:
        yield f"repetition penalty on repeats (no token stood twice before any of {done.steps} steps)"


def _ras(sequences: list[Sequence], settings: Json) -> Iterator[str]:
    """CosyVoice's sampler: which of its branches were not taken."""
    steps = [sequence.step(index) for sequence in sequences for index in range(sequence.step_count)][:MOST_STEPS]
    kinds = {event.kind for step in steps for event in step.events}
    if not any(step.events or step.draws or step.survivors_id is not None for step in steps):
        yield "the sampler's rules (its survivors, draws and events are not recorded)"
        return
    most = settings.get("top_k")
    if "redraw" not in kinds:
        yield f"drawing a stop token again before min_len (none drawn so early at {len(steps)} steps)"
    if "repetition_fallback" not in kinds:
        yield f"repetition rule (no token repeated too often at {len(steps)} steps)"
    if not any(step.survivors_id is not None and len(step.survivors_id) == most for step in steps):
        yield f"top_k {most} (top_p ended the nucleus at {len(steps)} steps)"
    if "length" not in [sequence.end_reason for sequence in sequences] and settings.get("max_len") is not None:
        yield f"length limit (max_len {settings['max_len']} never reached)"


def _ends(sequences: list[Sequence], settings: Json) -> Iterator[str]:
    reasons = [sequence.end_reason for sequence in sequences]
    stops = settings.get("eos_token_id") or settings.get("stop_token_ids")
    steps = sum(sequence.step_count for sequence in sequences)
    if None in reasons:
        yield f"the end of the generation (sequence {reasons.index(None)} is cut off)"
        return
    if "stop" not in reasons:
        yield f"stop tokens (none sampled in {steps} steps)"
    elif isinstance(stops, list) and len(stops) > 1:
        met = {int(sequence.tokens[-1]) for sequence in sequences} & set(stops)
        if len(met) < len(stops):
            yield f"all stop tokens ({len(met)} of {len(stops)} sampled)"
    if "length" not in reasons and settings.get("max_new_tokens") is not None:
        yield f"length limit ({settings['max_new_tokens']} never reached)"
