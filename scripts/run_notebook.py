"""Run docs/notebook.ipynb from its first cell to its last and keep what it shows, in place.

    python scripts/run_notebook.py

Kernel, versions and times are left out of the file: what is committed says nothing of the machine that made it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs/notebook.ipynb"
TIMEOUT = 300
"""Seconds that one cell may take."""


def run(notebook: NotebookNode) -> NotebookNode:
    """The notebook with the outputs of a run in an empty folder. Raises CellExecutionError where a cell fails."""
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources=resources)
        client.execute()
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"
        cell.metadata = {}
        if cell.cell_type == "code":
            # What a library says on stderr (a progress bar, a warning) depends on its version.
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"language_info": {"name": "python"}}
    return notebook


def main() -> None:
    notebook = run(nbformat.read(NOTEBOOK, as_version=4))
    NOTEBOOK.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
