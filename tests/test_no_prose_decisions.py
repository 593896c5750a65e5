"""Nothing decides by a sentence, nor by a verdict's JSON: types and ids decide, words are made at the end."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("tracekit", "hooks/torch/tracekit_torch", "hooks/onnx", "hooks/llama_cpp", "cli")
WORDS = {"text", "words", "evidence", "detail", "sentence"}
"""Fields that hold sentences."""
NAMES = {"kind", "sentence", "text", "words"}
"""Variables that hold one: a part of it is looked for in them."""
ROWS = {"verdict", "explanation", "culprit", "culprits", "finding", "findings"}
"""Names of what a verdict's JSON holds: between stages, these are types."""
BORDER = {"tracekit/verdict/record.py"}
"""The one module that reads a verdict's JSON."""
PLAIN = {"Any", "Json", "Path"}
"""Types that a function may give beside a text of the user's."""
LINES = {"splitlines", "split", "strip", "lstrip", "rstrip"}
"""Methods that give parts of a text."""
METHODS = {"startswith", "endswith", "removeprefix", "removesuffix", "partition", "rpartition", "find", "index"}
"""Methods that read a text."""
READERS = {
    "tracekit/checkpoints/kinds/safetensors.py",  # safetensors' error
    "tracekit/extra/cosyvoice3/audio.py",  # soundfile's remarks
    "hooks/llama_cpp/tracekit_llama_cpp/sampler.py",  # the names that llama.cpp gives its samplers
    "tracekit/extra/cosyvoice3/text_log.py",  # the text logs of CosyVoice's programs
}
"""Modules that read what other programs or libraries say: those sentences are input."""
IDS = {
    *("row gain", "column gain", "column offset"),  # statistics of the audit, stable in `--json`
    "tanh gelu",  # an operation, by its name
}
"""Stable ids that have a space in them."""


def is_prose(text: object) -> bool:
    """Whether a constant is words for a person: it has a space between or beside letters."""
    if not isinstance(text, str) or text in IDS:
        return False
    return " " in text.strip("\n") and any(letter.isalpha() for letter in text)


def constants(*trees: ast.Module) -> set[str]:
    """Names that a module gives to a sentence."""
    return {
        target.id
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.Assign) and says(node.value, set())
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def imported(tree: ast.Module, names: set[str]) -> set[str]:
    """Those of the names that a module imports."""
    found = {each.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for each in node.names}
    return found & names


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
        return node.attr in WORDS or node.attr.endswith("_text")
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


def parts_of(tree: ast.AST) -> set[str]:
    """Names of a function that hold lines of a sentence: `for row in found.text.splitlines()`."""
    found: set[str] = set()

    def told(node: ast.AST) -> bool:
        """Whether an expression is a sentence, or a part of one."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LINES:
            return told(node.func.value)
        if isinstance(node, ast.ListComp | ast.GeneratorExp):
            return told(node.elt)
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            return node.value.id in found
        return holds_words(node) or (isinstance(node, ast.Name) and node.id in found)

    bound = [(node.targets[0], node.value) for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    bound += [(node.target, node.iter) for node in ast.walk(tree) if isinstance(node, ast.For | ast.comprehension)]
    for _ in range(3):
        found |= {target.id for target, value in bound if isinstance(target, ast.Name) and told(value)}
    return found


def reads_part(node: ast.AST, parts: set[str]) -> bool:
    """Whether an expression looks into a line of a sentence."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS):
        return False
    read = node.func.value
    while isinstance(read, ast.Call) and isinstance(read.func, ast.Attribute) and read.func.attr in LINES:
        read = read.func.value
    return isinstance(read, ast.Name) and read.id in parts


def is_row(node: ast.AST) -> bool:
    """Whether an operand is named as a part of a verdict's JSON: `verdict`, `shown.verdict`, `verdict["culprits"]`."""
    if isinstance(node, ast.BoolOp):
        return any(map(is_row, node.values))
    if isinstance(node, ast.Name):
        return node.id in ROWS
    if isinstance(node, ast.Attribute):
        return node.attr in ROWS
    return isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and node.slice.value in ROWS


def reads_row(node: ast.AST) -> bool:
    """Whether an expression reads a verdict's JSON: `verdict["cause"]`, `verdict.get("step")`."""
    match node:
        case ast.Subscript(value=value, slice=ast.Constant(value=str()), ctx=ast.Load()):
            return is_row(value)
        case ast.Call(func=ast.Attribute(value=value, attr="get"), args=[ast.Constant(value=str()), *_]):
            return is_row(value)
    return False


def or_a_reason(node: ast.AST) -> bool:
    """Whether a function returns a thing or, in a sentence, why there is none: `-> Recipe | str`. That is a type's."""
    if not isinstance(node, ast.FunctionDef) or not isinstance(node.returns, ast.BinOp):
        return False
    names: set[str] = set()
    left: list[ast.expr] = [node.returns]
    while left:
        each = left.pop()
        left += [each.left, each.right] if isinstance(each, ast.BinOp) else []
        names |= {each.id} if isinstance(each, ast.Name) else set()
    return "str" in names and any(name[0].isupper() and name not in PLAIN for name in names)


def decisions(tree: ast.Module, named: set[str]) -> Iterator[ast.AST]:
    """Expressions that decide by a sentence."""
    yield from (node for node in ast.walk(tree) if decides(node, named))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            parts = parts_of(function)
            yield from (node for node in ast.walk(function) if reads_part(node, parts))


def modules() -> dict[str, ast.Module]:
    """All modules of the core, the hooks and the command line, by their paths."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def found() -> set[tuple[str, str]]:
    """(file, expression) of every decision by prose."""
    trees = modules()
    return {
        (name, ast.unparse(node)[:120])
        for name, tree in trees.items()
        if name not in READERS
        for node in decisions(tree, constants(tree) | imported(tree, constants(*trees.values())))
    }


def test_nothing_decides_by_a_sentence() -> None:
    assert not found()


def test_nothing_reads_a_verdicts_json() -> None:
    read = {
        (name, ast.unparse(node)[:120])
        for name, tree in modules().items()
        if name not in BORDER
        for node in ast.walk(tree)
        if reads_row(node)
    }
    assert not read


def test_no_reason_stands_in_the_place_of_a_thing() -> None:
    trees = modules().items()
    assert not [(name, node) for name, tree in trees for node in ast.walk(tree) if or_a_reason(node)]
    assert or_a_reason(ast.parse("def meant(recipe: Recipe) -> Recipe | str: ...").body[0])
    assert not or_a_reason(ast.parse("def find(name: str) -> str | None: ...").body[0])


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
        "def said(group):\n    return [row for row in group.text.splitlines() if row.startswith(('DIVERGENCE', 'X'))]",
        "def said(group):\n    rows = group.text.splitlines()\n    return [row for row in rows if row.find('x')]",
        "def said(found):\n    for line in found.control_text.split():\n        yield line.strip().startswith('ref')",
    ],
)
def test_such_decisions_are_found(line: str) -> None:
    assert list(decisions(ast.parse(line), {"PROSE"}))


@pytest.mark.parametrize(
    "line",
    [
        "verdict['cause']",
        "seed.verdict['step'] if seed.verdict else None",
        "shown.verdict.get('sequence')",
        "verdict['explanation']['kind']",
        "(verdict.get('token') or {})",
        "case.verdict.get('culprits') or ()",
        "explanation.get('residual')",
    ],
)
def test_readings_of_a_verdicts_json_are_found(line: str) -> None:
    assert any(reads_row(node) for node in ast.walk(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    ["kind == 'rotary_theta'", "step.text is None", "', '.join(names)", "say('a b')", "verdict.cause", "row['site']"],
)
def test_others_are_not(line: str) -> None:
    tree = ast.parse(line)
    assert not list(decisions(tree, set())) and not any(map(reads_row, ast.walk(tree)))


if __name__ == "__main__":
    for place in sorted(found()):
        print(*place)
