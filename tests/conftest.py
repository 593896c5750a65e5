"""What tests of several files need."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.forked import READING, Forks
from tests.test_engine import tiny


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come first, in their random order: one that starts last leaves the other worker nothing to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say the seed of the order, which pytest-randomly shows in the header alone, and `-q` has none."""
    seed = config.getoption("randomly_seed", None)
    if seed is not None:
        terminalreporter.write_line(f"order of the tests: --randomly-seed={seed}")


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs programs in forks of a process that has imported torch and transformers."""
    one = Forks()
    yield one
    one.close()


@pytest.fixture(scope="session")
def reading() -> Iterator[Forks]:
    """Runs commands that read traces, in forks of a process that has not imported torch."""
    one = Forks(READING)
    yield one
    one.close()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Llama with a tied head, which nobody changes."""
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    tiny.make("llama", folder, tied=True)
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of tiny random models of transformers by the name of their family, which nobody changes."""
    from tests import tiny_families

    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = tiny_families.make(name, tmp_path_factory.mktemp(name))
        return made[name]

    return of


@pytest.fixture(scope="session")
def whole_run(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Logs of the native engine on the tiny Llama: everything recorded, a prompt of 7 tokens, 8 steps, greedy."""
    root = Path(__file__).parent.parent
    engine = os.environ.get("TRACEKIT_NATIVE", str(root / "hooks/rust/target/release/tracekit-native"))
    scratch = tmp_path_factory.mktemp("whole")

    def make(*more: str) -> Path:
        log = scratch / f"{len(list(scratch.iterdir()))}.tklog"
        words = [engine, "--model", str(tiny_llama), "--prompt-ids", "72,101,50,290,280,12,270", "--greedy"]
        subprocess.run(
            [*words, "--max-new-tokens", "8", *more], check=True, env=os.environ | {"TRACEKIT_LOG": str(log)}
        )
        return log

    return make
