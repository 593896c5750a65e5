"""What the sampler did: every mistake is named with its number, and what is none is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

import tracekit
from tests.small_run import PROMPT, VOCABULARY, Drawn, write_run
from tests.spoken import evidence, spoken
from tests.test_engine import QWEN2, Engine, FolderOf, engine, flags, folder_of, native  # noqa: F401
from tracekit.formats.log import LogWriter
from tracekit.inspection.losses import ProbabilitiesNotJudged, ProcessorsNotJudged
from tracekit.report.json import margins_json
from tracekit.report.words import sentence
from tracekit.sampling import chain as sampling
from tracekit.sampling.fit import departs, misfit
from tracekit.sampling.observed import Context, Observed
from tracekit.sampling.other_numbers import simplest
from tracekit.sampling.processor import run
from tracekit.sampling.ras import Ras
from tracekit.sampling.scores import GONE, softmax, survivors
from tracekit.torch_rng.generator import TorchGenerator
from tracekit.verdict.counterfactual.evidence import CutCrossed, DrawsMoveOn, ProcessorLeaves
from tracekit.verdict.counterfactual.processors_apart import processors_apart
from tracekit.verdict.decide import Verdict

STEPS = 14


@pytest.fixture
def runs(tmp_path: Path):
    """Write a run under a name and open it."""

    def make(name: str, **changes: Any) -> tracekit.Trace:
        changes.setdefault("steps", STEPS)
        changes["stated"] = {"max_new_tokens": changes["steps"], **(changes.get("stated") or {})}
        return tracekit.open(write_run(tmp_path / f"{name}.tklog", **changes))

    return make


def kind_of(verdict: Verdict) -> Any:
    return None if verdict.explanation is None else verdict.explanation.mistake.id


# -------------------------------------------------------------------- the chain against transformers

CHAINS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1},
    {"bad_words_ids": [[3], [5], [7, 9]]},
    {"min_length": 14, "eos_token_id": [4, 8]},
    {"min_new_tokens": 9, "eos_token_id": [4, 8]},
    {"suppress_tokens": [1, 2, 30]},
    {"begin_suppress_tokens": [1, 2, 30]},
    {"temperature": 0.7},
    {"top_k": 7},
    {"top_k": 500},
    {"top_p": 0.8},
    {"top_p": 0.01},
    {"min_p": 0.1},
    {"typical_p": 0.6},
    {"typical_p": 0.2},
    {"epsilon_cutoff": 0.02},
    {"eta_cutoff": 0.05},
    {"repetition_penalty": 1.2, "temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.9},
    {"min_new_tokens": 20, "eos_token_id": [4], "suppress_tokens": [9], "temperature": 1.4, "top_k": 30, "top_p": 0.7},
]


def processors_of(settings: dict[str, Any], prompt: int) -> list[Any]:
    """transformers' own."""
    eos = settings.get("eos_token_id")
    make: dict[str, Callable[[Any], Any]] = {
        "repetition_penalty": theirs.RepetitionPenaltyLogitsProcessor,
        "no_repeat_ngram_size": theirs.NoRepeatNGramLogitsProcessor,
        "bad_words_ids": theirs.NoBadWordsLogitsProcessor,
        "min_length": lambda length: theirs.MinLengthLogitsProcessor(length, eos),
        "min_new_tokens": lambda length: theirs.MinNewTokensLengthLogitsProcessor(prompt, length, eos),
        "suppress_tokens": theirs.SuppressTokensLogitsProcessor,
        "begin_suppress_tokens": lambda ids: theirs.SuppressTokensAtBeginLogitsProcessor(ids, prompt),
        "temperature": theirs.TemperatureLogitsWarper,
        "top_k": theirs.TopKLogitsWarper,
        "top_p": theirs.TopPLogitsWarper,
        "min_p": theirs.MinPLogitsWarper,
        "typical_p": theirs.TypicalLogitsWarper,
        "epsilon_cutoff": theirs.EpsilonLogitsWarper,
        "eta_cutoff": theirs.EtaLogitsWarper,
    }
    return [make[name](settings[name]) for name in make if name in settings]


@pytest.mark.parametrize("settings", CHAINS, ids=str)
@pytest.mark.parametrize("generated", [0, 8])
def test_the_chain_is_transformers(settings: dict[str, Any], generated: int) -> None:
    prompt = 6
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(60, generator=generator) * 3
        logits = (logits * 4).round() / 4 if seed % 2 else logits  # with ties
        history = torch.randint(20, (prompt + generated,), generator=generator)
        chain = theirs.LogitsProcessorList(processors_of(settings, prompt))
        expected = torch.softmax(chain(history[None], logits[None].clone()), dim=-1)[0].numpy()
        ours = softmax(sampling.scores(logits.numpy(), settings, history.tolist(), prompt))
        if seed % 2 == 0:
            assert np.array_equal(ours > 0, expected > 0), seed
            np.testing.assert_allclose(ours, expected, rtol=3e-6, atol=1e-12)
        # Which of equal scores a cut by mass keeps is left to torch's sort, which is not stable.
        np.testing.assert_allclose(np.sort(ours), np.sort(expected), rtol=3e-6, atol=1e-12)


def test_a_chain_is_in_the_order_of_generate_and_names_its_processors() -> None:
    settings = {"top_p": 0.9, "temperature": 0.8, "repetition_penalty": 1.1, "top_k": 5}
    shown = [str(each) for each in sampling.chain(settings)]
    assert shown == [
        "RepetitionPenaltyLogitsProcessor(penalty=1.1)",
        "TemperatureLogitsWarper(temperature=0.8)",
        "TopKLogitsWarper(top_k=5)",
        "TopPLogitsWarper(top_p=0.9)",
    ]
    greedy = sampling.chain(settings | {"do_sample": False})
    assert [each.name for each in greedy] == ["RepetitionPenaltyLogitsProcessor"]
    logits = np.array([5.0, 4.0, 1.0, 0.0, 0.0, 0.0, -1.0])
    whole = sampling.chain(settings)
    removed = [np.isneginf(run(whole[: at + 1], logits, Context())[6]) for at in range(len(whole))]
    assert whole[removed.index(True)].name == "TopKLogitsWarper"


def test_an_unknown_setting_is_said_and_not_passed_over() -> None:
    settings = {"do_sample": True, "top_k": 5, "max_new_tokens": 4, "dry_multiplier": 0.8, "guidance_scale": None}
    assert sampling.unknown_settings(settings) == ["dry_multiplier"]
    known, unknown = sampling.recorded_chain(
        [{"class": "TopKLogitsWarper", "settings": {"top_k": 5}}, {"class": "Watermark", "settings": {}}], settings
    )
    assert ([str(each) for each in known], unknown) == (["TopKLogitsWarper(top_k=5)"], ["Watermark"])


def test_cosyvoices_nucleus_and_its_rule() -> None:
    settings = {"sampler": "ras", "top_p": 0.8, "top_k": 3}
    logits = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05]))
    assert survivors(sampling.scores(logits, settings))[0].tolist() == [0, 1, 2]  # 2 crosses 0.8 and stays
    assert survivors(sampling.scores(logits, settings | {"top_k": 2}))[0].tolist() == [0, 1]
    assert survivors(sampling.scores(logits, settings | {"top_p": 0.7}))[0].tolist() == [0, 1]
    assert Ras().repeats(7, [7, *range(10, 19)], 10, 0.1)
    assert not Ras().repeats(7, [7, *range(10, 20)], 10, 0.1)


# -------------------------------------------------------------------- filters

NUCLEUS = {"temperature": 0.8, "top_k": 0, "top_p": 0.8}
SUPPRESSED = NUCLEUS | {"suppress_tokens": [*range(0, 50, 3)]}
PENALISED = {"temperature": 0.8, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.4}


def cut(scores: np.ndarray, keep: np.ndarray) -> np.ndarray:
    return np.where(keep, scores, -np.inf)


def nucleus(scores: np.ndarray, p: float, *, crossing: bool = True) -> np.ndarray:
    """Written from the definition, sorted descending."""
    probs = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    keep, mass = np.zeros(scores.size, dtype=bool), 0.0
    for token in np.argsort(-probs, kind="stable"):
        if mass >= p or (not crossing and keep.any() and mass + probs[token] > p):
            break
        keep[token] = True
        mass += probs[token]
    return cut(scores, keep)


def zeroed(scores: np.ndarray, p: float) -> np.ndarray:
    """Suppressed tokens get probability 0, and nothing is brought to 1 again."""
    probs = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    probs[SUPPRESSED["suppress_tokens"]] = 0.0
    order = np.argsort(-probs, kind="stable")
    keep = np.zeros(scores.size, dtype=bool)
    keep[order[np.concatenate([[0.0], np.cumsum(probs[order])[:-1]]) < p]] = True
    return cut(scores, keep & (probs > 0))


def best(scores: np.ndarray, k: int) -> np.ndarray:
    return cut(scores, scores >= np.sort(scores)[-k])


def penalty(scores: np.ndarray, history: list[int], by: float, *, divides: bool = False) -> np.ndarray:
    out = scores.copy()
    for token in set(history):
        out[token] = out[token] * by if out[token] < 0 and not divides else out[token] / by
    return out


def finish(scores: np.ndarray) -> np.ndarray:
    """What follows the penalty in `PENALISED`."""
    return nucleus(best(scores / 0.8, 20), 0.95)


FILTERS: list[tuple[str, dict[str, Any], Any, Any]] = [
    (
        "top_p_drops_crossing_token",
        NUCLEUS,
        lambda scores, history, step: nucleus(scores / 0.8, 0.8, crossing=False),
        0.8,
    ),
    ("temperature_after_top_p", NUCLEUS, lambda scores, history, step: nucleus(scores, 0.8) / 0.8, 0.8),
    ("top_p", NUCLEUS, lambda scores, history, step: nucleus(scores / 0.8, 0.5), 0.5),
    ("top_p_ignored", NUCLEUS, lambda scores, history, step: scores / 0.8, 0.8),
    ("temperature_ignored", NUCLEUS, lambda scores, history, step: nucleus(scores, 0.8), 0.8),
    ("removed_mass_counts", SUPPRESSED, lambda scores, history, step: zeroed(scores / 0.8, 0.8), 0.8),
    ("temperature", {"top_k": 9, "top_p": 1.0}, lambda scores, history, step: best(scores / 1.25, 9), 1.25),
    (
        "temperature_and_top_p_swapped",
        {"temperature": 0.6, "top_k": 0, "top_p": 0.9},
        lambda scores, history, step: nucleus(scores / 0.9, 0.6),
        [0.9, 0.6],
    ),
    ("top_k_keeps_one_more", {"top_p": 1.0, "top_k": 5}, lambda scores, history, step: best(scores / 0.8, 6), 6),
    ("top_k_drops_kth", {"top_p": 1.0, "top_k": 5}, lambda scores, history, step: best(scores / 0.8, 4), 5),
    ("top_k", {"top_p": 1.0, "top_k": 5}, lambda scores, history, step: best(scores / 0.8, 11), 11),
    (
        "min_p_on_logits",
        {"top_p": 1.0, "top_k": 0, "min_p": 0.3},
        lambda scores, history, step: cut(scores / 0.8, scores >= 0.3 * scores.max()),
        0.3,
    ),
    (
        "penalty_squared",
        PENALISED,
        lambda scores, history, step: finish(penalty(scores, history, 1.4 * 1.4)),
        1.4 * 1.4,
    ),
    (
        "penalty_divides_negative_logits",
        PENALISED | {"top_k": 0, "top_p": 1.0},
        lambda scores, history, step: penalty(scores, history, 1.4, divides=True) / 0.8,
        1.4,
    ),
    (
        "penalty_of_generated_tokens_only",
        PENALISED,
        lambda scores, history, step: finish(penalty(scores, history[PROMPT:], 1.4)),
        1.4,
    ),
    (
        "penalty_stale_by_one_token",
        PENALISED,
        lambda scores, history, step: finish(penalty(scores, history[: max(PROMPT, len(history) - 1)], 1.4)),
        1,
    ),
    ("penalty_inverted", PENALISED, lambda scores, history, step: finish(penalty(scores, history, 1 / 1.4)), 1 / 1.4),
    ("penalty_window", PENALISED, lambda scores, history, step: finish(penalty(scores, history[-3:], 1.4)), 3),
    ("repetition_penalty", PENALISED, lambda scores, history, step: finish(penalty(scores, history, 1.1)), 1.1),
    (
        "repetition_penalty",
        PENALISED,
        lambda scores, history, step: finish(penalty(scores, history, 1.40032)),
        1.40032,
    ),
    ("temperature", {"top_p": 1.0, "top_k": 0}, lambda scores, history, step: scores * 1.0001 / 0.8, 0.8 / 1.0001),
    ("repetition_penalty_ignored", PENALISED, lambda scores, history, step: finish(scores), 1.4),
]


@pytest.mark.parametrize(("kind", "stated", "wrong", "value"), FILTERS, ids=[row[0] for row in FILTERS])
def test_a_wrong_filter_is_named_with_its_number(runs, kind: str, stated: Any, wrong: Any, value: Any) -> None:
    verdict = tracekit.diff(runs("reference", stated=stated), runs("candidate", stated=stated, filtered=wrong))
    assert verdict.cause == "filter", verdict.evidence
    explanation = verdict.explanation
    assert explanation is not None, verdict.evidence
    assert explanation.mistake.id == kind, explanation
    assert explanation.value == pytest.approx(value)
    assert explanation.residual < 1e-5 and explanation.steps == STEPS
    assert any(line.startswith("explained: ") for line in evidence(verdict))
    # With rounding between the sides, too.
    noisy = tracekit.diff(runs("again", stated=stated), runs("noisy", stated=stated, filtered=wrong, noise=1))
    assert (noisy.cause, kind_of(noisy)) == ("filter", kind)


@pytest.mark.parametrize("stated", [NUCLEUS, SUPPRESSED, PENALISED, {"top_p": 1.0, "top_k": 5}], ids=str)
def test_the_same_filter_written_anew_is_parity(runs, stated: Any) -> None:
    settings = {"temperature": 0.8, "top_k": 20, "top_p": 0.9, **stated}

    def anew(scores: np.ndarray, history: list[int], step: int) -> np.ndarray:
        scores[settings.get("suppress_tokens", [])] = -np.inf
        scores = penalty(scores, history, settings.get("repetition_penalty", 1.0)) / settings["temperature"]
        scores = best(scores, settings["top_k"]) if settings["top_k"] else scores
        return nucleus(scores, settings["top_p"]) if settings["top_p"] < 1 else scores

    for noise in range(6):
        candidate = runs(f"candidate{noise}", stated=stated, filtered=anew, noise=noise)
        verdict = tracekit.diff(runs(f"reference{noise}", stated=stated), candidate)
        assert verdict.verdict == "parity", verdict.evidence
        assert verdict.explanation is None
        assert {"logit_gap", "cut", "race", "error", "steps"} <= set(margins_json(verdict.margins))
        assert margins_json(verdict.margins)["cut"]["processor"].startswith("Top")


def test_scores_less_the_logarithm_of_their_sum_in_float32_are_parity(runs) -> None:
    """All scores are rounded as far from zero as the sum is."""

    def logarithms(scores: np.ndarray, history: list[int], step: int) -> np.ndarray:
        narrow = scores.astype(np.float32)
        total = np.log(np.exp(narrow - narrow.max()).sum(dtype=np.float32)) + narrow.max()
        return np.asarray(((narrow - total) / np.float32(0.8)).astype(np.float64))

    stated = {"top_p": 1.0, "top_k": 0}
    verdict = tracekit.diff(runs("reference", stated=stated), runs("candidate", stated=stated, filtered=logarithms))
    assert verdict.verdict == "parity", verdict.evidence


def test_a_reference_that_departs_from_what_it_states_is_said(runs) -> None:
    def wrong(scores: np.ndarray, history: list[int], step: int) -> np.ndarray:
        return nucleus(scores / 0.8, 0.8, crossing=False)

    verdict = tracekit.diff(runs("reference", stated=NUCLEUS, filtered=wrong), runs("candidate", stated=NUCLEUS))
    assert (verdict.cause, kind_of(verdict)) == ("filter", "top_p_drops_crossing_token")
    assert any("it is the reference" in line for line in evidence(verdict))


def test_a_stated_setting_is_blamed_only_where_it_explains(runs) -> None:
    reference = runs("reference", stated=NUCLEUS)
    other = NUCLEUS | {"top_p": 0.5}
    told = tracekit.diff(reference, runs("told", stated=other))
    assert (told.cause, kind_of(told)) == ("config", "settings_as_stated")
    assert "top_p: 0.8 in the reference, 0.5 in the candidate" in evidence(told)[0]
    untrue = runs("untrue", stated=other, filtered=lambda scores, history, step: nucleus(scores / 0.8, 0.95))
    verdict = tracekit.diff(reference, untrue)
    assert (verdict.cause, kind_of(verdict)) == ("filter", "top_p")
    assert verdict.explanation is not None and verdict.explanation.value == pytest.approx(0.95)


def test_a_filter_that_no_rule_explains_gets_no_explanation(runs) -> None:
    def odd(scores: np.ndarray, history: list[int], step: int) -> np.ndarray:
        return cut(scores / 0.8, np.arange(scores.size) % 3 == step % 3)

    verdict = tracekit.diff(runs("reference", stated=NUCLEUS), runs("candidate", stated=NUCLEUS, filtered=odd))
    assert (verdict.cause, verdict.explanation) == ("filter", None)


def test_an_unknown_setting_stands_in_the_evidence(runs) -> None:
    stated = NUCLEUS | {"dry_multiplier": 0.8}
    wrong = runs("candidate", stated=stated, filtered=lambda scores, history, step: nucleus(scores / 0.8, 0.3))
    verdict = tracekit.diff(runs("reference", stated=stated), wrong)
    assert any("unknown: dry_multiplier of the reference" in line for line in evidence(verdict))


def test_stop_tokens_that_are_barred_are_named(runs) -> None:
    stated = {"top_k": 0, "top_p": 1.0, "eos_token_id": [31]}

    def barred(scores: np.ndarray, history: list[int], step: int) -> np.ndarray:
        return cut(scores / 0.8, np.arange(scores.size) != 31) if step < 5 else scores / 0.8

    verdict = tracekit.diff(runs("reference", stated=stated), runs("candidate", stated=stated, filtered=barred))
    assert (verdict.cause, kind_of(verdict)) == ("filter", "stop_tokens_removed_below_length")
    assert verdict.explanation is not None and verdict.explanation.value == 5


def test_ties_at_the_k_th_are_the_filters_rule(runs) -> None:
    """Both sides' logits are multiples of 1/2, so that several tie with the k-th: all stay, or k by id."""
    stated = {"temperature": 0.8, "top_p": 1.0, "top_k": 12}

    def ties(site: str, position: int, row: np.ndarray) -> np.ndarray:
        return np.round(row * 2) / 2 if site == "logits" else row

    def exactly(scores: np.ndarray, history: list[int], step: int) -> np.ndarray:
        order = np.argsort(-scores, kind="stable")
        return cut(scores / 0.8, np.isin(np.arange(scores.size), order[:12]))

    reference = runs("reference", stated=stated, change=ties)
    verdict = tracekit.diff(reference, runs("candidate", stated=stated, change=ties, filtered=exactly))
    assert (verdict.cause, kind_of(verdict)) == ("filter", "top_k_drops_ties")
    again = tracekit.diff(reference, runs("again", stated=stated, change=ties, noise=1))
    assert again.verdict == "parity"
    assert not any("ties at a cut" in line for line in spoken(again.unexercised))


def test_simplest_numbers() -> None:
    assert simplest(0.899, 0.903) == 0.9
    assert simplest(0.4999, 0.5001) == 0.5
    assert simplest(0.81234, 0.81236) == 0.81236
    assert simplest(1.2, 7.9) == 7.0


# -------------------------------------------------------------------- draws


def inverse_cdf(generator: TorchGenerator, probs: np.ndarray, step: int) -> int:
    goal, mass = float(generator.rand(1)[0]), 0.0
    for token in np.flatnonzero(probs):
        mass += float(probs[token])
        if mass > goal:
            return int(token)
    return int(np.flatnonzero(probs)[-1])


def uniform_race(generator: TorchGenerator, probs: np.ndarray, step: int) -> int:
    return int(np.argmax(probs / generator.rand(probs.size, "float64")))


def compact_race(generator: TorchGenerator, probs: np.ndarray, step: int) -> int:
    ids = np.flatnonzero(probs)
    return int(ids[np.argmax(probs[ids] / generator.exponential(ids.size))])


def gumbel(generator: TorchGenerator, probs: np.ndarray, step: int) -> int:
    with np.errstate(divide="ignore"):
        return int(np.argmax(np.log(probs.astype(np.float64)) - np.log(-np.log(generator.rand(probs.size)))))


def greedy_first(generator: TorchGenerator, probs: np.ndarray, step: int) -> int:
    drawn = int(generator.multinomial(probs)[0])
    return drawn if step else int(np.argmax(probs))


DRAWS = [
    ("inverse_cdf", inverse_cdf, {"op": "rand", "words": 1}, True),
    ("uniform_for_exponential", uniform_race, {}, True),
    ("race_among_survivors", compact_race, {"words": 20}, True),
    ("gumbel_noise", gumbel, {"words": VOCABULARY}, True),
    ("argmax", lambda generator, probs, step: int(np.argmax(probs)), {}, True),
    ("argmax_at_first_step", greedy_first, {}, True),
    ("argmax", lambda generator, probs, step: int(np.argmax(probs)), {}, False),
]


@pytest.mark.parametrize(("kind", "way", "more", "tell"), DRAWS)
def test_another_way_of_drawing_is_named(runs, kind: str, way: Any, more: Any, tell: bool) -> None:
    stated = {"temperature": 1.3, "top_k": 20, "top_p": 1.0}
    candidate = runs("candidate", stated=stated, draw=way, tell=tell, **more)
    verdict = tracekit.diff(runs("reference", stated=stated), candidate)
    assert verdict.cause == "sampler", verdict.evidence
    assert kind_of(verdict) == kind


@pytest.mark.parametrize(("kind", "way", "more", "tell"), [row for row in DRAWS if row[3]])
def test_tokens_survivors_and_draws_are_enough_to_name_it(runs, kind: str, way: Any, more: Any, tell: bool) -> None:
    """Without logits the number of tokens is known from the reference's race."""
    stated = {"temperature": 1.3, "top_k": 20, "top_p": 1.0}
    reference = runs("reference", stated=stated, sparse=True)
    verdict = tracekit.diff(reference, runs("candidate", stated=stated, draw=way, sparse=True, **more))
    assert (verdict.cause, kind_of(verdict)) == ("sampler", kind), verdict.evidence
    moved = tracekit.diff(reference, runs("moved", stated=stated, generator_seed=8, sparse=True))
    assert (moved.cause, kind_of(moved)) == ("rng", "seed"), moved.evidence
    assert tracekit.diff(reference, runs("same", stated=stated, noise=1, sparse=True)).verdict == "parity"


def test_a_seed_that_was_moved_is_counted(runs) -> None:
    verdict = tracekit.diff(runs("reference"), runs("candidate", generator_seed=8))
    assert (verdict.cause, verdict.explanation.mistake.id, verdict.explanation.value) == ("rng", "seed", 5)
    assert verdict.site == "draws" and verdict.step == 0


def test_a_seed_is_found_where_the_side_does_not_tell_it(runs) -> None:
    stated = {"temperature": 1.3, "top_k": 0, "top_p": 1.0}
    reference = runs("reference", stated=stated)
    verdict = tracekit.diff(reference, runs("candidate", stated=stated, generator_seed=9, tell=False))
    assert (verdict.cause, kind_of(verdict)) == ("rng", "seed"), verdict.evidence
    assert verdict.explanation.value == 6
    silent = runs("silent", stated=stated, generator_seed=987654, tell=False)
    verdict = tracekit.diff(reference, silent)
    assert verdict.explanation is None
    assert tracekit.diff(reference, runs("same", stated=stated, tell=False)).verdict == "parity"


def test_a_generator_that_nobody_seeded_is_said(runs) -> None:
    """Its draws are known and cannot be repeated: neither side is shown to draw in another way."""
    stated = {"temperature": 1.3, "top_k": 20, "top_p": 1.0}
    loose = {"stated": stated, "unseeded": True}
    candidate = runs("candidate", generator_seed=987654, **loose)
    verdict = tracekit.diff(runs("reference", stated=stated), candidate)
    assert (verdict.cause, verdict.step, kind_of(verdict)) == ("rng", 0, "unseeded"), verdict.evidence
    assert sentence(verdict.explanation).startswith("the candidate draws from thread_rng, an unseeded generator")
    both = tracekit.diff(candidate, runs("other", generator_seed=5, **loose))
    assert both.cause == "rng" and "both sides draw from an unseeded generator (thread_rng)" in evidence(both)[0]


def test_words_between_draws_are_counted(runs) -> None:
    verdict = tracekit.diff(runs("reference"), runs("candidate", words_between_draws=3))
    assert (verdict.cause, verdict.step) == ("rng", 1)
    assert (verdict.explanation.mistake.id, verdict.explanation.value) == ("extra_draw", 3)
    assert "the distance between the generators changes at later steps" in evidence(verdict)


def test_the_four_combinations_say_what_flips_the_token(runs) -> None:
    stated = {"temperature": 1.3, "top_k": 0, "top_p": 1.0}
    verdict = tracekit.diff(runs("reference", stated=stated), runs("candidate", stated=stated, generator_seed=4))
    rows = {(row.logits, row.draws): row.token for row in verdict.margins.combinations}
    reference, candidate = verdict.token.reference.id, verdict.token.candidate.id
    assert rows["reference", "reference"] == rows["candidate", "reference"] == reference
    assert rows["reference", "candidate"] == rows["candidate", "candidate"] == candidate
    assert verdict.margins.flips == "draws"


# -------------------------------------------------------------------- CosyVoice's sampler

RAS = {"sampler": "ras", "temperature": None, "top_p": 0.8, "top_k": 25, "win_size": 10, "tau_r": 0.1}


def race_of(generator: TorchGenerator, probs: np.ndarray) -> int:
    return int(np.argmax(probs / generator.exponential(probs.size).astype(np.float32)))


def inverse_cdf_of(generator: TorchGenerator, probs: np.ndarray) -> int:
    sums = np.cumsum(probs.astype(np.float64))
    return int(np.searchsorted(sums, float(generator.rand(1, "float64")[0]) * sums[-1], side="right"))


def ras(
    rule: Callable[[list[int], int], bool],
    pick: Callable[[TorchGenerator, np.ndarray], int] = race_of,
    words: int | None = None,
) -> Callable[..., Drawn]:
    """Repetition-aware sampling from its description; `rule` says of the tokens so far and the new one: draw again."""
    decoded: list[int] = []

    def draw(generator: TorchGenerator, probs: np.ndarray, step: int, logits: np.ndarray) -> Drawn:
        if step == 0:
            decoded.clear()
        ids = [token for token in np.argsort(-probs, kind="stable") if probs[token] > 0]
        token = int(ids[pick(generator, probs[ids])])
        drawn = [(words or 2 * len(ids), token)]
        if rule(decoded, token):
            whole = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            token = pick(generator, whole.astype(np.float32))
            drawn.append((words or 2 * whole.size, token))
        decoded.append(token)
        return drawn

    return draw


def repeats(decoded: list[int], token: int) -> bool:
    return token in decoded[-10:]


RAS_FAULTS = [
    ("repetition_rule_strict", ras(lambda decoded, token: decoded[-10:].count(token) > 1)),
    ("no_repetition_rule", ras(lambda decoded, token: False)),
    ("repetition_window_from_start", ras(lambda decoded, token: decoded[:10].count(token) >= 1)),
    ("inverse_cdf", ras(repeats, inverse_cdf_of, 2)),
    (None, ras(repeats)),
]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("kind", "draw"), RAS_FAULTS)
def test_a_wrong_repetition_rule_is_named(runs, kind: str | None, draw: Any, sparse: bool) -> None:
    """`sparse`: from the nuclei, the tokens and the draws alone."""

    def run(name: str, draw: Any) -> tracekit.Trace:
        latest: list[np.ndarray] = []

        def keep(logits: np.ndarray, history: list[int], step: int) -> np.ndarray:
            latest[:] = [logits]
            order = np.argsort(-logits, kind="stable")
            probs = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            before = np.concatenate([[0.0], np.cumsum(probs[order])[:-1]])
            keep = np.zeros(logits.size, dtype=bool)
            keep[order[:25][before[:25] < 0.8]] = True
            return cut(logits, keep)

        way = lambda generator, probs, step: draw(generator, probs, step, latest[0])  # noqa: E731
        return runs(name, stated=RAS, filtered=keep, draw=way, steps=40, sparse=sparse)

    reference = run("reference", ras(repeats))
    verdict = tracekit.diff(reference, run("candidate", draw))
    if kind is None:
        assert verdict.verdict == "parity"
        return
    assert verdict.cause == "sampler"
    assert verdict.explanation is not None, verdict.evidence
    # Two mistakes may do the same to 40 tokens: then both are said.
    assert kind in (kind_of(verdict), *(other.mistake.id for other in verdict.explanation.also)), verdict.explanation


def test_a_nucleus_that_is_normalised_first_is_the_same() -> None:
    """CosyVoice draws from its nucleus as it is; a port that makes it add up to 1 draws the same token."""
    logits = np.random.default_rng(0).normal(size=60).astype(np.float32) * 3
    chain = sampling.chain(RAS)
    values = run(chain, logits, Context([], 0))
    ids = np.flatnonzero(values > GONE)
    kept = softmax(logits)[ids]
    for probs in (kept, kept / kept.sum()):
        seen = Observed(0, logits, Context([], 0), ids, probs.astype(np.float32), int(ids[0]), (), ())
        assert misfit(chain, seen) < 1e-5
    wrong = Observed(0, logits, Context([], 0), ids[:-1], kept[:-1], int(ids[0]), (), ())
    assert misfit(chain, wrong) == float("inf")


# -------------------------------------------------------------------- near-ties


def two_steps(folder: Path, name: str, logits: np.ndarray, token: int, dtype: str = "float32") -> tracekit.Trace:
    log = LogWriter(folder / f"{name}.tklog")
    log.open("python", dtype=dtype)
    log.sequence(0, {"prompt/token_ids": np.array([1])}, sampling={"do_sample": False})
    log.step(0, 0, 0, token, {"logits": logits})
    log.end_sequence(0, 1, "length")
    log.close()
    return tracekit.open(log.path)


def test_a_greedy_near_tie_needs_the_logits_to_flip_it(tmp_path: Path) -> None:
    reference = np.array([1.0, 3.0, 3.0 - 2e-6, 0.0], dtype=np.float32)
    flipped = np.array([1.0, 3.0 - 2e-6, 3.0, 0.0], dtype=np.float32)
    first = two_steps(tmp_path, "reference", reference, 1)
    verdict = tracekit.diff(first, two_steps(tmp_path, "flipped", flipped, 2))
    assert (verdict.cause, verdict.margins.flips) == ("near-tie", "logits")
    # The same narrow margin, but the candidate's own logits do not give its token: its rule does.
    against = tracekit.diff(first, two_steps(tmp_path, "against", reference, 2))
    assert (against.cause, against.margins.flips) == ("sampler", "sampler")


def test_equal_logits_are_the_sides_rule_not_rounding(tmp_path: Path) -> None:
    tied = np.array([1.0, 3.0, 3.0, 0.0], dtype=np.float32)
    verdict = tracekit.diff(two_steps(tmp_path, "first", tied, 1), two_steps(tmp_path, "last", tied, 2))
    assert (verdict.cause, kind_of(verdict)) == ("sampler", "last_of_equal_logits")


def at_the_cut(first: int) -> Any:
    """Logits of which top-k 2 keeps 10 and, by a millionth, `first` of 11 and 12."""

    def change(site: str, position: int, row: np.ndarray) -> np.ndarray:
        if site != "logits":
            return row
        out = np.full_like(row, -4.0)
        out[[10, 11, 12]] = 2.0, 2.0, 2.0
        out[23 - first] -= 2e-6
        return out

    return change


def test_a_token_that_rounding_moved_over_a_cut_is_a_near_tie(runs) -> None:
    stated = {"top_k": 2, "top_p": 1.0}
    for seed in range(8):
        sides = [
            runs(f"{seed}-{first}", seed=seed, steps=1, stated=stated, change=at_the_cut(first)) for first in (11, 12)
        ]
        tokens = [int(side.sequences[0].tokens[0]) for side in sides]
        if tokens == [11, 12]:
            break
    verdict = tracekit.diff(*sides)
    assert (verdict.cause, verdict.margins.flips) == ("near-tie", "logits")
    assert "survive on one side only" in evidence(verdict)[0]
    # The same survivors from logits that are the reference's: the filter's doing.
    keep = lambda logits, history, step: np.where(np.isin(np.arange(logits.size), [10, 12]), logits / 0.8, -np.inf)  # noqa: E731
    wrong = runs("wrong", seed=seed, steps=1, stated=stated, change=at_the_cut(11), filtered=keep)
    assert tracekit.diff(sides[0], wrong).cause == "filter"


def greedy_run(runs, name: str, by: float, stated: dict[str, Any], tell: bool = False, **more: Any) -> tracekit.Trace:
    keep = lambda logits, history, step: penalty(logits, history, by)  # noqa: E731
    way = lambda generator, probs, step: int(np.argmax(probs))  # noqa: E731
    stated = {"do_sample": False, **stated}
    return runs(name, stated=stated, filtered=keep, draw=way, tell=tell, greedy=True, **more)


def test_a_penalty_lost_in_a_greedy_run_is_named(runs) -> None:
    stated = {"repetition_penalty": 1.5}
    reference = greedy_run(runs, "reference", 1.5, stated)
    verdict = tracekit.diff(reference, greedy_run(runs, "candidate", 1.0, stated))
    assert (verdict.cause, kind_of(verdict)) == ("sampler", "repetition_penalty_ignored"), verdict.evidence
    verdict = tracekit.diff(reference, greedy_run(runs, "squared", 2.25, stated))
    assert (verdict.cause, kind_of(verdict)) == ("sampler", "penalty_squared"), verdict.evidence
    same = tracekit.diff(reference, greedy_run(runs, "same", 1.5, stated))
    assert (same.verdict, lost(same)) == ("withheld", [(2, ("RepetitionPenaltyLogitsProcessor(penalty=1.5)",), STEPS)])


def lost(verdict: Verdict) -> list[tuple[int, tuple[str, ...], int]]:
    """How many sides lack what processors left, which, and at how many steps."""
    found = [each for each in verdict.coverage.lost if isinstance(each, ProcessorsNotJudged)]
    return [(len(each.paths), each.processors, each.steps) for each in found]


def test_a_penalty_that_leaves_the_tokens_of_a_greedy_run_is_named(runs) -> None:
    stated = {"repetition_penalty": 1.5}
    reference = greedy_run(runs, "reference", 1.5, stated, tell=True)
    for name, by, kind in (("number", 1.52, "repetition_penalty"), ("lost", 1.0, "repetition_penalty_ignored")):
        candidate = greedy_run(runs, name, by, stated, tell=True)
        verdict = tracekit.diff(reference, candidate)
        assert (verdict.cause, kind_of(verdict)) == ("filter", kind), verdict.evidence
    number = tracekit.open(reference.path.replace("reference", "number"))
    assert np.array_equal(reference.sequences[0].tokens, number.sequences[0].tokens)
    again = greedy_run(runs, "again", 1.5, stated, tell=True, noise=1)
    assert tracekit.diff(reference, again).verdict == "parity"


def test_what_a_greedy_runs_processors_left_on_one_side_alone_is_said(runs) -> None:
    stated = {"repetition_penalty": 1.5}
    sides = [greedy_run(runs, name, 1.5, stated, tell=name == "told") for name in ("told", "silent")]
    for reference, candidate in (sides, sides[::-1]):
        verdict = tracekit.diff(reference, candidate)
        assert verdict.verdict == "withheld"
        assert lost(verdict) == [(1, ("RepetitionPenaltyLogitsProcessor(penalty=1.5)",), STEPS)]
    for idle in ({}, {"min_length": 100}, {"min_length": 2, "eos_token_id": [4]}):
        plain = [greedy_run(runs, name, 1.0, idle) for name in ("one", "other")]
        assert tracekit.diff(*plain).verdict == "parity"


# -------------------------------------------------------------------- stops


def stop_run(runs, name: str, stops: tuple[int, ...], listed: list[int], **more: Any) -> tracekit.Trace:
    return runs(name, stops=stops, stated={"eos_token_id": listed, **more.pop("stated", {})}, **more)


def test_stops_are_told_apart(runs) -> None:
    tokens = runs("tokens").sequences[0].tokens.tolist()
    at = next(index for index in range(4, STEPS) if tokens[index] not in tokens[:index])
    stop, reference = tokens[at], None
    reference = stop_run(runs, "reference", (stop,), [stop])
    whole = stop_run(runs, "whole", (), [stop])

    ignored = tracekit.diff(reference, whole)
    assert (ignored.cause, ignored.step, kind_of(ignored)) == ("stop", at + 1, "stop_token_ignored")
    assert ignored.explanation.value == stop

    other = tracekit.diff(reference, stop_run(runs, "other", (), [0]))
    assert (other.cause, kind_of(other)) == ("config", "stop_list")
    assert "its stop list [0] does not contain it" in " ".join(evidence(other))

    wrong = tracekit.diff(whole, stop_run(runs, "wrong", (stop,), [49]))
    assert wrong.cause in ("stop", "config")
    unlisted = tracekit.diff(stop_run(runs, "w", (), [49]), stop_run(runs, "u", (stop,), [49]))
    assert (unlisted.cause, kind_of(unlisted), unlisted.explanation.value) == (
        "stop",
        "stopped_on_other_token",
        stop,
    )

    left_out = tracekit.diff(reference, stop_run(runs, "left", (), [stop], steps=at, reason="stop"))
    assert (left_out.cause, kind_of(left_out)) == ("stop", "last_token_omitted")


def test_one_token_more_or_fewer_than_the_limit(runs) -> None:
    limit = {"max_new_tokens": STEPS}
    reference = runs("reference")
    for steps, delta in ((STEPS + 1, 1), (STEPS - 1, -1)):
        verdict = tracekit.diff(reference, runs(f"by{delta}", steps=steps, stated=limit))
        assert (verdict.cause, kind_of(verdict), verdict.explanation.value) == ("stop", "length", delta)


# -------------------------------------------------------------------- what was not exercised


def test_what_the_run_could_not_show_is_listed_with_numbers(runs) -> None:
    plain = {"temperature": 1.0, "top_k": 49, "top_p": 0.9, "repetition_penalty": 1.2}
    model = {"num_key_value_heads": 1, "num_attention_heads": 4, "sliding_window": 4096}
    model |= {"rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 8192}}
    traces = [runs(name, stated=plain, model=model, noise=index) for index, name in enumerate("ab")]
    said = "; ".join(spoken(tracekit.diff(*traces).unexercised))
    for words in (
        f"sliding window (4096 > {PROMPT + STEPS - 1} positions)",
        f"original length (8192 > {PROMPT + STEPS - 1} positions)",
        "KV-head mapping (one KV head for 4 heads)",
        "16-bit numbers (a run in float32)",
        "order of temperature and top-p (temperature 1)",
        "min-p (off)",
        f"ties at a cut (none at {STEPS} steps)",
        f"stop tokens (none sampled in {STEPS} steps)",
        f"batches (one sequence of {STEPS} steps)",
    ):
        assert words in said, words
    assert "top-p (off)" not in said and "top_k" not in said
    idle = {"temperature": 0.8, "top_k": 50, "top_p": 1.0}
    said = "; ".join(spoken(tracekit.diff(runs("c", stated=idle), runs("d", stated=idle, noise=1)).unexercised))
    assert f"top-k 50 (removed nothing at {STEPS} steps)" in said


# -------------------------------------------------------------------- a real engine

SAMPLED = {"temperature": 0.8, "top_k": 50, "top_p": 0.95}
ENGINE = [
    ("top-p:0.6", SAMPLED, "filter", "top_p", 0.6),
    ("temperature-ignored", SAMPLED, "filter", "temperature_ignored", 0.8),
    ("temperature-after-top-p", {"temperature": 0.6, "top_p": 0.8}, "filter", "temperature_after_top_p", 0.6),
    ("top-k-off-by-one", {"top_k": 5}, "filter", "top_k_keeps_one_more", 6),
    ("top-p-drops-crossing", {"top_p": 0.8}, "filter", "top_p_drops_crossing_token", 0.8),
    ("eos-escapes-filter", {"top_k": 5}, "filter", "stop_tokens_bypass_filter", [319]),
    ("inverse-cdf", SAMPLED, "sampler", "inverse_cdf", None),
    ("uniform-for-exponential", SAMPLED, "sampler", "uniform_for_exponential", None),
    ("compact-draw", SAMPLED, "sampler", "race_among_survivors", None),
    ("seed:-3", SAMPLED, "rng", "seed", -3),
    ("seed:-9", SAMPLED, "rng", "seed", -9),
    ("seed-each-step", SAMPLED, "rng", "reseeded_every_step", 5),
    ("extra-draw", SAMPLED, "rng", "extra_draw", 1),
    ("first-token-greedy", SAMPLED, "sampler", "argmax_at_first_step", None),
    ("max-tokens-off-by-one", SAMPLED, "stop", "length", 1),
]


@pytest.mark.parametrize(("fault", "settings", "cause", "kind", "value"), ENGINE, ids=[row[0] for row in ENGINE])
def test_an_engines_fault_is_named(
    engine: Engine,  # noqa: F811
    folder_of: FolderOf,  # noqa: F811
    tmp_path: Path,
    fault: str,
    settings: dict[str, Any],
    cause: str,
    kind: str,
    value: Any,
) -> None:
    run = flags(5, **settings)
    plain = engine.record(folder_of(QWEN2), tmp_path / "plain.tklog", *run)
    faulty = engine.record(folder_of(QWEN2), tmp_path / "faulty.tklog", *run, "--fault", fault)
    verdict = tracekit.diff(plain, faulty, audited=False)
    assert (verdict.cause, kind_of(verdict)) == (cause, kind), verdict.evidence
    assert verdict.explanation is not None and verdict.explanation.value == (
        value if value is None else pytest.approx(value)
    )
    if cause == "filter":
        assert any("leaves" in line or " runs in the " in line for line in evidence(verdict)), verdict.evidence


# -------------------------------------------------------------------- what PyTorch's side records of the chain


def test_each_processor_is_recorded_as_it_ran(folder_of: FolderOf, tmp_path: Path) -> None:  # noqa: F811
    import tracekit_torch
    from transformers import AutoModelForCausalLM

    class Quiet(theirs.LogitsProcessor):
        """One of the program's own, which takes a keyword as some of transformers' do."""

        def __init__(self) -> None:
            self.bias = 0.5

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores + self.bias

    model = AutoModelForCausalLM.from_pretrained(folder_of(QWEN2)).eval()
    ids = torch.tensor([[72, 101, 50, 290], [5, 6, 7, 8]])
    settings = {"do_sample": True, "temperature": 0.8, "top_k": 9, "top_p": 0.9, "repetition_penalty": 1.2}

    def generate() -> list[list[int]]:
        torch.manual_seed(3)
        own = theirs.LogitsProcessorList([Quiet()])
        made = model.generate(ids, max_new_tokens=5, logits_processor=own, pad_token_id=0, **settings)
        assert [type(each).__name__ for each in own] == ["Quiet"]
        return made.tolist()

    plain = generate()
    with tracekit_torch.record(model, tmp_path / "run.h5"):
        assert generate() == plain
    trace = tracekit.open(str(tmp_path / "run.h5"))
    for sequence in trace.sequences:
        rows = [event.detail for event in sequence.step(2).events if event.kind == "processor"]
        assert [(row["class"], row["settings"]) for row in rows] == [
            ("RepetitionPenaltyLogitsProcessor", {"penalty": 1.2}),
            ("Quiet", {"bias": 0.5}),
            ("TemperatureLogitsWarper", {"temperature": 0.8}),
            ("TopKLogitsWarper", {"top_k": 9}),
            ("TopPLogitsWarper", {"top_p": 0.9}),
        ]
        step = sequence.step(2)
        assert [row["survivors"] for row in rows[2:4]] == [320, 9]
        assert rows[4]["survivors"] == step.survivors_id.size
        known, unknown = sampling.recorded_chain(rows, sequence.sampling)
        assert (len(known), unknown) == (4, ["Quiet"])


def test_a_processor_of_the_program_is_named_alone_and_is_no_departure(folder_of: FolderOf, tmp_path: Path) -> None:  # noqa: F811
    import tracekit_torch
    from transformers import AutoModelForCausalLM

    class Ban(theirs.LogitsProcessor):
        """One of the program's own, which holds what has no value to show."""

        def __init__(self) -> None:
            self.state = object()

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores = scores.clone()
            scores[:, ::3] = -torch.inf
            return scores

    model = AutoModelForCausalLM.from_pretrained(folder_of(QWEN2)).eval()
    settings = {"do_sample": True, "temperature": 0.8, "top_k": 9, "pad_token_id": 0, "max_new_tokens": 4}
    for name, own in (("banned.h5", [Ban()]), ("plain.h5", [])):
        with tracekit_torch.record(model, tmp_path / name):
            torch.manual_seed(3)
            model.generate(torch.tensor([[72, 101, 50, 290]]), logits_processor=own, **settings)
    for reference, candidate, side in (("banned", "plain", "reference"), ("plain", "banned", "candidate")):
        verdict = tracekit.diff(tmp_path / f"{reference}.h5", tmp_path / f"{candidate}.h5")
        said = evidence(verdict)
        assert verdict.cause == "filter"
        assert f"Ban(state=<object object>) runs in the {side} alone" in said
        assert not any("it is the reference that departs" in line for line in said), said


def test_the_processor_that_removed_a_token_is_named_across_languages(
    engine: Engine,  # noqa: F811
    folder_of: FolderOf,  # noqa: F811
    tmp_path: Path,
) -> None:
    import tracekit_torch
    from transformers import AutoModelForCausalLM

    from tests.test_engine import PROMPT as IDS

    model = AutoModelForCausalLM.from_pretrained(folder_of(QWEN2)).eval()
    with tracekit_torch.record(model, tmp_path / "run.h5"):
        torch.manual_seed(5)
        model.generate(torch.tensor([IDS]), max_new_tokens=40, do_sample=True, pad_token_id=0, **SAMPLED)
    reference = tracekit.open(str(tmp_path / "run.h5"))
    same = engine.record(folder_of(QWEN2), tmp_path / "same.tklog", *flags(5, **SAMPLED))
    parity = tracekit.diff(reference, same, audited=False)
    assert parity.verdict == "parity", parity.evidence
    assert margins_json(parity.margins)["cut"]["error"] < 1e-3
    run = [*flags(5, **SAMPLED), "--fault", "top-p:0.6"]
    verdict = tracekit.diff(reference, engine.record(folder_of(QWEN2), tmp_path / "b.tklog", *run), audited=False)
    assert verdict.explanation is not None and verdict.explanation.value == pytest.approx(0.6)
    said = [line for line in evidence(verdict) if "leaves" in line]
    assert said and said[0].startswith("TopPLogitsWarper(top_p=0.95) | TopPLogitsWarper(top_p=0.6) leaves ")


def test_a_setting_that_is_not_of_its_kind_is_unknown_not_an_error() -> None:
    """Files may hold anything: a sampler's setting that the format does not fix is not checked where it is read."""
    settings = {"epsilon_cutoff": "small", "bad_words_ids": [3, "x"], "top_k": 5}
    assert sampling.unknown_settings(settings) == ["bad_words_ids", "epsilon_cutoff"]
    assert [each.name for each in sampling.chain(settings)] == ["TopKLogitsWarper"]


@pytest.mark.parametrize(("temperature", "wrong"), [(0.7, False), (0.71, True)])
def test_scores_far_from_zero_have_coarse_last_bits(temperature: float, wrong: bool) -> None:
    """A filter that keeps its scores in float64 is the same filter, also where a model's logits are large."""
    logits = (np.random.default_rng(0).normal(size=60) * 6 + 2e4).astype(np.float32)
    scores = logits.astype(np.float64) / temperature
    ids, probs = survivors(scores)
    seen = Observed(0, logits, Context(), ids, probs.astype(np.float32), int(ids[0]), (), ())
    assert departs(sampling.chain({"temperature": 0.7}), seen) is wrong


def test_a_reference_without_logits_is_not_said_to_depart(runs, tmp_path: Path) -> None:
    """Whether it follows its settings is not known; the candidate, which does, states others."""
    reference = runs("reference", stated=NUCLEUS, sparse=True)
    told = tracekit.diff(reference, runs("told", stated=NUCLEUS | {"top_p": 0.5}))
    assert (told.cause, kind_of(told)) == ("config", "settings_as_stated")
    assert not any("it is the reference" in line for line in evidence(told))


@pytest.mark.parametrize(("by", "decision"), [(0.0, "parity"), (2e-3, "withheld")])
def test_probabilities_without_logits_are_judged_only_where_they_are_the_same(runs, by: float, decision: str) -> None:
    """How far logits are apart, nobody knows then: more than a probability's own rounding is said, with its steps."""
    reference = runs("reference", sparse=True)
    for sparse in (True, False):
        candidate = runs(f"candidate-{sparse}", used={"temperature": 0.8 + by}, sparse=sparse)
        assert np.array_equal(candidate.sequences[0].tokens, reference.sequences[0].tokens)
        verdict = tracekit.diff(reference, candidate)
        assert verdict.verdict == decision, evidence(verdict)
        lost = [each for each in verdict.coverage.lost if isinstance(each, ProbabilitiesNotJudged)]
        assert [(each.path, each.step, each.nats > 1e-3) for each in lost] == [(reference.path, 0, True)] * bool(by)


def test_a_filter_is_judged_by_each_sides_logits_however_little_it_is_off(runs) -> None:
    verdict = tracekit.diff(runs("reference"), runs("candidate", used={"temperature": 0.8002}))
    assert (verdict.cause, verdict.step, kind_of(verdict)) == ("filter", 0, "temperature")


def test_a_longer_run_below_its_limit_is_not_said_to_pass_it(runs) -> None:
    limit = {"max_new_tokens": 100}
    verdict = tracekit.diff(runs("a", steps=10, stated=limit), runs("b", steps=11, stated=limit))
    assert (verdict.cause, kind_of(verdict), verdict.explanation.value) == ("stop", "length", 11 - 100)


@pytest.mark.parametrize("rounded", [True, False])
def test_another_number_of_draws_where_a_token_crossed_the_cut(rounded: bool, tmp_path: Path) -> None:
    """What is drawn among other survivors may be drawn again on one side alone (CosyVoice's repetition rule). Where
    both sides' logits are the same, no rounding moved the token."""
    stated = {"sampler": "ras", "top_p": 0.8, "top_k": 25, "win_size": 10, "tau_r": 0.1}

    def side(name: str, least: float, kept: list[int], token: int, draws: list[int]) -> tracekit.Trace:
        logits = np.full(40, -40.0, dtype=np.float32)
        logits[[10, 11, 12]] = np.log([0.5, 0.3 + least, 0.2])
        log = LogWriter(tmp_path / f"{name}.tklog")
        log.open("python", dtype="float32")
        log.sequence(0, {"prompt/token_ids": np.array([1])}, sampling=stated)
        probs = np.exp(logits - np.log(np.exp(logits).sum()))[kept]
        values = {"logits": logits, "survivors/id": np.array(kept), "survivors/prob": probs}
        rows = [
            {"op": "multinomial", "generator": "mt19937", "seed": 0, "offset": sum(draws[:index]), "words": words}
            for index, words in enumerate(draws)
        ]
        log.step(0, 0, 0, token, values, draws=rows)
        log.end_sequence(0, 1, "length")
        log.close()
        return tracekit.open(log.path)

    # The first two have a little less than 0.8 on one side, and a little more on the other.
    reference = side("reference", -4e-5, [10, 11, 12], 12, [6, 80])
    candidate = side("candidate", 4e-5 if rounded else -4e-5, [10, 11], 11, [4])
    verdict = tracekit.diff(reference, candidate)
    assert (verdict.cause == "near-tie") is rounded
    if rounded:
        assert [type(each) for each in verdict.evidence][:2] == [CutCrossed, DrawsMoveOn]


@pytest.mark.parametrize(("counts", "apart"), [((3, 1), True), ((3, 3), False), ((3, None), False), ((None, 1), False)])
def test_how_many_tokens_a_processor_leaves_differs_where_both_sides_say_it(counts, apart: bool) -> None:
    def seen(survivors: int | None) -> Observed:
        row = {"class": "TopPLogitsWarper", "settings": {"top_p": 0.9}, "survivors": survivors}
        return Observed(0, None, Context(np.zeros(0, np.int64), 0), None, None, 0, (), (row,))

    (found, *_) = [*processors_apart((seen(counts[0]), seen(counts[1]))), None]
    assert isinstance(found, ProcessorLeaves) == apart
    assert found is None or sentence(found).endswith("leaves 3 tokens in the reference, 1 in the candidate")
