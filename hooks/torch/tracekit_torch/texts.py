"""Texts of tokens, from the tokenizer that the recorded program itself made."""

from __future__ import annotations

import gc
import sys
import weakref
from typing import Any

TOKENIZER_MODULE = "transformers.tokenization_utils_base"


class Texts:
    """Decodes single tokens with the program's own tokenizer, where it has one."""

    def __init__(self) -> None:
        self._made: list[weakref.ref[Any]] = []
        self._tokenizer: Any = None
        self._searched = False
        self._known: dict[int, str | None] = {}

    def made(self, tokenizer: Any) -> None:
        """The program made a tokenizer; the last one before the first token counts."""
        self._made.append(weakref.ref(tokenizer))

    def token(self, token: int) -> str | None:
        """The text of one token, or None without a tokenizer."""
        if token not in self._known:
            self._known[token] = self.text([token])
        return self._known[token]

    def text(self, tokens: list[int]) -> str | None:
        """The text of some tokens together."""
        tokenizer = self._find()
        if tokenizer is None:
            return None
        try:
            text = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        except Exception:
            # A tokenizer that cannot decode an id is the program's own business; the id is recorded.
            return None
        return text if isinstance(text, str) else None

    def tokens(self, tokens: list[int]) -> list[str | None] | None:
        """The text of each token."""
        return None if self._find() is None else [self.token(token) for token in tokens]

    def _find(self) -> Any:
        if self._tokenizer is None and not self._searched:
            alive = [tokenizer for tokenizer in (reference() for reference in self._made) if tokenizer is not None]
            self._tokenizer = alive[-1] if alive else self._search()
            self._searched = True
        return self._tokenizer

    @staticmethod
    def _search() -> Any:
        """Among all living objects: for a recording that began after the tokenizer was made."""
        module = sys.modules.get(TOKENIZER_MODULE)
        if module is None:
            return None
        base = module.PreTrainedTokenizerBase
        return next((item for item in gc.get_objects() if issubclass(type(item), base)), None)
