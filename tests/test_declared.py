"""`tracekit config`: what cosyvoice3.yaml or config.json says against what each side used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tracekit as tk
from tests.speech_traces import PROMPT_TEXT, Run, golden, tracekit
from tests.spoken import evidence
from tracekit.compare.settings import config_differences
from tracekit.extra.cosyvoice3.declared import Tagged, read_declared
from tracekit.formats.log import LogWriter
from tracekit.inspection.settings import declared_differences

TRACES = Path(__file__).parent.parent / "traces"
YAML = """\
__set_seed3: !apply:torch.manual_seed [1986]
sample_rate: 24000
width: 64
llm_input_size: !ref <width>
llm: !new:cosyvoice.llm.llm.CosyVoice3LM
    llm_input_size: !ref <llm_input_size>
    speech_token_size: 6561
    llm: !new:cosyvoice.llm.llm.Qwen2Encoder
        pretrain_path: ''
    sampling: !name:cosyvoice.utils.common.ras_sampling
        top_p: 0.8
        top_k: 25
        win_size: 10
        tau_r: 0.1
flow: !new:cosyvoice.flow.flow.CausalFlow
    top_p: 0.3
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cosyvoice3.yaml").write_text(YAML)
    Run().write(Path("py.tklog"))


def test_a_run_as_declared_agrees():
    code, said = tracekit("config", "cosyvoice3.yaml", "py.tklog")
    assert code == 0 and said.startswith("AGREE  cosyvoice3.yaml\n") and "*" not in said


def test_the_trap_of_the_functions_own_default_is_named():
    Run("native", sampling={"top_p": 0.7}).write(Path("native.tklog"))
    assert tracekit("config", "cosyvoice3.yaml", "py.tklog", "native.tklog") == (1, golden("config.txt"))


@pytest.mark.parametrize(
    ("run", "setting", "used"),
    [
        (Run("native", sampling={"win_size": 25}), "win_size", 25),
        (Run("native", sampling={"stop_token_ids": [6562]}), "stop tokens", "6562 only"),
        (Run("native", model={"hidden_size": 896}), "hidden_size", 896),
        (Run("native", ratio_words=PROMPT_TEXT), "min_len", 3.5),
    ],
)
def test_what_a_side_uses_otherwise_is_marked(run: Run, setting: str, used: object):
    run.write(Path("native.tklog"))
    code, said = tracekit("config", "cosyvoice3.yaml", "py.tklog", "native.tklog", "--json")
    rows = {row["setting"]: row["used"] for row in json.loads(said)["settings"]}
    assert code == 1 and json.loads(said)["verdict"] == "different"
    assert [one["agrees"] for one in rows[setting]] == [True, False] and rows[setting][1]["value"] == used


def test_limits_that_count_the_prompt_text_are_said_to():
    Run("native", ratio_words=PROMPT_TEXT).write(Path("native.tklog"))
    said = tracekit("config", "cosyvoice3.yaml", "native.tklog")[1]
    assert "min_len 14 counts the prompt text too: 2 x (4 + 3) tokens" in said


def test_a_yaml_without_the_number_falls_to_the_functions_default():
    Path("cosyvoice3.yaml").write_text(YAML.replace("        top_p: 0.8\n", ""))
    code, said = tracekit("config", "cosyvoice3.yaml", "py.tklog")
    assert code == 1 and "llm.sampling: ras_sampling's own default" in said


def test_a_config_json_is_taken_too():
    config = TRACES / "model" / "config.json"
    assert tracekit("config", config, TRACES / "python.h5", TRACES / "native.h5")[0] == 0
    declared = json.loads(config.read_text()) | {"rope_theta": 5000.0}
    declared.pop("rope_parameters", None)
    Path("config.json").write_text(json.dumps(declared))
    code, said = tracekit("config", "config.json", TRACES / "python.h5")
    assert code == 1 and next(line for line in said.splitlines() if "*" in line).startswith("rope_theta")
    Path("generation_config.json").write_text('{"top_k": 3, "eos_token_id": 2}')
    assert "top_k" in tracekit("config", "generation_config.json", TRACES / "python.h5")[1]


# -------------------------------------------------------------------- files that nobody vouches for


def test_tags_are_data_and_nothing_is_run():
    Path("cosyvoice3.yaml").write_text(YAML + "boom: !apply:os.mkdir [pwned]\nmore: !include:other.yaml\n")
    assert tracekit("config", "cosyvoice3.yaml", "py.tklog")[0] == 0
    assert not Path("pwned").exists()
    assert Tagged("!ref", "<a>").value == "<a>"


def bomb(merge: bool) -> str:
    lines = ["b0: &b0 {k: 1}" if merge else "b0: &b0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 12):
        nine = "[" + ", ".join([f"*b{level - 1}"] * 9) + "]"
        lines.append(f"b{level}: &b{level}\n  <<: {nine}" if merge else f"b{level}: &b{level} {nine}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("merge", [False, True])
def test_aliases_that_would_grow_without_bound_do_not(merge: bool):
    text = YAML if merge else YAML.replace("top_p: 0.8", "top_p: *b11")
    Path("bomb.yaml").write_text(bomb(merge) + text)
    code, said = tracekit("config", "bomb.yaml", "py.tklog")
    assert code == 0 and len(said) < 4000


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "evil.yaml",
            "a: !!python/object/apply:os.mkdir [pwned]\n",
            "line 1 asks for a Python object (os.mkdir), which",
        ),
        ("bad.yaml", "a: [1\nb: }", "is no YAML at line 2"),
        ("deep.yaml", "a: " + "[" * 20000, "is no YAML that can be read; fetch it again"),
        ("list.yaml", "- 1\n", "holds no settings; give cosyvoice3.yaml"),
        ("other.yaml", "a: 1\n", "declares no setting that a trace knows; give cosyvoice3.yaml or config.json"),
        ("long.yaml", "#" * (1 << 20) + "\n", "is longer than a configuration ever is"),
        ("bad.json", "{", "is no JSON; fetch it again"),
        ("deep.json", "[" * 100000, "is no JSON; fetch it again"),
        ("list.json", "[]", "holds no settings; give the model's config.json"),
        ("missing.yaml", None, "cannot be read: No such file or directory"),
    ],
)
def test_a_bad_file_gets_one_line(name: str, text: str | None, said: str):
    if text is not None:
        Path(name).write_text(text)
    code, line = tracekit("config", name, "py.tklog")
    assert code == 2 and line.startswith(f"{name}: {said}")
    assert not Path("pwned").exists()


def test_a_file_of_bytes_gets_one_line():
    Path("bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert tracekit("config", "bytes.yaml", "py.tklog")[1].startswith("bytes.yaml: is no text")


def test_places_are_dotted():
    places = {setting.name: setting.place for setting in read_declared(Path("cosyvoice3.yaml"))}
    assert places["top_p"] == "llm.sampling.top_p"


@pytest.mark.parametrize(
    ("stated", "agrees"),
    [
        ({"sliding_window": 4096, "use_sliding_window": False}, True),
        ({"sliding_window": 4096}, True),  # no word of the switch: the file's counts
        ({"sliding_window": None}, True),
        ({"sliding_window": 4096, "use_sliding_window": True}, False),
    ],
)
def test_what_another_setting_switches_off_is_no_difference(stated: dict[str, object], agrees: bool):
    declared = {"model_type": "qwen2", "hidden_size": 64, "sliding_window": 4096, "use_sliding_window": False}
    Path("config.json").write_text(json.dumps(declared))
    Run(model={"model_type": "qwen2"} | stated).write(Path("py.tklog"))
    Run(model={"model_type": "qwen2", "sliding_window": None}).write(Path("other.tklog"))
    assert tracekit("config", "config.json", "py.tklog")[0] == (0 if agrees else 1)
    with tk.open("py.tklog") as one, tk.open("other.tklog") as other:
        named = [difference.name for difference in declared_differences(declared, one)]
        assert named == ([] if agrees else ["model.sliding_window"])
        if "use_sliding_window" in stated:
            apart = [difference.name for difference in config_differences(one, other)]
            assert apart == ([] if agrees else ["model.sliding_window"])


def test_greedy_decoding_applies_no_sampling_settings():
    Path("generation_config.json").write_text('{"do_sample": false, "temperature": 0.6, "repetition_penalty": 1.1}')
    Run(sampling={"do_sample": False, "temperature": 1.0, "repetition_penalty": 1.1}).write(Path("py.tklog"))
    code, said = tracekit("config", "generation_config.json", "py.tklog")
    assert code == 0 and "temperature" not in said and "repetition_penalty" in said


def write_step(path: Path, token: int, **recorded: object) -> None:
    log = LogWriter(path)
    log.open("native", dtype="float32", seed=0, model={"hidden_size": 64})
    log.sequence(0, {"prompt/token_ids": np.arange(3)})
    tensors = {"logits": np.array([1.0, 2.0, 0.0], np.float32)}
    if recorded.get("survivors"):
        tensors |= {"survivors/id": np.array([1, 0]), "survivors/prob": np.array([0.7, 0.3], np.float32)}
    draws = [{"op": "multinomial", "generator": "unknown", "result": token}] if recorded.get("draws") else None
    log.step(0, 0, 2, token, tensors, draws=draws)
    log.end_sequence(0, 1, "length")
    log.close()


def test_a_token_of_which_only_the_logits_are_recorded_is_told_by_its_place() -> None:
    write_step(Path("one.tklog"), 1)
    write_step(Path("two.tklog"), 2)
    with tk.open("one.tklog") as one, tk.open("two.tklog") as two:
        said = evidence(tk.diff(one, two))
    place = "number 3 of its own logits in the candidate, number 1 in the reference"
    assert f"the token is {place}, which takes the largest at each step up to here" in said


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ((), (), "another token; survivors and draws are recorded on neither side"),
        (("survivors", "draws"), ("survivors", "draws"), "same survivors and draws, another token"),
        (
            ("survivors", "draws"),
            ("survivors",),
            "same survivors, another token; draws are recorded in the reference only",
        ),
        (
            (),
            ("draws",),
            "another token; survivors are recorded on neither side; draws are recorded in the candidate only",
        ),
    ],
)
def test_nothing_is_said_of_what_was_not_recorded(ours: tuple[str, ...], theirs: tuple[str, ...], said: str):
    write_step(Path("one.tklog"), 0, **dict.fromkeys(ours, True))
    write_step(Path("two.tklog"), 1, **dict.fromkeys(theirs, True))
    with tk.open("one.tklog") as one, tk.open("two.tklog") as two:
        assert said in evidence(tk.diff(one, two))
