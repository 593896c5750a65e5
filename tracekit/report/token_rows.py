"""Both sides' tokens as a page shows them, and what is known of the texts of token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.compare.findings import Chosen
from tracekit.compare.side_by_side import TokenTable
from tracekit.report.token_text import without_controls
from tracekit.trace import Json, Sequence, Step

WIDEST = 16
"""Characters of a token's text in the rows."""


def token_rows(table: TokenTable) -> Json:
    """Columns of step, reference and candidate; `first` is the first step that differs, `kind` how."""
    first = table.first_difference
    columns = [
        {
            "step": row.step,
            "reference": _cell(row.reference),
            "candidate": _cell(row.candidate),
            "same": row.difference is None,
            "first": row is first,
        }
        for row in table.rows
    ]
    return {
        "sequence": table.sequence,
        "count": len(columns),
        "columns": columns,
        "first": None if first is None else first.step,
        "kind": None if first is None else first.difference,
    }


def alone_rows(sequence: Sequence) -> Json:
    """The same of one side."""
    columns = [
        {"step": index, "reference": _cell(sequence.step(index)), "candidate": None, "same": True, "first": False}
        for index in range(sequence.step_count)
    ]
    return {"sequence": sequence.index, "count": len(columns), "columns": columns, "first": None, "kind": None}


def _cell(step: Step | None) -> Json:
    if step is None:
        return {"id": None, "text": "ended"}
    return {"id": step.token, "text": shown(step.text) if step.text is not None else ""}


def shown(text: str, widest: int = WIDEST) -> str:
    """A token's text on one line: control characters escaped, spaces at its ends visible."""
    plain = without_controls(text)
    inner = plain.strip(" ")
    if inner != plain:
        before = len(plain) - len(plain.lstrip(" "))
        after = len(plain) - before - len(inner) if inner else 0
        plain = "␣" * before + inner + "␣" * after
    return plain if len(plain) <= widest else plain[: widest - 1] + "…"


class TokenTexts:
    """Texts of token ids: those that the traces recorded, else what the checkpoint's tokenizer says."""

    def __init__(self, sequences: tuple[Sequence, ...], checkpoint: Checkpoint | None) -> None:
        self._known: dict[int, str] = {}
        for sequence in sequences:
            texts, ids = sequence.texts, sequence.prompt_ids
            if texts is not None and ids is not None:
                known = zip(ids.tolist(), texts, strict=False)
                self._known |= {token: text for token, text in known if text is not None}
        self._tokenizer = None if checkpoint is None else _tokenizer(Path(checkpoint.path))

    def add(self, table: TokenTable) -> None:
        """What the steps of a table say."""
        steps = [step for row in table.rows for step in (row.reference, row.candidate)]
        self._known |= {step.token: step.text for step in steps if step is not None and step.text is not None}

    def __getitem__(self, token: int) -> str:
        """The text as it is shown, empty where nobody knows it."""
        if token not in self._known and self._tokenizer is not None:
            self._known[token] = self._tokenizer.decode([token], skip_special_tokens=False)
        return shown(self._known.get(token, ""), 24)


def _tokenizer(folder: Path) -> Any:
    """The tokenizer beside the checkpoint, if there is one and the library that reads it is installed."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(path))
    except Exception:  # the library raises a bare Exception for a file that it cannot read: texts are a nicety
        return None


def token_text(token: Chosen) -> str:
    """`309 <|309|>`."""
    return f"{token.id} {shown(token.text)}".rstrip() if token.text else str(token.id)
