"""What the README shows is what its commands print."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from tracekit_cli.main import group

from tests.printed_alike import same

ROOT = Path(__file__).parent.parent
PROMPT = "    $ "


def shown() -> list[tuple[str, str]]:
    """(command, output) of every tracekit command on the checked-in traces, with the output printed below it."""
    lines = (ROOT / "README.md").read_text().splitlines()
    out = []
    for index, line in enumerate(lines):
        if line.startswith(f"{PROMPT}tracekit") and "traces/" in line:
            below = []
            for other in lines[index + 1 :]:
                if not other.startswith("    ") or other.startswith(PROMPT):
                    break
                below.append(other[4:])
            out.append((line.removeprefix(PROMPT), "\n".join(below) + "\n"))
    return out


def test_the_readme_shows_verdicts() -> None:
    assert len(shown()) >= 4


@pytest.mark.parametrize(("command", "output"), shown(), ids=[command for command, _ in shown()])
def test_the_readme_shows_what_is_printed(command: str, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(group, shlex.split(command)[1:])
    lines, wanted = done.output.splitlines(), output.splitlines()
    assert len(lines) == len(wanted) and all(map(same, lines, wanted)), done.output
