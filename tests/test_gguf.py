"""Runs from a GGUF file: its checkpoint, the order of its q and k rows, its names, its quantised blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_gaps import told
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.checkpoints.gguf import GgufParameters
from tracekit.checkpoints.gguf_reader import open_reader
from tracekit.checkpoints.rotary_pairs import halves, interleaved
from tracekit.checkpoints.stated import open_checkpoint
from tracekit.formats.log import LogWriter, Tensor, map_file, read_frames
from tracekit.formats.name_map import GGUF
from tracekit.trace import TraceError

gguf = pytest.importorskip("gguf")
ROOT = Path(__file__).parent.parent
HEADS = {"q_proj": 4, "k_proj": 2}
Q_PROJ = "model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="session")
def file(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as llama.cpp's converter writes it, in float32."""
    return converted(tiny_llama, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def converted(folder: Path, out: Path, kind: str = "F32") -> Path:
    checkpoint = Checkpoint(folder)
    config = checkpoint.config
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or config
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    back = {path: word for word, path in GGUF.items()}
    for name in checkpoint.names:
        values = checkpoint.values(name)
        path, role = name.rsplit(".", 1)
        part = path.rsplit(".", 1)[-1]
        if part in HEADS:
            values = interleaved(values, HEADS[part])
        pieces = path.split(".")
        block = f"blk.{pieces[2]}.{back['.'.join(pieces[3:])]}" if pieces[1] == "layers" else back[path]
        wanted = gguf.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
        data = np.ascontiguousarray(values) if wanted.name == "F32" else gguf.quantize(values, wanted)
        writer.add_tensor(f"{block}.{role}", data, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def as_gguf_engine(log: Path, out: Path, *, turned: tuple[str, ...] = tuple(HEADS), named: bool = True) -> Path:
    """The log as an engine writes it that holds the projections `turned` in rotary pairs, and speaks GGUF's names."""
    data, writer = map_file(log), LogWriter(out)
    back = {path: word for word, path in GGUF.items()}

    def spoken(name: str) -> str:
        owner, colon, suffix = name.partition(":")
        parts = owner.split(".")
        path, role = owner.rsplit(".", 1) if parts[-1] in ("weight", "bias") else (owner, "")
        pieces = path.split(".")
        inner = ".".join(pieces[3:])
        word = f"blk.{pieces[2]}.{back[inner]}" if inner in back and pieces[1] == "layers" else back.get(path, path)
        return (f"{word}.{role}" if role else word) + colon + suffix if named else name

    def site(row: dict[str, Any]) -> dict[str, Any]:
        row = row | {key: spoken(row[key]) for key in ("name", "input", "same_as") if row.get(key)}
        return row | {"parameters": {role: spoken(name) for role, name in (row.get("parameters") or {}).items()}}

    for frame in read_frames(data):
        metadata = dict(frame.metadata)
        if "sites" in metadata:
            metadata["sites"] = [site(row) for row in metadata["sites"]]
        metadata.pop("checkpoint", None)
        if metadata.get("weights"):
            metadata["weights"] = [row | {"name": spoken(row["name"])} for row in metadata["weights"]]
        tensors: dict[str, Any] = {}
        for name, stored in frame.tensors.items():
            if name == "weights/digest":
                metadata.pop("weights", None)  # this engine hashes nothing
                continue
            part = name.rsplit(".", 1)[-1]
            rows = frame.array(data, name)
            if frame.kind == "call" and part in turned and rows is not None:
                tensors[spoken(name)] = np.ascontiguousarray(interleaved(rows.T, HEADS[part]).T)
            else:
                raw = b"" if rows is None else rows.tobytes()
                tensors[spoken(name) if frame.kind == "call" else name] = Tensor(stored.dtype, stored.shape, raw)
        writer.write_frame(frame.kind, metadata, tensors)
    writer.abandon()
    return out


def test_the_two_orders_are_inverses() -> None:
    rows = np.arange(48).reshape(16, 3)
    assert np.array_equal(halves(interleaved(rows, 2), 2), rows)
    assert interleaved(np.arange(8), 1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_the_file_is_the_folder(tiny_llama: Path, file: Path) -> None:
    one, other = Checkpoint(tiny_llama), open_checkpoint(file)
    assert sorted(one.names) == sorted(other.names)
    assert all(np.array_equal(one.values(name), other.values(name)) for name in one.names)
    for name in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "vocab_size"):
        assert one.config[name] == other.config[name], name
    assert other.config["rope_theta"] == 10000.0 and other.config["tie_word_embeddings"] is True


@pytest.mark.parametrize("kind", ["plain", "turned", "named"])
def test_a_run_is_audited_against_the_file(
    whole_run: Callable[..., Path], file: Path, tmp_path: Path, kind: str
) -> None:
    log = whole_run()
    if kind != "plain":
        log = as_gguf_engine(log, tmp_path / "engine.tklog", named=kind == "named")
    code, said = told("audit", str(log), "--weights", str(file))
    assert code == 0 and "WITHIN" in said, said
    assert ("rotary pairs in 3 layers" in said) == (kind != "plain")


FAULTS = {
    f"gain:{Q_PROJ}:1.01": (Q_PROJ, "gain 1.01"),
    "rope-theta:5000:1": ("model.layers.1.self_attn.o_proj:in", "rotary theta 5000"),
    "gain:model.layers.1.mlp.up_proj:1.001": ("model.layers.1.mlp.up_proj", "gain 1.001"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("weights", ["gguf", "folder", "none"])
def test_a_fault_beside_the_other_order_is_named(
    whole_run: Callable[..., Path], file: Path, tiny_llama: Path, tmp_path: Path, fault: str, weights: str
) -> None:
    site, explained = FAULTS[fault]
    log = as_gguf_engine(whole_run("--fault", fault), tmp_path / "engine.tklog")
    given = {"gguf": ("--weights", str(file)), "folder": ("--weights", str(tiny_llama)), "none": ("--no-audit",)}
    code, said = told("diff", str(whole_run()), str(log), *given[weights])
    assert code == 1 and "at step 0, position" in said and site in said.split("DIVERGENCE")[1].splitlines()[0], said
    if weights != "none":
        assert explained in said
        code, said = told("audit", str(log), *given[weights])
        assert code == 1 and site in said and explained in said


@pytest.mark.parametrize("named", [False, True])
def test_the_other_order_alone_is_parity_with_a_note(
    whole_run: Callable[..., Path], tmp_path: Path, named: bool
) -> None:
    reference = whole_run()
    log = as_gguf_engine(reference, tmp_path / "engine.tklog", named=named)
    for one, other in ((reference, log), (log, reference)):
        code, said = told("diff", str(one), str(other), "--no-audit")
        assert code == 0 and "PARITY" in said, said
        assert "note: " in said and "rotary pairs in 3 layers, as in a GGUF file" in said


@pytest.mark.parametrize("turned", ["q_proj", "k_proj"])
def test_one_of_the_two_turned_alone_is_a_fault(
    whole_run: Callable[..., Path], file: Path, tmp_path: Path, turned: str
) -> None:
    log = as_gguf_engine(whole_run(), tmp_path / "engine.tklog", turned=(turned,), named=False)
    for words in (["diff", str(whole_run()), str(log)], ["audit", str(log)]):
        code, said = told(*words, "--weights", str(file))
        assert code == 1 and turned in said, said


def test_both_turned_but_halves_rotated_is_a_fault_of_attention(
    whole_run: Callable[..., Path], file: Path, tmp_path: Path
) -> None:
    """An engine that loads GGUF's rows and rotates halves: both projections are what the file holds."""
    rotated = whole_run("--fault", "rope-interleaved")
    log = as_gguf_engine(rotated, tmp_path / "engine.tklog")
    code, said = told("audit", str(log), "--weights", str(file))
    assert code == 1 and "o_proj:in" in said and "q_proj" not in said.split("note:")[0], said


def test_gemmas_norms_lose_the_one_that_the_converter_added(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "gemma.gguf", "gemma3")
    for word in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
        writer.add_tensor(f"blk.0.{word}.weight", np.array([1.5, 3.0], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(tmp_path / "gemma.gguf")
    parts = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    assert checkpoint.names == [f"model.layers.0.{part}_layernorm.weight" for part in parts]
    held = GgufParameters(str(tmp_path / "gemma.gguf"))  # as checkpoints are compared
    assert all(held.values(name, 0, 2).tolist() == [0.5, 2.0] for name in held.names)
    # As it is recomputed: in the file's digits, of norms that multiply by what is stored.
    assert checkpoint.file.one_added
    assert all(checkpoint.values(name).tolist() == [1.5, 3.0] for name in checkpoint.names)


def with_tokens(path: Path, count: int) -> Path:
    """A file with nothing but lists of a vocabulary's size, and a short one."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_head_count(4)
    writer.add_token_list([f"token {index}" for index in range(count)])
    writer.add_token_scores([float(index) for index in range(count)])
    writer.add_array("llama.sizes", [1, 2, 3])
    writer.add_tensor("output_norm.weight", np.ones(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_long_lists_are_passed_over_and_the_rest_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    path = with_tokens(tmp_path / "m.gguf", 5000)
    ours, theirs = open_reader(str(path)), gguf.GGUFReader(str(path))
    assert [(t.name, t.data_offset, t.n_bytes) for t in ours.tensors] == [
        (t.name, t.data_offset, t.n_bytes) for t in theirs.tensors
    ]
    assert list(ours.fields) == list(theirs.fields)
    left_out = {name for name, field in theirs.fields.items() if ours.fields[name].contents() != field.contents()}
    assert left_out == {"tokenizer.ggml.tokens", "tokenizer.ggml.scores"}


@pytest.mark.parametrize("count", [1 << 62, 1 << 40, 600000])
def test_a_list_that_is_longer_than_the_file_is_refused(count: int, tmp_path: Path) -> None:
    path = with_tokens(tmp_path / "m.gguf", 5000)
    data = bytearray(path.read_bytes())
    for key in (b"tokenizer.ggml.tokens", b"tokenizer.ggml.scores"):
        at = data.index(key) + len(key) + 8
        bad = bytearray(data)
        bad[at : at + 8] = count.to_bytes(8, "little")
        path.write_bytes(bad)
        with pytest.raises(TraceError, match="is no sound GGUF file"):
            GgufParameters(str(path))
