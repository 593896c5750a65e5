"""Runs that are fed from another trace: its tokens, its random numbers, its prompt; and what their diff says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tracekit
from tests.forked import Forks
from tests.spoken import evidence, notes, spoken
from tracekit.compare.drift import Trend, drift
from tracekit.formats.log import LogWriter

ROOT = Path(__file__).parent.parent
SETTINGS = ("--max-new-tokens", "30", "--temperature", "0.9", "--top-k", "30")
STEPS = 30
Record = Callable[..., tracekit.Trace]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("make_tiny_model", ROOT / "scripts/make_tiny_model.py")
    assert spec is not None and spec.loader is not None
    tiny = importlib.util.module_from_spec(spec)
    sys.modules["make_tiny_model"] = tiny
    spec.loader.exec_module(tiny)
    made = tmp_path_factory.mktemp("llama")
    tiny.make("llama", made)
    return made


def tracekit_record(forks: Forks, out: Path, *words: str) -> tracekit.Trace:
    code, said = recorded(forks, out, *words)
    assert code == 0, said
    return tracekit.open(out)


def recorded(forks: Forks, out: Path, *words: str) -> tuple[int, str]:
    done = forks.tracekit("record", "-o", str(out), *words, cwd=out.parent)
    return done.code, done.err


@pytest.fixture(scope="session")
def native(forks: Forks, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Record:
    engine = os.environ.get("TRACEKIT_NATIVE", str(ROOT / "hooks/rust/target/release/tracekit-native"))
    scratch = tmp_path_factory.mktemp("native")

    def record(*arguments: str, before: tuple[str, ...] = (), seed: int = 0, prompt: str = "Hello") -> tracekit.Trace:
        out = scratch / f"{len(list(scratch.iterdir()))}.h5"
        program = ("--", engine, "--model", str(folder), "--prompt", prompt, *SETTINGS, "--seed", str(seed))
        return tracekit_record(forks, out, *before, *program, *arguments)

    return record


@pytest.fixture(scope="session")
def python(forks: Forks, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Record:
    scratch = tmp_path_factory.mktemp("python")

    def record(*, before: tuple[str, ...] = (), seed: int = 0) -> tracekit.Trace:
        out = scratch / f"{len(list(scratch.iterdir()))}.h5"
        program = (str(ROOT / "hooks/torch/examples/generate.py"), "--model", str(folder), "--prompt", "Hello")
        return tracekit_record(forks, out, *before, *program, *SETTINGS, "--seed", str(seed))

    return record


@pytest.fixture(scope="session")
def reference(native: Record) -> tracekit.Trace:
    return native()


def following(trace: tracekit.Trace, *more: str) -> tuple[str, ...]:
    return ("--follow", trace.path, *more)


def test_a_fault_of_the_cache_that_starts_late_is_named_at_its_step_and_seen_to_stay(
    native: Record, reference: tracekit.Trace
) -> None:
    late = native("--fault", "stale-cache-row:12:1", before=following(reference))
    verdict = tracekit.diff(reference, late)
    assert (verdict.cause, verdict.step) == ("layer", 12)
    assert verdict.site == "model.layers.1.self_attn.o_proj:in"
    assert verdict.compared is not None and verdict.compared.steps == STEPS
    assert verdict.drift is not None and (verdict.drift.kind, verdict.drift.step) == (Trend.JUMP, 12)


def test_a_harmless_rewrite_that_follows_drifts_nowhere(python: Record, native: Record) -> None:
    first = python()
    verdict = tracekit.diff(first, native(before=following(first)))
    assert (verdict.verdict, verdict.drift) == ("parity", None)
    assert verdict.compared is not None and verdict.compared.steps == STEPS
    assert any("another trace" in line for line in spoken(verdict.unexercised))


def test_a_sampler_at_fault_shows_though_its_tokens_are_forced(native: Record, reference: tracekit.Trace) -> None:
    verdict = tracekit.diff(reference, native("--fault", "inverse-cdf", before=following(reference)))
    assert verdict.cause == "sampler"


def test_another_choice_shows_though_both_went_on_with_the_same_token(
    native: Record, reference: tracekit.Trace
) -> None:
    """Another seed, and its draws not compared: the token that it would have taken is recorded."""
    verdict = tracekit.diff(reference, native(seed=5, before=following(reference)))
    assert verdict.cause == "config" and verdict.compared is not None and verdict.compared.steps == STEPS


@pytest.mark.parametrize("side", ["native", "python"])
def test_forced_draws_take_another_seed_back(
    side: str, native: Record, python: Record, reference: tracekit.Trace
) -> None:
    record, first = (native, reference) if side == "native" else (python, python())
    own = tracekit.diff(first, record(seed=5, before=following(first)))
    assert own.verdict == "divergence"
    forced = record(seed=5, before=following(first, "--follow-draws"))
    verdict = tracekit.diff(first, forced)
    assert verdict.verdict == "parity", verdict.evidence
    assert any("random numbers (forced)" in line for line in spoken(verdict.unexercised))
    choices = [event for step in range(STEPS) for event in forced.sequences[0].step(step).events]
    assert not [event for event in choices if event.kind == "forced"]


def test_a_forced_prompt_leaves_the_frontend_out(native: Record, reference: tracekit.Trace) -> None:
    plain = native(prompt="Something else", before=following(reference))
    assert tracekit.diff(reference, plain).cause == "input"
    forced = native(prompt="Something else", before=following(reference, "--follow-inputs"))
    assert tracekit.diff(reference, forced).verdict == "parity"


def test_what_is_forced_needs_a_trace() -> None:
    command = [sys.executable, "-m", "tracekit_cli.main", "record", "--follow-draws", "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--follow" in done.stderr


# -------------------------------------------------------------------- drift


def noisy(levels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Steps of a real run scatter by half of their size."""
    return levels * np.exp(0.5 * np.random.default_rng(seed).standard_normal(len(levels)))


def test_a_jump_and_a_growth_are_told_apart() -> None:
    jumped = drift(noisy(np.repeat([0.5, 20.0], [30, 20])))
    assert jumped is not None and (jumped.kind, jumped.step) == (Trend.JUMP, 30)
    grown = drift(noisy(np.geomspace(0.5, 30.0, 60)))
    assert grown is not None and grown.kind is Trend.GROWTH
    assert grown.before == pytest.approx(0.5, rel=0.5) and grown.after == pytest.approx(30.0, rel=0.5)


@pytest.mark.parametrize("seed", range(50))
def test_noise_drifts_nowhere(seed: int) -> None:
    assert drift(noisy(np.full(8 + 2 * seed, 0.7), seed)) is None


@pytest.mark.parametrize("values", [[], [1.0] * 5, [0.0] * 40, [np.inf] * 40, [np.nan] * 40])
def test_what_says_nothing_is_no_drift(values: list[float]) -> None:
    assert drift(np.array(values)) is None


# -------------------------------------------------------------------- what shows that a run followed


def test_a_greedy_sampler_at_fault_shows_though_its_tokens_are_forced(native: Record) -> None:
    """Nothing is drawn: the own choice of a step is known only where the program says it."""
    greedy = ("--greedy", "--repetition-penalty", "1.3")
    first = native(*greedy)
    fault = (*greedy, "--fault", "penalty-ignored")
    assert tracekit.diff(first, native(*fault)).verdict == "divergence"
    followed = tracekit.diff(first, native(*fault, before=following(first)))
    assert followed.verdict == "divergence", followed.evidence


def a_run(path: Path, *, follow: dict[str, object] | None = None, pick: int | None = None, **more: object) -> Path:
    """A log of six steps without survivors and draws; `follow` is its `open` frame's, `pick` another token at step 3,
    of which the log says nothing unless `forced` is among the events."""
    log = LogWriter(path)
    log.open("native", dtype="float32", seed=3, recorder={"follow": "ref.h5"} if follow is not None else None, **more)
    log.sequence(0, {"prompt/token_ids": np.array([5, 6, 7, 8])}, sampling={"do_sample": False})
    for step in range(6):
        events = [{"kind": "forced", "detail": {"instead_of": pick}}] if pick is not None and step == 3 else None
        log.step(0, step, 3 + step, 20 + step, {}, events=events)
    log.end_sequence(0, 6, "length", **({} if follow is None else follow))
    log.close()
    return path


def test_no_parity_where_nobody_knows_what_a_run_that_follows_chose(tmp_path: Path) -> None:
    first = tracekit.open(a_run(tmp_path / "first.tklog"))
    unsaid = tracekit.diff(first, tracekit.open(a_run(tmp_path / "unsaid.tklog", follow={})))
    assert (unsaid.verdict, unsaid.cause, unsaid.exit_code) == ("withheld", "capture", 2)
    assert "own choices not recorded at 6 of 6 steps" in evidence(unsaid)[0]
    assert any("nothing in the log shows that the program followed it" in note for note in notes(unsaid))
    said = tracekit.diff(first, tracekit.open(a_run(tmp_path / "said.tklog", follow={"followed": {"tokens": 6}})))
    assert said.verdict == "parity" and not said.notes
    other = tracekit.diff(first, tracekit.open(a_run(tmp_path / "other.tklog", follow={}, pick=99)))
    assert (other.verdict, other.step) == ("divergence", 3)


STUBBORN = """
import os, sys
import numpy as np
from tracekit.formats.log import LogWriter
log = LogWriter(os.environ["TRACEKIT_LOG"])
log.open("native", dtype="float32", seed=1)
log.sequence(0, {"prompt/token_ids": np.array([int(sys.argv[1])])})
for step in range(4):
    log.step(0, step, step, int(sys.argv[2]) + step, {})
log.end_sequence(0, 4, "length")
log.close()
"""


def test_a_native_program_that_follows_nothing_is_told_of(forks: Forks, tmp_path: Path) -> None:
    script = tmp_path / "stubborn.py"
    script.write_text(STUBBORN)
    first = tmp_path / "first.h5"
    assert recorded(forks, first, "--", sys.executable, str(script), "3", "20") == (
        0,
        f"tracekit: wrote {first}: 1 sequence, 4 steps\n",
    )
    follow = ("--follow", str(first), "--follow-draws", "--follow-inputs")
    code, said = recorded(forks, tmp_path / "other.h5", *follow, "--", sys.executable, str(script), "4", "30")
    assert code == 0
    assert "did not follow: sequence 0 has token 30 instead of 20 at step 0" in said
    assert "no draw of the program is recorded" in said and "prompt/token_ids of sequence 0 differs" in said
    code, said = recorded(
        forks, tmp_path / "same.h5", "--strict", *follow[:2], "--", sys.executable, str(script), "3", "20"
    )
    assert code == 2 and "nothing in the log shows that the program followed it" in said
    verdict = tracekit.diff(tracekit.open(first), tracekit.open(tmp_path / "same.h5"))
    assert verdict.verdict == "withheld" and "own choices not recorded" in evidence(verdict)[0]


MODULE = """
import torch
torch.manual_seed(0)
torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))(torch.ones(1, 3, 4))
"""


def test_a_module_without_steps_follows_nothing(forks: Forks, tmp_path: Path, python: Record) -> None:
    first, script = python(), tmp_path / "module.py"
    script.write_text(MODULE)
    code, said = recorded(forks, tmp_path / "module.h5", "--follow", first.path, str(script))
    assert code == 0 and "the program recorded no step, so it followed nothing" in said
    assert recorded(forks, tmp_path / "module.h5", "--strict", "--follow", first.path, str(script))[0] == 2


LOOP = """
import sys, numpy, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
ids, cache = torch.tensor([[3, 4, 5]]), None
for _ in range(5):
    with torch.no_grad():
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
    cache, scores = out.past_key_values, out.logits[:, -1] * float(sys.argv[2])
    token = scores.argmax(dim=-1) if sys.argv[3] == "torch" else torch.tensor([int(numpy.argmax(scores[0].numpy()))])
    ids = token.reshape(1, 1)
"""


@pytest.mark.parametrize("way", ["torch", "numpy"])
def test_a_loop_of_its_own_follows_where_its_choice_is_seen(
    forks: Forks, tmp_path: Path, folder: Path, way: str
) -> None:
    """A token that numpy chose cannot be forced: the run goes its own way, and that is said."""
    script, first = tmp_path / "loop.py", tmp_path / "first.h5"
    script.write_text(LOOP)
    assert recorded(forks, first, str(script), str(folder), "1", way)[0] == 0
    second = tmp_path / "second.h5"
    code, said = recorded(forks, second, "--follow", str(first), "--strict", str(script), str(folder), "-1", way)
    trace = tracekit.open(second)
    events = [event for step in range(trace.sequences[0].step_count) for event in trace.sequences[0].step(step).events]
    if way == "torch":
        assert code == 0, said
        assert {event.kind for event in events} == {"forced"}
        assert tracekit.diff(tracekit.open(first), trace).verdict == "divergence"
    else:
        assert code == 2 and "the program did not follow" in said
        assert "forced" not in {event.kind for event in events}
