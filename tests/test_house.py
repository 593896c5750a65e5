"""The house: cli -> hooks -> tracekit, the stages of the core in the order of the data, and no torch or click in it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = (
    *("errors", "exit_codes", "dtypes", "site_values", "trace", "plugins", "generations", "interactive", "trace_view"),
    *("formats", "programs", "recording"),
    *("checkpoints", "inspection", "torch_rng", "sampling", "align", "compare", "auditing", "mistakes", "verdict"),
    *("selfcheck", "bisect", "extra", "report", "repro", "postmortem", "api"),
)
"""Folders and modules of `tracekit/`, in the order in which the data passes them."""
PAIRS = ("align", "compare")
"""Stages that look at two traces."""
SINGLE = ("formats", "checkpoints", "inspection", "torch_rng", "sampling", "auditing")
"""Stages that look at one, and need nothing of what compares two."""


def imports(path: Path) -> Iterator[str]:
    """Names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def module_of(path: Path, root: Path) -> str:
    """A file's dotted name."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def core() -> dict[str, Path]:
    """Modules of the core."""
    return {module_of(path, ROOT): path for path in sorted((ROOT / "tracekit").rglob("*.py"))}


def stage(module: str) -> str | None:
    """The stage that a module of the core belongs to; None of the package itself."""
    return module.split(".")[1] if "." in module else None


def test_stages_import_those_before_them() -> None:
    modules = core()
    unknown = {stage(name) for name in modules} - {None, *STAGES}
    assert not unknown, f"not in the order of stages: {unknown}"
    against = set()
    for name, path in modules.items():
        own = stage(name)
        if own is None:
            continue
        for imported in imports(path):
            target = next((m for m in (imported, imported.rpartition(".")[0]) if m in modules), None)
            other = stage(target) if target else None
            if other is None or target is None:
                continue
            backwards = STAGES.index(other) > STAGES.index(own)
            if backwards or (own in SINGLE and other in PAIRS):
                against.add((name, target))
    assert not against


@pytest.mark.parametrize(
    ("folder", "barred"),
    [
        ("tracekit", ("torch", "click", "tracekit_torch", "tracekit_llama_cpp", "tracekit_onnx", "tracekit_cli")),
        ("hooks/torch/tracekit_torch", ("click", "tracekit_cli", "tracekit_llama_cpp", "tracekit_onnx")),
        ("hooks/llama_cpp/tracekit_llama_cpp", ("click", "tracekit_cli", "torch", "tracekit_torch", "tracekit_onnx")),
        ("hooks/onnx/tracekit_onnx", ("click", "tracekit_cli", "torch", "tracekit_torch", "tracekit_llama_cpp")),
    ],
)
def test_one_way(folder: str, barred: tuple[str, ...]) -> None:
    wrong = [
        (str(path.relative_to(ROOT)), name)
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in imports(path)
        if name.split(".")[0] in barred
    ]
    assert not wrong


ENGINE = ROOT / "hooks/rust/engine/src"
OUTSIDE = (
    "main.rs",
    "options.rs",
    "faults",
    "variants",
    "cosyvoice3/mod.rs",
    "cosyvoice3/program.rs",
    "cosyvoice3/options.rs",
)
"""What names faults and variants: command lines, the two programs, and themselves; not the model and its sampler."""


def test_the_engine_is_a_model_without_faults() -> None:
    inside = [
        path for path in sorted(ENGINE.rglob("*.rs")) if not path.relative_to(ENGINE).as_posix().startswith(OUTSIDE)
    ]
    assert {"model/attention.rs", "sampler.rs"} <= {path.relative_to(ENGINE).as_posix() for path in inside}
    named = {
        path.name
        for path in inside
        if re.search(r"crate::(faults|variants)|\bFaults\b|\bVariants?\b", path.read_text())
    }
    assert not named


def test_the_help_imports_no_numpy() -> None:
    """What `tracekit --help` prints stands in one table, and no command is imported for it: it is there at once."""
    asked = (
        "import sys; from tracekit_cli.main import main; sys.argv = ['tracekit', '--help']\n"
        "try: main()\n"
        "finally: print('numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert "postmortem" in done.stdout and done.stdout.endswith("False\n")
