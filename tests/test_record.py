"""`tracekit record` and `tracekit oracle` on the command line: the program stays itself, whatever becomes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import tracekit

torch = pytest.importorskip("torch")

TRACEKIT = [sys.executable, "-m", "tracekit_cli.main"]
MODEL = """
import sys
import torch
torch.manual_seed(3)
layer = torch.nn.Linear(4, 3)
"""


@pytest.fixture
def script(tmp_path):
    def write(body, name="script.py"):
        path = tmp_path / name
        path.write_text(MODEL + textwrap.dedent(body))
        return path

    return write


@pytest.fixture
def run(forks):
    def tracekit(*words, cwd):
        done = forks.tracekit(*map(str, words), cwd=cwd)
        return subprocess.CompletedProcess(words, done.code, done.out, done.err)

    return tracekit


def run_alone(*words, cwd):
    """In a process of its own: what the program imports is imported while it is recorded."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRACEKIT_")}
    environment["HF_HUB_OFFLINE"] = "1"
    return subprocess.run(
        [*TRACEKIT, *map(str, words)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_script_keeps_its_output_arguments_and_exit_code(tmp_path, script):
    path = script(
        """
        print(layer(torch.ones(2, 4)).tolist())
        print(sys.argv, __name__, __file__, sys.path[0])
        print("note", file=sys.stderr)
        sys.exit(7)
        """
    )
    words = [str(path), "--level", "all", "-o", "x", "--", "-m"]
    plain = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    recorded = run_alone("record", *words, cwd=tmp_path)
    assert recorded.returncode == plain.returncode == 7
    assert recorded.stdout == plain.stdout
    assert recorded.stderr.startswith(plain.stderr)
    assert recorded.stderr.count("\n") == 2 and "wrote traces/script.h5: 1 sequence" in recorded.stderr
    trace = tracekit.open(tmp_path / "traces" / "script.h5")
    assert trace.status == "complete"
    assert trace.config["command"]["argv"] == words and trace.config["command"]["cwd"] == str(tmp_path)
    assert not list((tmp_path / "traces").glob("*.tklog"))


def test_an_exception_is_the_scripts_own(tmp_path, script):
    path = script(
        """
        def fail():
            raise ValueError("mine")

        layer(torch.ones(2, 4))
        fail()
        """
    )
    plain = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True, check=False)
    recorded = run_alone("record", "-o", "run.h5", "--keep-log", path, cwd=tmp_path)
    assert recorded.returncode == plain.returncode == 1
    assert recorded.stderr.startswith(plain.stderr)
    assert "tracekit_torch" not in recorded.stderr
    assert len(tracekit.open(tmp_path / "run.h5").sequences) == 1
    assert tracekit.open(tmp_path / "run.tklog").sequences[0].end_reason == "done"


@pytest.mark.parametrize("way", ["os._exit(5)", "os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 15)"])
def test_a_script_that_is_cut_off_leaves_a_readable_log(run, tmp_path, script, way):
    path = script(f"import os\nlayer(torch.ones(2, 4))\n{way}\n")
    recorded = run("record", "-o", "run.h5", path, cwd=tmp_path)
    assert recorded.returncode in (5, -9, -15)
    trace = tracekit.open(tmp_path / "run.tklog")
    assert trace.status == "recovered" and trace.sequences[0].end_reason == "done"
    assert trace.sequences[0].read("output", 0, 2).shape == (2, 3)


def test_an_interrupt_ends_the_program_as_python_would(tmp_path, script):
    path = script(
        """
        import time
        layer(torch.ones(2, 4))
        print("ready", flush=True)
        time.sleep(60)
        """
    )
    program = subprocess.Popen(
        [*TRACEKIT, "record", "-o", "run.h5", str(path)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in its background with interrupts ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert program.stdout.readline() == "ready\n"
    time.sleep(0.2)
    program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=60)
    assert program.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors and "Aborted" not in errors
    assert tracekit.open(tmp_path / "run.h5").status == "complete"


def test_children_and_threads(run, tmp_path, script):
    path = script(
        """
        import os, threading
        def later():
            import time
            time.sleep(0.3)
            layer(torch.ones(3, 4))
        layer(torch.ones(2, 4))
        child = os.fork()
        if child == 0:
            layer(torch.ones(5, 4))
            sys.exit(0)
        os.waitpid(child, 0)
        threading.Thread(target=later).start()
        """
    )
    recorded = run("record", "-o", "run.h5", path, cwd=tmp_path)
    assert recorded.returncode == 0, recorded.stderr
    trace = tracekit.open(tmp_path / "run.h5")
    assert trace.status == "complete"
    assert [sequence.positions for sequence in trace.sequences] == [2, 3]


def test_a_module_runs_with_m_and_a_seed_seeds_it(run, tmp_path, script):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    body = "import sys, torch, random\nlayer = torch.nn.Linear(4, 3)\nlayer(torch.rand(2, 4))\n"
    (tmp_path / "package" / "tool.py").write_text(body + "print(sys.argv[1:], torch.rand(1).item(), random.random())\n")
    first, second = (run("record", "--seed", 5, "-m", "package.tool", "-o", "mine", cwd=tmp_path) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout and first.stdout.startswith("['-o', 'mine']")
    trace = tracekit.open(tmp_path / "traces" / "tool.h5")
    assert trace.config["seed"] == 5 and trace.config["command"]["module"] == "package.tool"
    assert trace.sequences[0].seed == 5


def test_module_names_what_to_record(run, tmp_path, script):
    path = script(
        """
        class Outer(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
            def forward(self, x):
                return self.inner(x) + 1
        Outer()(torch.ones(2, 4))
        """
    )
    for pattern in ("Sequential", "inner"):
        assert run("record", "-o", "run.h5", "--module", pattern, path, cwd=tmp_path).returncode == 0
        assert {"0", "1"} <= set(tracekit.open(tmp_path / "run.h5").sequences[0].sites)
    for pattern, said in (("1$", False), ("nosuch", True)):
        recorded = run("record", "-o", "some.h5", "--sites", pattern, path, cwd=tmp_path)
        assert recorded.returncode == 0 and ("no site in this program" in recorded.stderr) == said
    recorded = run("record", "-o", "none.h5", "--module", "Decoder", path, cwd=tmp_path)
    assert recorded.returncode == 2 and "Decoder" in recorded.stderr and "Sequential" in recorded.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.py"], "none.py: there is no such script"),
        (["-m", "no.such.module"], "no.such.module: there is no such module"),
        (["--", "./no-such-program"], "no-such-program: cannot be started"),
        (["--level", "most", "script.py"], "--level most: give one of"),
        (["--level", "most", "--", "true"], "--level most: give one of"),
        (["--logits", "0", "script.py"], "--logits 0"),
        (["--logits", "0", "--", "true"], "--logits 0"),
        (["--sites", "(", "script.py"], "--sites (: not a regular expression"),
        (["--follow", "none.h5", "script.py"], "none.h5"),
        (["-o", "script.py/run.h5", "script.py"], "cannot be written"),
        (["-o", ".", "script.py"], "is a folder"),
        (["script.py"], "never called a torch module"),
        (["--", "true"], "recorded nothing"),
        ([], "give a script"),
    ],
)
def test_trouble_is_one_line_and_exit_code_2(run, tmp_path, words, message):
    (tmp_path / "script.py").write_text("print('ran')\n")
    recorded = run("record", *words, cwd=tmp_path)
    assert recorded.returncode == 2
    assert message in recorded.stderr and "Traceback" not in recorded.stderr
    assert [line for line in recorded.stderr.splitlines() if message in line]
    assert not list(tmp_path.rglob("*.h5")) and not list(tmp_path.rglob("*.tklog"))


NATIVE = """
import os, sys
import numpy as np
from tracekit.formats.log import LogWriter
import tracekit
told = sorted(item for item in os.environ.items() if item[0].startswith("TRACEKIT_") and item[0] != "TRACEKIT_LOG")
print(dict(told))
if "TRACEKIT_FOLLOW" in os.environ:
    with tracekit.open(os.environ["TRACEKIT_FOLLOW"]) as followed:
        print(followed.sequences[0].tokens.tolist(), followed.sequences[0].prompt_ids.tolist())
log = LogWriter(os.environ["TRACEKIT_LOG"])
log.open("native")
log.sequence(0, {"prompt/token_ids": np.array([1, 2])})
log.step(0, 0, 1, 9, {})
log.end_sequence(0, 1, "stop")
if len(sys.argv) > 1:
    os._exit(int(sys.argv[1]))
log.close()
"""


def test_a_native_program_is_told_where_to_write_and_keeps_its_exit_code(run, tmp_path):
    (tmp_path / "native.py").write_text(NATIVE)
    program = [sys.executable, "native.py"]
    options = ["--level", "logits", "--logits", "5", "--sites", "mlp", "--seed", "3"]
    recorded = run("record", "-o", "run.h5", *options, "--", *program, cwd=tmp_path)
    assert recorded.returncode == 0, recorded.stderr
    told = (
        "{'TRACEKIT_LEVEL': 'logits', 'TRACEKIT_LOGITS': '5', 'TRACEKIT_LOG_IS_NEW': '1', "
        "'TRACEKIT_SEED': '3', 'TRACEKIT_SITES': 'mlp'}\n"
    )
    assert recorded.stdout == told
    assert "wrote run.h5: 1 sequence, 1 step" in recorded.stderr
    assert tracekit.open(tmp_path / "run.h5").implementation == "native"
    followed = run("record", "-o", "next.h5", "--follow", "run.h5", "--", *program, "4", cwd=tmp_path)
    assert followed.returncode == 4
    assert "[9] [1, 2]\n" in followed.stdout
    assert tracekit.open(tmp_path / "next.h5").status == "recovered"
    refused = run("oracle", "run.h5", cwd=tmp_path)
    assert refused.returncode == 2 and "which Python program" in refused.stderr


def test_the_language_model_is_waited_for(run, tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "run.py").write_text(
        textwrap.dedent(
            """
            import sys, torch
            from transformers import LlamaConfig, LlamaForCausalLM
            config = LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                                 vocab_size=50, bos_token_id=1, eos_token_id=None)
            class Wrapped(torch.nn.Module):
                def __init__(self):
                    super().__init__()
                    self.language = LlamaForCausalLM(config).eval()
                def forward(self, ids):
                    return self.language.generate(ids, max_new_tokens=3, do_sample=False)
            wrapped = Wrapped()
            torch.nn.Linear(2, 2)(torch.ones(1, 2))
            if len(sys.argv) == 1:
                print(wrapped(torch.tensor([[3, 4, 5]]))[0].tolist())
            """
        )
    )
    recorded = run_alone("record", "run.py", cwd=tmp_path)
    assert recorded.returncode == 0, recorded.stderr
    (sequence,) = tracekit.open(tmp_path / "traces" / "run.h5").sequences
    assert [3, 4, 5, *sequence.tokens.tolist()] == json.loads(recorded.stdout)
    unused = run("record", "run.py", "unused", cwd=tmp_path)
    assert unused.returncode == 2
    assert "LlamaForCausalLM was never called, only Linear; name what to record with --module" in unused.stderr
    named = run("record", "--module", "Linear", "run.py", "unused", cwd=tmp_path)
    assert named.returncode == 0, named.stderr


def test_the_example_program_is_recorded_with_its_texts(forks, tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {text: index for index, text in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocabulary | {"</s>": 256}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>").save_pretrained(tmp_path / "tiny")
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=257,
        eos_token_id=256,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "tiny")
    example = Path(__file__).parent.parent / "hooks" / "torch" / "examples" / "generate.py"
    words = ["--model", "tiny", "--prompt", "Rome", "--prompt", "The city", "--max-new-tokens", "5", "--seed", "3"]
    words += ["--temperature", "0.8", "--top-k", "50", "--top-p", "0.95", "--attn", "eager"]
    plain = forks.python(str(example), *words, cwd=tmp_path)
    recorded = run_alone("record", "-o", "run.h5", example, *words, cwd=tmp_path)
    assert recorded.returncode == plain.code == 0, recorded.stderr
    assert recorded.stdout == plain.out
    trace = tracekit.open(tmp_path / "run.h5")
    first, second = trace.sequences
    assert (first.prompt_text, second.prompt_text) == ("Rome", "The city")
    assert list(first.texts) == list("Rome")
    assert first.step(0).text is not None
    assert trace.config["checkpoint"] == "tiny" and trace.config["versions"]["transformers"]
    assert second.sampling["top_k"] == 50


def test_an_oracle_runs_the_recorded_command_again(run, tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "run.py").write_text(
        textwrap.dedent(
            """
            import sys, torch
            from transformers import LlamaConfig, LlamaForCausalLM
            torch.manual_seed(1)
            config = LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                                 vocab_size=50, initializer_range=0.5, bos_token_id=1, eos_token_id=None)
            model = LlamaForCausalLM(config).eval()
            torch.manual_seed(int(sys.argv[1]))
            print(model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=6, do_sample=True)[0].tolist())
            """
        )
    )
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    recorded = run("record", "-o", "run.h5", "--sites", "norm", "run.py", "8", cwd=tmp_path)
    assert recorded.returncode == 0, recorded.stderr
    oracle = run_alone("oracle", "../run.h5", cwd=folder)
    assert oracle.returncode == 0, oracle.stderr
    assert oracle.stdout == recorded.stdout
    reference, precise = tracekit.open(tmp_path / "run.h5"), tracekit.open(tmp_path / "run.oracle.h5")
    assert precise.config["recorder"]["follow"] == str(tmp_path / "run.h5")
    assert precise.sequences[0].tokens.tolist() == reference.sequences[0].tokens.tolist()
    assert set(precise.sequences[0].sites) == set(reference.sequences[0].sites)
    assert precise.sequences[0].sites["model.norm"].dtype == "float64"
    missing = run("oracle", "none.h5", cwd=folder)
    assert missing.returncode == 2 and "none.h5" in missing.stderr
