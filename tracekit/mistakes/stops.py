"""Mistakes with the end of a generation: stop tokens and limits."""

from __future__ import annotations

from tracekit.mistakes.explanation import Mistake

IGNORED = Mistake(
    "stop_token_ignored",
    "the {side} keeps generating after token {token}, which is in its stop list {stops}",
    "token",
)
LIST = Mistake(
    "stop_list",
    "the {side} keeps generating after token {token}: its stop list {stops} does not contain it",
    "token",
)
LAST_OMITTED = Mistake(
    "last_token_omitted", "the {side} does not output its last token, the stop token {token}", "tokens"
)
LENGTH = Mistake("length", "the {side} ends after {tokens} tokens; the declared limit is {limit}", "difference")
EARLY = Mistake(
    "stopped_early",
    "the {side} stops after {tokens} tokens, on token {token}, after which it kept generating {before} times before",
    "tokens",
)
OTHER_TOKEN = Mistake(
    "stopped_on_other_token", "the {side} stops on token {token}, which its stop list {stops} does not contain", "token"
)
