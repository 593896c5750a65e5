"""What is in a trace, at a glance: tables for `tracekit show`."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq

import numpy as np

from tracekit.trace import Draw, Json, Sequence, Step, Trace, TraceError

TOP = 10
"""Rows of the top-k and survivor tables."""


def header(trace: Trace) -> Json:
    """Who recorded it, with what, and whether it is whole."""
    config = trace.config
    return {
        "path": trace.path,
        "implementation": trace.implementation,
        "status": trace.status,
        "status_detail": trace.status_detail,
        "dtype": config.get("dtype"),
        "device": config.get("device"),
        "versions": config.get("versions") or {},
        "seed": trace.sequences[0].seed if trace.sequences else None,
        "parameters": len(trace.weights),
        "sites": len({name for sequence in trace.sequences for name in sequence.sites}),
        "sequences": len(trace.sequences),
    }


def sequence_row(sequence: Sequence) -> Json:
    """A sequence in one row."""
    return {
        "sequence": sequence.index,
        "prompt": sequence.prompt_text or _joined(sequence.texts),
        "prompt_tokens": None if sequence.prompt_ids is None else len(sequence.prompt_ids),
        "steps": sequence.step_count,
        "positions": sequence.positions,
        "end": sequence.end_reason,
        "sampling": sequence.sampling,
    }


def _joined(texts: Seq[str | None] | None) -> str | None:
    return "".join(text or "" for text in texts) if texts else None


def step_row(step: Step) -> Json:
    """A step in one row: token, margin of its logits in nats, survivors, draws."""
    return {
        "step": step.index,
        "position": step.position,
        "token": step.token,
        "text": step.text,
        "margin": logit_margin(step),
        "survivors": None if step.survivors_id is None else int(step.survivors_id.size),
        "draws": [draw_text(draw) for draw in step.draws],
        "events": [{"kind": event.kind, "detail": event.detail} for event in step.events],
    }


def logit_margin(step: Step) -> float | None:
    """Distance of the two largest logits."""
    if step.logits is not None and step.logits.size > 1 and step.logits.dtype.kind == "f":
        top = np.partition(step.logits, -2)[-2:].astype(np.float64)
        return float(top[1] - top[0]) if np.isfinite(top).all() else None
    if step.topk_logprob is not None and step.topk_logprob.size > 1:
        return float(step.topk_logprob[0] - step.topk_logprob[1])
    return None


def draw_text(draw: Draw) -> str:
    """`multinomial mt19937 seed 0 @98304 +98304`."""
    words = "" if draw.words is None else f" +{draw.words}"
    offset = "" if draw.offset is None else f" @{draw.offset}"
    return f"{draw.op} {draw.generator} seed {draw.seed}{offset}{words}"


def step_detail(trace: Trace, sequence: Sequence, index: int) -> Json:
    """A step in full: its largest logits, its survivors, its draws."""
    if not 0 <= index < sequence.step_count:
        counted = f"its {sequence.step_count} steps are counted from 0"
        raise TraceError(f"{trace.path}: sequence {sequence.index} has no step {index}; {counted}")
    step = sequence.step(index)
    survivors = []
    if step.survivors_id is not None and step.survivors_prob is not None:
        rows = zip(step.survivors_id.tolist(), step.survivors_prob.tolist(), strict=True)
        survivors = [{"id": token, "prob": prob} for token, prob in rows]
    return {**step_row(step), "top": _top(step), "survivors": survivors, "draws": [vars(draw) for draw in step.draws]}


def _top(step: Step) -> list[Json]:
    if step.logits is not None and step.logits.dtype.kind == "f":
        logits = step.logits.astype(np.float64)
        with np.errstate(all="ignore"):
            probs = np.exp(logits - logits.max())
            probs /= probs.sum()
        order = np.argsort(-logits, kind="stable")[:TOP]
        return [{"id": int(token), "logit": float(logits[token]), "prob": float(probs[token])} for token in order]
    if step.topk_id is not None and step.topk_logprob is not None:
        rows = zip(step.topk_id[:TOP].tolist(), step.topk_logprob[:TOP].tolist(), strict=True)
        return [{"id": token, "logit": None, "prob": math.exp(logprob)} for token, logprob in rows]
    return []


def site_rows(trace: Trace) -> list[Json]:
    """The site table with shapes, in execution order."""
    rows = []
    for name, site in trace.sites.items():
        data = next((sequence.sites[name] for sequence in trace.sequences if name in sequence.sites), None)
        stored = f"[{data.rows}, {data.width}]" if data else ""
        where = (site.same_as and f"is {site.same_as}") or site.recorded_as or site.skipped
        rows.append(
            {
                "site": name,
                "class": site.module_class,
                "shape": stored or where or "not recorded",
                "dtype": data.dtype if data else None,
                "input": site.input,
            }
        )
    return rows


def site_detail(trace: Trace, sequence: Sequence, name: str) -> Json:
    """A site in full: shape, wiring, and per position its norm, extremes and non-finite elements."""
    found = sequence.site(name)
    positions = []
    for position, values in zip(found.positions.tolist(), found.values, strict=True):
        row = values.astype(np.float64)
        finite = row[np.isfinite(row)]
        positions.append(
            {
                "position": position,
                "norm": float(np.linalg.norm(finite)),
                "min": float(finite.min()) if finite.size else None,
                "max": float(finite.max()) if finite.size else None,
                "non_finite": int(row.size - finite.size),
                "first": [float(value) for value in row[:4]],
            }
        )
    site = trace.sites.get(found.stored_as)
    return {
        "site": name,
        "stored_as": found.stored_as,
        "class": site.module_class if site else None,
        "dtype": found.dtype,
        "width": found.width,
        "input": site.input if site else None,
        "positions": positions,
    }
