"""Is the mistake that a verdict names the one that was planted? It need not name one; a wrong one is counted."""

from __future__ import annotations

import re

from benchmarks.fault_bench.fault import Fault

PLANTED = {
    "gain|head-scale": "gain|weights? times",
    "weight|weight-add": "one weight",
    "offset": "constant added",
    "weights-(f16|bf16)": "weight rounded",
    "(bias-dropped|missing-bias)": "bias left out",
    "(bias-twice|double-bias)": "bias added twice",
    "eps|norm-eps": "norm eps",
    "norm-plus-one": "norm weight",
    "norm-skipped": "norm skipped",
    "transposed|transpose-weight": "weight transposed",
    "rows-permuted|permuted-rows": "rows|columns",
    "swap-heads": "heads|columns permuted",
    "rope-theta(-stated)?": "rotary theta",
    "rope-table|rope-f16": "rotary table rounded",
    "rope-angles(-bf16)?": "rotary angles rounded",
    "rope-interleaved": "interleaved rotary",
    "rope-offset": "position offset|decode positions",
    "rope-decode-zero": "decoding at position 0",
    "rope-k-unrotated": "keys not rotated|prompt keys",
    "rope-partial": "partial rotary",
    "rope-linear|rope-scaling-off|rope-frequencies": "rotary (positions|scaling)",
    "attention-scale": "attention scale|scale",
    "softcap|final-softcap": "soft cap|score soft cap",
    "mask-future": "mask one ahead",
    "mask-past": "mask one behind",
    "window": "window",
    "kv-head-map": "KV-head map",
    "attention-scores-f16|softmax-f16": "scores|softmax",
    "cache-stale|stale-cache-row": "stale cache row",
    "cache-overwritten|overwritten-cache-row|cache-window-row": "(overwritten|repeated|other) cache row|cache row",
    "cache-hole": "empty cache row|sink",
    "swap-gate-up|gate-up-swapped": "gate and up swapped",
    "activation|gelu|gelu-tanh": "activation",
    "skip-layer|layer-skipped": "layer skipped",
    "drop-residual|residual-dropped": "residual dropped",
    "parallel-residual": "branch left out|parallel",
    "embed-scale": "embedding scale|gain",
    "logits-f16|logits-cast|residual-f16": "output rounded",
    "seed": "seed",
    "extra-draw|words-used": "extra draw",
    "drawn-twice": "extra draw|draw",
    "argmax|first-token-greedy": "argmax",
    "inverse-cdf": "inverse CDF",
    "uniform-for-exponential": "uniform for exponential",
    "temperature-after-top-p|order": "temperature after",
}
"""Injections and what of them may be said. An injection that stands nowhere may be given any name."""


def explained_otherwise(fault: Fault, explanation: str) -> bool:
    """Whether the verdict names a mistake that was not planted."""
    name = fault.kind.split(":")[0]
    if not explanation:
        return False
    for kinds, said in PLANTED.items():
        if re.fullmatch(kinds, name):
            return re.match(said, explanation, re.IGNORECASE) is None
    return False
