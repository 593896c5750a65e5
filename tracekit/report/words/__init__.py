"""Sentences, made from typed findings: the one place where tracekit's words for a person come from.

A stage returns frozen dataclasses. A module of this package registers, for each type that it knows, the function that
says it in English; `sentence` finds that function by the type. Nothing reads a sentence back.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from enum import Enum
from functools import singledispatch
from typing import Any

from tracekit.plugins import modules_in
from tracekit.trace import Json

__all__ = ["fields_and_text", "fields_of", "has_words", "sentence"]


@singledispatch
def _words(thing: object) -> str:
    raise TypeError(f"no words for {type(thing).__name__}: register them in tracekit.report.words")


words = _words.register
"""Decorator of a function that takes one type of finding and returns its sentence."""


TEMPLATES: dict[type, str] = {}
"""Sentences that are format strings."""


def template(kind: type, text: str) -> None:
    """The sentence of a type as a format string over its fields."""
    TEMPLATES[kind] = text
    _words.register(kind, lambda found: text.format_map(vars(found)))


def sentence(thing: object) -> str:
    """A finding in one English sentence, without a full stop. Raises TypeError for a type that has no words."""
    _load()
    return _words(thing)


def has_words(kind: type) -> bool:
    """Whether there is a sentence for things of this type."""
    _load()
    return _words.dispatch(kind) is not _words.dispatch(object)


@words(str)
def _said(thing: str) -> str:
    return thing


def fields_of(thing: object) -> Json:
    """A finding as plain JSON: `type`, the snake_case name of its class, and its fields."""
    plain: Any = _plain(thing)
    return plain if isinstance(plain, dict) else {"type": "text", "text": plain}


def fields_and_text(thing: object) -> Json:
    """As `fields_of`, with the sentence as `text`."""
    return fields_of(thing) | {"text": sentence(thing)}


def _plain(value: object) -> Any:
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        name = "".join("_" + letter.lower() if letter.isupper() else letter for letter in type(value).__name__)
        return {"type": name.lstrip("_")} | {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return value.item() if hasattr(value, "item") else value


def _load() -> None:
    """Every module of this package, once: each registers its own words."""
    modules_in(__name__)
