"""Small GGUF files with random weights, as llama.cpp's converter writes them, for any seed and format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from tracekit.checkpoints.rotary_pairs import interleaved

VOCABULARY = 320


@dataclass(frozen=True)
class Sizes:
    """Of a small decoder."""

    layers: int = 2
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    inner: int = 128
    theta: float = 10000.0
    key_bias: float = 0.0
    """Size of the biases of keys, of a file of architecture `qwen2`: Qwen2.5 has keys of some hundreds by them."""


def byte_tokens() -> list[str]:
    """The 256 bytes as GPT-2 writes them, special tokens up to the vocabulary's size, and one that is merged."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    letters = [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]
    return [*letters, *(f"<s{index}>" for index in range(VOCABULARY - 257)), "ab"]


def tensors(
    sizes: Sizes, seed: int = 0, bias: bool = False, architecture: str = "llama"
) -> dict[str, NDArray[np.float32]]:
    """Weights by their names in the file, rows of queries and keys in rotary pairs where the architecture is `llama`;
    `qwen2` has biases."""
    random = np.random.default_rng(seed)
    head = sizes.hidden // sizes.heads
    paired = interleaved if architecture == "llama" else (lambda matrix, heads: matrix)

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        return (random.standard_normal((rows, columns)) * columns**-0.5).astype(np.float32)

    def norm() -> NDArray[np.float32]:
        return (1.0 + 0.1 * random.standard_normal(sizes.hidden)).astype(np.float32)

    out = {"token_embd.weight": matrix(VOCABULARY, sizes.hidden) * 4, "output_norm.weight": norm()}
    for layer in range(sizes.layers):
        block = {
            "attn_norm": norm(),
            "attn_q": paired(matrix(sizes.heads * head, sizes.hidden), sizes.heads),
            "attn_k": paired(matrix(sizes.kv_heads * head, sizes.hidden), sizes.kv_heads),
            "attn_v": matrix(sizes.kv_heads * head, sizes.hidden),
            "attn_output": matrix(sizes.hidden, sizes.heads * head),
            "ffn_norm": norm(),
            "ffn_gate": matrix(sizes.inner, sizes.hidden),
            "ffn_up": matrix(sizes.inner, sizes.hidden),
            "ffn_down": matrix(sizes.hidden, sizes.inner),
        }
        out |= {f"blk.{layer}.{name}.weight": value for name, value in block.items()}
        if bias:
            out[f"blk.{layer}.attn_q.bias"] = matrix(1, sizes.heads * head)[0]
        if architecture == "qwen2":
            widths = {"q": (sizes.heads, 1.0), "k": (sizes.kv_heads, sizes.key_bias), "v": (sizes.kv_heads, 1.0)}
            for name, (count, size) in widths.items():
                values = random.standard_normal(count * head) * size
                out[f"blk.{layer}.attn_{name}.bias"] = values.astype(np.float32)
    return out


def write(
    path: Path,
    sizes: Sizes | None = None,
    *,
    seed: int = 0,
    kind: str = "F32",
    bias: bool = False,
    eps: float = 1e-5,
    architecture: str = "llama",
) -> Path:
    """A file of architecture `llama` or `qwen2`; `kind`: the format of its matrices."""
    sizes = sizes or Sizes()
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(sizes.hidden)
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(sizes.inner)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_rope_dimension_count(sizes.hidden // sizes.heads)
    writer.add_rope_freq_base(sizes.theta)
    writer.add_layer_norm_rms_eps(eps)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(byte_tokens())
    writer.add_token_types([1] * 256 + [3] * (VOCABULARY - 257) + [1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(False)
    held = gguf.GGMLQuantizationType[kind]
    for name, value in tensors(sizes, seed, bias, architecture).items():
        if value.ndim == 1 or kind == "F32":
            writer.add_tensor(name, value)
        else:
            writer.add_tensor(name, gguf.quants.quantize(value, held), raw_dtype=held)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def damage(path: Path, fault: str) -> tuple[int | None, str]:
    """Plant a fault in a file of Q4_1 blocks: the row that it is in, where it is in one, and the site that it is at."""
    reader = gguf.GGUFReader(str(path), "r+")
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def rows(name: str) -> NDArray[np.uint8]:
        return tensors[name].data

    match fault:
        case "scale of a block":
            blocks = rows("blk.1.ffn_up.weight")[37].reshape(-1, 20)
            scale = blocks[1, :2].view("<f2")
            scale[:] = (scale.astype(np.float32) * 1.01).astype(np.float16)
            reader.data.flush()
            return 37, "model.layers.1.mlp.up_proj"
        case "heads swapped":
            head = rows("blk.0.attn_q.weight").reshape(4, 16, -1)
            head[[1, 2]] = head[[2, 1]]
            reader.data.flush()
            return None, "model.layers.0.self_attn.q_proj"
        case "columns of heads swapped":  # of heads as wide as a block
            blocks = rows("blk.1.attn_output.weight").reshape(-1, 2, 20)
            blocks[:] = blocks[:, ::-1].copy()
            reader.data.flush()
            return None, "model.layers.1.self_attn.o_proj"
        case "another layer's tensor":
            rows("blk.1.ffn_down.weight")[:] = rows("blk.0.ffn_down.weight")
            reader.data.flush()
            return None, "model.layers.1.mlp.down_proj"
    return None, ""


def scaled(model: Path, to: Path, tensor: str, factor: float) -> Path:
    """A copy of a file of Q4_1 blocks in which one tensor is so many times as large."""
    to.write_bytes(model.read_bytes())
    reader = gguf.GGUFReader(str(to), "r+")
    blocks = next(each for each in reader.tensors if each.name == tensor).data.reshape(-1, 20)
    scale = blocks[:, :4].copy().view("<f2")
    blocks[:, :4] = (scale.astype(np.float32) * factor).astype("<f2").view(np.uint8)
    reader.data.flush()
    return to
