"""A recorded program that is killed loses at most the step in flight; `scripts/kill_recorder.py` counts them.

`make kills` is the long form of the second test.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")


@pytest.mark.slow
def test_no_complete_step_is_lost():
    script = Path(__file__).parent.parent / "scripts" / "kill_recorder.py"
    result = subprocess.run(
        [sys.executable, script, "--runs", "4", "--seed", "1"], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 kills" in result.stdout and ", 0 lost" in result.stdout


def test_a_kill_at_any_moment_leaves_what_was_complete() -> None:
    native = os.environ.get("TRACEKIT_NATIVE", "hooks/rust/target/release/tracekit-native")
    words = [sys.executable, "-m", "tests.attacks.kills", "--kills", "12", "--seed", "1", "--native", native]
    root = Path(__file__).parent.parent
    result = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "; 0 lost" in result.stdout, result.stdout + result.stderr
