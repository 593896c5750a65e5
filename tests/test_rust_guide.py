"""The code that docs/rust.md shows stands in the programs that it names, which other tests build and run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
