"""What tests of several files need."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_engine import tiny


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say the seed of the order, which pytest-randomly shows in the header alone, and `-q` has none."""
    seed = config.getoption("randomly_seed", None)
    if seed is not None:
        terminalreporter.write_line(f"order of the tests: --randomly-seed={seed}")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Llama with a tied head, which nobody changes."""
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    tiny.make("llama", folder, tied=True)
    return folder
