"""Is the mistake that a verdict names the one that was planted? It need not name one; a wrong one is counted."""

from __future__ import annotations

import re

from benchmarks.fault_bench.fault import Fault

PLANTED = {
    "gain|head-scale": "gain|weight_gain",
    "weight|weight-add": "one_weight",
    "offset": "constant_added",
    "weights-(f16|bf16)": "weight_rounded",
    "(bias-dropped|missing-bias)": "bias_left_out",
    "(bias-twice|double-bias)": "bias_added_twice",
    "eps|norm-eps": "norm_eps",
    "norm-plus-one": "norm_weight_.*",
    "norm-skipped": "norm_skipped",
    "transposed|transpose-weight": "weight_transposed",
    "rows-permuted|permuted-rows": "rows_.*|columns_permuted",
    "swap-heads": "columns_permuted",
    "rope-theta(-stated)?": "rotary_theta",
    "rope-table|rope-f16": "rotary_table_rounded",
    "rope-angles(-bf16|-f16)?": "rotary_angles_rounded",
    "rope-frequencies-f16": "rotary_frequencies_rounded",
    "rope-interleaved": "interleaved_rotary",
    "rope-offset": "position_offset|decode_positions",
    "rope-decode-zero": "decoding_at_position_0",
    "rope-k-unrotated": "keys_not_rotated|prompt_keys_not_rotated",
    "rope-partial": "partial_rotary",
    "rope-linear|rope-scaling-off": "rotary_positions_divided|rotary_scaling_left_out",
    "rope-frequencies": "rotary_positions_divided|rotary_scaling_left_out|rotary_other_divisors",
    "attention-scale": "attention_scale|scale_.*",
    "softcap|final-softcap": "soft_cap.*|score_soft_cap",
    "mask-future": "mask_one_ahead",
    "mask-past": "mask_one_behind",
    "mask-decode": "decoding_mask_length",
    "weight-low-rank": "weight_low_rank|one_weight",
    "window": "window(_ignored)?",
    "kv-head-map": "kv_head_map",
    "attention-scores-f16|softmax-f16": "scores_.*|softmax_.*",
    "cache-stale|stale-cache-row": "stale_cache_row",
    "cache-overwritten|overwritten-cache-row|cache-window-row": "(overwritten|repeated|other)_cache_row|cache_row_.*",
    "cache-hole": "empty_cache_row|sink",
    "swap-gate-up|gate-up-swapped": "gate_and_up_swapped",
    "activation|gelu|gelu-tanh": "activation",
    "skip-layer|layer-skipped": "layer_skipped",
    "drop-residual|residual-dropped": "residual_dropped",
    "parallel-residual": "branch_left_out|parallel.*",
    "embed-scale": "embedding_scale.*|gain",
    "logits-f16|logits-cast|residual-f16": "output_rounded",
    "seed": "seed",
    "extra-draw|words-used": "extra_draw",
    "drawn-twice": "extra_draw|draw",
    "argmax|first-token-greedy": "argmax.*",
    "inverse-cdf": "inverse_cdf",
    "uniform-for-exponential": "uniform_for_exponential",
    "temperature-after-top-p|order": "temperature_after.*",
}
"""Injections and the ids of mistakes that may be named. An injection that stands nowhere may be given any id."""


def explained_otherwise(fault: Fault, explanation: str) -> bool:
    """Whether the verdict names, by its id, a mistake that was not planted."""
    name = fault.kind.split(":")[0]
    if not explanation:
        return False
    for kinds, ids in PLANTED.items():
        if re.fullmatch(kinds, name):
            return re.fullmatch(ids, explanation) is None
    return False
