"""The arithmetic of llama.cpp's CPU backend, as a trace states it.

Source: `type_traits_cpu` of ggml's src/ggml-cpu/ggml-cpu.c (the format that the other side of a product is rounded to),
and `ggml_compute_forward_flash_attn_ext_f16_one_chunk` of src/ggml-cpu/ops.cpp (values of a float16 cache are added up
in float16). GELU is looked up in a table of float16 (`GGML_GELU_FP16` of src/ggml-cpu/vec.h).
"""

from __future__ import annotations

from collections.abc import Mapping

from tracekit.checkpoints.gguf import GgufParameters
from tracekit.trace import Json
from tracekit_llama_cpp.options import Options

READ_AS: Mapping[str, str] = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "MXFP4"), "Q8_0"),
    **dict.fromkeys(("Q4_1", "Q5_1"), "Q8_1"),
    **dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"), "Q8_K"),
    "float16": "F16",
    "bfloat16": "BF16",
}
"""By the format of the weight, ggml's name of it or torch's word."""
CACHES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def stated(parameters: GgufParameters, options: Options) -> Json:
    """`arithmetic` of the log's first frame."""
    held = {parameters.dtype(name) for name in parameters.names}
    products = {name: READ_AS[name] for name in sorted(held) if name in READ_AS}
    cache = CACHES.get(options.cache_type, options.cache_type)
    if cache == "float32" and options.flash_attention != "off":
        cache = "float16"  # flash attention reads no other (`build_attn_mha` of src/llama-graph.cpp)
    in_half = cache == "float16" and options.flash_attention != "off"
    sums = "float16" if in_half else "float32"
    order = {"rotary": "pairs"} if parameters.in_rotary_pairs else {}
    gelu = {"gelu": "float16"} if parameters.architecture.startswith("gemma") else {}
    return {"products": products, "cache": cache, "attention_sums": sums, **order, **gelu}
