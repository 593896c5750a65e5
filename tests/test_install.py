"""tracekit as its users install it: from sdist and wheel into an empty environment, not from the tree."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tarfile
import tomllib
import wave
from configparser import ConfigParser
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from tracekit_cli.main import COMMANDS

from tests.installed import ROOT, Built, Environment, build, empty_environment, with_extra
from tests.printed_alike import same
from tests.test_readme import shown

# One worker builds and installs, for all of them.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("install")]

PACKAGES = {
    "tracekit": ".",
    "tracekit_torch": "hooks/torch",
    "tracekit_llama_cpp": "hooks/llama_cpp",
    "tracekit_onnx": "hooks/onnx",
    "tracekit_cli": "cli",
}
IMPORT_ALL = """
import importlib, pkgutil
package = importlib.import_module({package!r})
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
HELP_OF_ALL = """
from click.testing import CliRunner
from tracekit_cli.main import COMMANDS, group
for command in COMMANDS:
    done = CliRunner().invoke(group, [command, "--help"], prog_name="tracekit")
    print(done.output)
    assert done.exit_code == 0, done.output
"""
RECORDED = """
import torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 2)).eval()
print(model(torch.ones(1, 3, 4)).shape)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def core(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return empty_environment(tmp_path_factory.mktemp("core") / "venv", built.wheel)


OF_THE_REPOSITORY = ("dev", "docs")
"""Extras that serve work in the repository alone."""


@pytest.fixture(scope="module")
def extras(core: Environment, built: Built, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Environment]:
    folder = tmp_path_factory.mktemp("extras")
    names = [name for name in built.metadata["Provides-Extra"] if name not in OF_THE_REPOSITORY]
    return {name: with_extra(core, built, name, folder / name) for name in names}


def tree_files() -> set[str]:
    """Files of the three packages, as the wheel names them."""
    found = set()
    for package, root in PACKAGES.items():
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", package],
            cwd=ROOT / root,
            capture_output=True,
            text=True,
            check=True,
        )
        found |= {name for name in listed.stdout.splitlines() if (ROOT / root / name).exists()}
    return found


def test_sdist_and_wheel_hold_every_file(built: Built) -> None:
    files = tree_files()
    assert {"tracekit/py.typed", "tracekit/report/assets/page.js", "tracekit/mistakes/sites/__init__.py"} <= files
    with ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
    assert {name for name in names if ".dist-info/" not in name} == files
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    with tarfile.open(built.sdist) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    roots = {package: "" if root == "." else f"{root}/" for package, root in PACKAGES.items()}
    assert {roots[name.split("/")[0]] + name for name in files} <= packed
    assert {"README.md", "LICENSE", "CHANGELOG.md", "setup.cfg", "pyproject.toml"} <= packed


def test_the_metadata_say_what_an_index_page_shows(built: Built) -> None:
    fields = built.metadata
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert fields["Version"] == [config["metadata"]["version"]]
    for field in ("Summary", "Author", "Keywords", "License-Expression", "Requires-Python", "Platform", "Classifier"):
        assert fields[field], field
    assert fields["Description"] == [(ROOT / "README.md").read_text()]


def test_the_readme_needs_nothing_beside_it() -> None:
    """An index page has no files: a link is absolute, or it is no link."""
    for page in (ROOT / "README.md", ROOT / "hooks/rust/tracekit/README.md"):
        for target in re.findall(r"\]\(([^)]*)\)|(?:src|href)=\"([^\"]*)\"", page.read_text()):
            assert "".join(target).startswith(("https://", "#")), (page, target)


def test_both_languages_have_one_version() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    workspace = tomllib.loads((ROOT / "hooks/rust/Cargo.toml").read_text())
    assert workspace["workspace"]["package"]["version"] == config["metadata"]["version"]


def test_an_empty_environment_runs_what_the_readme_shows(core: Environment) -> None:
    for package in ("tracekit", "tracekit_cli"):
        core.python(IMPORT_ALL.format(package=package), ROOT / "traces")
    assert shown()
    for command, output in shown():
        done = core.run(shlex.split(command), ROOT)
        printed, wanted = done.stdout.splitlines(), output.splitlines()
        assert len(printed) == len(wanted) and all(map(same, printed, wanted)) and not done.stderr, (command, printed)
        assert done.returncode in (0, 1)


def test_an_empty_environment_explains_every_command(core: Environment, tmp_path: Path) -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    version = config["metadata"]["version"]
    assert core.run(["tracekit", "--version"], tmp_path).stdout == f"tracekit, version {version}\n"
    assert core.run(["python", "-m", "tracekit_cli", "--version"], tmp_path).stdout == f"tracekit, version {version}\n"
    assert core.python("import tracekit; print(tracekit.__version__)", tmp_path) == f"{version}\n"
    helps = core.python(HELP_OF_ALL, tmp_path)
    assert [line.split()[2] for line in helps.splitlines() if line.startswith("Usage: ")] == list(COMMANDS)


DECLARED = """\
llm: !new:cosyvoice.llm.llm.CosyVoice3LM
    sampling: !name:cosyvoice.utils.common.ras_sampling
        top_p: 0.8
        top_k: 25
"""
EXPORT = """
import tracekit
site = tracekit.open("python.h5")[0].site("model.layers.1.mlp")
try:
    print(site.to_pandas().shape == site.to_xarray().shape == site.values.shape)
except tracekit.TraceError as error:
    print(error)
"""
"""The extra that no command needs."""


def needing(folder: Path) -> dict[str, list[str]]:
    """Commands that need an extra: `EXTRA what for` -> arguments. What they read lies in the folder."""
    (folder / "recorded.py").write_text(RECORDED)
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setnchannels(1), sound.setsampwidth(2), sound.setframerate(24000)
        sound.writeframes(np.arange(2400, dtype="<i2").tobytes())
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(folder / "w.gguf", "llama")
    writer.add_head_count(2), writer.add_head_count_kv(2)
    writer.add_tensor("token_embd.weight", np.ones((8, 32), np.float32))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    (folder / "cosyvoice3.yaml").write_text(DECLARED)
    onnx = pytest.importorskip("onnx")
    held = [onnx.helper.make_tensor("weight", 1, [3], [1.0] * 3)]
    onnx.save_model(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], held)), folder / "w.onnx")
    pair = folder / "pair"
    pair.mkdir()
    for name in ("python.h5", "rng.h5"):
        (pair / name).write_bytes((ROOT / "traces" / name).read_bytes())
    both = [str(ROOT / "traces" / name) for name in ("python.h5", "rng.h5")]
    programs = ["--seeds", "0:1", "--ref", "true {seed}", "--cand", "true {seed}"]
    return {
        "torch record": ["record", "-o", "recorded.h5", "recorded.py"],
        "onnx": ["weights", "w.onnx", "w.onnx"],
        "llama-cpp": ["record", "--engine", "llama.cpp", "w.gguf", "--prompt", "x", "-o", "l.h5"],
        "audio": ["audio", "sound.wav"],
        "cosyvoice": ["config", "cosyvoice3.yaml", both[0]],
        "gguf": ["weights", "w.gguf", "w.gguf"],
        "report": ["report", *both, "-o", "report.html"],
        "postmortem": ["postmortem", "pair", "-o", "out"],
        "cluster scheduler": ["postmortem", *programs, "--scheduler", "tcp://127.0.0.1:9", "-o", "out"],
        "cluster store": ["postmortem", *programs, "-o", "memory://out"],
    }


def test_without_an_extra_one_line_says_which(core: Environment, tmp_path: Path) -> None:
    commands = needing(tmp_path)
    told = core.python(EXPORT, tmp_path / "pair")
    assert told == "this export needs pandas: pip install 'tracekit[export]'\n"
    commands["torch oracle"] = ["oracle", str(ROOT / "traces/python.h5")]
    for need, words in commands.items():
        done = core.run(["tracekit", *words], tmp_path)
        lines = [line for line in done.stderr.splitlines() if "comparing" not in line]  # the progress bar
        assert (done.returncode, len(lines)) == (2, 1), (need, done.stdout, done.stderr)
        assert re.search(r"pip install 'tracekit\[([\w-]+)\]'", lines[0])[1] == need.split()[0], lines


def test_each_extra_brings_all_that_it_promises(extras: dict[str, Environment], tmp_path: Path) -> None:
    extras["torch"].python(IMPORT_ALL.format(package="tracekit_torch"), tmp_path)
    commands = needing(tmp_path)
    assert {need.split()[0] for need in commands} == set(extras) - {"export"}
    assert extras["export"].python(EXPORT, tmp_path / "pair") == "True\n"
    for need, words in commands.items():
        done = extras[need.split()[0]].run(["tracekit", *words], tmp_path)
        assert "pip install" not in done.stderr and "Traceback" not in done.stderr, (need, done.stderr)
        if need in ("cluster scheduler", "llama-cpp"):
            assert done.returncode == 2, (need, done.stderr)  # there is no cluster, and the file is no whole model
        elif need == "cluster store":
            assert done.returncode == 1, (need, done.stderr)  # the programs record nothing
        else:
            assert done.returncode in (0, 1) and done.stderr.count("\n") <= 2, (need, done.stdout, done.stderr)
    shown = extras["torch"].run(["tracekit", "show", "recorded.h5", "--json"], tmp_path)
    assert json.loads(shown.stdout)["sites"] >= 2


def test_the_crate_holds_what_its_tests_read(tmp_path: Path) -> None:
    crate = ROOT / "hooks/rust/tracekit"
    listed = subprocess.run(
        ["cargo", "package", "--list", "--allow-dirty", "--locked", "--offline"],
        cwd=crate,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    vectors = {str(path.relative_to(ROOT)) for path in (ROOT / "tests/vectors").rglob("*") if path.is_file()}
    assert vectors and vectors | {"LICENSE", "README.md"} <= set(listed)
    package = tomllib.loads((crate / "Cargo.toml").read_text())["package"]
    assert package["metadata"]["docs"]["rs"] == {"all-features": True}
    assert 1 <= len(package["keywords"]) <= 5 and package["categories"]
