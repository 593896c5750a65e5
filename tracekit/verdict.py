"""The verdict: which step, which site, which draw, and why.

`reach` takes what the search found and names its cause. The audit, explanations and counterfactuals have their
places here (`culprits`, `explanation`, `margins`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tracekit.align import align_sequences
from tracekit.divergence import Finding, Search, Stage, prompt_length, search
from tracekit.rng import TorchGenerator
from tracekit.rounding import Noise, Oracle, Uncalibrated, Yardstick
from tracekit.trace import Json, Sequence, Step, Trace, resolve

FORMAT = 1
NEAR = 2.0
"""A margin is crossed by rounding if it is at most this many times the measured error: both tokens may move."""

NEUTRAL: Json = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
}
"""What a sampling setting is where it is not given."""

FILTER_SETTINGS = (*NEUTRAL, "do_sample", "no_repeat_ngram_size")
STOP_SETTINGS = ("max_new_tokens", "min_new_tokens", "max_length", "min_length", "eos_token_id")
MODEL_SETTINGS = (
    "rope_theta",
    "rope_scaling",
    "rms_norm_eps",
    "hidden_act",
    "head_dim",
    "num_key_value_heads",
    "intermediate_size",
    "tie_word_embeddings",
    "sliding_window",
)


@dataclass(frozen=True)
class Difference:
    """A setting that the two sides state differently."""

    name: str
    reference: Any
    candidate: Any


@dataclass(frozen=True)
class Verdict:
    """The answer of a diff. `to_json` has the stable keys."""

    verdict: str  # parity | divergence | withheld
    cause: str | None
    sequence: int | None
    step: int | None
    position: int | None
    site: str | None
    evidence: tuple[str, ...]
    explanation: Json | None
    culprits: tuple[Json, ...]
    token: Json | None
    margins: Json
    compared: Json
    unexercised: tuple[str, ...]
    unmatched: Json
    calibration: str
    differences: tuple[Difference, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())

    @property
    def exit_code(self) -> int:
        """As diff(1): 0 parity, 1 divergence, 2 trouble."""
        return {"parity": 0, "divergence": 1}.get(self.verdict, 2)

    def to_json(self) -> Json:
        """The whole verdict, ready for `json.dumps`."""
        return {
            "format": FORMAT,
            "verdict": self.verdict,
            "cause": self.cause,
            "sequence": self.sequence,
            "step": self.step,
            "position": self.position,
            "site": self.site,
            "evidence": list(self.evidence),
            "explanation": self.explanation,
            "culprits": list(self.culprits),
            "token": self.token,
            "margins": self.margins,
            "compared": self.compared,
            "unexercised": list(self.unexercised),
            "unmatched": self.unmatched,
            "calibration": self.calibration,
            "differences": [vars(difference) for difference in self.differences],
            "notes": list(self.notes),
        }


@dataclass
class _Ruling:
    """Cause and evidence, while they are being worked out."""

    cause: str
    evidence: list[str]
    finding: Finding | None
    margins: Json = field(default_factory=dict)


def diff(reference: Trace, candidate: Trace, oracle: Trace | None = None, noise: list[Trace] | None = None) -> Verdict:
    """Compare a candidate with a reference. `oracle`: the reference in higher precision, forced onto its tokens;
    `noise`: more references under harmless variation. Raises TraceError where the traces cannot be compared.
    """
    yardstick: Yardstick = Oracle(oracle) if oracle else Noise(noise) if noise else Uncalibrated()
    return reach(reference, candidate, search(reference, candidate, yardstick), yardstick.calibration)


def reach(reference: Trace, candidate: Trace, found: Search, calibration: str) -> Verdict:
    """Name the cause of what the search found."""
    differences = config_differences(reference, candidate)
    weights = weight_differences(reference, candidate)
    ruling = _rule(reference, candidate, found, differences, weights)
    finding = ruling.finding if ruling else None
    unmatched = {
        "reference": list(found.alignment.unmatched_reference),
        "candidate": list(found.alignment.unmatched_candidate),
        "sequences": found.left_sequences,
    }
    culprit = {"site": finding.site, "step": finding.step, "position": finding.position} if finding else None
    return Verdict(
        verdict="divergence" if ruling else "parity",
        cause=ruling.cause if ruling else None,
        sequence=finding.sequence if finding else None,
        step=finding.step if finding else None,
        position=finding.position if finding else None,
        site=finding.site if finding else None,
        evidence=tuple(ruling.evidence if ruling else _parity_evidence(found)),
        explanation=None,
        culprits=(culprit,) if culprit and finding and finding.stage in (Stage.SITE, Stage.LOGITS) else (),
        token=_token_json(found.token),
        margins=ruling.margins if ruling else {},
        compared=found.compared,
        unexercised=tuple(unexercised(reference)),
        unmatched=unmatched,
        calibration=calibration,
        differences=tuple(differences),
        notes=tuple(_notes(reference, candidate, found, ruling.cause if ruling else None)),
    )


def _parity_evidence(found: Search) -> list[str]:
    ratio, site = found.worst
    return [f"largest error {ratio:.1f}x its yardstick, at {site}"] if site else ["every compared value is equal"]


def _token_json(finding: Finding | None) -> Json | None:
    return None if finding is None else {"step": finding.step, **finding.facts}


def _notes(reference: Trace, candidate: Trace, found: Search, cause: str | None) -> list[str]:
    notes = [f"{trace.path}: {trace.status_detail}" for trace in (reference, candidate) if trace.status_detail]
    if cause not in (None, "near-tie"):
        return notes  # the logits differ by more than rounding: what they move over a cut says nothing
    notes += [
        f"sequence {sequence}, step {step}: rounding moved a token across a cut of the filter"
        for sequence, step in found.ties[:3]
    ]
    return notes


# ---------------------------------------------------------------- what the sides state


def config_differences(reference: Trace, candidate: Trace) -> list[Difference]:
    """Settings that differ: dtype, seed, sampling and lengths, and the model's hyper-parameters as used."""
    ours, theirs = reference.config, candidate.config
    pairs = [("dtype", ours.get("dtype"), theirs.get("dtype")), ("seed", _seed(reference), _seed(candidate))]
    one, other = _sampling(reference), _sampling(candidate)
    greedy = one.get("do_sample") is False and other.get("do_sample") is False
    for name in (*(() if greedy else FILTER_SETTINGS), *STOP_SETTINGS):
        if one and other and (name in NEUTRAL or (name in one and name in other)):
            pairs.append((name, one.get(name), other.get(name)))
    models = ours.get("model") or {}, theirs.get("model") or {}
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
        if not _same(_plain(name, first), _plain(name, second))
        and not (name in ("dtype", "seed") and None in (first, second))
    ]


def _seed(trace: Trace) -> int | None:
    return trace.sequences[0].seed if trace.sequences else None


def _sampling(trace: Trace) -> Json:
    return trace.sequences[0].sampling if trace.sequences else {}


def _plain(name: str, value: Any) -> Any:
    """One spelling for what means the same: missing and neutral, 7 and [7], no scaling and default scaling."""
    if name in NEUTRAL and value in (None, NEUTRAL[name]):
        return NEUTRAL[name]
    if name.endswith("eos_token_id"):
        return sorted(value) if isinstance(value, list) else [value]
    if name == "model.rope_scaling" and isinstance(value, dict):
        if value.get("rope_type", value.get("type")) in (None, "default"):
            return None
        return {key: number for key, number in value.items() if key not in ("type", "rope_theta")}
    return value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        # A number that went through float32 on one side still is the same setting.
        return abs(one - other) <= 1e-6 * max(abs(one), abs(other))
    return bool(one == other)


def weight_differences(reference: Trace, candidate: Trace) -> list[str]:
    """Parameters of the same name, dtype and shape whose bytes differ."""
    out = []
    for name, weight in reference.weights.items():
        other = candidate.weights.get(name)
        if other is None or None in (weight.digest, other.digest):
            continue
        if (weight.dtype, weight.shape) == (other.dtype, other.shape) and weight.digest != other.digest:
            out.append(name)
    return out


# ---------------------------------------------------------------- causes


def _rule(
    reference: Trace, candidate: Trace, found: Search, differences: list[Difference], weights: list[str]
) -> _Ruling | None:
    first = found.first
    if weights and (first is None or first.stage is not Stage.INPUT):
        more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
        return _Ruling("weights", [f"parameter {weights[0]}{more}: other bytes than the reference holds"], first)
    if first is None:
        return None
    rulers: dict[Stage, Callable[[Trace, Trace, Search, Finding], _Ruling]] = {
        Stage.INPUT: _rule_input,
        Stage.SITE: _rule_layer,
        Stage.LOGITS: _rule_layer,
        Stage.SURVIVORS: _rule_filter,
        Stage.DRAW: _rule_draw,
        Stage.TOKEN: _rule_token,
        Stage.STOP: _rule_stop,
    }
    ruling = rulers[first.stage](reference, candidate, found, first)
    return _blame_config(ruling, first, differences)


def _blame_config(ruling: _Ruling, first: Finding, differences: list[Difference]) -> _Ruling:
    """A stated difference that acts where the divergence begins is its cause."""
    acts: dict[Stage, Callable[[str], bool]] = {
        Stage.SITE: lambda name: name.startswith("model.") and not name.endswith("eos_token_id"),
        Stage.LOGITS: lambda name: name.startswith("model.") and not name.endswith("eos_token_id"),
        Stage.SURVIVORS: lambda name: name in FILTER_SETTINGS,
        Stage.DRAW: lambda name: name == "do_sample" or (name == "seed" and first.facts.get("field") == "seed"),
        Stage.TOKEN: lambda name: name in ("do_sample", "dtype"),
        Stage.STOP: lambda name: name in STOP_SETTINGS or name == "model.eos_token_id",
    }
    rule = acts.get(first.stage)
    blamed = [difference for difference in differences if rule and rule(difference.name)]
    if not blamed:
        return ruling
    stated = [
        f"{item.name}: {_show(item.reference)} in the reference, {_show(item.candidate)} in the candidate"
        for item in blamed
    ]
    return _Ruling("config", stated + ruling.evidence, ruling.finding, ruling.margins)


def _show(value: Any) -> str:
    return "not set" if value is None else str(value)


def _rule_input(reference: Trace, candidate: Trace, found: Search, first: Finding) -> _Ruling:
    lengths, values = first.facts["lengths"], first.facts.get("values")
    evidence = [f"{first.facts['input']}: {lengths[0]} entries in the reference, {lengths[1]} in the candidate"]
    if values:
        said = ["nothing" if value is None else str(value) for value in values]
        evidence.append(f"first difference at entry {first.position}: {said[0]} | {said[1]}")
    return _Ruling("input", evidence, first)


def _rule_layer(reference: Trace, candidate: Trace, found: Search, first: Finding) -> _Ruling:
    evidence = [f"error {first.ratio:.3g}x its yardstick (relative {first.error:.1e})"]
    if "positions" in first.facts:
        evidence[0] += f", at {first.facts['wrong_positions']} of {first.facts['positions']} positions"
    source = _input_of(reference, first.site or "")
    if source is not None and source in found.ratios:
        evidence.append(f"its input {source} agrees ({found.ratios[source]:.1f}x)")
    return _Ruling("layer", evidence, first)


def _input_of(trace: Trace, site: str) -> str | None:
    row = trace.sites.get(site)
    return resolve(trace, row.input) if row and row.input else None


def _rule_filter(reference: Trace, candidate: Trace, found: Search, first: Finding) -> _Ruling:
    counts, lost, gained = first.facts["counts"], first.facts["lost"], first.facts["gained"]
    evidence = [f"{counts[0]} tokens survive in the reference, {counts[1]} in the candidate"]
    for ids, side in ((lost, "reference"), (gained, "candidate")):
        if ids:
            shown = ", ".join(str(token) for token in ids[:5])
            evidence.append(f"only in the {side}: {shown}" + (f" and {len(ids) - 5} more" if len(ids) > 5 else ""))
    if "cut_distance" in first.facts:
        distance, error = first.facts["cut_distance"], first.facts["logit_error"]
        evidence.append(f"distance to the cut {distance:.2g}, logit error {error:.1e}: rounding cannot have moved them")
    margins: Json = {key: first.facts[key] for key in ("cut_distance", "logit_error") if key in first.facts}
    return _Ruling("filter", evidence, first, margins)


def _rule_draw(reference: Trace, candidate: Trace, found: Search, first: Finding) -> _Ruling:
    name, values = first.facts["field"], first.facts["values"]
    said = f"{name} {values[0]} in the reference, {values[1]} in the candidate"
    if name == "op":
        return _Ruling("sampler", [f"same generator, seed and offset, another draw: {said}"], first)
    return _Ruling("rng", [f"same survivors, another draw: {said}"], first)


def _rule_token(reference: Trace, candidate: Trace, found: Search, first: Finding) -> _Ruling:
    one, other = _steps(reference, candidate, found, first)
    margins = token_margins(_sequence(reference, first), one, other)
    margin, error = margins.get("margin"), margins.get("error")
    if margin is not None and error is not None and margin <= NEAR * error:
        said = f"margin {margin:.2g} nats, measured error {error:.2g}: rounding decided"
        return _Ruling("near-tie", [said], first, margins)
    evidence = ["same survivors and draws, another token"]
    if margin is not None and error is not None:
        evidence.append(f"margin {margin:.2g} nats, measured error only {error:.1e}: not a near-tie")
    return _Ruling("sampler", evidence, first, margins)


def _rule_stop(reference: Trace, candidate: Trace, found: Search, first: Finding) -> _Ruling:
    steps, reasons = first.facts["steps"], first.facts["reasons"]
    said = [f"{count} tokens, end: {reason or 'none recorded'}" for count, reason in zip(steps, reasons, strict=True)]
    return _Ruling("stop", [f"all common tokens agree; reference {said[0]} | candidate {said[1]}"], first)


def _sequence(trace: Trace, finding: Finding) -> Sequence:
    return trace.sequences[finding.sequence]


def _steps(reference: Trace, candidate: Trace, found: Search, finding: Finding) -> tuple[Step, Step]:
    pairs, _ = align_sequences(reference, candidate)
    pair = next(pair for pair in pairs if pair.index == finding.sequence)
    return pair.reference.step(finding.step or 0), pair.candidate.step(finding.step or 0)


def token_margins(sequence: Sequence, one: Step, other: Step) -> Json:
    """How narrowly the reference chose its token over the candidate's, in nats, and how far the sides are apart.

    Greedy: the gap of the two logits. Sampled: the gap of the two in the exponential race, its draws made again from
    seed and offset. `error` is how far the sides' log-probabilities of the two tokens are apart, added up.
    """
    if one.survivors_id is None or one.survivors_prob is None:
        return _greedy_margins(one, other)
    draw = one.draws[0] if one.draws else None
    size = one.logits.size if one.logits is not None else None
    if draw is None or draw.op != "multinomial" or draw.seed is None or draw.offset is None or size is None:
        return {}
    if other.survivors_id is None or other.survivors_prob is None:
        return {}
    ours = dict(zip(one.survivors_id.tolist(), one.survivors_prob.tolist(), strict=True))
    theirs = dict(zip(other.survivors_id.tolist(), other.survivors_prob.tolist(), strict=True))
    if not all(token in side for token in (one.token, other.token) for side in (ours, theirs)):
        return {}
    generator = TorchGenerator(draw.seed)
    generator.skip(draw.offset)
    draws = generator.exponential(size)
    winner, runner = (np.log(ours[token]) - np.log(draws[token]) for token in (one.token, other.token))
    error = sum(abs(np.log(ours[token]) - np.log(theirs[token])) for token in (one.token, other.token))
    return {"kind": "race", "margin": float(winner - runner), "error": float(error)}


def _greedy_margins(one: Step, other: Step) -> Json:
    if one.logits is None or other.logits is None or one.logits.shape != other.logits.shape:
        return {}
    ours, theirs = one.logits.astype(np.float64), other.logits.astype(np.float64)
    tokens = [one.token, other.token]
    error = float(np.abs(ours[tokens] - theirs[tokens]).sum())
    return {"kind": "logits", "margin": float(ours[one.token] - ours[other.token]), "error": error}


# ---------------------------------------------------------------- what a parity does not prove


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
