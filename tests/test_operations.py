"""Operations and families are found by walking their folders: one more is one new file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tracekit.auditing import families, operations

DOUBLED = """
from dataclasses import dataclass

from tracekit.auditing.operations.operation import Operation
from tracekit.auditing.rounding import Result, rounding


@dataclass(frozen=True)
class Doubled(Operation):
    kind = "{kind}"
    classes = frozenset({{"Doubled"}})

    def result(self, given):
        return Result(2.0 * given.inputs[0], rounding(2.0 * given.inputs[0], given.dtype))

    def fits(self, shapes, inputs, width):
        return inputs == [width]
"""
TINY = """
from tracekit.auditing.families.llama import Llama


class TinyLlama(Llama):
    model_types = ("{kind}",)
"""


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Registries that are read again, before and after."""
    for cached in (operations.all_operations, families.all_families):
        cached.cache_clear()
    yield
    for cached in (operations.all_operations, families.all_families):
        cached.cache_clear()
    for name in [name for name in sys.modules if name.endswith(("operations.doubled", "families.tiny_llama"))]:
        del sys.modules[name]


def test_ids_are_stable() -> None:
    kinds = [one.kind for one in operations.all_operations()]
    assert kinds == sorted(set(kinds))
    assert {"identity", "embedding", "linear", "rms_norm", "layer_norm", "residual", "gate", "attention"} <= set(kinds)
    assert {"llama", "gemma3_text", "qwen3_moe", "phi3", "gpt2"} <= families.all_families().keys()


def test_an_operation_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "doubled.py").write_text(DOUBLED.format(kind="doubled"))
    monkeypatch.setattr(operations, "__path__", [*operations.__path__, str(tmp_path)])
    found = operations.operation_of_class("Doubled")
    assert found is not None and found.kind == "doubled"
    weights: operations.Weights = None  # type: ignore[assignment]
    x = np.ones((2, 3))
    given = operations.Given([x], np.arange(2), "float32", weights, np.zeros(0, np.int64))
    assert np.array_equal(found().values(given), 2.0 * x)


def test_a_family_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny_llama.py").write_text(TINY.format(kind="tiny_llama"))
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    assert type(families.family_of({"model_type": "tiny_llama"})).__name__ == "TinyLlama"


@pytest.mark.parametrize(
    ("package", "file", "text", "kind"),
    [(operations, "doubled.py", DOUBLED, "linear"), (families, "tiny_llama.py", TINY, "gpt2")],
)
def test_two_of_the_same_name(
    package: object, file: str, text: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / file).write_text(text.format(kind=kind))
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=f"are called {kind}"):
        operations.all_operations()
        families.all_families()
