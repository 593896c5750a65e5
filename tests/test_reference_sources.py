"""Where the reference of an audit comes from: a folder, a callable, the program of a recorded run; and a diff by it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tracekit_cli.main import group

import tracekit

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402
from tracekit_torch.reference_program.loading import prepared  # noqa: E402

from tests import tiny_families  # noqa: E402
from tests.forked import Forks  # noqa: E402
from tracekit.inspection.losses import LogitsNotJudged  # noqa: E402
from tracekit.inspection.sanity import EndedInError  # noqa: E402

CULPRIT = "transformer.h.1.ln_1"
SCRIPT = """
import sys, torch, transformers
print("loading", flush=True)
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
model.generate(torch.tensor([[72, 101, 50, 90, 80, 12]]), max_new_tokens=6, do_sample=False, eos_token_id=None)
sys.exit(3)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.make("gpt2", tmp_path_factory.mktemp("gpt2"))


def _run(folder: Path, out: Path, plant: Callable[[Any], None] = lambda model: None) -> Path:
    model = tiny_families.load(folder)
    plant(model)
    tiny_families.run(model, out).close()
    return out


def _wrong_eps(model: Any) -> None:
    model.transformer.h[1].ln_1.eps = 1e-6


def _cli(*words: object) -> Any:
    return CliRunner().invoke(group, [str(word) for word in words])


@pytest.fixture
def factories(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `factories` in the current folder, with callables that give a model, nothing, and an error."""
    (tmp_path / "factories.py").write_text(
        "from tests import tiny_families\n"
        f"def model(): return tiny_families.load({str(folder)!r}, attention=None)\n"
        "def nothing(): return None\n"
        "def broken(): raise OSError('no such disk')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "factories", raising=False)


@pytest.mark.usefixtures("factories")
def test_a_callable_makes_the_reference(folder: Path, tmp_path: Path) -> None:
    clean, faulty = _run(folder, tmp_path / "a.h5"), _run(folder, tmp_path / "b.h5", _wrong_eps)
    assert _cli("audit", clean, "--module", "factories:model").exit_code == 0
    found = _cli("audit", faulty, "--module", "factories:model", "--json")
    assert found.exit_code == 1
    assert [culprit["site"] for culprit in json.loads(found.stdout)["culprits"]] == [CULPRIT]


@pytest.mark.usefixtures("factories")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--module", "factories"], "package.module:name"),
        (["--module", "factories:absent"], "cannot be found"),
        (["--module", "no_such_package:model"], "cannot be found"),
        (["--module", "factories:nothing"], "gives NoneType"),
        (["--module", "factories:broken"], "OSError: no such disk"),
        (["--module", "factories:model", "--model", "x"], "give one of them"),
        (["--reference", "a.h5"], "which Python program made it"),
    ],
)
def test_what_is_no_reference_is_one_line(folder: Path, tmp_path: Path, words: list[str], said: str) -> None:
    _run(folder, tmp_path / "a.h5")
    found = _cli("audit", "a.h5", *words)
    assert isinstance(found.exception, tracekit.TraceError) and not found.stdout
    assert said in str(found.exception) and len(str(found.exception).splitlines()) == 1, found.exception


def test_a_recorded_program_gives_the_reference(forks: Forks, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SCRIPT)
    assert forks.tracekit("record", "-o", "run.h5", "program.py", str(folder), cwd=tmp_path).code == 3
    before = Path.cwd(), list(sys.path), sys.argv
    for out, plant, code in (("clean.h5", lambda model: None, 0), ("faulty.h5", _wrong_eps, 1)):
        _run(folder, tmp_path / out, plant)
        found = _cli("audit", tmp_path / out, "--reference", tmp_path / "run.h5", "--json")
        assert found.exit_code == code, found.stderr
        # What the program prints does not get into the answer.
        assert [culprit["site"] for culprit in json.loads(found.stdout)["culprits"]] == [CULPRIT] * code
    assert (Path.cwd(), sys.path, sys.argv) == before


WAITS = "import queue\nq = queue.Queue()\nthreading.Thread(target=lambda: q.put(work())).start()\nq.get()"
POOL = "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)\npool.submit(work)"
KEEPS = f"{WAITS[:-7]}\ntry: q.get()\nexcept BaseException: q.get()"
HELPS = "e = threading.Event()\nthreading.Thread(target=e.wait).start()\nwork()\ne.set()"
LATER = "import time\nthreading.Thread(target=lambda: (time.sleep(1), work())).start()"


@pytest.mark.parametrize("ends", [WAITS, POOL, LATER, f"{POOL}.result()", HELPS, KEEPS])
def test_a_program_that_generates_in_a_thread_ends_and_gives_the_reference(
    forks: Forks, folder: Path, tmp_path: Path, ends: str
) -> None:
    """The main thread waits for another; or it is over, and threads, or the workers of a pool that is left open, are
    not; or one waits for a word that the program would have given later."""
    generates = "return model.generate(torch.tensor([[72, 101, 50, 90, 80, 12]]), max_new_tokens=6, do_sample=False)"
    program = [*SCRIPT.strip().splitlines()[:3], "import threading", f"def work(): {generates}", ends]
    (tmp_path / "program.py").write_text("\n".join(program))
    recorded = forks.tracekit("record", "-o", "run.h5", "program.py", str(folder), cwd=tmp_path)
    assert (recorded.code, "1 sequence, 6 steps" in recorded.err) == (0, True), recorded.err
    found = forks.tracekit("audit", "run.h5", "--reference", "run.h5", cwd=tmp_path)
    assert found.code == 0, found.err
    assert "Traceback" not in found.err


def test_a_diff_judges_by_the_model_what_no_recipe_covers(tmp_path: Path) -> None:
    folder = tiny_families.make("falcon", tmp_path / "falcon")
    model = tiny_families.load(folder)
    reference = tiny_families.run(model, tmp_path / "ref.h5")
    dense = model.transformer.h[1].self_attention.dense
    dense.register_forward_pre_hook(lambda module, args: (args[0] * 1.01,))
    candidate = tiny_families.run(model, tmp_path / "cand.h5", follow=tmp_path / "ref.h5")
    by = tracekit_torch.by_reference(folder)
    by_recipes = tracekit.diff(reference, candidate, weights=folder).to_json()
    assert by_recipes["audit"]["not_audited"] and not any("own" in one for one in by_recipes["culprits"])
    verdict = tracekit.diff(reference, candidate, weights=folder, by=by)
    assert [culprit.site for culprit in verdict.culprits] == ["transformer.h.1.self_attention.dense:in"], verdict.text
    assert not verdict.to_json()["audit"]["not_audited"]
    other = tiny_families.load(folder, attention=None)
    sdpa = tiny_families.run(other, tmp_path / "sdpa.h5", follow=tmp_path / "ref.h5")
    same = tracekit.diff(reference, sdpa, weights=folder, by=by)
    assert same.exit_code == 0 and not same.culprits, same.text


def test_logits_of_another_width_withhold_the_verdict(folder: Path, tmp_path: Path) -> None:
    """A head without the padding of its vocabulary: everything else is judged, and is within its bounds."""
    wider = tiny_families.load(folder)
    wider.resize_token_embeddings(168)
    trace = tiny_families.run(tiny_families.load(folder), tmp_path / "run.h5")
    with trace:
        same = tracekit.audit(trace, folder, by=tracekit_torch.by_reference(folder))
        found = tracekit.audit(trace, folder, by=tracekit_torch.by_reference(lambda dtype: prepared(wider, dtype)))
    assert same.exit_code == 0 and not same.lost
    assert [(each.tokens, each.recorded) for each in found.lost if isinstance(each, LogitsNotJudged)] == [(168, 160)]
    assert found.exit_code == 2 and not found.culprits and len(found.clean) == len(same.clean) - 1
    assert "of 168 tokens, the recorded ones of 160" in found.text


@pytest.mark.parametrize("calls", [0, 2])
def test_an_error_of_the_program_is_said(folder: Path, tmp_path: Path, calls: int) -> None:
    """Of a program that raises before its first call of the model returns there is nothing to audit."""
    model, done = tiny_families.load(folder), []

    def fails(module: Any, args: Any) -> None:
        done.append(0)
        if len(done) > calls:
            raise RuntimeError("no memory")

    model.transformer.h[1].mlp.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="no memory"), tracekit_torch.record(model, tmp_path / "run.h5"):
        model.generate(torch.tensor([[72, 101, 50]]), max_new_tokens=6, do_sample=False)
    if not calls:
        with pytest.raises(tracekit.TraceError, match=r"no site .*ended in an error .*RuntimeError"):
            tracekit.audit(tmp_path / "run.h5", folder, by=tracekit_torch.by_reference(folder))
    else:
        found = tracekit.audit(tmp_path / "run.h5", folder, by=tracekit_torch.by_reference(folder))
        assert [each.detail for each in found.notes if isinstance(each, EndedInError)] == ["RuntimeError: no memory"]
        assert found.exit_code == 0
