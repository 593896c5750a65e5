"""GGUF files."""

from __future__ import annotations

from pathlib import Path

from tracekit.checkpoints.gguf import GgufParameters


class Gguf:
    reads = "GGUF (*.gguf)"

    def knows(self, path: Path, head: bytes) -> bool:
        return head.startswith(b"GGUF")

    def open(self, path: Path) -> GgufParameters:
        return GgufParameters(str(path))


KIND = Gguf()
