"""Texts of tokens, from the tokenizer that the recorded program itself made."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

from tracekit_torch.living import instances

TOKENIZER_MODULE = "transformers.tokenization_utils_base"


class Texts:
    """Decodes single tokens with the program's own tokenizer, where it has one."""

    def __init__(self, note: Callable[[str], None] = lambda sentence: None) -> None:
        self._note = note
        self.source: str | None = None
        """Where the model came from, as transformers names it."""
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

    def _search(self) -> Any:
        """Among all living objects, for a recording that began after the tokenizer was made: the only one, or, of
        several, one from where the model came from. Another would give wrong texts."""
        module = sys.modules.get(TOKENIZER_MODULE)
        if module is None:
            return None
        living = instances(module.PreTrainedTokenizerBase)
        if len(living) < 2:
            return living[0] if living else None
        own = [item for item in living if self.source and getattr(item, "name_or_path", None) == self.source]
        if not own:
            self._note(
                f"{len(living)} tokenizers are there, none from where the model came from: texts of tokens are not "
                "recorded; start the recording before the program makes its tokenizer"
            )
        return own[-1] if own else None
