"""Nothing in the core decides by the text of a sentence: types and ids decide, words are made at the end."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORDS = {"text", "words", "evidence", "detail", "sentence"}
"""Fields that hold sentences."""
NAMES = {"kind", "sentence", "text", "words"}
"""Variables that hold one: a part of it is looked for in them."""
METHODS = {"startswith", "endswith", "removeprefix", "removesuffix", "partition", "rpartition", "find", "index"}
"""Methods that read a text."""
READERS = {
    "tracekit/checkpoints/kinds/safetensors.py",  # safetensors' error
    "tracekit/extra/cosyvoice3/audio.py",  # soundfile's remarks
    "tracekit/extra/cosyvoice3/text_log.py",  # the text logs of CosyVoice's programs
}
"""Modules that read what other programs or libraries say: those sentences are input."""
IDS = {
    *("row gain", "column gain", "column offset"),  # statistics of the audit, stable in `--json`
    *("not asked for", "not the logits"),  # reserved words of the site table (docs/format.md)
}
"""Stable ids that have a space in them."""


def is_prose(text: object) -> bool:
    """Whether a constant is words for a person: it has a space between or beside letters."""
    if not isinstance(text, str) or text in IDS:
        return False
    return " " in text.strip("\n") and any(letter.isalpha() for letter in text)


def constants(trees: dict[str, ast.Module]) -> set[str]:
    """Names that some module gives to a sentence."""
    return {
        target.id
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.Assign) and says(node.value, set())
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def says(node: ast.AST, named: set[str]) -> bool:
    """Whether an operand is a sentence, a collection with one in it, or the name of one."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(says(each, named) for each in node.elts)
    if isinstance(node, ast.Name):
        return node.id in named
    if isinstance(node, ast.Attribute):
        return node.attr in named
    return isinstance(node, ast.Constant) and is_prose(node.value)


def holds_words(node: ast.AST) -> bool:
    """Whether an operand is a field that holds sentences: `found.text`, `explanation["text"]`, `rule.words()`."""
    if isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Attribute):
        return node.attr in WORDS
    return isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and node.slice.value in WORDS


def decides(node: ast.AST, named: set[str]) -> bool:
    """Whether an expression decides by a sentence."""
    match node:
        case ast.Compare():
            operands = [node.left, *node.comparators]
            if any(isinstance(operator, ast.Is | ast.IsNot) for operator in node.ops):
                return False
            part = isinstance(node.ops[0], ast.In | ast.NotIn) and isinstance(node.left, ast.Constant)
            looked_in = part and isinstance(operands[1], ast.Name) and operands[1].id in NAMES
            return looked_in or any(says(each, named) or holds_words(each) for each in operands)
        case ast.Call(func=ast.Attribute(value=value, attr=method), args=arguments):
            reads = method in METHODS and (holds_words(value) or any(says(each, named) for each in arguments))
            return reads or (method in ("setdefault", "get") and any(map(holds_words, arguments[:1])))
        case ast.MatchValue():
            return says(node.value, named)
        case ast.Dict():
            return any(key is not None and says(key, named) for key in node.keys)
        case ast.Subscript():
            return says(node.slice, named)
    return False


def decisions(tree: ast.Module, named: set[str]) -> Iterator[ast.AST]:
    """Expressions that decide by a sentence."""
    return (node for node in ast.walk(tree) if decides(node, named))


def found() -> set[tuple[str, str]]:
    """(file, expression) of every decision by prose in the core."""
    paths = {str(path.relative_to(ROOT)): path for path in sorted((ROOT / "tracekit").rglob("*.py"))}
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in paths.items()}
    named = constants(trees)
    return {
        (name, ast.unparse(node)[:120])
        for name, tree in trees.items()
        if name not in READERS
        for node in decisions(tree, named)
    }


def test_nothing_decides_by_a_sentence() -> None:
    assert not found()


@pytest.mark.parametrize(
    "line",
    [
        'kind == "rotary theta"',
        'rule.kind in ("rotary theta", "norm")',
        '" and " in rule.kind',
        "'Q' in text",
        'line.startswith("explained: ")',
        "explanation['text'] == other",
        "groups.setdefault(culprit.text, [])",
        'places = {"rotary theta": 1}',
        "kind == PROSE",
        'match kind:\n    case "rotary theta":\n        pass',
    ],
)
def test_such_decisions_are_found(line: str) -> None:
    assert list(decisions(ast.parse(line), {"PROSE"}))


@pytest.mark.parametrize("line", ["kind == 'rotary_theta'", "step.text is None", "', '.join(names)", "say('a b')"])
def test_others_are_not(line: str) -> None:
    assert not list(decisions(ast.parse(line), set()))


if __name__ == "__main__":
    for place in sorted(found()):
        print(*place)
