"""The transformers that CosyVoice pins, beside the one of the environment: what is made here is read by both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tracekit
from tests import speech_model
from tracekit.inspection.sanity import capture_problems

pytest.importorskip("torch")

ROOT = Path(__file__).parent.parent
SECOND = ROOT / ".cache" / "transformers4"
SPEAK = Path(__file__).parent / "fixtures" / "speak.py"
pytestmark = pytest.mark.skipif(
    not (SECOND / "transformers").is_dir(), reason="scripts/second_transformers.py .cache/transformers4 makes it"
)
LOADS = """
import json, sys
import transformers
from transformers import AutoTokenizer, Qwen2ForCausalLM
from safetensors.torch import load_file
blank = sys.argv[1]
model = Qwen2ForCausalLM.from_pretrained(blank)
state, kept = model.state_dict(), load_file(blank + "/model.safetensors")
words = AutoTokenizer.from_pretrained(blank)
text = "You are a helpful assistant. Please speak in English.<|endofprompt|>She opened the letter."
same = all(bool((state[name] == value).all()) for name, value in kept.items())
tied = bool((state["lm_head.weight"] == kept["model.embed_tokens.weight"]).all())
ids = words.encode(text)
print(json.dumps([transformers.__version__, same and tied, len(kept), ids, words.decode(ids)]))
"""


def environment(second: bool) -> dict[str, str]:
    more = {"PYTHONPATH": str(SECOND)} if second else {}
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def run(*words: object, second: bool, cwd: Path, code: int = 0) -> str:
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment(second), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.mark.slow
def test_both_load_the_inner_model_and_its_tokenizer(tmp_path: Path) -> None:
    blank = speech_model.folder() / "CosyVoice-BlankEN"
    told = [
        json.loads(run(sys.executable, "-c", LOADS, blank, second=second, cwd=tmp_path)) for second in (True, False)
    ]
    assert told[0][0] == "4.51.3" and told[1][0] != "4.51.3"
    assert told[0][1:] == told[1][1:] and told[0][1] is True and told[0][2] > 30


@pytest.mark.slow
def test_the_second_is_recorded_as_it_runs(tmp_path: Path) -> None:
    folder = speech_model.folder()
    words = (SPEAK, folder, 3)
    plain = run(sys.executable, *words, second=True, cwd=tmp_path, code=1)
    record = (Path(sys.executable).parent / "tracekit", "record", "-o", "run.h5", *words)
    assert run(*record, second=True, cwd=tmp_path, code=1) == plain
    with tracekit.open(tmp_path / "run.h5") as trace:
        assert trace.config["versions"]["transformers"] == "4.51.3"
        assert [sequence.end_reason for sequence in trace.sequences] == ["stop", "left", "stop", "error"]
        assert not capture_problems(trace)
        first = trace.sequences[0]
        assert all(first.step(index).draws for index in range(first.step_count)) and len(first.sites) == 43
