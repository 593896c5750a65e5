"""What the two sides state of themselves: settings and weight digests, and where they differ."""

from __future__ import annotations

from tracekit.inspection.settings import MODEL_SETTINGS, Difference, Setting, in_effect, plain_setting, same_setting
from tracekit.sampling.chain import REPETITION_SETTINGS
from tracekit.sampling.processors import GENERATE, plain_filter_setting
from tracekit.trace import Json, Trace

STOP_SETTINGS = (
    "max_new_tokens",
    "min_new_tokens",
    "max_length",
    "min_length",
    "eos_token_id",
    "min_len",
    "max_len",
    "stop_token_ids",
)
PROCESSORS = tuple(each.setting for each in GENERATE if each.setting not in STOP_SETTINGS)
"""Settings of the filter; one that is not stated is off."""
FILTER_SETTINGS = (*PROCESSORS, "do_sample")


def config_differences(reference: Trace, candidate: Trace) -> list[Difference]:
    """Settings that differ: dtype, seed, sampling and lengths, and the model's hyper-parameters as used."""
    ours, theirs = reference.config, candidate.config
    pairs = [("dtype", ours.get("dtype"), theirs.get("dtype")), ("seed", _seed(reference), _seed(candidate))]
    one, other = _sampling(reference), _sampling(candidate)
    greedy = one.get("do_sample") is False and other.get("do_sample") is False
    for name in (*(() if greedy else (*FILTER_SETTINGS, *REPETITION_SETTINGS)), *STOP_SETTINGS):
        if one and other and (name in PROCESSORS or (name in one and name in other)):
            pairs.append((name, one.get(name), other.get(name)))
    stated = ours.get("model") or {}, theirs.get("model") or {}
    models = in_effect(stated[0], stated[1]), in_effect(stated[1], stated[0])
    pairs += [
        (f"model.{name}", models[0][name], models[1][name])
        for name in MODEL_SETTINGS
        if name in models[0] and name in models[1]
    ]
    if "eos_token_id" in models[0] and "eos_token_id" in models[1] and "eos_token_id" not in one:
        pairs.append(("model.eos_token_id", models[0]["eos_token_id"], models[1]["eos_token_id"]))
    return [
        Difference(name, first, second)
        for name, first, second in pairs
        if not same_setting(_plain(name, first), _plain(name, second))
        and not (name in ("dtype", "seed") and None in (first, second))
    ]


def _plain(name: str, value: Setting) -> Setting:
    return plain_filter_setting(name, value) if name in PROCESSORS else plain_setting(name, value)


def _seed(trace: Trace) -> int | None:
    return trace.sequences[0].seed if trace.sequences else None


def _sampling(trace: Trace) -> Json:
    return trace.sequences[0].sampling if trace.sequences else {}


def weight_differences(reference: Trace, candidate: Trace) -> list[str]:
    """Parameters of the same name, dtype and shape whose bytes differ, unless one side stores them transposed."""
    out = []
    transposed = _stored_transposed(reference) ^ _stored_transposed(candidate)
    for name, weight in reference.weights.items():
        other = candidate.weights.get(name)
        if other is None or None in (weight.digest, other.digest) or name in transposed:
            continue
        if (weight.dtype, weight.shape) == (other.dtype, other.shape) and weight.digest != other.digest:
            out.append(name)
    return out


def _stored_transposed(trace: Trace) -> set[str]:
    """Weights of transformers' `Conv1D`, [inputs, outputs] where a linear layer's is [outputs, inputs]."""
    return {
        parameter
        for site in trace.sites.values()
        if site.module_class == "Conv1D"
        for role, parameter in site.parameters.items()
        if role == "weight"
    }
