"""What a parity does not prove: what these runs could not show."""

from __future__ import annotations

from tracekit.divergence import prompt_length
from tracekit.settings import NEUTRAL
from tracekit.trace import Json, Trace


def unexercised(reference: Trace) -> list[str]:
    """What these runs could not show, from settings and data of the reference."""
    out: list[str] = []
    sequences = [sequence for sequence in reference.sequences if sequence.step_count]
    model = reference.config.get("model") or {}
    if not sequences:
        return ["generation (no steps recorded)"]
    positions = max(sequence.positions for sequence in sequences)
    window = model.get("sliding_window")
    if isinstance(window, int) and window > positions:
        out.append(f"sliding window ({window} > {positions} positions)")
    sampling = sequences[0].sampling
    if sampling.get("do_sample") is False:
        out.append("sampling (greedy)")
    else:
        out += _unexercised_sampling(sampling)
    if all(sequence.end_reason != "stop" for sequence in sequences):
        out.append("stop tokens (none sampled)")
    if len(reference.sequences) == 1:
        out.append("batches (one sequence)")
    if all(prompt_length(sequence) == 1 for sequence in sequences):
        out.append("prefill (prompts of one token)")
    if model.get("num_key_value_heads") == 1:
        out.append("KV-head mapping (one KV head)")
    return out


def _unexercised_sampling(sampling: Json) -> list[str]:
    neutral = {
        "temperature": "temperature (1)",
        "top_k": "top-k (off)",
        "top_p": "top-p (off)",
        "min_p": "min-p (off)",
        "repetition_penalty": "repetition penalty (off)",
    }
    return [said for name, said in neutral.items() if sampling.get(name) in (None, NEUTRAL[name])]
