"""The code that docs/rust.md shows stands in the programs that it names, which other tests build and run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from scripts import candle_models

ROOT = Path(__file__).parent.parent
PROGRAMS = [ROOT / "hooks/rust/candle-models/main.rs", ROOT / "hooks/rust/tracekit/examples/own_loop.rs"]
SHOWN = re.findall(r"^```rust\n(.*?)^```$", (ROOT / "docs/rust.md").read_text(), re.M | re.S)


def test_the_guide_shows_code_of_both_programs() -> None:
    assert len(SHOWN) >= 8
    for program in PROGRAMS:
        assert program.relative_to(ROOT).as_posix() in (ROOT / "docs/rust.md").read_text()
        assert any(block in program.read_text() for block in SHOWN)


@pytest.mark.parametrize("block", SHOWN, ids=[block.split("\n")[0].strip() for block in SHOWN])
def test_what_is_shown_is_compiled(block: str) -> None:
    assert any(block in program.read_text() for program in PROGRAMS)


def test_the_range_of_candle_is_the_one_that_is_said() -> None:
    """That each end of it compiles and runs, `python -m scripts.candle_models out llama --candle 0.9.2` shows."""
    rust = ROOT / "hooks/rust"
    wanted = tomllib.loads((rust / "Cargo.toml").read_text())["workspace"]["dependencies"]
    assert wanted["candle-core"] == wanted["candle-nn"]
    for text in (ROOT / "docs/rust.md", rust / "tracekit/README.md"):
        assert f"`{wanted['candle-nn']}`" in text.read_text()
    locked = {one["name"]: one["version"] for one in tomllib.loads((rust / "Cargo.lock").read_text())["package"]}
    assert locked["candle-core"] == locked["candle-nn"] == candle_models.OWN_CANDLE.strip('"')
    assert candle_models.OWN_CANDLE in (rust / "candle-models/main.rs").read_text()
