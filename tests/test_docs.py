"""The documentation: the site builds without a warning and needs no network, the notebook runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from scripts import draw_architecture
from scripts.draw_architecture import PAGE
from scripts.run_notebook import NOTEBOOK, run
from tests.test_house import STAGES

ROOT = Path(__file__).parent.parent
OUTSIDE = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*(?:src|href)=["']?(?:https?:)?//""")
"""Something that a reader's browser would load from another host."""
ABSOLUTE = re.compile(r"""(?:^|[\s'"(=])/[A-Za-z]""")


def outputs(notebook: nbformat.NotebookNode) -> list[str]:
    """What the cells show as plain text, one text an output."""
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output.get("text") or output["data"]["text/plain"] for output in shown]


def test_the_site_builds_without_a_warning_and_loads_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 10
    assert not [page for page in pages if OUTSIDE.search(page.read_text(encoding="utf-8"))]
    assert "DIVERGENCE" in (tmp_path / "notebook/index.html").read_text(encoding="utf-8")


def test_the_notebook_says_nothing_of_the_machine() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not [text for text in outputs(notebook) if ABSOLUTE.search(text)]
    assert "kernelspec" not in notebook.metadata


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_shows() -> None:
    committed = outputs(nbformat.read(NOTEBOOK, as_version=4))
    again = outputs(run(nbformat.read(NOTEBOOK, as_version=4)))
    assert len(again) == len(committed)
    # Sizes of errors depend on how this machine multiplies; causes, places, shapes and tokens do not.
    for text, other in zip(committed, again, strict=True):
        assert findings(text) == findings(other)


def findings(text: str) -> list[str]:
    """Lines of an output that are not indented, without versions: headlines, and what cells print. The evidence below a
    headline has sizes, and is worded elsewhere."""
    lines = re.sub(r"torch \S+", "torch", text).splitlines()
    return [line for line in lines if not line.startswith(" ")]


def test_the_ways_are_those_of_the_tree() -> None:
    text = PAGE.read_text(encoding="utf-8")
    inside = [name for name in STAGES if name in draw_architecture.STAGES]
    assert inside == list(draw_architecture.STAGES)
    order = ["hooks", *STAGES]
    for way in draw_architecture.ways(text):
        assert len(way) > 15
        assert not [module for module in way if not (ROOT / module).exists()]
        assert len(set(way)) == len(way), "each module once"
        places = [order.index(draw_architecture.stage(module)) for module in way]
        assert places == sorted(places), "against the order of the stages"


def test_the_picture_is_that_of_the_lists() -> None:
    text = PAGE.read_text(encoding="utf-8")
    again = "run python scripts/draw_architecture.py"
    assert draw_architecture.BLOCK.findall(text) == [draw_architecture.mermaid(text)], again
    assert draw_architecture.PICTURE.read_text(encoding="utf-8") == draw_architecture.svg(text), again
    table = re.findall(r"^\| (`[^|]*)\|", text, re.MULTILINE)
    assert [name for row in table for name in re.findall(r"`(\w+)`", row)] == list(draw_architecture.STAGES)


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md", "docs/architecture.md"])
def test_paths_that_a_page_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:tracekit|tests|hooks|cli|docs|scripts|benchmarks|traces)/[\w./-]*)`", text)
    assert len(named) > 5
    assert not [name for name in named if "NAME" not in name and not (ROOT / name).exists()]
    assert not [name for name in named if "NAME" in name and not (ROOT / name).parent.is_dir()]


def test_the_order_of_stages_is_that_of_the_house() -> None:
    text = " ".join((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split())
    assert " → ".join(STAGES) in text
