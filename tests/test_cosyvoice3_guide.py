"""What docs/cosyvoice3.md shows is what its commands print, and each is followed by what the next one needs."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from tracekit_cli.main import group

from tests import speech_model
from tests.printed_alike import same

ROOT = Path(__file__).parent.parent


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_guide", ROOT / "scripts" / "run_guide.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_guide"] = module
    spec.loader.exec_module(module)
    return module


guide = load_script()
PAGE = (ROOT / "docs" / "cosyvoice3.md").read_text()


def printed(command: str, folder: Path) -> str:
    """Output of a command. What only reads traces runs in this process, which has everything imported already."""
    words = shlex.split(command)
    if words[0] != "tracekit" or words[1] == "record":
        return str(guide.run(command, folder))
    return CliRunner().invoke(group, words[1:]).output.replace(f"{ROOT}{os.sep}", "")


@pytest.mark.slow
def test_every_command_prints_what_the_guide_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speech_model.folder()
    native = Path(os.environ.get("TRACEKIT_NATIVE", ROOT / "hooks/rust/target/release/tracekit-native"))
    guide.prepare(tmp_path, native)
    monkeypatch.chdir(tmp_path)
    commands = guide.shown(PAGE)
    assert len(commands) > 20
    for command, expected in commands:
        lines = printed(command, tmp_path).rstrip("\n").splitlines()
        wanted = expected.splitlines()
        assert len(lines) == len(wanted) and all(map(same, lines, wanted)), f"{command}\n" + "\n".join(lines)


def test_a_line_that_differs_is_seen() -> None:
    assert same("own error 382× (residual 0.6×)", "own  error 385× (residual 0.61×)")
    assert not same("own error 382×", "own error 882×")
    assert same("(residual 0.4×)", "(residual 0.9×)") and not same("(residual 0.9×)", "(residual 1.2×)")
    assert not same("(residual 2.2×)", "(residual 3.2×)")
    assert not same("at 91 of 92 positions", "at 92 of 92 positions")
    assert not same("top_p 0.7 in place of 0.8", "top_p 0.4 in place of 0.8")
    assert not same("explained: a", "explained: b")


def test_a_page_is_filled_as_it_was_read() -> None:
    commands = guide.shown(PAGE)
    assert guide.filled(PAGE, [output for _, output in commands]) == PAGE
    page = "x\n\n    $ a\n    old\n\n    old\n\ntext\n    $ b\n"
    assert guide.shown(page) == [("a", "old\n\nold"), ("b", "")]
    assert guide.filled(page, ["new\n", ""]) == "x\n\n    $ a\n    new\n\ntext\n    $ b\n"
