"""The small CosyVoice3 model of the tests: made once, then kept under .cache/ until its maker changes."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "hooks" / "torch" / "examples"
FOLDER = ROOT / ".cache" / "cosyvoice3"


def maker() -> ModuleType:
    """scripts/make_cosyvoice3.py."""
    return _module("make_cosyvoice3", ROOT / "scripts" / "make_cosyvoice3.py")


def program() -> ModuleType:
    """hooks/torch/examples/cosyvoice3_example.py."""
    folder(make=False)
    return importlib.import_module("cosyvoice3_example")


def folder(make: bool = True) -> Path:
    """The model's folder; half a minute of training the first time."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    if make:
        maker().make(FOLDER)
    return FOLDER


def _module(name: str, path: Path) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
