"""A GGUF file's tensors under the names of a Hugging Face checkpoint, quantised ones as the numbers they stand for.

Source of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.trace import TraceError

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's word for a module of the decoder family -> the state-dict path (after `model.layers.N.` within a block)."""

PLAIN = {"F32": "float32", "F16": "float16", "F64": "float64", "BF16": "bfloat16"}
ROTATED = ("self_attn.q_proj", "self_attn.k_proj")
"""Projections whose rows the converter reorders for architecture `llama` (rotary pairs next to each other)."""


class GgufParameters:
    """The tensors of a GGUF file; see `tracekit.weight_diff.Parameters`.

    Raises TraceError where the gguf library is missing or the file is damaged.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            import gguf
        except ImportError:
            raise TraceError(f"{path}: reading GGUF needs a library; pip install 'tracekit[gguf]'") from None
        self._gguf = gguf
        try:
            reader = gguf.GGUFReader(path)
            self._tensors = {_huggingface(tensor.name): tensor for tensor in reader.tensors}
            self._heads = _head_counts(reader)
        except Exception as error:  # the library checks little: whatever a damaged file makes it raise, it is damaged
            raise TraceError(f"{path}: is no sound GGUF file ({_line(error)}); fetch it again") from None

    @property
    def names(self) -> list[str]:
        return list(self._tensors)

    def dtype(self, name: str) -> str:
        kind: str = self._tensors[name].tensor_type.name
        return PLAIN.get(kind, kind)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(side) for side in reversed(self._tensors[name].shape))

    def values(self, name: str, first: int, stop: int) -> NDArray[Any]:
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

    def _rotated(self, name: str) -> bool:
        return bool(self._heads) and any(part in name for part in ROTATED)

    def _in_order(self, name: str) -> NDArray[Any]:
        """The rows as Hugging Face has them: the halves of each head apart."""
        shape = self.shape(name)
        heads = self._heads[0 if "q_proj" in name else 1]
        total = int(np.prod(shape, dtype=object))
        rows = self._numbers(name, 0, total).reshape(heads, shape[0] // heads // 2, 2, *shape[1:])
        return rows.swapaxes(1, 2).reshape(shape)


def _huggingface(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; a name that is not known stays."""
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in NAMES:
        return f"model.layers.{parts[1]}.{NAMES[parts[2]]}.{parts[3]}"
    if len(parts) == 2 and parts[0] in NAMES:
        return f"{NAMES[parts[0]]}.{parts[1]}"
    return name


def _head_counts(reader: Any) -> tuple[int, int] | tuple[()]:
    """Query and KV heads of a model whose projections were reordered; empty for the others."""
    said = reader.fields.get("general.architecture")
    if said is None or said.contents() != "llama":
        return ()
    heads = int(reader.fields["llama.attention.head_count"].contents())
    kv = reader.fields.get("llama.attention.head_count_kv")
    return heads, heads if kv is None else int(kv.contents())


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
