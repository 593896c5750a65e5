"""A program without a cache computes earlier positions again with each token: what later ones read is not recorded."""

from __future__ import annotations

import pytest

import tracekit
from tracekit.auditing.not_audited import Lacks, NotAudited
from tracekit.inspection.sanity import Uncached, recomputed_from

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402

from tests import tiny_families  # noqa: E402

LAYERS, TOKENS = 8, 6
PROMPT = tiny_families.PROMPT[0]
CORE = "model.layers.5.self_attn.o_proj:in"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight layers: the last ones' keys are off by what all the layers before them round."""
    return tiny_families.make("llama", tmp_path_factory.mktemp("uncached") / "model", num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def by(folder):
    return tracekit_torch.by_reference(str(folder))


def recorded(folder, path, *, use_cache=False, prompt=PROMPT, gain=None):
    """A recorded run. `gain`: of what the sixth layer's attention gives positions after the prompt."""
    model = tiny_families.load(folder)

    def run():
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, use_cache=use_cache
        )
        return out[0, len(prompt) :].tolist()

    if gain is not None:

        def wrong(_, args):
            given = args[0].clone()
            given[:, len(prompt) :] *= gain
            return given

        model.model.layers[5].self_attn.o_proj.register_forward_pre_hook(wrong)
    tokens = run()
    with tracekit_torch.record(model, path):
        assert run() == tokens
    with tracekit.open(path) as trace:
        assert trace.sequences[0].tokens.tolist() == tokens
    return path


@pytest.mark.parametrize("name", ["run.h5", "run.tklog"])
def test_a_trace_says_that_positions_were_computed_again(folder, tmp_path, name):
    with tracekit.open(recorded(folder, tmp_path / name)) as trace:
        assert recomputed_from(trace.sequences[0]) == len(PROMPT)
    with tracekit.open(recorded(folder, tmp_path / f"cached-{name}", use_cache=True)) as trace:
        assert recomputed_from(trace.sequences[0]) is None


def test_another_rounding_of_earlier_positions_is_no_error(folder, by, tmp_path):
    path = recorded(folder, tmp_path / "run.h5")
    found = tracekit.audit(path, folder, by=by)
    assert found.exit_code == 0 and not found.notes and CORE in found.clean
    found = tracekit.audit(path, folder)
    assert found.exit_code == 0 and found.notes == (Uncached(str(path), 0, len(PROMPT)),)
    assert "without a cache: from position 10 on" in found.text


def test_an_error_of_later_positions_alone_is_found(folder, by, tmp_path):
    path = recorded(folder, tmp_path / "run.h5", gain=1.001)
    found = tracekit.audit(path, folder, by=by)
    assert [culprit.site for culprit in found.culprits] == [CORE]
    assert found.culprits[0].position == len(PROMPT)


def test_a_prompt_of_one_token_leaves_recipes_nothing_to_judge_attention_by(folder, tmp_path):
    path = recorded(folder, tmp_path / "run.h5", prompt=PROMPT[:1])
    assert tracekit.audit(path, folder).unknown[CORE] == NotAudited(Lacks.CACHED)


@pytest.mark.parametrize("with_reference", [True, False])
def test_with_and_without_a_cache_is_parity(folder, by, tmp_path, with_reference):
    one = recorded(folder, tmp_path / "cached.h5", use_cache=True)
    other = recorded(folder, tmp_path / "uncached.h5")
    found = tracekit.diff(one, other, weights=folder, by=by if with_reference else None)
    assert found.verdict == "parity", found.text
