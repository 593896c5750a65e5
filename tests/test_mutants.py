"""The short forms of `make bench-mutants`, `make bench-clean` and the shoot-out, with fixed seeds."""

from __future__ import annotations

import ast
import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks import clean_families, shootout  # noqa: E402
from benchmarks.mutants import __main__ as command  # noqa: E402
from benchmarks.mutants import score, subject, trial  # noqa: E402
from benchmarks.mutants.edits import Kind, Point, points  # noqa: E402

SOURCE = '''
class Norm(Module):
    def __init__(self, eps=1e-6):
        self.eps = eps + 1.0

    def forward(self, x, scale=2.0):
        """Not 1 + 1."""
        if x.shape[-1] > 4:
            x = torch.cat((-x[..., 2:], x[..., :2]), dim=-1)
        return self.lin(x.float()) * scale + x[0]
'''


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> subject.Subject:
    return subject.subject("gpt2", tmp_path_factory.mktemp("gpt2"))


def test_a_tree_is_changed_in_each_way_and_put_back() -> None:
    tree = ast.parse(SOURCE)
    made = points(tree)
    assert {point.function for point in made} == {"Norm.forward"}
    words = {(point.kind, point.words()) for point in made}
    assert {
        (Kind.DEFAULT, "2.0 -> 4.0"),
        (Kind.COMPARISON, "x.shape[-1] > 4 -> x.shape[-1] >= 4"),
        (Kind.SLICE, "2 -> 3"),
        (Kind.AXIS, "-1 -> -2"),
        (Kind.INDEX, "0 -> 1"),
        (Kind.CAST, "x.float() -> x"),
        (Kind.CALL, "self.lin(x.float()) -> x.float()"),
        (Kind.TERM, "self.lin(x.float()) * scale + x[0] -> x[0]"),
        (Kind.OPERATOR, "self.lin(x.float()) * scale -> self.lin(x.float()) / scale"),
    } <= words
    before = ast.unparse(tree)
    for point in made:
        old = point.old
        point.put(point.new)
        assert ast.unparse(tree) != before, point.words()
        point.put(old)
    assert ast.unparse(tree) == before


def test_mutants_are_drawn_alike_and_only_of_lines_that_run(gpt2: subject.Subject) -> None:
    drawn = [list(islice(subject.drawn(gpt2, random.Random("4")), 20)) for _ in range(2)]
    assert drawn[0] == drawn[1]
    functions = {point.function for found in gpt2.points.values() for point in found}
    assert "GPT2Attention.forward" in functions
    assert not any(name.startswith("GPT2ForSequenceClassification") for name in functions)


def _point(made: subject.Subject, words: str) -> Any:
    return next(point for found in made.points.values() for point in found if point.words() == words)


@pytest.mark.parametrize(
    "words, state, first",
    [
        ("attn_output + residual -> attn_output", trial.State.JUDGED, "transformer.h.0.ln_2:in"),
        ("attn_weights.type(value.dtype) -> attn_weights", trial.State.EQUIVALENT, ""),
    ],
)
def test_the_bits_say_what_a_mutant_changes(
    gpt2: subject.Subject, tmp_path: Path, words: str, state: trial.State, first: str
) -> None:
    out = trial.tried(gpt2, _point(gpt2, words), 0, 0, tmp_path)
    assert (out.state, out.first) == (state.value, first)
    assert out.found[:1] == ([first] if first else [])


def test_a_run_goes_on_where_it_was_left(
    gpt2: subject.Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[int, str]] = []

    def note(made: subject.Subject, point: Point, seed: int, index: int, scratch: Path) -> trial.Outcome:
        tried.append((index, point.words()))
        return trial.Outcome(made.name, seed, index, point.kind.value)

    monkeypatch.setattr(command, "tried", note)
    monkeypatch.setattr(command, "twin", lambda made, *place: trial.Outcome(made.name, *place[:2], trial.UNMUTATED))
    monkeypatch.setattr(command, "subject", lambda name, scratch: gpt2)
    out = tmp_path / "outcomes.jsonl"
    command.swept(["gpt2"], 3, 5, 1, tmp_path, out)
    command.swept(["gpt2"], 3, 2, None, tmp_path, out)
    outcomes, twins = command.swept(["gpt2"], 3, 4, None, tmp_path, out)
    assert [index for index, _ in tried] == [1, 0, 2, 3]
    assert sorted(one.index for one in outcomes) == [0, 1, 2, 3] and len(twins) == 1
    whole = [point.words() for point in islice(subject.drawn(gpt2, random.Random("3/gpt2")), 4)]
    assert [words for _, words in sorted(tried)] == whole
    assert command.swept(["gpt2"], 4, 1, None, tmp_path, out)[0][0].seed == 4  # another seed is another run


def test_an_unmutated_twin_raises_no_alarm(gpt2: subject.Subject, tmp_path: Path) -> None:
    assert trial.twin(gpt2, 0, 0, tmp_path).found == []


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma2", "bloom"])
def test_mutants_are_found_where_they_change_the_bits(family: str, tmp_path: Path) -> None:
    """A handful of `make bench-mutants`."""
    made = subject.subject(family, tmp_path)
    outcomes = [
        trial.tried(made, point, 0, index, tmp_path)
        for index, point in enumerate(islice(subject.drawn(made, random.Random("short")), 24))
    ]
    judged = [outcome for outcome in outcomes if outcome.judged]
    assert len(judged) >= 4
    wrong = [score.missed(outcome) for outcome in judged if not outcome.site_right or outcome.elsewhere]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("index", [4, 5, 34, 63, 105])
def test_runs_of_any_family_raise_no_alarm(index: int, tmp_path: Path) -> None:
    """A handful of `python -m benchmarks.clean_families`: each dtype, falcon's GELU among them."""
    run = clean_families.drawn(0, index)
    outcome = clean_families.outcome(run, tmp_path)
    assert outcome.alarms == [], outcome
    assert outcome.sites > 0 and outcome.unknown == 0


def test_a_rule_is_swept_over_its_threshold() -> None:
    def scored(mutant: bool, value: float) -> shootout.Scored:
        one = shootout.Scored("llama", "float32", mutant, "", "a")
        one.records = {"ratio": [("a", value / 2.0), ("b", value)]}
        return one

    runs = [*(scored(False, value) for value in (1.0, 2.0, 3.0, 4.0)), *(scored(True, value) for value in (2.5, 9.0))]
    assert [shootout.threshold(runs, "ratio", rate) for rate in (0.0, 0.25, 0.5)] == [4.0, 3.0, 2.0]
    assert shootout.detection(runs, "ratio", 4.0) == 0.5 and shootout.detection(runs, "ratio", 2.0) == 1.0
    assert shootout.localised(runs, "ratio", 4.0) == 0.5


def test_rules_of_others_score_what_they_say() -> None:
    right = np.array([[1.0, -2.0, 4.0]])
    for name, value in (("tolerance", 0.8), ("relative", 0.2), ("nmse", 1.0), ("cosine", 0.0)):
        assert shootout.RULES[name].score(right, 2.0 * right, right) == pytest.approx(value), name
    assert shootout.RULES["ratio"].score(right + 0.1, right + 0.3, right) == pytest.approx(3.0)
