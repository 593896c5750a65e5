"""`tracekit weights`: two checkpoints, whatever their format, and files that nobody vouches for."""

from __future__ import annotations

import collections
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.speech_traces import golden, tracekit
from tracekit.checkpoints.compare import diff_weights
from tracekit.checkpoints.parameters import open_parameters

torch = pytest.importorskip("torch")
Tensors = dict[str, np.ndarray]
HIDDEN, VOCABULARY = 8, 32


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def checkpoint(prefix: str = "llm.model.") -> Tensors:
    random = np.random.default_rng(0)
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.layers.0.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
        "model.layers.0.self_attn.q_proj.bias": (HIDDEN,),
        "model.layers.0.mlp.down_proj.weight": (HIDDEN, 3 * HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    return {prefix + name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def save_pt(tensors: Tensors, path: str, **more: object) -> str:
    torch.save({name: torch.from_numpy(value.copy()) for name, value in tensors.items()} | more, path)
    return path


def test_the_same_weights_in_two_formats():
    tensors = checkpoint()
    save_file(tensors, "llm.rl.safetensors")
    save_pt(tensors, "llm.rl.pt", epoch=3, step=200)
    assert tracekit("weights", "llm.rl.pt", "llm.rl.safetensors") == (0, SAME)
    save_pt({}, "nested.pt", state_dict={name: torch.from_numpy(value) for name, value in tensors.items()})
    assert tracekit("weights", "nested.pt", "llm.rl.safetensors")[0] == 0
    torch.save(
        {name: torch.from_numpy(value) for name, value in tensors.items()},
        "old.pt",
        _use_new_zipfile_serialization=False,
    )
    assert tracekit("weights", "old.pt", "llm.rl.safetensors")[0] == 0


SAME = """\
first   llm.rl.pt           5 tensors  float32
second  llm.rl.safetensors  5 tensors  float32
SAME  5 tensors compared
"""


def test_every_kind_of_difference_is_listed_the_largest_value_first():
    tensors = checkpoint()
    save_pt(tensors, "llm.rl.pt")
    other = {name: value.copy() for name, value in tensors.items()}
    other["llm.model.model.layers.0.mlp.down_proj.weight"] *= np.float32(1.01)
    other["llm.model.model.layers.0.self_attn.q_proj.bias"][3] += 8
    other["llm.model.model.embed_tokens.weight"] = other["llm.model.model.embed_tokens.weight"][:30]
    del other["llm.model.model.norm.weight"]
    other["spk_embed_affine_layer.weight"] = np.zeros((HIDDEN, 4), np.float32)
    name = "llm.model.model.layers.0.self_attn.q_proj.weight"
    state = {key: torch.from_numpy(value.copy()) for key, value in other.items()}
    torch.save(state | {name: state[name].bfloat16()}, "native.pt")
    assert tracekit("weights", "llm.rl.pt", "native.pt") == (1, golden("weights.txt"))
    told = json.loads(tracekit("weights", "llm.rl.pt", "native.pt", "--json")[1])
    assert (told["verdict"], told["missing"], told["extra"]) == (
        "different",
        ["llm.model.model.norm.weight"],
        ["spk_embed_affine_layer.weight"],
    )
    assert told["values"][0]["index"] == [3] and told["values"][0]["differing"] == 1


def test_a_prefix_on_one_side_is_stripped():
    save_file(checkpoint(), "long.safetensors")
    save_file(checkpoint(""), "short.safetensors")
    for pair in (("long", "short"), ("short", "long")):
        code, said = tracekit("weights", *(f"{name}.safetensors" for name in pair))
        assert code == 0 and "names are compared without their prefix 'llm.model.'" in said


def test_a_prefix_may_be_missing_from_a_part_of_the_names():
    """The Qwen2 inside a CosyVoice model in a GGUF, or a folder of its own, beside tensors that have no prefix."""
    speech = {"speech_embedding.weight": np.ones((4, HIDDEN), np.float32)}
    save_file(checkpoint() | speech, "llm.rl.safetensors")
    save_file(checkpoint("") | speech, "native.safetensors")
    code, said = tracekit("weights", "llm.rl.safetensors", "native.safetensors")
    assert code == 0 and "SAME  6 tensors compared" in said and "without their prefix 'llm.model.'" in said
    save_file(checkpoint(""), "inner.safetensors")
    told = json.loads(tracekit("weights", "llm.rl.safetensors", "inner.safetensors", "--json")[1])
    assert (told["compared"], told["missing"], told["extra"]) == (5, ["speech_embedding.weight"], [])


def test_a_speech_models_folder_is_its_language_model():
    """It holds other files besides: prompt speech tokens, a flow, a vocoder."""
    Path("model").mkdir()
    save_file(checkpoint(), "model/llm.rl.safetensors")
    save_file({"speech_token_ids": np.arange(3)}, "model/prompt_speech_tokens.safetensors")
    Path("published").mkdir()
    save_pt(checkpoint(), "published/llm.rl.pt")
    assert tracekit("weights", "model", "published")[0] == 0


def test_a_tied_head_may_be_left_out_but_not_be_another():
    tensors = checkpoint("")
    save_file(tensors, "tied.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}, "whole.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, "own.safetensors")
    assert tracekit("weights", "whole.safetensors", "tied.safetensors")[0] == 0
    assert tracekit("weights", "tied.safetensors", "own.safetensors")[0] == 1


def test_folders_with_shards_in_both_formats():
    tensors = checkpoint("")
    names = list(tensors)
    parts = [{name: tensors[name] for name in part} for part in (names[:2], names[2:])]
    for folder, ending, index in (("st", "safetensors", "model.safetensors"), ("pt", "bin", "pytorch_model.bin")):
        Path(folder).mkdir()
        weight_map = {}
        for number, part in enumerate(parts):
            file = f"{index.split('.')[0]}-{number}.{ending}"
            save_file(part, f"{folder}/{file}") if ending == "safetensors" else save_pt(part, f"{folder}/{file}")
            weight_map |= dict.fromkeys(part, file)
        Path(folder, f"{index}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert tracekit("weights", "st", "pt")[0] == 0
    Path("pt/pytorch_model-1.bin").unlink()
    assert tracekit("weights", "st", "pt") == (
        2,
        "pt/pytorch_model-1.bin: cannot be read: No such file or directory",
    )


def test_not_a_number_equals_itself_and_nothing_else():
    tensors = checkpoint("")
    tensors["model.norm.weight"][0] = np.nan
    save_file(tensors, "one.safetensors")
    assert tracekit("weights", "one.safetensors", "one.safetensors")[0] == 0
    tensors["model.norm.weight"][0] = 1
    save_file(tensors, "two.safetensors")
    code, said = tracekit("weights", "one.safetensors", "two.safetensors", "--json")
    assert code == 1 and json.loads(said)["values"][0]["max_abs"] == "inf"


def test_blocks_count_on_where_the_last_one_ended():
    big = np.zeros((3, 1 << 20), np.float32)
    save_file({"a": big}, "one.safetensors")
    big[2, 5] = 1
    save_file({"a": big}, "two.safetensors")
    found = diff_weights(open_parameters("one.safetensors"), open_parameters("two.safetensors"))
    assert (found.values[0].index, found.values[0].differing) == ((2, 5), 1)


# -------------------------------------------------------------------- GGUF


def gguf_file(path: str, architecture: str, quantised: bool) -> str:
    """The checkpoint as llama.cpp's converter writes it."""
    gguf = pytest.importorskip("gguf")
    words = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers.0.self_attn.q_proj": "blk.0.attn_q",
        "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
    }
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    for name, value in wide_checkpoint().items():
        module, role = name.rsplit(".", 1)
        if architecture == "llama" and "q_proj" in name:
            value = value.reshape(2, 2, value.shape[0] // 4, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        if quantised and value.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{words[module]}.{role}", gguf.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{words[module]}.{role}", np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def wide_checkpoint() -> Tensors:
    """Rows of 32 or more, which Q8_0 needs."""
    random = np.random.default_rng(1)
    small = {name: value for name, value in checkpoint("").items()}
    return {
        name: random.standard_normal([side * 4 for side in value.shape]).astype(np.float32)
        for name, value in small.items()
    }


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_gguf_has_the_names_and_the_order_of_the_checkpoint(architecture: str):
    save_file(wide_checkpoint(), "model.safetensors")
    gguf_file("model.gguf", architecture, quantised=False)
    assert tracekit("weights", "model.safetensors", "model.gguf")[0] == 0


def test_a_quantised_gguf_is_compared_by_the_numbers_that_it_stands_for():
    save_file(wide_checkpoint(), "model.safetensors")
    gguf_file("q8.gguf", "qwen2", quantised=True)
    code, said = tracekit("weights", "model.safetensors", "q8.gguf", "--json")
    told = json.loads(said)
    assert code == 1 and set(map(tuple, told["dtypes"].values())) == {("float32", "Q8_0")}
    assert all(1e-3 < row["relative"] < 1e-2 for row in told["values"]) and len(told["values"]) == 3


# -------------------------------------------------------------------- files that nobody vouches for


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.mkdir, ("pwned",)


def damaged(name: str) -> None:
    tensors = checkpoint("")
    if name == "evil.pt":
        torch.save({"a": _Evil()}, name)
    elif name == "evil_old.pt":
        Path(name).write_bytes(pickle.dumps({"a": _Evil()}, protocol=2))
    elif name == "cut.pt":
        save_pt(tensors, name)
        Path(name).write_bytes(Path(name).read_bytes()[:700])
    elif name == "cut.safetensors":
        save_file(tensors, name)
        Path(name).write_bytes(Path(name).read_bytes()[:-4])
    elif name == "cut.gguf":
        gguf_file(name, "qwen2", quantised=False)
        Path(name).write_bytes(Path(name).read_bytes()[:900])
    elif name == "list.pt":
        torch.save([1], name)
    elif name == "empty_dict.pt":
        torch.save(collections.OrderedDict(epoch=1), name)
    elif name == "text.pt":
        Path(name).write_text("hello")
    elif name == "folder":
        Path(name).mkdir()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("evil.pt", "wants to run posix.mkdir when it is read, which is refused; save model.state_dict()"),
        ("evil_old.pt", "wants to run posix.mkdir when it is read, which is refused"),
        ("cut.pt", "is no sound checkpoint of PyTorch (damaged or cut short); fetch it again"),
        ("text.pt", "is no sound checkpoint of PyTorch (damaged or cut short); fetch it again"),
        ("cut.safetensors", "is no sound safetensors file (incomplete metadata, file not fully covered); fetch"),
        ("cut.gguf", "is no sound GGUF file ("),
        ("list.pt", "holds a list, not a state dict; save model.state_dict()"),
        ("empty_dict.pt", "holds no tensors; give a checkpoint that holds a state dict"),
        ("folder", "is no checkpoint that tracekit reads: GGUF (*.gguf); ONNX (*.onnx); safetensors (*.safetensors,"),
        ("missing.pt", "cannot be read: No such file or directory"),
    ],
)
def test_a_bad_checkpoint_gets_one_line_and_runs_nothing(name: str, said: str):
    save_file(checkpoint(""), "good.safetensors")
    damaged(name)
    for pair in ((name, "good.safetensors"), ("good.safetensors", name)):
        code, line = tracekit("weights", *pair)
        assert code == 2 and line.startswith(f"{name}: {said}")
    assert not Path("pwned").exists()


def test_without_the_libraries_it_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch):
    gguf_file("a.gguf", "qwen2", quantised=False)
    Path("a.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert tracekit("weights", "a.onnx", "a.onnx")[1].endswith("pip install 'tracekit[onnx]'")
    assert tracekit("weights", "a.gguf", "a.gguf")[1].endswith("pip install 'tracekit[gguf]'")
