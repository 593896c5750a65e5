"""`tracekit bisect`: the build that brought a fault is named, or it is said that it cannot be told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.bisect_histories import Planted, found, judged, planted, repository
from tests.speech_traces import tracekit

ROOT = Path(__file__).parent.parent
NATIVE = Path(os.environ.get("TRACEKIT_NATIVE", ROOT / "hooks/rust/target/release/tracekit-native"))
CLEAN = ("",) * 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.test_engine import tiny

    folder = tmp_path_factory.mktemp("tiny")
    tiny.make("llama", folder, seed=3)
    return folder


@pytest.mark.parametrize("seed", [0, 4, 9])
def test_planted_histories(model: Path, seed: int, tmp_path: Path) -> None:
    history = planted(seed)
    answer = found(repository(history, tmp_path / "repo", NATIVE, model), tmp_path / "builds")
    assert judged(history, answer) in ("right", "cannot tell"), (history, answer)


def of(broken: frozenset[int], first: int = 5) -> Planted:
    options = tuple("--fault attention-scale:1.01" if build >= first else "" for build in range(10))
    return Planted(options, "attention-scale:1.01", first, broken)


def test_the_command_names_the_build(model: Path, tmp_path: Path) -> None:
    repo = repository(of(frozenset()), tmp_path / "repo", NATIVE, model)
    code, said = tracekit("bisect", "--repo", str(repo), "--good", "b0", "--bad", "b9", "--", "sh", "run.sh")
    assert code == 0, said
    told = said.partition("FIRST BAD BUILD")[2].splitlines()
    assert told[0].endswith(" build 5") and told[1].endswith(" build 4") and "self_attn.o_proj:in" in told[2], said
    trees = subprocess.run(["git", "-C", str(repo), "worktree", "list"], capture_output=True, text=True, check=True)
    assert len(trees.stdout.splitlines()) == 1


def test_builds_that_fail_are_skipped_and_what_is_left_is_said(model: Path, tmp_path: Path) -> None:
    repo = repository(of(frozenset({4, 5})), tmp_path / "repo", NATIVE, model)
    words = ["--repo", str(repo), "--good", "b0", "--bad", "b9", "--build", "sh make.sh", "--", "sh", "run.sh"]
    code, said = tracekit("bisect", *words)
    assert code == 1 and "CANNOT TELL  which of 3 builds" in said, said
    assert "skipped, does not build" in said and "skipped, does not run" in said
    assert all(f"build {build}" in said.partition("CANNOT TELL")[2] for build in (4, 5, 6))


def test_a_bad_build_that_is_good_is_trouble(model: Path, tmp_path: Path) -> None:
    repo = repository(Planted(CLEAN, "", 10, frozenset()), tmp_path / "repo", NATIVE, model)
    code, said = tracekit("bisect", "--repo", str(repo), "--good", "b0", "--bad", "b9", "--", "sh", "run.sh")
    assert code == 2 and "computes what the good one does" in said


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--good", "a==1", "--bad", "b==2", "--", "python", "x.py"], "are two packages"),
        (["--good", "a", "--bad", "b==2", "--", "python", "x.py"], "a: is no version of a package"),
        (["--repo", "/", "--good", "a", "--bad", "b", "--", "true"], "a is no revision of it"),
    ],
)
def test_what_cannot_be_bisected_is_one_line(words: list[str], line: str) -> None:
    code, said = tracekit("bisect", *words)
    assert code == 2 and line in said and len(said.strip().splitlines()) == 1, said


PROGRAM = """
import torch, tracekit_torch, scaled
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    def forward(self, x):
        return self.second(self.first(x) * scaled.FACTOR)
torch.manual_seed(1)
Net()(torch.randn(1, 6, 8))
"""


def wheel(folder: Path, version: str, factor: str) -> None:
    """A package of one module."""
    import base64
    import hashlib
    import zipfile

    info = f"scaled-{version}.dist-info"
    files = {
        "scaled.py": f"FACTOR = {factor}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: scaled\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}"
        for name, text in files.items()
    ]
    with zipfile.ZipFile(folder / f"scaled-{version}-py3-none-any.whl", "w") as out:
        for name, text in files.items():
            out.writestr(name, text)
        out.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,"]) + "\n")


@pytest.mark.slow
def test_versions_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    for number in range(1, 6):
        wheel(tmp_path, f"1.{number}", "2.02" if number >= 4 else "2.0")
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    words = ["--good", "scaled==1.1", "--bad", "scaled==1.5", "--", "python", str(tmp_path / "program.py")]
    code, said = tracekit("bisect", *words)
    assert code == 0 and "FIRST BAD BUILD  1.4" in said and "second:in" in said, said
