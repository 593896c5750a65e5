"""The two orders of a head's rows: halves apart (Hugging Face), and rotary pairs side by side (GGUF)."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray


def halves(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows [heads * width, ...] in rotary pairs, with the halves of each head apart."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def interleaved(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """The inverse of `halves`."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
