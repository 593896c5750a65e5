"""The logits of one step on both sides: the largest, what survived, where the cuts are, what was drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.report.contents import draw_text
from tracekit.report.token_rows import TokenTexts
from tracekit.sampling.chain import chain, cuts, unknown_settings
from tracekit.sampling.observed import Observed
from tracekit.sampling.processor import Cut
from tracekit.sampling.replay import observe
from tracekit.sampling.scores import softmax
from tracekit.trace import Json, Sequence

TOP = 10
"""Token candidates of each side that are shown."""


@dataclass(frozen=True)
class _Side:
    """One side's step: what is known of each token id."""

    seen: Observed
    logits: NDArray[Any] | None
    probs: NDArray[Any] | None
    survivors: dict[int, float]
    top: list[int]
    topk: dict[int, float]  # id -> log-probability, where only those were recorded
    cuts: list[Cut]  # with a token at a finite distance


def logit_table(sequences: tuple[Sequence, ...], step: int, texts: TokenTexts) -> Json | None:
    """A row a token candidate of one or two sides; None where a side has no such step or none recorded logits."""
    if any(step >= sequence.step_count for sequence in sequences):
        return None
    sides = [_side(sequence, step) for sequence in sequences]
    near = [cut.nearest[1] for side in sides for cut in side.cuts]
    ids = list(dict.fromkeys([token for side in sides for token in (*side.top, side.seen.token)] + near))
    if not any(side.top for side in sides):
        return None
    ids.sort(key=lambda token: -max(_height(side, token) for side in sides))
    rows: list[Json] = [
        {
            "id": token,
            "text": texts[token],
            "sides": [_cell(side, token) for side in sides],
            "apart": _apart(sides, token),
        }
        for token in ids
    ]
    for row in rows:
        row["at_cut"] = row["id"] in near
    notes = [_notes(sequence, side, texts) for sequence, side in zip(sequences, sides, strict=True)]
    return {"step": step, "rows": rows, "sides": notes}


def _side(sequence: Sequence, index: int) -> _Side:
    seen = observe(sequence, index)
    step = sequence.step(index)
    logits = None if seen.logits is None else seen.logits.astype(np.float64)
    topk: dict[int, float] = {}
    if step.topk_id is not None and step.topk_logprob is not None:
        topk = dict(zip(step.topk_id.tolist(), step.topk_logprob.tolist(), strict=True))
    top = list(topk)[:TOP]
    if logits is not None:
        best = np.argpartition(-logits, min(TOP, logits.size - 1))[:TOP]
        top = [int(token) for token in best[np.argsort(-logits[best], kind="stable")]]
    kept: dict[int, float] = {}
    if seen.ids is not None and seen.probs is not None:
        kept = dict(zip(seen.ids.tolist(), seen.probs.tolist(), strict=True))
    probs = None if logits is None else softmax(logits)
    return _Side(seen, logits, probs, kept, top, topk, _cuts(sequence, seen, logits))


def _cuts(sequence: Sequence, seen: Observed, logits: NDArray[Any] | None) -> list[Cut]:
    """The filters' cuts as the side states them; none of settings that are not known."""
    stated = sequence.sampling
    if logits is None or not stated or unknown_settings(stated):
        return []
    return [cut for cut in cuts(chain(stated), logits, seen.context) if np.isfinite(cut.nearest[0])]


def _height(side: _Side, token: int) -> float:
    """A token's probability before the filters."""
    if side.probs is not None:
        return float(side.probs[token]) if token < side.probs.size else 0.0
    return float(np.exp(side.topk.get(token, -np.inf)))


def _cell(side: _Side, token: int) -> Json:
    known = side.logits is not None and token < side.logits.size
    probability = _height(side, token)
    survives = None if side.seen.ids is None else token in side.survivors
    return {
        "logit": f"{side.logits[token]:.4f}" if known and side.logits is not None else "",
        "probability": f"{probability:.4f}" if known or token in side.topk else "",
        "share": round(100 * probability, 1),
        "survives": survives,
        "kept": f"{side.survivors[token]:.4f}" if token in side.survivors else "",
        "chosen": token == side.seen.token,
    }


def _apart(sides: list[_Side], token: int) -> str:
    """By how much the candidate's logit is larger."""
    tables = [side.logits for side in sides]
    if len(tables) != 2 or tables[0] is None or tables[1] is None or token >= min(tables[0].size, tables[1].size):
        return ""
    return f"{tables[1][token] - tables[0][token]:+.2g}"


def _notes(sequence: Sequence, side: _Side, texts: TokenTexts) -> Json:
    """Survivors, cuts and draws of a side in words."""
    step = sequence.step(side.seen.index)
    count = None if side.seen.ids is None else int(side.seen.ids.size)
    draws = [draw_text(draw) + ("" if draw.result is None else f" → {draw.result}") for draw in step.draws]
    events = [event.kind.replace("_", " ") for event in step.events if event.kind != "processor"]
    return {
        "token": side.seen.token,
        "text": texts[side.seen.token],
        "survivors": count,
        "cuts": [_cut_text(cut, texts) for cut in side.cuts],
        "draws": draws,
        "events": events,
    }


def _cut_text(cut: Cut, texts: TokenTexts) -> str:
    """`TopPLogitsWarper(top_p=0.95): nearest to the cut is 178 "x", 0.0014 probability mass away`."""
    distance, token = cut.nearest
    return (
        f"{cut.processor}: nearest to the cut is {token} {texts[token]}".rstrip() + f", {distance:.2g} {cut.unit} away"
    )
