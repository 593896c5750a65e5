"""Mistakes in CosyVoice's repetition-aware sampling."""

from __future__ import annotations

from tracekit.mistakes.draw_mistake import Algorithm, DrawMistake, Rank
from tracekit.mistakes.explanation import Mistake
from tracekit.sampling.drawing import ras_way
from tracekit.sampling.ras import Ras


def _rule(identity: str, words: str, rule: Ras) -> DrawMistake:
    mistake = Mistake(identity, words)
    return DrawMistake(mistake, lambda stated: ras_way(rule, stated), (Algorithm.RAS,), rank=Rank.SAME)


MISTAKES = (
    _rule("no_repetition_rule", "tokens that repeat are not drawn again", Ras(fallback=False)),
    _rule("repetition_rule_strict", "the repetition rule has > instead of >=", Ras(strict=True)),
    _rule("stop_tokens_not_redrawn", "stop tokens before min_len are not drawn again", Ras(redraws=False)),
    _rule(
        "stop_on_eos_only",
        "of the stop tokens only eos counts: the others are neither drawn again nor end the generation",
        Ras(eos_only=True),
    ),
    _rule(
        "repetition_window_from_start",
        "the repetition window is the first tokens instead of the last",
        Ras(window_from_start=True),
    ),
)
