"""Whose tokenizer gives the texts of tokens."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from tracekit_torch.texts import TOKENIZER_MODULE, Texts


def test_of_several_tokenizers_the_models_own_is_taken_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Base:
        def __init__(self, name: str) -> None:
            self.name_or_path = name

        def decode(self, ids: list[int], **_: object) -> str:
            return f"{self.name_or_path} {ids}"

    monkeypatch.setitem(sys.modules, TOKENIZER_MODULE, SimpleNamespace(PreTrainedTokenizerBase=Base))

    def text(source: str | None) -> tuple[str | None, list[str]]:
        said: list[str] = []
        texts = Texts(said.append)
        texts.source = source
        return texts.token(7), said

    one = Base("one")
    assert text(None) == ("one [7]", [])
    other = Base("other")
    assert text("one") == ("one [7]", []) and text("other") == ("other [7]", [])
    for source in (None, "third"):
        found, said = text(source)
        assert found is None and len(said) == 1 and "2 tokenizers" in said[0]
    assert one is not other
