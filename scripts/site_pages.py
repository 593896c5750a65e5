"""Pages of the site that are made when it is built, so that nothing is written twice; a hook of mkdocs."""

from __future__ import annotations

from pathlib import Path

import click
import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter
from tracekit_cli.main import group

ROOT = Path(__file__).resolve().parent.parent
WHOLE = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Page -> the file of the repository that it is."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no file of docs/."""
    pages = {page: (ROOT / name).read_text(encoding="utf-8") for page, name in WHOLE.items()}
    pages["commands.md"] = commands()
    pages["notebook.md"] = notebook(Path(config.docs_dir) / "notebook.ipynb")
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def commands() -> str:
    """The help of every command, as it is printed."""
    parts = ["# Commands\n", "Exit codes are diff's: 0 the same, 1 different, 2 trouble, with one line on stderr.\n"]
    context = click.Context(group, info_name="tracekit", max_content_width=100)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is not None:
            inner = click.Context(command, info_name=name, parent=context, max_content_width=100)
            parts += [f"## {name}\n", f"```text\n{command.get_help(inner)}\n```\n"]
    return "\n".join(parts)


def notebook(path: Path) -> str:
    """A notebook with its outputs, as Markdown."""
    body, _ = MarkdownExporter().from_notebook_node(nbformat.read(path, as_version=4))
    return str(body)
