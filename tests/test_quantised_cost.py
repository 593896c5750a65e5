"""What a quantised file costs is told from what an engine adds."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import jsonschema
import numpy as np
import pytest

pytest.importorskip("xllamacpp")

import tracekit_llama_cpp

import tracekit
from tests import tiny_gguf
from tests.speech_traces import tracekit as command
from tests.tiny_gguf import scaled
from tracekit.compare.kld import kld

IDS = [5, 9, 3, 17, 40, 22, 8]
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model in three formats, one file with a fault, and a run of each, all of the original's tokens."""
    folder = tmp_path_factory.mktemp("runs")
    for kind in ("F32", "Q8_0", "Q4_1"):
        tiny_gguf.write(folder / f"{kind}.gguf", kind=kind)
    scaled(folder / "Q4_1.gguf", folder / "faulty.gguf", "blk.1.attn_output.weight", 1.05)
    for name in ("F32", "Q8_0", "Q4_1", "faulty"):
        follow = {} if name == "F32" else {"follow": str(folder / "F32.h5")}
        tracekit_llama_cpp.record(
            folder / f"{name}.gguf", folder / f"{name}.h5", prompt=IDS, max_new_tokens=8, **follow
        )
    return folder


def costs(runs: Path, name: str, held: str | None = None) -> tuple[dict[str, float], dict[str, float]]:
    """By layer what the file costs, and what the engine adds."""
    found = tracekit.audit(runs / f"{name}.h5", runs / f"{held or name}.gguf", original=runs / "F32.h5").quantised
    assert found is not None and found.kld is not None and found.kld.steps == 8
    return {each.layer: each.file or 0.0 for each in found.layers}, {each.layer: each.engine for each in found.layers}


LAYERS = ("model.layers.0", "model.layers.1")


def test_a_coarser_file_costs_more_and_the_engine_adds_no_more(runs: Path) -> None:
    fine, coarse = costs(runs, "Q8_0"), costs(runs, "Q4_1")
    for layer in LAYERS:
        assert 0.003 < fine[0][layer] < 0.01 and coarse[0][layer] > 5 * fine[0][layer]
        assert max(fine[1][layer], coarse[1][layer]) < 2.0**-11  # 16-bit sums of attention


def test_an_error_of_the_engine_is_no_cost_of_the_file(runs: Path) -> None:
    sound, faulty = costs(runs, "Q4_1"), costs(runs, "faulty", "Q4_1")
    for layer in LAYERS:
        assert faulty[0][layer] == pytest.approx(sound[0][layer], rel=0.1)
    assert faulty[1][LAYERS[1]] > 100 * sound[1][LAYERS[1]]
    assert faulty[1][LAYERS[0]] < 3 * sound[1][LAYERS[0]]
    found = tracekit.audit(runs / "faulty.h5", runs / "Q4_1.gguf", original=runs / "F32.gguf").quantised
    assert found is not None and found.kld is None  # nothing of the original was recorded
    assert max(found.layers, key=lambda each: each.engine).worst == "model.layers.1.self_attn.o_proj"


def test_the_distance_of_the_distributions_is_llama_cpps(runs: Path) -> None:
    with tracekit.open(runs / "F32.h5") as one, tracekit.open(runs / "Q4_1.h5") as other:
        found = kld(one, other)
        steps = min(one[0].step_count, other[0].step_count)
        ours, theirs = (side[0].logits(0, steps).astype(np.float64) for side in (one, other))
        same = kld(one, one)
    p, q = (np.exp(each) / np.exp(each).sum(axis=1, keepdims=True) for each in (ours, theirs))
    by_step = (p * np.log(p / q)).sum(axis=1)
    assert found is not None and same is not None
    assert found.mean == pytest.approx(by_step.mean(), rel=1e-6)
    assert found.most == pytest.approx(np.percentile(by_step, 99.9), rel=1e-6)
    assert found.same_top == np.mean(ours.argmax(axis=1) == theirs.argmax(axis=1))
    assert (same.mean, same.same_top) == (0.0, 1.0)


def test_the_report_and_its_json(runs: Path) -> None:
    words = ["audit", str(runs / "Q4_1.h5"), "--original", str(runs / "F32.h5")]
    code, said = command(*words)
    assert code == 0 and "quantisation  arithmetic    engine" in said and "KLD over 8 steps: mean" in said
    code, said = command(*words, "--json")
    told = json.loads(said)["quantised"]
    jsonschema.validate(told, json.loads((ROOT / "docs/quantised.schema.json").read_text()))
    assert [each["layer"] for each in told["layers"]][:2] == list(LAYERS) and code == 0
    code, said = command("audit", str(runs / "Q4_1.h5"), "--original", str(runs / "none.h5"))
    assert code == 2 and "none.h5" in said


def test_an_original_that_was_made_of_the_file_is_told(runs: Path) -> None:
    """A folder of what a file's blocks stand for has every value of the file: that measures no quantisation."""
    for original, said in (("Q4_1", True), ("F32", False), ("Q8_0", False)):
        found = tracekit.audit(runs / "Q4_1.h5", original=runs / f"{original}.gguf")
        assert found.quantised is not None and found.quantised.of_the_file is said
        assert ("its weights are the file's own values" in found.text) is said


PRODUCTS = {
    "attn_q": "input_layernorm",
    "attn_k": "input_layernorm",
    "attn_v": "input_layernorm",
    "attn_output": "self_attn.o_proj:in",
    "ffn_gate": "post_attention_layernorm",
    "ffn_up": "post_attention_layernorm",
    "ffn_down": "mlp.down_proj:in",
}
"""A layer's products by their weights in the file, and what each reads."""


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_the_cost_of_a_file_is_that_of_its_products(kind: str, runs: Path) -> None:
    def weights(name: str) -> dict[str, np.ndarray]:
        tensors = gguf.GGUFReader(str(runs / f"{name}.gguf")).tensors
        return {each.name: gguf.quants.dequantize(each.data, each.tensor_type).astype(float) for each in tensors}

    held, original, found = weights(kind), weights("F32"), costs(runs, kind)[0]
    with tracekit.open(runs / f"{kind}.h5") as trace:
        sequence = trace[0]
        for layer in LAYERS:
            relative = []
            for name, reads in PRODUCTS.items():
                (first, stop), *_ = sequence.sites[f"{layer}.{reads}"].ranges
                inputs = sequence.read(f"{layer}.{reads}", first, stop).astype(float)
                weight = f"blk.{layer.rpartition('.')[2]}.{name}.weight"
                # Rows of queries and keys are in another order in the file; an error is the same in any order.
                with_file, with_original = inputs @ held[weight].T, inputs @ original[weight].T
                relative.append(np.square(with_file - with_original).sum() / np.square(with_original).sum())
            assert found[layer] == pytest.approx(np.sqrt(np.mean(relative)), rel=1e-6)
