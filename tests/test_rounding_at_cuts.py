"""Which tokens rounding may decide about: either way of a cut that lies on a token is the same filter, and a cut a
little further off is another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

import tracekit
from tracekit.dtypes import UNIT_ROUNDOFF
from tracekit.formats.log import LogWriter
from tracekit.sampling.chain import chain, cuts
from tracekit.sampling.fit import departs
from tracekit.sampling.observed import Context, Observed
from tracekit.sampling.processor import run
from tracekit.sampling.processors.top_p import keep_top_p
from tracekit.sampling.scores import GONE
from tracekit.sampling.shown import shown_chain

TEMPERATURE = 0.7
SEEDS = range(12)
Floats = np.ndarray


def seen(logits: Floats, probs: Floats) -> Observed:
    ids = np.flatnonzero(probs)
    order = ids[np.argsort(-probs[ids], kind="stable")]
    return Observed(0, logits, Context(), order, probs[order], int(order[0]), (), ())


def logits_of(seed: int, spread: float = 3.0) -> Floats:
    random = np.random.default_rng(seed)
    return (random.normal(size=int(random.integers(40, 400))) * spread + random.normal() * 20).astype(np.float32)


def softmax32(scores: Floats, order: Floats) -> Floats:
    """As a plain loop over float32 computes it, adding up in this order."""
    made = np.exp(scores - scores.max(), dtype=np.float32)
    return made / np.add.accumulate(made[order], dtype=np.float32)[-1]


def before(probs: Floats, order: Floats) -> Floats:
    out = np.empty_like(probs)
    out[order] = np.concatenate([[0], np.add.accumulate(probs[order], dtype=np.float32)[:-1]]).astype(np.float32)
    return out


def from_above(scores: Floats, p: float) -> Floats:
    order = np.argsort(-scores, kind="stable")
    return before(softmax32(scores, order), order) < np.float32(p)


def from_below(scores: Floats, p: float) -> Floats:
    order = np.argsort(scores, kind="stable")
    probs = softmax32(scores, order)
    stays = before(probs, order) + probs > np.float32(1.0 - p)
    stays[order[-1]] = True
    return stays


def min_p(scores: Floats, share: float) -> Floats:
    probs = softmax32(scores, np.arange(scores.size))
    return probs >= np.float32(share) * probs.max()


def min_p_of_scores(scores: Floats, share: float) -> Floats:
    return scores >= scores.max() + np.log(np.float32(share))


def epsilon(scores: Floats, least: float) -> Floats:
    return softmax32(scores, np.argsort(scores)) >= np.float32(least)


def eta(scores: Floats, number: float) -> Floats:
    probs = softmax32(scores, np.arange(scores.size))
    entropy = -np.add.accumulate(probs * np.log(probs), dtype=np.float32)[-1]
    return probs >= np.minimum(np.float32(number), np.sqrt(np.float32(number)) * np.exp(-entropy))


def typical(scores: Floats, mass: float) -> Floats:
    probs = softmax32(scores, np.arange(scores.size))
    surprise = -np.log(probs)
    order = np.argsort(np.abs(surprise - np.add.accumulate(probs * surprise, dtype=np.float32)[-1]), kind="stable")
    return before(probs, order) < np.float32(mass)


def top_h(scores: Floats, share: float) -> Floats:
    best = np.argsort(-scores, kind="stable")[:100]
    probs = softmax32(scores[best], np.arange(best.size))
    entropy = np.add.accumulate(-probs * np.log(probs), dtype=np.float32)
    out = np.zeros(scores.size, dtype=bool)
    out[best] = (entropy <= np.float32(share) * entropy[-1]) | (np.arange(best.size) == 0)
    return out


PROGRAMS: list[tuple[str, float, Callable[[Floats, float], Floats]]] = [
    ("top_p", 0.9, from_above),
    ("top_p", 0.9, from_below),
    ("min_p", 0.02, min_p),
    ("min_p", 0.02, min_p_of_scores),
    ("epsilon_cutoff", 1e-3, epsilon),
    ("eta_cutoff", 1e-3, eta),
    ("typical_p", 0.8, typical),
    ("top_h", 0.7, top_h),
]


def on_a_token(setting: str, number: float, logits: Floats) -> Iterator[tuple[float, float]]:
    """Numbers near `number` of which the cut falls on a token, as float64 says it, and the distance to the next."""
    low, high = number * 0.8, min(number * 1.2, 0.999)
    for _ in range(60):
        middle = (low + high) / 2.0
        kept = [survivors(setting, each, logits) for each in (low, middle)]
        low, high = (middle, high) if np.array_equal(*kept) else (low, middle)
    yield (low + high) / 2.0, high - low


def survivors(setting: str, number: float, logits: Floats) -> Floats:
    values = logits.astype(np.float64)
    for each in chain({"do_sample": True, "temperature": TEMPERATURE, setting: number}):
        values = each.apply(values, Context())
    return np.flatnonzero(values > GONE)


@pytest.mark.parametrize(
    ("setting", "number", "keeps"), PROGRAMS, ids=lambda each: getattr(each, "__name__", str(each))
)
def test_a_cut_on_a_token_is_decided_either_way(setting: str, number: float, keeps: Any) -> None:
    both = set()
    for seed in SEEDS:
        logits = logits_of(seed)
        for cut, _ in on_a_token(setting, number, logits):
            for scores in (logits / np.float32(TEMPERATURE), logits * np.float32(1.0 / TEMPERATURE)):
                stays = keeps(scores, cut)
                probs = softmax32(np.where(stays, scores, np.float32(GONE)), np.arange(scores.size))
                settings = {"do_sample": True, "temperature": TEMPERATURE, setting: cut}
                assert departs(chain(settings), seen(logits, probs)) is False, (seed, cut)
                both.add(bool(stays.sum() == survivors(setting, cut, logits).size))
    assert len(both) == 2, "the cut fell the same way each time"


@pytest.mark.parametrize(
    ("setting", "number", "keeps"), PROGRAMS, ids=lambda each: getattr(each, "__name__", str(each))
)
def test_a_cut_a_little_further_off_is_another_filter(setting: str, number: float, keeps: Any) -> None:
    """By a ten-thousandth of what is compared: a probability of 2e-5 is no rounding where the cut is at 1e-3."""
    for seed in SEEDS:
        logits = logits_of(seed)
        scores = logits / np.float32(TEMPERATURE)
        for cut, _ in on_a_token(setting, number, logits):
            for off in (cut * (1 - 1e-4), cut * (1 + 1e-4)):
                probs = softmax32(np.where(keeps(scores, cut), scores, np.float32(GONE)), np.arange(scores.size))
                same = np.array_equal(np.flatnonzero(probs), survivors(setting, off, logits))
                settings = {"do_sample": True, "temperature": TEMPERATURE, setting: off}
                assert departs(chain(settings), seen(logits, probs)) is not same, (seed, cut, off)


# -------------------------------------------------------------------- top-k


def best(scores: Floats, keep: Floats) -> Floats:
    return softmax32(np.where(keep, scores, np.float32(GONE)), np.arange(scores.size))


@pytest.mark.parametrize("scaled", [True, False])
def test_scores_that_a_division_makes_equal_are_kept_or_not(scaled: bool) -> None:
    """Two logits next to each other, which a program may divide into one score and another into two; where nothing is
    divided, nothing is rounded, and of two scores the larger stays."""
    logits = np.float32([3.0, 2.0, 1.0, 0.5, -1.0])
    logits[2] = np.nextafter(logits[1], np.float32(0.0))
    settings = {"do_sample": True, "top_k": 2} | ({"temperature": TEMPERATURE} if scaled else {})
    scores = logits / np.float32(TEMPERATURE if scaled else 1.0)
    for keep, right in (([1, 1, 0, 0, 0], True), ([1, 1, 1, 0, 0], scaled), ([1, 1, 1, 1, 0], False)):
        probs = best(scores, np.array(keep, dtype=bool))
        assert departs(chain(settings), seen(logits, probs)) is not right, keep


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_of_equal_logits_the_rule_decides(dtype: str | None) -> None:
    """`<=` for `<` drops what ties with the k-th, exactly k keeps one of them: other rules in any precision."""
    logits = np.float32([3.0, 2.0, 2.0, 0.5, -1.0])
    settings = chain({"do_sample": True, "top_k": 2, "temperature": TEMPERATURE})
    scores = logits / np.float32(TEMPERATURE)
    for keep, right in (([1, 1, 1, 0, 0], True), ([1, 1, 0, 0, 0], False), ([1, 0, 0, 0, 0], False)):
        assert departs(settings, seen(logits, best(scores, np.array(keep, dtype=bool))), dtype) is not right, keep


def test_a_dropped_token_of_a_hundred_thousandth_shows_at_the_cut_after_it() -> None:
    """Without the k-th token the others have its mass: top-p cuts one token earlier."""
    shares = np.array([0.5, 0.3, 0.15, 0.05 - 1e-5, 1e-5])
    logits = np.concatenate([np.log(shares) * TEMPERATURE, np.full(40, -30.0)]).astype(np.float32)
    scores = logits / np.float32(TEMPERATURE)
    cut = 0.95 + 4e-6  # 0.95 stand before the fourth token, of all five; without the fifth, 1e-5 more
    settings = chain({"do_sample": True, "temperature": TEMPERATURE, "top_k": 5, "top_p": cut})
    for kept, wrong in ((4, False), (3, True)):
        assert departs(settings, seen(logits, best(scores, np.arange(scores.size) < kept))) is wrong


# -------------------------------------------------------------------- 16 bits


def in_torch(logits: torch.Tensor, settings: dict[str, Any]) -> Floats:
    """transformers' own processors on scores of a 16-bit format, as its releases before 4.45 ran them."""
    made: dict[str, Callable[[Any], Any]] = {
        "temperature": theirs.TemperatureLogitsWarper,
        "top_k": theirs.TopKLogitsWarper,
        "top_p": theirs.TopPLogitsWarper,
        "min_p": theirs.MinPLogitsWarper,
    }
    scores = logits[None].clone()
    for name in made:
        if name in settings:
            scores = made[name](settings[name])(torch.zeros(1, 0, dtype=torch.long), scores)
    return torch.softmax(scores, dim=-1)[0].float().numpy()


SHORT = [{"temperature": 0.7}, {"temperature": 0.7, "top_k": 20}, {"temperature": 1.3, "top_p": 0.9}, {"min_p": 0.05}]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("settings", SHORT, ids=str)
def test_a_sampler_in_16_bits_is_the_same_filter(dtype: str, settings: dict[str, Any]) -> None:
    wrong = settings | (
        {"temperature": settings["temperature"] * 1.03} if "temperature" in settings else {"min_p": 0.08}
    )
    named = 0
    for seed in SEEDS:
        logits = torch.from_numpy(logits_of(seed)).to(getattr(torch, dtype))
        stated = chain(settings | {"do_sample": True})
        wide = logits.float().numpy()
        assert departs(stated, seen(wide, in_torch(logits, settings)), dtype) is False, seed
        named += departs(stated, seen(wide, in_torch(logits, wrong)), dtype) is True
    assert named >= len(SEEDS) - 2


def test_no_filter_has_a_cut_without_what_rounding_does_to_it() -> None:
    logits = logits_of(0)
    settings = {"top_k": 5, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.9, "epsilon_cutoff": 1e-3, "eta_cutoff": 1e-3}
    found = cuts(chain(settings | {"do_sample": True, "top_h": 0.7}), logits, Context())
    assert len(found) == len(settings) + 1
    assert all(cut.processor.kind.rounds is not None for cut in found)
    assert UNIT_ROUNDOFF["bfloat16"] == 2.0**-8


def unstated(path: Any, logits: Floats, temperature: float, top_k: int) -> Any:
    """A step of a program whose sampler says nothing of itself."""
    scores = (logits / np.float32(temperature)).astype(np.float32)
    kept = scores >= np.sort(scores)[-top_k]
    probs = np.where(kept, softmax32(scores, np.arange(scores.size)), 0).astype(np.float32)
    one = seen(logits, probs)
    log = LogWriter(path)
    log.open("python", dtype="float32", seed=0, model={}, sites=[])
    log.sequence(0, {}, prompt_ids=[1, 2, 3])
    ids, survivors = one.ids, one.probs
    assert ids is not None and survivors is not None
    log.step(0, 0, 2, int(ids[0]), {"logits": logits, "survivors/id": ids, "survivors/prob": survivors})
    log.end_sequence(0, 1, "done")
    log.close()
    return tracekit.open(path)


@pytest.mark.parametrize(
    ("temperature", "top_k", "same"),
    [(0.02, 320, True), (0.0201, 320, False), (0.021, 320, False), (0.02, 9, False), (0.02, 0, True)],
)
def test_what_a_program_does_not_state_is_told_from_rounding_by_what_it_did(
    tmp_path: Any, temperature: float, top_k: int, same: bool
) -> None:
    """A low temperature stretches the logits' rounding; a token that trades places at the cut is no other filter."""
    logits = np.random.default_rng(1).normal(size=320).astype(np.float32)
    other = (logits * (1 + 2e-7 * np.random.default_rng(2).normal(size=320))).astype(np.float32)
    first = 320
    if not top_k:  # the eighth and the ninth trade places
        first = top_k = 8
        order = np.argsort(-logits)
        logits[order[8]] = logits[order[7]] - np.float32(2e-7)
        other = logits.copy()
        other[order[8]], other[order[7]] = logits[order[7]], logits[order[8]]
    reference = unstated(tmp_path / "reference.tklog", logits, 0.02, first)
    verdict = tracekit.diff(reference, unstated(tmp_path / "candidate.tklog", other, temperature, top_k))
    assert (verdict.cause != "filter") == same, verdict.text
    assert "inf" not in verdict.text


@pytest.mark.parametrize(("others", "more", "is_another"), [(6, 0, False), (6, 1, False), (6, 60, True), (0, 60, True)])
def test_a_cut_within_tokens_of_one_score_leaves_any_of_them_and_as_many_as_rounding_tells(
    others: int, more: int, is_another: bool
) -> None:
    """As logits of 16 bits have them: `others` are left for as many of their score, and `more` besides."""
    logits = (np.random.default_rng(3).normal(size=30000) * 8).round().astype(np.float32) / 8
    kept = from_below(logits, 0.9)
    edge = logits == logits[kept].min()
    inside, outside = np.flatnonzero(edge & kept), np.flatnonzero(edge & ~kept)
    assert len(inside) > 100 and len(outside) > 100
    kept[inside[:others]] = False
    kept[outside[: others + more]] = True
    probs = np.where(kept, np.exp(logits - logits.max(), dtype=np.float32), np.float32(0))
    assert departs(chain({"top_p": 0.9}), seen(logits, probs / probs.sum())) is is_another


def test_a_cut_that_leaves_a_token_of_another_score_is_another_filter() -> None:
    logits = (np.random.default_rng(3).normal(size=30000) * 8).round().astype(np.float32) / 8
    kept = from_below(logits, 0.9)
    kept[np.flatnonzero(logits == logits[kept].min() - 1.0)[0]] = True
    probs = np.where(kept, np.exp(logits - logits.max(), dtype=np.float32), np.float32(0))
    assert departs(chain({"top_p": 0.9}), seen(logits, probs / probs.sum()))


def own_loop(path: Any, steps: Sequence[Floats], temperature: float, top_p: float) -> Any:
    """A program whose sampler says nothing of itself and keeps a nucleus; each step's token is the likeliest."""
    log = LogWriter(path)
    log.open("python", dtype="float32", seed=0, model={}, sites=[])
    log.sequence(0, {}, prompt_ids=[1, 2, 3])
    for index, logits in enumerate(steps):
        scores = (logits / np.float32(temperature)).astype(np.float32)
        kept = keep_top_p(scores, top_p) if top_p < 1.0 else scores
        probs = np.where(kept > -np.inf, softmax32(kept, np.arange(scores.size)), 0).astype(np.float32)
        one = seen(logits, probs)
        ids, survivors = one.ids, one.probs
        assert ids is not None and survivors is not None
        tensors = {"logits": logits, "survivors/id": ids, "survivors/prob": survivors}
        log.step(0, index, 2 + index, int(np.argmax(scores)), tensors)
    log.end_sequence(0, len(steps), "done")
    log.close()
    return tracekit.open(path)


def next_to_a_cut(logits: Floats, temperature: float, top_p: float, kept: int) -> Floats:
    """The logits with one moved so far that the likeliest `kept` tokens have the probability `top_p`, but for the last
    bits of float32."""
    order, moved = np.argsort(-logits), logits.astype(np.float64)
    low, high = -30.0, 30.0
    for _ in range(200):
        moved[order[0]] = (low + high) / 2.0
        weights = np.exp((moved - moved.max()) / temperature)
        low, high = (
            (low, moved[order[0]]) if weights[order[:kept]].sum() > top_p * weights.sum() else (moved[order[0]], high)
        )
    return moved.astype(np.float32)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.3, 0.9), (1.0, 0.5)])
def test_one_token_more_of_a_nucleus_that_is_not_stated(tmp_path: Any, temperature: float, top_p: float) -> None:
    """Rounding leaves one token more where the cut lies next to one, and another number does so anywhere."""
    random = np.random.default_rng(4)
    steps = [random.normal(size=320).astype(np.float32) for _ in range(6)]
    steps[3] = next_to_a_cut(steps[3], temperature, top_p, 40)
    reference = own_loop(tmp_path / "reference.tklog", steps, temperature, top_p)
    sizes = {reference.sequences[0].step(3).survivors_id.size}
    for again in range(40):
        rounded = [(each * (1 + 1e-7 * random.normal(size=320))).astype(np.float32) for each in steps]
        candidate = own_loop(tmp_path / f"{again}.tklog", rounded, temperature, top_p)
        verdict = tracekit.diff(reference, candidate)
        assert verdict.verdict == "parity", verdict.text
        sizes.add(candidate.sequences[0].step(3).survivors_id.size)
    assert len(sizes) > 1
    for name, number in (("less", top_p - 0.002), ("more", top_p + 0.002), ("none", 1.0)):
        other = own_loop(tmp_path / f"{name}.tklog", steps, temperature, number)
        assert tracekit.diff(reference, other).cause == "filter"


def test_what_survivors_show_of_a_sampler() -> None:
    random = np.random.default_rng(6)
    logits = [random.normal(size=200).astype(np.float32) * 2 for _ in range(5)]

    def steps(settings: dict[str, Any], cut: slice = slice(None)) -> list[Observed]:
        out = []
        for each in logits:
            values = run(chain(settings), each, Context())
            probs = softmax32(values, np.arange(values.size))
            out.append(seen(each, np.where(values > -np.inf, probs, 0).astype(np.float32)))
        return out[cut]

    for settings in ({"temperature": 0.7}, {"temperature": 0.7, "top_k": 11}, {"min_p": 0.05}, {"top_p": 0.85}):
        shown = shown_chain(steps(settings))
        assert shown is not None and [str(each) for each in shown] == [str(each) for each in chain(settings)]
    assert shown_chain(steps({"top_k": 11}, slice(0, 2)) + steps({"top_k": 12}, slice(2, 4))) is None
    assert shown_chain([]) is None
