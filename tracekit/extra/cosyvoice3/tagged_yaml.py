"""YAML whose tags stay data: nothing that a tag names is imported, called or included."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracekit.errors import TraceError
from tracekit.trace import Json

PYTHON_TAG = "tag:yaml.org,2002:python/"


@dataclass(frozen=True, eq=False)
class Tagged:
    """A YAML node with a tag that nobody acts upon."""

    tag: str
    value: Any


def parse(path: Path, text: str) -> Json:
    """The mapping that a file holds, nodes with tags as `Tagged`. Raises TraceError where PyYAML is missing, or the
    text is no such YAML or asks for a Python object."""
    try:
        import yaml
    except ImportError:
        raise TraceError(f"{path}: reading YAML needs a library; pip install 'tracekit[cosyvoice]'") from None

    class DataLoader(yaml.SafeLoader):
        """SafeLoader that keeps tags as data. Merge keys (`<<`) stay keys: nested ones grow without bound."""

        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            return

    def plain(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        return loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None

    def tagged(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
        if node.tag.startswith(PYTHON_TAG):
            what = f"line {node.start_mark.line + 1} asks for a Python object ({node.tag.split(':')[-1]})"
            raise TraceError(f"{path}: {what}, which is refused; take it out, a configuration needs none")
        return Tagged(node.tag, plain(loader, node))

    DataLoader.add_multi_constructor("", tagged)
    try:
        tree = yaml.load(text, DataLoader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" at line {error.problem_mark.line + 1}"
        raise TraceError(f"{path}: is no YAML{line} ({error.problem}); fetch it again") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError):
        raise TraceError(f"{path}: is no YAML that can be read; fetch it again") from None
    if not isinstance(tree, dict):
        raise TraceError(f"{path}: holds no settings; give cosyvoice3.yaml")
    return tree
