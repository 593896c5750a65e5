"""Programs that score texts: the largest of each position's scores is taken, and nothing is generated."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402

import tracekit  # noqa: E402

TEXTS = [[1, 5, 9, 12, 7, 3], [1, 8, 2, 30, 11, 4]]


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(1.0 if parameter.dim() == 1 else 6.0)
    return model


def recorded(path, run):
    model = llama()
    with torch.no_grad(), tracekit_torch.record(model, path):
        run(model)
    return tracekit.open(path)


def scored(model):
    """Whether each text's continuation of two tokens is what the model would say: two rows, and two positions each."""
    scores = torch.log_softmax(model(torch.tensor(TEXTS)[:, :-1]).logits, dim=-1)
    for row in scores:
        row[-3:-1].argmax(dim=-1)


def test_the_largest_scores_of_other_positions_are_no_tokens(tmp_path):
    with recorded(tmp_path / "a.h5", scored) as trace:
        assert [(sequence.positions, sequence.step_count) for sequence in trace.sequences] == [(5, 0), (5, 0)]


def penalised(logits):
    return transformers.RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor(TEXTS), logits)


@pytest.mark.parametrize(
    "scores",
    [
        lambda logits: torch.log_softmax(logits / 0.7, dim=-1),
        penalised,
        lambda logits: torch.where(logits < logits.topk(5).values[:, -1:], -torch.inf, logits),
        lambda logits: torch.softmax(logits, dim=-1) / torch.empty_like(logits).exponential_(),
    ],
    ids=["normalised", "penalised", "filtered", "race"],
)
def test_the_largest_of_what_is_made_of_the_last_logits_is_a_token(tmp_path, scores):
    chosen = []

    def choose(model):
        chosen.extend(scores(model(torch.tensor(TEXTS)).logits[:, -1]).argmax(dim=-1).tolist())

    with recorded(tmp_path / "a.h5", choose) as trace:
        assert [[sequence.step(0).token] for sequence in trace.sequences] == [[token] for token in chosen]


def test_a_token_of_other_scores_that_is_fed_is_one(tmp_path):
    def contrast(model):
        first = model(torch.tensor(TEXTS), use_cache=True)
        token = (first.logits[:, -1] - 2 * first.logits[:, -2]).argmax(dim=-1, keepdim=True)
        model(token, past_key_values=first.past_key_values)

    with recorded(tmp_path / "a.h5", contrast) as trace:
        assert [sequence.step_count for sequence in trace.sequences] == [1, 1]
