"""A recorded program that is killed loses at most the step in flight; `scripts/kill_recorder.py` counts them."""

from __future__ import annotations

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
