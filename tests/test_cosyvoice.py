"""CosyVoice's speech-token language model: the user's unedited program, and what is recorded of it."""

from __future__ import annotations

import functools
import itertools
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracekit
from tests import speech_model
from tests.forked import Done, Forks
from tracekit.generations import generated
from tracekit.sampling.scores import softmax
from tracekit.torch_rng.generator import TorchGenerator
from tracekit.trace import Sequence, Trace

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402
from tracekit_torch.adapters.ras_step import sampling_numbers  # noqa: E402
from transformers import AutoTokenizer, Qwen2Config  # noqa: E402

SPEAK = Path(__file__).parent / "fixtures" / "speak.py"
TEXT = "A light rain is falling over the valley, and the lamps are lit."
SPEECH, EOS, FILL = 6561, 6562, 6564
WIDTH = 64


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A model this small is slower with more, and much slower where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder() -> Path:
    return speech_model.folder()


@pytest.fixture(scope="module")
def example(folder: Path) -> Any:
    return speech_model.program()


@pytest.fixture(scope="module")
def speaker(example: Any, folder: Path) -> Speaker:
    return Speaker(example, folder)


class Speaker:
    """The example's model in this process."""

    def __init__(self, example: Any, folder: Path) -> None:
        self.example = example
        self.model = sys.modules["cosyvoice3"].load(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "CosyVoice-BlankEN")
        self.speech = torch.tensor([[5, 6, 7, 5]])

    def arguments(self, text: str) -> dict[str, Any]:
        words, prompt = (self.example.encoded(self.tokenizer, part) for part in (text, self.example.PREFIX))
        length = self.example.length
        return {
            "text": words,
            "text_len": length(words),
            "prompt_text": prompt,
            "prompt_text_len": length(prompt),
            "prompt_speech_token": self.speech,
            "prompt_speech_token_len": length(self.speech),
            "embedding": torch.zeros(1, 192),
        }

    def segment(self, text: str = TEXT, **more: Any) -> Iterator[int]:
        return self.model.inference(**self.arguments(text), **more)

    def record(
        self, path: Path, texts: tuple[str, ...] = (TEXT,), seed: int = 0, **options: Any
    ) -> tuple[list[list[int]], Trace]:
        with tracekit_torch.record(self.model, path, **options):
            torch.manual_seed(seed)
            spoken = [list(self.segment(text)) for text in texts]
        return spoken, tracekit.open(path)


@pytest.fixture(scope="module")
def said(speaker: Speaker, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[int], Trace]:
    """A segment with redraws and fallbacks."""
    spoken, trace = speaker.record(tmp_path_factory.mktemp("said") / "run.h5", seed=4)
    return spoken[0], trace


# -------------------------------------------------------------------- the unedited program


one_worker = pytest.mark.xdist_group("unedited")  # runs the programs


@pytest.fixture(scope="module")
def runs(forks: Forks, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The fixture program, which fails in its last segment: as it is, and recorded."""
    out = tmp_path_factory.mktemp("unedited") / "run.h5"
    words = (str(SPEAK), str(folder), "3")
    return {
        "plain": forks.python(*words, cwd=out.parent),
        "recorded": forks.tracekit("record", "-o", str(out), *words, cwd=out.parent),
        "trace": tracekit.open(out),
    }


def printed(run: Done) -> list[list[int]]:
    return [json.loads(line) for line in run.out.splitlines()]


@one_worker
def test_an_unedited_program_gives_the_same_tokens_and_exit_code(runs: dict[str, Any]) -> None:
    assert printed(runs["recorded"]) == printed(runs["plain"])
    assert runs["recorded"].code == runs["plain"].code == 1
    assert "recording stopped" not in runs["recorded"].err


@one_worker
def test_each_segment_is_a_sequence_with_its_own_end(runs: dict[str, Any]) -> None:
    trace = runs["trace"]
    assert [sequence.end_reason for sequence in trace.sequences] == ["stop", "left", "stop", "error"]
    for sequence, tokens in zip(trace.sequences, printed(runs["plain"]), strict=True):
        kept = [int(token) for token in sequence.tokens]
        assert [token for token in kept if token < SPEECH] == tokens
    assert trace.config["model"]["model_type"] == "cosyvoice3"
    assert trace.config["model"]["class"] == "CosyVoice3LM"


@one_worker
def test_a_failing_segment_leaves_the_first_whole(runs: dict[str, Any]) -> None:
    first, last = runs["trace"].sequences[0], runs["trace"].sequences[3]
    assert first.step_count == len(printed(runs["plain"])[0]) + 1
    assert first.positions == len(first.prompt_ids) + first.step_count - 1
    assert last.step_count == len(printed(runs["plain"])[3]) == 6
    for name in ("llm.model.model.norm", "llm.model.model.layers.0.mlp.down_proj"):
        assert first.read(name, 0, first.positions).shape == (first.positions, WIDTH)


@one_worker
def test_streaming_is_recorded_where_its_rows_really_stand(runs: dict[str, Any]) -> None:
    stream = runs["trace"].sequences[2]
    steps = [stream.step(index) for index in range(stream.step_count)]
    assert list(stream.prompt_ids[:1]) == [SPEECH] and list(stream.inputs["vocabulary"]) == [1, 0, 0, 0, 0, 0]
    fills = [step.index for step in steps if any(event.kind == "fill" for event in step.events)]
    assert fills == [15 + 16 * index for index in range(len(fills))] and len(fills) >= 2
    for index in fills:
        assert steps[index].token == FILL and not steps[index].draws
        assert [event.kind for event in steps[index].events] == ["fill"]
        fed = next(event.detail for event in steps[index + 1].events if event.kind == "input")
        assert fed["position"] == steps[index].position + 1
        assert steps[index + 1].position == fed["position"] + len(fed["token_ids"]) - 1
    assert stream.positions == steps[-1].position + 1
    spoken = printed(runs["plain"])[2]
    assert list(generated(runs["trace"], stream)) == spoken and FILL not in spoken
    assert "tts_text_token_ids" not in stream.inputs


# -------------------------------------------------------------------- the input


def test_every_row_of_the_input_is_named(said: tuple[list[int], Trace], speaker: Speaker) -> None:
    sequence = said[1].sequences[0]
    given = speaker.arguments(TEXT)
    text = [*given["prompt_text"][0].tolist(), *given["text"][0].tolist()]
    assert list(sequence.prompt_ids) == [SPEECH, *text, SPEECH + 2, 5, 6, 7, 5]
    assert list(sequence.inputs["vocabulary"]) == [1] + [0] * len(text) + [1] * 5
    assert list(sequence.inputs["prompt_text_token_ids"]) == given["prompt_text"][0].tolist()
    assert list(sequence.inputs["tts_text_token_ids"]) == given["text"][0].tolist()
    assert list(sequence.inputs["speech_token_ids"]) == [5, 6, 7, 5]
    texts = sequence.texts or []
    assert texts[0] == "<sos>" and list(texts[-5:]) == ["<task_id>", *(f"<speech {token}>" for token in (5, 6, 7, 5))]
    assert "<|endofprompt|>" in texts
    assert (sequence.prompt_text or "").endswith(TEXT)
    assert sequence.info["tts_text"] == TEXT and sequence.info["prompt_part"] == speaker.example.PREFIX


def test_embedding_sites_hold_the_tables_rows(said: tuple[list[int], Trace], speaker: Speaker) -> None:
    sequence = said[1].sequences[0]
    tokens = [*sequence.prompt_ids, *sequence.tokens][: sequence.positions]
    kinds = [*sequence.inputs["vocabulary"], *[1] * (sequence.positions - len(sequence.prompt_ids))]
    fed = sequence.read("llm.model.model.layers.0.input_layernorm:in", 0, sequence.positions)
    sites = {0: "llm.model.model.embed_tokens", 1: "speech_embedding"}
    for kind, name in sites.items():
        table = speaker.model.get_parameter(f"{name}.weight").detach().numpy()
        covered = []
        for first, stop in sequence.sites[name].ranges:
            rows = sequence.read(name, first, stop)
            assert np.array_equal(rows, table[tokens[first:stop]])
            assert np.array_equal(rows, fed[first:stop])
            covered += range(first, stop)
        assert covered == [position for position, each in enumerate(kinds) if each == kind]


def test_a_speakers_row_is_shown_as_none_of_the_tables(folder: Path, speaker: Speaker, tmp_path: Path) -> None:
    model = fixture_model(folder)
    model.speaker = torch.full((1, 1, WIDTH), 0.25)
    with tracekit_torch.record(model, tmp_path / "run.h5"):
        list(itertools.islice(model.inference(**speaker.arguments(TEXT)), 2))
    sequence = tracekit.open(tmp_path / "run.h5").sequences[0]
    assert list(sequence.prompt_ids[:2]) == [SPEECH, -1]
    assert list(sequence.inputs["vocabulary"][:3]) == [1, 2, 0]
    assert (sequence.texts or [])[1] == "<speaker>"
    # The program adds the prompt's length to the text's in place; the limits are of the text alone.
    count = speaker.arguments(TEXT)["text"].shape[1]
    assert (sequence.sampling["min_len"], sequence.sampling["max_len"]) == (2 * count, 20 * count)


def fixture_model(folder: Path) -> Any:
    """The fixture package's model, imported from the folder that it stands in."""
    sys.path.insert(0, str(SPEAK.parent))
    try:
        from cosyvoice.llm.llm import CosyVoice3LM, Qwen2Encoder
        from cosyvoice.utils.common import ras_sampling
    finally:
        sys.path.remove(str(SPEAK.parent))
    model = CosyVoice3LM(WIDTH, WIDTH, SPEECH, Qwen2Encoder(folder / "CosyVoice-BlankEN"), ras_sampling)
    model.load_state_dict(torch.load(folder / "llm.rl.pt", weights_only=True))
    return model.eval()


def test_the_second_models_special_rows_are_named(example: Any, tmp_path: Path) -> None:
    """CosyVoice2: sos and task id in a table of their own, and three stop tokens."""
    cosyvoice3 = sys.modules["cosyvoice3"]
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=40,
        tie_word_embeddings=True,
    )
    config.save_pretrained(tmp_path / "CosyVoice-BlankEN")
    inner = cosyvoice3.Qwen2Encoder(tmp_path / "CosyVoice-BlankEN")
    model = cosyvoice3.Qwen2LM(32, 32, 50, inner, functools.partial(cosyvoice3.ras_sampling, top_k=5)).eval()
    words, none = torch.tensor([[7, 8, 7]]), torch.zeros(1, 0, dtype=torch.int64)
    arguments = (words, torch.tensor([3]), torch.tensor([[9]]), torch.tensor([1]), none, torch.tensor([0]))
    with tracekit_torch.record(model, tmp_path / "run.h5"):
        spoken = list(model.inference(*arguments, torch.zeros(1, 192), min_token_text_ratio=0, max_token_text_ratio=2))
    trace = tracekit.open(tmp_path / "run.h5")
    sequence = trace.sequences[0]
    assert list(sequence.prompt_ids) == [-1, 9, 7, 8, 7, -1]
    assert list(sequence.inputs["vocabulary"]) == [2, 0, 0, 0, 0, 2]
    assert [(sequence.texts or [])[index] for index in (0, 5)] == ["<sos>", "<task_id>"]
    assert sequence.sampling["stop_token_ids"] == [50, 51, 52] and sequence.sampling["top_p"] == 0.7
    assert [token for token in sequence.tokens if token < 50] == spoken
    assert trace.config["model"]["model_type"] == "cosyvoice2"
    assert trace.config["checkpoint"] == str(tmp_path)


# -------------------------------------------------------------------- logits, draws, events


def test_the_logits_are_the_decoders_not_the_inner_heads(said: tuple[list[int], Trace], speaker: Speaker) -> None:
    trace = said[1]
    sequence = trace.sequences[0]
    assert trace.sites["llm_decoder"].recorded_as == "logits"
    assert trace.sites["llm_decoder"].input == "llm.model.model.norm"
    assert trace.sites["llm.model.lm_head"].skipped == "not the logits"
    first = len(sequence.prompt_ids) - 1
    hidden = sequence.read("llm.model.model.norm", first, first + sequence.step_count)
    head = speaker.model.llm_decoder.weight.detach().numpy()
    logits = sequence.logits(0, sequence.step_count)
    assert logits is not None and logits.shape == (sequence.step_count, SPEECH + 200)
    assert np.allclose(hidden @ head.T, logits, atol=1e-4)


def test_tokens_follow_from_the_recorded_draws(said: tuple[list[int], Trace]) -> None:
    """Each draw played again from torch's generator: of the nucleus, of everything, and again under min_len."""
    sequence = said[1].sequences[0]
    generator = TorchGenerator(4)
    fallbacks = redraws = 0
    for index in range(sequence.step_count):
        step = sequence.step(index)
        events = [(event.kind, event.detail["token"]) for event in step.events]
        expected, last = [], -1
        for draw in step.draws:
            assert draw.offset == generator.offset and draw.op == "multinomial"
            if draw.words == 2 * len(step.survivors_id):
                if last >= 0:
                    assert last >= SPEECH  # only a stop token is drawn again
                    expected.append(("redraw", last))
                last = int(step.survivors_id[generator.multinomial(step.survivors_prob)[0]])
            else:
                assert last in sequence.tokens[max(0, index - 10) : index]
                expected.append(("repetition_fallback", last))
                last = int(generator.multinomial(softmax(step.logits).astype(np.float32))[0])
            assert draw.result == last
        assert last == step.token and events == expected
        fallbacks += sum(kind == "repetition_fallback" for kind, _ in events)
        redraws += sum(kind == "redraw" for kind, _ in events)
    assert fallbacks and redraws, "choose a seed that shows both"


def test_survivors_are_the_nucleus_and_not_normalised(said: tuple[list[int], Trace]) -> None:
    sequence = said[1].sequences[0]
    for index in range(sequence.step_count):
        step = sequence.step(index)
        probs = softmax(step.logits)
        assert np.allclose(step.survivors_prob, probs[step.survivors_id], rtol=1e-4)
        assert step.survivors_prob[:-1].sum() < 0.8 and len(step.survivors_id) <= 25
        assert step.survivors_prob.sum() >= 0.8 - 1e-6 or len(step.survivors_id) == 25


def test_the_end_is_told(said: tuple[list[int], Trace], speaker: Speaker, tmp_path: Path) -> None:
    sequence = said[1].sequences[0]
    assert int(sequence.tokens[-1]) >= SPEECH and list(sequence.tokens[:-1]) == said[0]
    assert sequence.end_reason == "stop"
    with tracekit_torch.record(speaker.model, tmp_path / "run.h5"):
        spoken = list(speaker.segment(min_token_text_ratio=0.25, max_token_text_ratio=0.25))
    short = tracekit.open(tmp_path / "run.h5").sequences[0]
    assert short.step_count == len(spoken) == short.sampling["max_len"]
    assert short.end_reason == "length"


def test_the_numbers_are_those_in_use(speaker: Speaker, tmp_path: Path) -> None:
    """The trap: `ras_sampling` itself has top_p 0.7, the YAML's partial 0.8."""
    ras = sys.modules["cosyvoice3"].ras_sampling
    numbers = {"sampler": "ras", "top_p": 0.7, "top_k": 25, "win_size": 10, "tau_r": 0.1}
    assert sampling_numbers(ras) == numbers
    assert sampling_numbers(functools.partial(ras, top_p=0.8)) == numbers | {"top_p": 0.8}
    assert sampling_numbers(functools.partial(functools.partial(ras, top_p=0.8), win_size=5))["win_size"] == 5
    used = speaker.model.sampling
    assert used.keywords["top_p"] == 0.8
    _, stated = speaker.record(tmp_path / "yaml.h5")
    speaker.model.sampling = ras
    try:
        _, default = speaker.record(tmp_path / "default.h5")
    finally:
        speaker.model.sampling = used
    for trace, top_p in ((stated, 0.8), (default, 0.7)):
        sequence = trace.sequences[0]
        assert sequence.sampling["top_p"] == top_p
        assert sequence.sampling["stop_token_ids"] == list(range(SPEECH, SPEECH + 200))
        for index in range(sequence.step_count):
            assert sequence.step(index).survivors_prob[:-1].sum() < top_p
    verdict = tracekit.diff(stated, default)
    assert verdict.cause in ("config", "filter") and "top_p" in json.dumps(verdict.to_json())


# -------------------------------------------------------------------- generations that are left, or mixed


def test_generations_side_by_side_are_kept_apart(speaker: Speaker, tmp_path: Path) -> None:
    def run() -> tuple[list[int], list[int]]:
        torch.manual_seed(7)
        one, two = speaker.segment(), speaker.segment("She opened the letter.")
        pairs = list(itertools.islice(zip(one, two, strict=False), 12))
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]

    plain = run()
    with tracekit_torch.record(speaker.model, tmp_path / "run.h5"):
        assert run() == plain
    trace = tracekit.open(tmp_path / "run.h5")
    assert [sequence.end_reason for sequence in trace.sequences] == ["left", "left"]
    assert tuple(list(sequence.tokens[:12]) for sequence in trace.sequences) == plain


def test_threads_take_turns_and_are_kept_apart(speaker: Speaker, tmp_path: Path) -> None:
    texts = ("She opened the letter.", "He likes the fourth one.")
    spoken: dict[str, list[int]] = {}

    def speak(text: str) -> None:
        spoken[text] = list(speaker.segment(text))

    with tracekit_torch.record(speaker.model, tmp_path / "run.h5"):
        threads = [threading.Thread(target=speak, args=(text,)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    trace = tracekit.open(tmp_path / "run.h5")
    assert len(trace.sequences) == 2 and spoken[texts[0]] != spoken[texts[1]]
    for text in texts:
        (own,) = (each for each in trace.sequences if list(each.tokens[: len(spoken[text])]) == spoken[text])
        assert own.end_reason in ("stop", "length")
        assert own.read("llm.model.model.norm", 0, own.positions).shape == (own.positions, WIDTH)


def test_a_generation_never_begun_is_no_sequence(speaker: Speaker, tmp_path: Path) -> None:
    with tracekit_torch.record(speaker.model, tmp_path / "run.h5"):
        speaker.segment()
        speaker.segment().close()
        spoken = list(itertools.islice(speaker.segment(), 3))
    trace = tracekit.open(tmp_path / "run.h5")
    assert [list(sequence.tokens) for sequence in trace.sequences] == [spoken]


@pytest.mark.parametrize(
    ("options", "sites", "logits"),
    [
        ({"level": "tokens"}, 0, False),
        ({"level": "logits"}, 0, True),
        ({"logits": 8}, 43, False),
        ({"sites": "down_proj$"}, 3, True),
        ({"rng": "thorough", "level": "tokens"}, 0, False),
    ],
)
def test_less_can_be_recorded(
    speaker: Speaker, tmp_path: Path, options: dict[str, Any], sites: int, logits: bool
) -> None:
    torch.manual_seed(0)
    plain = list(speaker.segment())
    spoken, trace = speaker.record(tmp_path / "run.h5", **options)
    sequence = trace.sequences[0]
    assert spoken == [plain] and list(sequence.tokens[:-1]) == plain and sequence.step(0).draws
    assert (sequence.logits_dtype is not None) == logits
    assert len(sequence.sites) == sites


def test_the_classes_are_as_they_were_after_a_recording(speaker: Speaker, tmp_path: Path) -> None:
    kinds = type(speaker.model).__mro__[:2]
    before = [dict(vars(kind)) for kind in kinds]
    speaker.record(tmp_path / "run.h5")
    assert [dict(vars(kind)) for kind in kinds] == before
    assert "__init_subclass__" not in vars(torch.nn.Module)


# -------------------------------------------------------------------- diff, follow, oracle


def test_two_recordings_of_one_seed_are_parity(said: tuple[list[int], Trace], speaker: Speaker, tmp_path: Path) -> None:
    _, again = speaker.record(tmp_path / "again.h5", seed=4)
    verdict = tracekit.diff(said[1], again)
    assert verdict.cause is None and verdict.exit_code == 0
    _, other = speaker.record(tmp_path / "other.h5", seed=5)
    verdict = tracekit.diff(said[1], other)
    assert verdict.cause == "config" and "seed" in json.dumps(verdict.to_json())


def test_a_planted_gain_is_found_at_its_module(said: tuple[list[int], Trace], speaker: Speaker, tmp_path: Path) -> None:
    name = "llm.model.model.layers.1.mlp.down_proj"
    weight = speaker.model.get_parameter(f"{name}.weight")
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.01)
    try:
        _, faulty = speaker.record(tmp_path / "faulty.h5", seed=4)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    verdict = tracekit.diff(said[1], faulty)
    assert (verdict.cause, verdict.site) in (("weights", name), ("layer", name))


def test_follow_forces_the_tokens(said: tuple[list[int], Trace], speaker: Speaker, tmp_path: Path) -> None:
    spoken, trace = speaker.record(tmp_path / "run.h5", seed=9, follow=said[1].path)
    sequence = trace.sequences[0]
    assert spoken == [said[0]] and list(sequence.tokens) == list(said[1].sequences[0].tokens)
    assert any(event.kind == "forced" for index in range(sequence.step_count) for event in sequence.step(index).events)
    assert all_sites_equal(sequence, said[1].sequences[0])


def test_follow_forces_the_draws_of_the_segment_that_draws(speaker: Speaker, tmp_path: Path) -> None:
    """Not of the other one, which is still open."""
    texts = ("She opened the letter.", TEXT)

    def run() -> None:
        parts = [speaker.segment(text) for text in texts]
        list(itertools.islice(zip(*parts, strict=False), 9))
        for part in parts:
            part.close()

    torch.manual_seed(3)
    with tracekit_torch.record(speaker.model, tmp_path / "ref.h5"):
        run()
    torch.manual_seed(8)
    with tracekit_torch.record(speaker.model, tmp_path / "run.h5", follow=tmp_path / "ref.h5", follow_draws=True):
        run()
    reference, trace = tracekit.open(tmp_path / "ref.h5"), tracekit.open(tmp_path / "run.h5")
    for one, other in zip(reference.sequences, trace.sequences, strict=True):
        for index in range(one.step_count):
            assert other.step(index).draws == one.step(index).draws
            assert other.step(index).events == one.step(index).events
    assert trace.sequences[1].step(8).draws[0].seed == 3


def test_a_followed_trace_ends_the_generation(speaker: Speaker, tmp_path: Path) -> None:
    with tracekit_torch.record(speaker.model, tmp_path / "short.h5"):
        torch.manual_seed(1)
        first = list(itertools.islice(speaker.segment(), 5))
    spoken, trace = speaker.record(tmp_path / "run.h5", seed=2, follow=tmp_path / "short.h5")
    assert spoken == [first]
    assert (trace.sequences[0].step_count, trace.sequences[0].end_reason) == (5, "left")


def all_sites_equal(one: Sequence, other: Sequence) -> bool:
    return one.sites.keys() == other.sites.keys() and all(
        np.array_equal(one.read(name, first, stop), other.read(name, first, stop))
        for name, site in other.sites.items()
        for first, stop in site.ranges
    )


def test_an_oracle_is_the_same_run_in_float64(forks: Forks, folder: Path, tmp_path: Path) -> None:
    program = [str(speech_model.EXAMPLES / "cosyvoice3_example.py"), "--model", str(folder), "--seed", "2"]
    record = ["record", "-o", "ref.h5", *program, "--text", "A light rain is falling."]
    for command in (record, ["oracle", "ref.h5"]):
        done = forks.tracekit(*command, cwd=tmp_path)
        assert done.code == 0, done.err
    reference, oracle = tracekit.open(tmp_path / "ref.h5"), tracekit.open(tmp_path / "ref.oracle.h5")
    assert list(oracle.sequences[0].tokens) == list(reference.sequences[0].tokens)
    assert oracle.config["dtype"] == "float64" and oracle.sequences[0].logits_dtype == "float64"
    assert {site.dtype for site in oracle.sequences[0].sites.values()} == {"float64"}
    one, two = (trace.sequences[0].logits(0, 4) for trace in (reference, oracle))
    assert one is not None and two is not None
    assert 0 < np.abs(one - two).max() < 1e-3
    assert tracekit.diff(reference, reference, oracle).exit_code == 0
