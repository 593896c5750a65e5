"""What tests of several files need."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_engine import tiny


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Llama with a tied head, which nobody changes."""
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    tiny.make("llama", folder, tied=True)
    return folder
