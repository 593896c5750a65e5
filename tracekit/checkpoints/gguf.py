"""A GGUF file's tensors under the names of a Hugging Face checkpoint, quantised ones as the numbers they stand for.

Source of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.checkpoints.gguf_reader import open_reader
from tracekit.checkpoints.parameters import Parameters
from tracekit.checkpoints.rotary_pairs import halves, interleaved
from tracekit.dtypes import is_float, round_to
from tracekit.errors import first_line
from tracekit.formats.name_map import GGUF, SANDWICHED
from tracekit.trace import Json, TraceError

PLAIN = {"F32": "float32", "F16": "float16", "F64": "float64", "BF16": "bfloat16"}
ROTATED = ("self_attn.q_proj", "self_attn.k_proj")
"""Projections whose rows the converter reorders for architecture `llama` (rotary pairs next to each other)."""


class GgufParameters(Parameters):
    """The tensors of a GGUF file under the names and in the row order of Hugging Face, quantised blocks as the numbers
    they stand for; the settings of its metadata as a `config.json` has them.

    Raises TraceError where the gguf library is missing or the file is damaged.
    """

    _tensors: dict[str, Any]
    one_added = True  # llama.cpp's conversion adds it

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            import gguf
        except ImportError:
            raise TraceError(f"{path}: reading GGUF needs a library; pip install 'tracekit[gguf]'") from None
        self._gguf = gguf
        try:
            reader = open_reader(path)
            self.architecture = _architecture(reader)
            self._tensors = {huggingface_name(tensor.name, self.architecture): tensor for tensor in reader.tensors}
            self._heads = _head_counts(reader)
            self.config = _config(reader, self._tensors)
        except Exception as error:  # the library checks little: whatever a damaged file makes it raise, it is damaged
            raise TraceError(f"{path}: is no sound GGUF file ({first_line(error)}); fetch it again") from None

    @property
    def file_names(self) -> list[str]:
        """The tensors by their names in the file."""
        return [str(tensor.name) for tensor in self._tensors.values()]

    def dtype(self, name: str) -> str:
        kind: str = self._tensors[name].tensor_type.name
        return PLAIN.get(kind, kind)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(side) for side in reversed(self._tensors[name].shape))

    def called(self, name: str) -> str | None:
        return super().called(huggingface_name(name, self.architecture))

    def bits(self, name: str) -> NDArray[Any]:
        """The numbers of quantised blocks: they have no bits of their own."""
        numbers = self.numbers(name)
        return numbers if self.quantisation(name) else round_to(numbers, self.dtype(name))

    def numbers(self, name: str) -> NDArray[Any]:
        """With the 1 that the converter added to the weights of Gemma's norms."""
        shape = self.shape(name)
        return self._stored(name, 0, math.prod(shape)).reshape(shape)

    def held_otherwise(self, name: str) -> Iterator[NDArray[Any]]:
        """In the file's order of rows; without the 1 that is added to norms of Gemma."""
        shape, heads = self.shape(name), self.heads_of(name)
        yield self.values(name, 0, math.prod(shape)).reshape(shape)
        if heads is not None:
            yield interleaved(self.numbers(name), heads)

    def quantisation(self, name: str) -> str | None:
        """GGML's name of the blocks that a tensor is stored in; None of plain numbers."""
        kind = self.dtype(name)
        return None if is_float(kind) else kind

    def values(self, name: str, first: int, stop: int) -> NDArray[Any]:
        if self.architecture.startswith("gemma") and name.endswith("norm.weight"):
            # The converter adds the 1 that Gemma's norms add to their weights.
            return np.asarray(self._numbers(name, first, stop) - np.float32(1))
        return self._stored(name, first, stop)

    def _stored(self, name: str, first: int, stop: int) -> NDArray[Any]:
        """As `values`, with the 1 that the converter added to the weights of Gemma's norms."""
        if self._rotated(name):
            return self._in_order(name).reshape(-1)[first:stop]
        return self._numbers(name, first, stop)

    def _numbers(self, name: str, first: int, stop: int) -> NDArray[Any]:
        tensor = self._tensors[name]
        flat = tensor.data.reshape(-1)
        if flat.dtype != np.uint8:
            return np.asarray(flat[first:stop]).astype(np.float64 if flat.dtype == np.float64 else np.float32)
        elements, size = self._gguf.GGML_QUANT_SIZES[tensor.tensor_type]
        try:
            data = np.asarray(flat[first // elements * size : -(-stop // elements) * size])
            numbers: NDArray[Any] = self._gguf.dequantize(data, tensor.tensor_type)
        except NotImplementedError:
            kind = tensor.tensor_type.name
            raise TraceError(f"{self.path}: {name} is of type {kind}, which the gguf library cannot read") from None
        return numbers

    @property
    def in_rotary_pairs(self) -> bool:
        """Whether the file holds rows of queries and keys in rotary pairs."""
        return bool(self._heads)

    def _rotated(self, name: str) -> bool:
        return bool(self._heads) and any(part in name for part in ROTATED)

    def _in_order(self, name: str) -> NDArray[Any]:
        """The rows as Hugging Face has them: the halves of each head apart."""
        shape = self.shape(name)
        numbers = self._numbers(name, 0, int(np.prod(shape, dtype=object))).reshape(shape)
        return halves(numbers, self.heads_of(name) or 1)

    def block_minima(self, name: str) -> NDArray[np.float32] | None:
        """What steps of zero stand for in each 32 values of Q4_1, Q5_1, Q4_K and Q5_K, [rows, width / 32], rows in
        Hugging Face's order; None of other tensors."""
        tensor, shape = self._tensors[name], self.shape(name)
        kind = tensor.tensor_type.name
        if kind not in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") or len(shape) != 2:
            return None
        _, size = self._gguf.GGML_QUANT_SIZES[tensor.tensor_type]
        blocks = np.ascontiguousarray(tensor.data).reshape(-1, size)
        minima = np.ascontiguousarray(blocks[:, 2:4]).view("<f2").astype(np.float32)
        if kind.endswith("K"):  # a scale of eight smallest values, which have six bits each and are subtracted
            minima = -minima * self._gguf.quants.Q4_K.get_scale_min(blocks[:, 4:16])[1].astype(np.float32)
        minima = minima.reshape(shape[0], -1)
        return halves(minima, self.heads_of(name) or 1) if self._rotated(name) else minima

    def heads_of(self, name: str) -> int | None:
        """Heads of a projection whose rows the file holds in rotary pairs; None of any other tensor."""
        return self._heads[0 if "q_proj" in name else 1] if self._rotated(name) else None


ARCHITECTURES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text", "llama": "llama", "qwen2": "qwen2"}
ARCHITECTURES |= {"qwen3": "qwen3", "phi3": "phi3", "mistral": "mistral", "smollm3": "smollm3"}
"""GGUF's architecture -> `model_type`, where they differ or are known to be the same."""
SETTINGS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "vocab_size": "vocab_size",
}
"""GGUF's key after the architecture -> `config.json`'s."""
TOKENS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id"}


def _config(reader: Any, tensors: Json) -> Json:
    """The settings of a GGUF file as a `config.json` declares them. Source: `gguf/constants.py`, class Keys."""
    fields = reader.fields
    architecture = _architecture(reader)

    def get(key: str) -> Any:
        field = fields.get(key)
        return None if field is None else field.contents()

    found: Json = {"model_type": ARCHITECTURES.get(architecture, architecture)}
    found |= {word: _number(get(f"{architecture}.{key}")) for key, word in SETTINGS.items()}
    found |= {word: _number(get(f"tokenizer.ggml.{key}")) for key, word in TOKENS.items()}
    table = tensors.get("model.embed_tokens.weight")
    if found.get("vocab_size") is None and table is not None:
        found["vocab_size"] = int(table.shape[1])
    found["rope_scaling"] = _scaling(architecture, get)
    found["tie_word_embeddings"] = "lm_head.weight" not in tensors
    found["hidden_act"] = "gelu_pytorch_tanh" if architecture.startswith("gemma") else "silu"
    width, heads = get(f"{architecture}.rope.dimension_count"), found.get("num_attention_heads")
    head_dim = found.get("head_dim") or (
        int(found["hidden_size"]) // heads if heads and found.get("hidden_size") else 0
    )
    if isinstance(width, int) and head_dim and width < head_dim:
        found["partial_rotary_factor"] = width / head_dim
    plain = {name: value for name, value in found.items() if value is not None}
    return plain | (_of_gemma3(plain, get) if architecture == "gemma3" else {})


GEMMA3_LARGEST = 62
"""Layers of the only size whose scores are not divided by the root of a head's width."""


def _of_gemma3(found: Json, get: Any) -> Json:
    """What the file does not hold of Gemma 3 and llama.cpp's source does: scale of the scores, windows, local theta.
    Source: `load_arch_hparams` of llama.cpp's src/models/gemma3.cpp."""
    heads, head_dim = found.get("num_attention_heads"), found.get("head_dim")
    if found.get("num_hidden_layers") == GEMMA3_LARGEST and heads:
        head_dim = found["hidden_size"] // heads
    local, cap = get("gemma3.rope.freq_base_swa"), get("gemma3.final_logit_softcapping")
    pattern = get("gemma3.attention.sliding_window_pattern")
    return {
        "query_pre_attn_scalar": head_dim,
        "rope_local_base_freq": 10000.0 if local is None else _number(local),
        "sliding_window_pattern": pattern if isinstance(pattern, int) else 6,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None if cap is None else _number(cap),
    }


def _scaling(architecture: str, get: Any) -> Json | None:
    kind, factor = get(f"{architecture}.rope.scaling.type"), get(f"{architecture}.rope.scaling.factor")
    if kind in (None, "none") or factor is None:
        return None
    return {"rope_type": str(kind), "factor": _number(factor)}


def _number(value: Any) -> Any:
    """A float32 of the file as the decimal number that it stands for."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def huggingface_name(name: str, architecture: str = "llama") -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; a name that is not known stays."""
    parts, words = name.split("."), SANDWICHED if architecture in ("gemma2", "gemma3") else GGUF
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in words:
        return f"model.layers.{parts[1]}.{words[parts[2]]}.{parts[3]}"
    if len(parts) == 2 and parts[0] in words:
        return f"{words[parts[0]]}.{parts[1]}"
    return name


def _architecture(reader: Any) -> str:
    said = reader.fields.get("general.architecture")
    return "" if said is None else str(said.contents())


def _head_counts(reader: Any) -> tuple[int, int] | tuple[()]:
    """Query and KV heads of a model whose projections were reordered; empty for the others."""
    if _architecture(reader) != "llama":
        return ()
    heads = int(reader.fields["llama.attention.head_count"].contents())
    kv = reader.fields.get("llama.attention.head_count_kv")
    return heads, heads if kv is None else int(kv.contents())
