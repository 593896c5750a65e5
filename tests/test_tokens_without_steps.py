"""Programs whose tokens are chosen where no step can be made of them: several codebooks a step, embeddings fed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import tracekit

torch = pytest.importorskip("torch")

from tracekit_torch import watch  # noqa: E402
from tracekit_torch.adapters import any_module  # noqa: E402
from tracekit_torch.options import Options  # noqa: E402
from tracekit_torch.recorder import Recorder  # noqa: E402
from tracekit_torch.watch import Watch  # noqa: E402

from tracekit.verdict.decision import Decision  # noqa: E402

CODEBOOKS, WORDS, WIDTH = 3, 11, 4


class Codebooks(torch.nn.Module):
    """Ids [batch, codebooks, time] in, logits [batch, codebooks, time, words] out, as MusicGen's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.ModuleList(torch.nn.Embedding(WORDS, WIDTH) for _ in range(CODEBOOKS))
        self.heads = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WORDS) for _ in range(CODEBOOKS))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = sum(table(ids[:, index]) for index, table in enumerate(self.embed))
        return torch.stack([head(hidden) for head in self.heads], dim=1)


def drawn(probabilities: torch.Tensor) -> torch.Tensor:
    flat = probabilities.reshape(-1, WORDS)
    return torch.multinomial(flat, 1).reshape(*probabilities.shape[:-1], 1)


def raced(probabilities: torch.Tensor) -> torch.Tensor:
    """As gpt-fast and csm draw."""
    return (probabilities / torch.empty_like(probabilities).exponential_(1)).argmax(-1, keepdim=True)


def generate(model: torch.nn.Module, choose: Callable[[torch.Tensor], torch.Tensor], steps: int = 4) -> torch.Tensor:
    ids = torch.zeros(2, CODEBOOKS, 1, dtype=torch.long)
    for _ in range(steps):
        ids = torch.cat([ids, choose(model(ids)[:, :, -1].softmax(-1))], dim=-1)
    return ids


def recorded(path: Path, run: Callable[[], object], monkeypatch: pytest.MonkeyPatch, *kinds: object) -> tracekit.Trace:
    monkeypatch.setattr(watch, "kinds", lambda say: [*kinds, any_module.KIND])
    recorder = Recorder(path, Options(), {"argv": ["program.py"], "cwd": "."})
    torch.manual_seed(1)
    with recorder.watching(), Watch(recorder, None).installed():
        run()
    recorder.close()
    return tracekit.open(path)


@pytest.mark.parametrize("choose", [drawn, raced])
def test_tokens_of_several_codebooks_are_said_and_withhold_parity(
    tmp_path: Path,
    choose: Callable[[torch.Tensor], torch.Tensor],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, made = Codebooks().eval(), []
    torch.manual_seed(1)
    plain = generate(model, choose)
    one, other = (
        recorded(tmp_path / name, lambda: made.append(generate(model, choose)), monkeypatch)
        for name in ("one.h5", "other.h5")
    )
    assert all(torch.equal(each, plain) for each in made)
    assert capsys.readouterr().err.count("24 tokens that the program chose, 6 at a time") == 2
    found = tracekit.diff(one, other)
    assert found.decision is Decision.WITHHELD
    assert "one.h5: not recorded: 24 tokens that the program chose" in str(found)


def test_a_model_that_is_only_called_lacks_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn before, or for other ends, is no token."""
    model = Codebooks().eval()

    def run() -> None:
        ids = torch.multinomial(torch.ones(2 * CODEBOOKS, WORDS), 1).reshape(2, CODEBOOKS, 1)
        classes = model(ids).argmax(-1)
        noise = torch.empty(3, 5).exponential_(1) + torch.rand(3, 5)
        assert classes.numel() and noise.argmax() >= 0
        torch.multinomial(torch.ones(9), 4)

    one, other = (recorded(tmp_path / name, run, monkeypatch) for name in ("one.h5", "other.h5"))
    assert "lost" not in one.config and tracekit.diff(one, other).decision is Decision.PARITY


def test_a_loop_whose_steps_are_recorded_lacks_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(WORDS, WIDTH), torch.nn.Linear(WIDTH, WORDS)).eval()

    def run() -> None:
        ids = torch.zeros(1, 1, dtype=torch.long)
        for _ in range(4):
            ids = torch.cat([ids, drawn(model(ids)[:, -1].softmax(-1))], dim=-1)

    one, other = (recorded(tmp_path / name, run, monkeypatch) for name in ("one.h5", "other.h5"))
    assert one.sequences[0].step_count == 4 and "lost" not in one.config
    assert tracekit.diff(one, other).decision is Decision.PARITY


@pytest.mark.parametrize("sampled", [False, True])
def test_a_generate_whose_logits_are_not_one_token_s_is_said(tmp_path: Path, sampled: bool) -> None:
    """As Dia's, which says of no module that it makes the logits."""
    transformers = pytest.importorskip("transformers")
    import tracekit_torch

    class Several(transformers.LlamaForCausalLM):  # type: ignore[misc, name-defined]
        def get_output_embeddings(self) -> None:
            return None

    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(1)
    model, ids = Several(config).eval(), torch.tensor([[5, 9, 11]])

    def run() -> torch.Tensor:
        torch.manual_seed(2)
        return model.generate(ids, max_new_tokens=3, do_sample=sampled, pad_token_id=0)

    plain = run()
    with tracekit_torch.record(model, tmp_path / "run.h5"):
        assert torch.equal(run(), plain)
    trace = tracekit.open(tmp_path / "run.h5")
    assert trace.config["lost"][0].startswith("steps of Several.generate")
    assert tracekit.diff(trace, trace).decision is Decision.WITHHELD
