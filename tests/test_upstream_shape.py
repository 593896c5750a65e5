"""A program of upstream's shape: a chain of classes, the model in a thread, draws that are not seen."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracekit
from tests import speech_model
from tracekit.extra.cosyvoice3.speech import Speech
from tracekit.generations import generated
from tracekit.inspection.sanity import UNSEEN, capture_problems

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402
from tracekit_torch.patching import replace  # noqa: E402
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM  # noqa: E402

FIXTURES = Path(__file__).parent / "fixtures"
SPEECH, WIDTH = 6561, 64
PREFIX = "You are a helpful assistant. Please speak in English.<|endofprompt|>"
TEXT = "A light rain is falling over the valley, and the lamps are lit."


@pytest.fixture(scope="module")
def modules() -> Any:
    """The stand-in's modules."""
    sys.path.insert(0, str(FIXTURES))
    try:
        from cosyvoice.cli.model import CosyVoice3Model
        from cosyvoice.llm.llm import CosyVoice3LM, Qwen2Encoder
        from cosyvoice.utils.common import ras_sampling
    finally:
        sys.path.remove(str(FIXTURES))
    return CosyVoice3LM, Qwen2Encoder, CosyVoice3Model, ras_sampling


class Speaker:
    """The stand-in's model, and what it is given."""

    def __init__(self, modules: Any) -> None:
        kind, encoder, self.runner, self.sampling = modules
        folder = speech_model.folder()
        self.model = kind(WIDTH, WIDTH, SPEECH, encoder(folder / "CosyVoice-BlankEN"), self.sampling)
        self.model.load_state_dict(torch.load(folder / "llm.rl.pt", weights_only=True))
        self.model.eval()
        tokenizer = AutoTokenizer.from_pretrained(folder / "CosyVoice-BlankEN")
        self.words, self.prompt = (torch.tensor([tokenizer.encode(text)]) for text in (TEXT, PREFIX))
        self.voice = torch.tensor([[5, 6, 7]])

    def segment(self, seed: int = 0) -> Iterator[int]:
        torch.manual_seed(seed)
        lengths = [torch.tensor([part.shape[1]]) for part in (self.words, self.prompt, self.voice)]
        return self.model.inference(
            self.words, lengths[0], self.prompt, lengths[1], self.voice, lengths[2], torch.zeros(1, 192)
        )


@pytest.fixture(scope="module")
def speaker(modules: Any) -> Iterator[Speaker]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Speaker(modules)
    torch.set_num_threads(threads)


def test_an_inherited_method_is_watched_and_given_back(speaker: Speaker, tmp_path: Path) -> None:
    kinds = type(speaker.model).__mro__
    owners = {name: next(kind for kind in kinds if name in vars(kind)) for name in ("sampling_ids", "inference")}
    assert [kind.__name__ for kind in kinds[:3]] == ["CosyVoice3LM", "Qwen2LM", "TransformerLM"]
    assert (owners["sampling_ids"].__name__, owners["inference"].__name__) == ("TransformerLM", "Qwen2LM")
    before = [dict(vars(kind)) for kind in kinds]
    plain = list(speaker.segment())
    with tracekit_torch.record(speaker.model, tmp_path / "run.h5"):
        assert list(speaker.segment()) == plain
    assert [dict(vars(kind)) for kind in kinds] == before
    with tracekit.open(tmp_path / "run.h5") as trace:
        sequence = trace.sequences[0]
        assert list(generated(trace, sequence)) == plain and sequence.end_reason == "stop"
        assert all(sequence.step(index).draws for index in range(sequence.step_count))
        assert not capture_problems(trace)


def test_a_method_that_calls_its_bases_is_one_step(speaker: Speaker, tmp_path: Path) -> None:
    kind = type(speaker.model)

    class Loud(kind):  # type: ignore[misc, valid-type]
        def sampling_ids(self, weighted_scores: Any, *args: Any, **kwargs: Any) -> int:
            return int(super().sampling_ids(weighted_scores, *args, **kwargs))

        def inference(self, *args: Any, **kwargs: Any) -> Iterator[int]:
            yield from super().inference(*args, **kwargs)

    plain = list(itertools.islice(speaker.segment(), 6))
    speaker.model.__class__ = Loud
    try:
        with tracekit_torch.record(speaker.model, tmp_path / "run.h5"):
            assert list(itertools.islice(speaker.segment(), 6)) == plain
    finally:
        speaker.model.__class__ = kind
    with tracekit.open(tmp_path / "run.h5") as trace:
        assert [list(sequence.tokens) for sequence in trace.sequences] == [plain]
        assert all(trace.sequences[0].step(index).draws for index in range(6))


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_in_a_thread_behind_a_filter(speaker: Speaker, tmp_path: Path, stream: bool) -> None:
    # Every token is silent: the filter keeps five of each run, so that it surely acts.
    runner = speaker.runner(speaker.model, silent_tokens=range(0, SPEECH))

    def speak() -> list[int]:
        torch.manual_seed(1)
        parts = runner.tts(speaker.words, speaker.prompt, speaker.voice, torch.zeros(1, 192), stream)
        return [token for part in parts for token in part]

    plain = speak()
    with tracekit_torch.record(speaker.model, tmp_path / "run.h5", level="tokens"):
        assert speak() == plain
    with tracekit.open(tmp_path / "run.h5") as trace:
        sequence = trace.sequences[0]
        made = list(generated(trace, sequence))
        assert made[:5] == plain and Speech().dropped(sequence) == len(made) - len(plain) > 0


def unseen_steps(sequence: Any) -> list[int]:
    return [event.step for event in sequence.events if event.kind == UNSEEN]


def test_a_sampler_that_is_replaced_is_a_capture_problem(speaker: Speaker, tmp_path: Path, capsys: Any) -> None:
    """On the object, where no class is asked: the tokens are known from what the generation gives."""
    inherited = speaker.model.sampling_ids
    speaker.model.sampling_ids = lambda *args, **kwargs: inherited.__func__(speaker.model, *args, **kwargs)
    plain = list(speaker.segment())
    del speaker.model.sampling_ids
    with tracekit_torch.record(speaker.model, tmp_path / "run.h5"):
        # The function of before the recording: nothing of ours is called by it.
        original = type(speaker.model).__mro__[2].sampling_ids.__wrapped__
        speaker.model.sampling_ids = lambda *args, **kwargs: original(speaker.model, *args, **kwargs)
        try:
            assert list(speaker.segment()) == plain
        finally:
            del speaker.model.sampling_ids
    said = [line for line in capsys.readouterr().err.splitlines() if "not seen" in line]
    assert len(said) == 2 and "sampling_ids was not called" in said[0]
    with tracekit.open(tmp_path / "run.h5") as trace:
        sequence = trace.sequences[0]
        assert list(sequence.tokens) == plain and unseen_steps(sequence) == list(range(len(plain)))
        assert sequence.end_reason == UNSEEN and "last token" in str(sequence.end_detail)
        verdict = tracekit.diff(trace, trace)
        assert (verdict.verdict, verdict.cause) == ("withheld", "capture")
        assert f"was not seen at {len(plain)} of {len(plain)} steps" in json.dumps(verdict.to_json())


def test_a_draw_from_elsewhere_is_a_capture_problem(speaker: Speaker, tmp_path: Path) -> None:
    random = np.random.default_rng(0)

    def numpy_sampling(scores: Any, decoded: Any, sampling: int) -> int:
        return int(random.choice(SPEECH, p=torch.softmax(scores[:SPEECH].double(), 0).numpy()))

    speaker.model.sampling = numpy_sampling
    try:
        with tracekit_torch.record(speaker.model, tmp_path / "run.h5"):
            spoken = list(itertools.islice(speaker.segment(), 12))
    finally:
        speaker.model.sampling = speaker.sampling
    with tracekit.open(tmp_path / "run.h5") as trace:
        sequence = trace.sequences[0]
        assert list(sequence.tokens) == spoken
        best = [int(sequence.step(index).logits.argmax()) for index in range(12)]
        assert unseen_steps(sequence) == [index for index in range(12) if best[index] != spoken[index]] != []


def test_greedy_sampling_needs_no_draw(speaker: Speaker, tmp_path: Path) -> None:
    speaker.model.sampling = lambda scores, decoded, sampling: int(scores.argmax())
    try:
        with tracekit_torch.record(speaker.model, tmp_path / "run.h5"):
            list(itertools.islice(speaker.segment(), 5))
    finally:
        speaker.model.sampling = speaker.sampling
    with tracekit.open(tmp_path / "run.h5") as trace:
        assert not unseen_steps(trace.sequences[0]) and not capture_problems(trace)


def test_a_loop_that_draws_elsewhere_is_a_capture_problem(tmp_path: Path) -> None:
    config = Qwen2Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=40,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).eval()
    random = np.random.default_rng(0)

    def loop(chosen: Any) -> list[int]:
        ids, cache, out = torch.tensor([[1, 2, 3]]), None, []
        for _ in range(8):
            with torch.no_grad():
                answer = model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = answer.past_key_values
            out.append(chosen(answer.logits[0, -1]))
            ids = torch.tensor([[out[-1]]])
        return out

    with tracekit_torch.record(model, tmp_path / "drawn.h5"):
        loop(lambda logits: int(random.choice(40, p=torch.softmax(logits.double(), 0).numpy())))
    with tracekit_torch.record(model, tmp_path / "greedy.h5"):
        loop(lambda logits: int(logits.max(-1).indices))
    with tracekit.open(tmp_path / "drawn.h5") as drawn, tracekit.open(tmp_path / "greedy.h5") as greedy:
        assert unseen_steps(drawn.sequences[0]) and capture_problems(drawn)
        assert not unseen_steps(greedy.sequences[0]) and not capture_problems(greedy)
        assert tracekit.diff(greedy, drawn).cause == "capture"


SCRIPT = """
import sys
import torch
sys.path[:0] = [{fixtures!r}, {root!r}]
from tests.test_upstream_shape import Speaker
from cosyvoice.cli.model import CosyVoice3Model
from cosyvoice.llm.llm import CosyVoice3LM, Qwen2Encoder
from cosyvoice.utils.common import ras_sampling
speaker = Speaker((CosyVoice3LM, Qwen2Encoder, CosyVoice3Model, ras_sampling))
own = speaker.model.sampling_ids
speaker.model.sampling_ids = lambda *args, **kwargs: speaker.model.sampling(*args[:3])
print([token for _, token in zip(range(4), speaker.segment())])
"""


def test_a_run_whose_draws_were_not_seen_is_trouble(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(fixtures=str(FIXTURES), root=str(FIXTURES.parent.parent)))
    record = [str(Path(sys.executable).parent / "tracekit"), "record", "-o", "run.h5", "script.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(record, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 2 and "how 4 tokens were drawn was not seen" in done.stderr
    with tracekit.open(tmp_path / "run.h5") as trace:
        assert list(trace.sequences[0].tokens) == json.loads(done.stdout)


def test_what_was_there_is_put_back() -> None:
    class Base:
        def method(self) -> int:
            return 1

    class Derived(Base):
        pass

    undo = replace(Derived, "method", lambda self: 2)
    assert Derived().method() == 2
    undo()
    assert "method" not in vars(Derived) and Derived().method() == 1
    undo = replace(Derived, "method", lambda self: 2)
    Derived.method = lambda self: 3  # type: ignore[method-assign]
    undo()
    assert Derived().method() == 3
