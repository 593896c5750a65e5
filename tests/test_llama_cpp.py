"""llama.cpp recorded out of a wheel: the run that records is the run, and everything it did is in the trace."""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tracekit_llama_cpp as llama_cpp
from tracekit_llama_cpp.compiled import NotCompiledError, compiled, library_file
from tracekit_llama_cpp.declarations import BUILDS, DECLARATIONS, declarations, defaults
from tracekit_llama_cpp.library import check_build, check_layout, library
from tracekit_llama_cpp.plan import Copy, Node, Plan, dense
from tracekit_llama_cpp.taps import Taps

import tracekit
from tests import tiny_gguf
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.trace import TraceError

PROMPT = "Hello, world. How are"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", kind="Q4_1", bias=True)


WAYS = {
    "greedy": {},
    "sampled": {"temperature": 0.9, "seed": 7, "top_k": 40, "top_p": 0.9},
    "all tokens": {"temperature": 1.3, "seed": 11},
    "min-p": {"temperature": 0.7, "seed": 1, "min_p": 0.05},
    "micro-batches": {"micro_batch": 5},
    "batches": {"batch": 8, "micro_batch": 3},
    "no flash attention": {"flash_attention": "off"},
    "cache in float32": {"cache_type": "f32", "flash_attention": "off"},
    "not repacked": {"repack": False},
    "threads": {"threads": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_run_that_records_is_the_run(way: str, quantised: Path, tmp_path: Path) -> None:
    settings = {"prompt": PROMPT, "max_new_tokens": 12, **WAYS[way]}
    free = llama_cpp.generate(quantised, **settings)
    assert llama_cpp.record(quantised, tmp_path / "all.h5", **settings) == free
    assert llama_cpp.record(quantised, tmp_path / "logits.h5", level="logits", **settings) == free
    with tracekit.open(tmp_path / "all.h5") as everything, tracekit.open(tmp_path / "logits.h5") as few:
        one, other = everything.sequences[0], few.sequences[0]
        assert tuple(one.tokens) == free.tokens
        assert np.array_equal(one.logits(0, 12), other.logits(0, 12))
        assert everything.status == "complete" and not other.sites
        positions = len(free.prompt) + len(free.tokens) - 1
        assert one.sites["model.layers.0.mlp.gate_proj"].ranges == ((0, positions),)


def test_every_module_and_every_input_between_them_is_recorded(quantised: Path, tmp_path: Path) -> None:
    llama_cpp.record(quantised, tmp_path / "t.h5", prompt=PROMPT, max_new_tokens=4)
    with tracekit.open(tmp_path / "t.h5") as trace:
        sites = trace.sequences[0].sites
        modules = {name.rpartition(".")[0] for name in Checkpoint(quantised).names}
        assert modules <= set(sites)
        between = ("self_attn.o_proj:in", "mlp.down_proj:in", "post_attention_layernorm:in")
        assert all(f"model.layers.{layer}.{name}" in sites for layer in (0, 1) for name in between)
        table = trace.sites
        assert table["model.layers.1.input_layernorm"].input == "model.layers.0"
        assert table["model.layers.0.self_attn.q_proj"].parameters.keys() == {"weight", "bias"}
        assert table["model.norm"].attributes["eps"] == 1e-5
        assert table["lm_head"].recorded_as == "logits"
        assert sites["model.layers.0.self_attn.k_proj"].width == 32


@pytest.mark.parametrize("way", ["sampled", "all tokens", "min-p"])
def test_draws_are_replayed_bit_for_bit(way: str, plain: Path, tmp_path: Path) -> None:
    llama_cpp.record(plain, tmp_path / "t.h5", prompt=PROMPT, max_new_tokens=40, **WAYS[way])
    seed = WAYS[way]["seed"]
    words = np.random.RandomState(seed)._bit_generator.random_raw(80).astype(np.uint64)
    with tracekit.open(tmp_path / "t.h5") as trace:
        sequence = trace.sequences[0]
        for index in range(sequence.step_count):
            step = sequence.step(index)
            low, high = (int(word) for word in words[2 * index : 2 * index + 2])
            value = (low + high * 2**32) / 2**64
            assert step.draws[0].offset == 2 * index and step.draws[0].seed == seed
            (told,) = (event.detail for event in step.events if event.kind == "order")
            assert told == ("probability" if way == "sampled" else "id")
            order = np.argsort(step.survivors_id) if told == "id" else np.arange(len(step.survivors_id))
            sums = np.cumsum(step.survivors_prob[order].astype(np.float64))
            assert step.survivors_id[order][np.searchsorted(sums, value * sums[-1])] == step.token


def test_filters_are_recorded_one_by_one(plain: Path, tmp_path: Path) -> None:
    llama_cpp.record(plain, tmp_path / "t.h5", prompt=PROMPT, max_new_tokens=3, **WAYS["sampled"])
    with tracekit.open(tmp_path / "t.h5") as trace:
        events = [event.detail for event in trace.sequences[0].step(0).events]
    assert [event["class"] for event in events[:-1]] == [
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "TemperatureLogitsWarper",
    ]
    assert events[0]["survivors"] == 40 and events[1]["survivors"] == events[2]["survivors"]


def test_follows_another_trace(plain: Path, tmp_path: Path) -> None:
    llama_cpp.record(plain, tmp_path / "a.h5", prompt=PROMPT, max_new_tokens=8, temperature=1.5, seed=3)
    done = llama_cpp.record(plain, tmp_path / "b.h5", prompt=PROMPT, max_new_tokens=8, follow=str(tmp_path / "a.h5"))
    with tracekit.open(tmp_path / "a.h5") as one, tracekit.open(tmp_path / "b.h5") as other:
        assert tuple(one.sequences[0].tokens) == done.tokens == tuple(other.sequences[0].tokens)
        assert any(event.kind == "forced" for index in range(8) for event in other.sequences[0].step(index).events)


@pytest.fixture(params=["C", "Python"])
def callback(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which a graph that is known is followed."""
    if request.param == "Python":
        monkeypatch.setitem(vars(library()), "follow", None)
    elif library().follow is None:
        pytest.skip("no C compiler")
    return str(request.param)


@pytest.mark.parametrize("way", ["sampled", "micro-batches", "batches", "no flash attention"])
@pytest.mark.parametrize("level", ["layers", "all"])
def test_what_is_found_once_is_what_is_found_each_time(
    way: str, level: str, callback: str, quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"prompt": PROMPT * 2, "max_new_tokens": 12, "level": level, **WAYS[way]}
    planned, followed, copied = tmp_path / "planned.tklog", [], []
    write, computed = Plan.write, Plan.computed
    monkeypatch.setattr(Plan, "write", lambda plan, *rest: (followed.append(plan), write(plan, *rest))[1])
    monkeypatch.setattr(Plan, "computed", lambda plan, *rest: (copied.append(plan), computed(plan, *rest))[1])
    llama_cpp.record(quantised, planned, **settings)
    assert len(followed) >= 11  # each step's graph is followed: its plan is made of the prompt's
    assert bool(copied) == (callback == "Python")
    monkeypatch.setattr(Taps, "_follow", lambda *_: False)
    llama_cpp.record(quantised, tmp_path / "each.tklog", **settings)
    assert planned.read_bytes() == (tmp_path / "each.tklog").read_bytes()


def test_a_graph_of_other_operations_is_found_by_itself(
    quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"prompt": PROMPT, "max_new_tokens": 6}
    found, write, made = [], Plan.write_found, Node.of
    monkeypatch.setattr(Plan, "write_found", lambda plan, *rest: (found.append(plan), write(plan, *rest))[1])
    llama_cpp.record(quantised, tmp_path / "same.tklog", **settings)
    assert len(found) == 1
    numbers = itertools.count()  # no graph reads from the tensors that another one read from
    monkeypatch.setattr(Node, "of", lambda *given: made(*given)._replace(sources=bytes(next(numbers))))
    llama_cpp.record(quantised, tmp_path / "other.tklog", **settings)
    assert len(found) == 1 + 2
    assert (tmp_path / "same.tklog").read_bytes() == (tmp_path / "other.tklog").read_bytes()


def test_nodes_of_a_graph_that_lies_elsewhere_are_not_read(
    quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"prompt": PROMPT, "max_new_tokens": 6}
    llama_cpp.record(quantised, tmp_path / "same.tklog", **settings)
    init = Plan.__init__

    def elsewhere(plan: Plan, *given: object, **named: object) -> None:
        init(plan, *given, **named)
        plan.nodes = [library().ffi.NULL, *plan.nodes[1:]]

    monkeypatch.setattr(Plan, "__init__", elsewhere)
    monkeypatch.setattr(Plan, "for_rows", lambda *_: pytest.fail("reads nodes of another graph"))
    llama_cpp.record(quantised, tmp_path / "other.tklog", **settings)
    assert (tmp_path / "same.tklog").read_bytes() == (tmp_path / "other.tklog").read_bytes()


def test_a_graph_that_changes_is_said_to_be_lost_and_the_run_goes_on(
    callback: str, quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"prompt": PROMPT, "max_new_tokens": 6}
    free = llama_cpp.generate(quantised, **settings)
    for_rows = Plan.for_rows

    def of_other_sides(plan: Plan, micro: int) -> Plan | None:
        made = for_rows(plan, micro)
        for copy in () if made is None else made._sites.values():
            copy.sides[0] += 1
            object.__setattr__(copy, "known", b"")
        return made

    monkeypatch.setattr(Plan, "for_rows", of_other_sides)
    assert llama_cpp.record(quantised, tmp_path / "t.h5", **settings) == free
    with tracekit.open(tmp_path / "t.h5") as trace:
        assert trace.sequences[0].step_count == 6
        assert "graph is not the one that it was" in trace.config["lost"][0]


def test_strides_are_followed() -> None:
    values = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    turned = values.transpose(1, 0, 2)
    bytes_ = dense(values.reshape(-1).view(np.uint8), [4, 2, 3, 1], [4, 48, 16, 96], 4)
    assert np.array_equal(bytes_.view(np.float32).reshape(3, 2, 4), turned)


def test_strides_are_followed_in_both_ways(callback: str) -> None:
    ffi, values = library().ffi, np.arange(24, dtype=np.float32)
    address = ffi.cast("void *", values.ctypes.data)
    plain = ffi.new("struct ggml_tensor *", {"ne": [4, 2, 3, 1], "nb": [4, 16, 32, 96], "data": address})
    turned = ffi.new("struct ggml_tensor *", {"ne": [4, 2, 3, 1], "nb": [4, 48, 16, 96], "data": address})
    apart = ffi.new("struct ggml_tensor *", {"ne": [3, 2, 2, 1], "nb": [4, 16, 32, 96], "data": address})
    tensors = [plain, turned, apart]
    copies = [Copy.of(ffi, place, tensor, tensor) for place, tensor in enumerate(tensors)]
    plan = Plan(library(), [Node.of(ffi, tensor) for tensor in tensors], dict(zip("abc", copies, strict=True)), micro=2)
    get = ffi.callback("get_function", lambda tensor, to, first, size: ffi.memmove(to, tensor.data, size))
    arena = np.zeros(plan.nbytes + plan.scratch, np.uint8)
    base = ffi.from_buffer("char[]", arena)
    if callback == "C":
        other = ffi.callback("eval_callback", lambda *_: False)
        calls = {"get": get, "other": other}
        places = {"plan": plan.in_c, "arena": base, "scratch": base + plan.nbytes}
        state = ffi.new("struct tracekit_state *", places | calls)
        for tensor in tensors:
            assert all(library().follow(tensor, ask, state) for ask in (True, False))
        assert not library().follow(plain, True, state) and state.place == 3  # the next graph is asked about elsewhere
    else:
        plan._get = get
        assert all(plan.computed(place, arena, base) for place in range(3))
    table = values.reshape(3, 2, 4)
    expected = [table, values.reshape(2, 3, 4).transpose(1, 0, 2), table[:2, :, :3]]
    assert np.array_equal(arena[: plan.nbytes].view(np.float32), np.concatenate([each.ravel() for each in expected]))


def test_without_a_compiler_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build = library().build
    for compiler, said in (
        ("no-such-compiler -v", r"there is no C compiler \(no-such-compiler"),
        ("false", "exit code 1"),
    ):
        monkeypatch.setenv("CC", compiler)
        with pytest.raises(NotCompiledError, match=said):
            compiled(library().ffi, build)
        assert not list(tmp_path.rglob("*.so"))
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.raises(NotCompiledError, match="Not a directory"):
        compiled(library().ffi, build)


def test_what_is_compiled_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if library().follow is None:
        pytest.skip("no C compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = {library_file(build) for build in BUILDS for _ in range(2)}
    assert set(tmp_path.rglob("*.so")) == kept
    texts = {declarations(build) for build in BUILDS}
    assert len(kept) == len(texts)  # one for each layout of its structs


def test_unknown_builds_and_other_layouts_are_refused() -> None:
    with pytest.raises(TraceError, match=r"2020\.1\.1: its interface is not known here"):
        check_build("2020.1.1")
    used = library()

    class Another:
        def __getattr__(self, name: str) -> object:
            if name != "llama_context_default_params":
                return getattr(used.lib, name)
            return lambda: used.ffi.new("struct llama_context_params *", {"n_ctx": 1})[0]

    with pytest.raises(TraceError, match="does not lay out n_ctx"):
        check_layout(used.ffi, Another(), Path("a.so"), used.build)


def test_fields_that_a_build_lacks_are_left_out_of_its_structs_alone() -> None:
    import cffi

    newest, *older = BUILDS
    assert declarations(newest) == DECLARATIONS
    for build in older:
        ffi = cffi.FFI()
        ffi.cdef(declarations(build))
        for struct, function in (
            ("struct llama_model_params", "llama_model_default_params"),
            ("struct llama_context_params", "llama_context_default_params"),
        ):
            has = {name for name, _ in ffi.typeof(struct).fields}
            assert not has & BUILDS[build] and set(defaults(build)[function]) <= has
        assert len(DECLARATIONS.splitlines()) - len(declarations(build).splitlines()) == len(BUILDS[build])


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tracekit_cli", *words], capture_output=True, text=True, check=False)


def test_the_command_line(plain: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "out.h5")
    done = run("record", "--engine", "llama.cpp", str(plain), "--prompt", PROMPT, "--max-new-tokens", "4", "-o", target)
    assert done.returncode == 0, done.stderr
    with tracekit.open(target) as trace:
        assert trace.sequences[0].step_count == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--engine", "llama", "m.gguf"), "there is no such engine"),
        (("--engine", "llama.cpp", "missing.gguf", "--prompt", "x"), "missing.gguf"),
        (("--engine", "llama.cpp", "{bad}", "--prompt", "x"), "no sound GGUF"),
        (("--engine", "llama.cpp", "{good}", "--prompt-ids", "1,999"), "999 is no token id"),
        (("--engine", "llama.cpp", "{good}", "--prompt", "x", "--cache-type", "f8"), "--cache-type f8"),
        (("--engine", "llama.cpp", "{good}"), "give --prompt TEXT"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, ...], said: str, plain: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(64))
    done = run("record", *(word.format(bad=bad, good=plain) for word in words))
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


AUDITED = {
    "Q4_1": ("Q4_1", {}),
    "Q8_0": ("Q8_0", {}),
    "Q4_0": ("Q4_0", {}),
    "float32": ("F32", {}),
    "float16": ("F16", {}),
    "Q5_1": ("Q5_1", {}),
    "no flash attention": ("Q4_1", {"flash_attention": "off"}),
    "cache in float32": ("Q4_1", {"flash_attention": "off", "cache_type": "f32"}),
    "cache in float32, read in float16": ("Q4_1", {"cache_type": "f32"}),
    "not repacked": ("Q4_0", {"repack": False}),
    "in tiles": ("Q8_0", {"prompt": PROMPT * 12}),
}


@pytest.mark.parametrize("which", AUDITED)
def test_a_clean_run_is_within_its_bounds(which: str, tmp_path: Path) -> None:
    kind, settings = AUDITED[which]
    model = tiny_gguf.write(tmp_path / "m.gguf", kind=kind)
    llama_cpp.record(model, tmp_path / "t.h5", **{"prompt": PROMPT, "max_new_tokens": 12, **settings})
    audit = tracekit.audit(tmp_path / "t.h5")
    assert not audit.departs and not audit.unknown
    assert len(audit.clean) == 29  # every site, and the logits


FAULTS = ("scale of a block", "heads swapped", "theta", "another layer's tensor")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_engine_ran_with_is_told_from_the_file(fault: str, tmp_path: Path) -> None:
    right = tiny_gguf.write(tmp_path / "right.gguf", kind="Q4_1")
    wrong = tiny_gguf.write(
        tmp_path / "wrong.gguf", tiny_gguf.Sizes(theta=20000.0 if fault == "theta" else 10000.0), kind="Q4_1"
    )
    row, site = tiny_gguf.damage(wrong, fault)
    llama_cpp.record(wrong, tmp_path / "t.h5", prompt=PROMPT, max_new_tokens=12)
    audit = tracekit.audit(tmp_path / "t.h5", right)
    if fault == "theta":
        assert {culprit.site for culprit in audit.culprits} == {
            f"model.layers.{layer}.self_attn.o_proj:in" for layer in (0, 1)
        }
        assert [difference.name for difference in audit.differences] == ["model.rope_theta"]
        explanation = audit.culprits[0].explanation
        assert explanation.mistake.id == "rotary_theta"
        assert explanation.value == pytest.approx(20000.0, rel=0.01)
        return
    assert [culprit.site for culprit in audit.culprits] == [site]
    if row is not None:
        assert audit.culprits[0].own.statistics.columns.argmax() == row


@pytest.mark.parametrize("attention", ["on", "off"])
@pytest.mark.parametrize("bias", [30.0, 100.0])
def test_another_theta_is_one_mistake_where_keys_are_large(bias: float, attention: str, tmp_path: Path) -> None:
    """Qwen2.5's biases make keys of hundreds, of which a float16 cache loses more than anything else does."""
    sizes = tiny_gguf.Sizes(heads=2, kv_heads=1, hidden=128, inner=256, key_bias=bias, theta=1e6)
    written = {
        theta: tiny_gguf.write(
            tmp_path / f"{theta:g}.gguf", replace(sizes, theta=theta), kind="Q8_0", architecture="qwen2"
        )
        for theta in (1e6, 1e7)
    }
    audits = {}
    for theta, model in written.items():
        target = tmp_path / f"{theta:g}.h5"
        llama_cpp.record(model, target, prompt=PROMPT * 3, max_new_tokens=12, flash_attention=attention)
        audits[theta] = tracekit.audit(target, written[1e6])
    assert not audits[1e6].culprits and not audits[1e6].unknown
    said = [culprit.explanation for culprit in audits[1e7].culprits]
    assert [each.mistake.id for each in said] == ["rotary_theta", "rotary_theta"]
    assert all(each.value == pytest.approx(1e7, rel=0.01) for each in said)


def test_heads_whose_columns_are_exchanged_are_named_where_blocks_have_smallest_values(tmp_path: Path) -> None:
    sizes = tiny_gguf.Sizes(heads=2)
    right = tiny_gguf.write(tmp_path / "right.gguf", sizes, kind="Q4_1")
    wrong = tiny_gguf.write(tmp_path / "wrong.gguf", sizes, kind="Q4_1")
    _, site = tiny_gguf.damage(wrong, "columns of heads swapped")
    llama_cpp.record(wrong, tmp_path / "t.h5", prompt=PROMPT, max_new_tokens=12)
    (culprit,) = tracekit.audit(tmp_path / "t.h5", right).culprits
    assert culprit.site == site
    assert culprit.explanation.mistake.id == "head_columns_permuted"
    assert culprit.explanation.values["moved"] == 2


def in_pytorch(model: Path, target: Path, ids: tuple[int, ...], tokens: int) -> Path:
    """A trace of transformers' Llama with the numbers that a file's blocks stand for."""
    import torch
    import tracekit_torch
    from transformers import LlamaConfig, LlamaForCausalLM

    checkpoint = Checkpoint(model)
    declared = {name: value for name, value in checkpoint.config.items() if name != "model_type"}
    reference = LlamaForCausalLM(LlamaConfig(**declared)).eval()
    values = {name: torch.from_numpy(checkpoint.values(name).astype(np.float32)) for name in checkpoint.names}
    missing, unexpected = reference.load_state_dict(values, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    reference.tie_weights()
    with tracekit_torch.record(reference, target):
        reference.generate(
            torch.tensor([ids]), max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    return target


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_a_stated_arithmetic_is_a_choice_of_precision_and_a_fault_beside_it_is_not(kind: str, tmp_path: Path) -> None:
    model = tiny_gguf.write(tmp_path / "m.gguf", kind=kind)
    done = llama_cpp.record(model, tmp_path / "cpp.h5", prompt=PROMPT, max_new_tokens=1)
    reference = in_pytorch(model, tmp_path / "py.h5", done.prompt, 1)
    verdict = tracekit.diff(reference, tmp_path / "cpp.h5")
    assert verdict.cause is tracekit.Cause.PRECISION and verdict.exit_code == 0
    assert not verdict.culprits
    with GgufEdited(model):
        llama_cpp.record(model, tmp_path / "wrong.h5", prompt=PROMPT, max_new_tokens=1)
    wrong = tracekit.diff(reference, tmp_path / "wrong.h5", weights=str(model))
    assert wrong.cause is tracekit.Cause.LAYER and wrong.exit_code == 1
    assert wrong.site == "model.layers.0.self_attn.q_proj"
    assert [culprit.site for culprit in wrong.culprits] == ["model.layers.0.self_attn.q_proj"]


class GgufEdited:
    """A file with two heads exchanged, for the length of a block."""

    def __init__(self, path: Path) -> None:
        self._path, self._bytes = path, path.read_bytes()

    def __enter__(self) -> None:
        tiny_gguf.damage(self._path, "heads swapped")

    def __exit__(self, *_: object) -> None:
        self._path.write_bytes(self._bytes)


def test_the_lines_of_the_readme_end_in_a_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_gguf.write(tmp_path / "model.gguf", kind="Q4_1")
    monkeypatch.chdir(tmp_path)
    section = (Path(__file__).parent.parent / "README.md").read_text().partition("## Record llama.cpp\n")[2]
    lines = [line.strip() for line in section.partition("\n## ")[0].splitlines() if line.startswith("    ")]
    assert lines[0].startswith("pip install ") and len(lines) == 4
    for line in lines[1:]:
        done = run(*shlex.split(line)[1:])
        assert done.returncode == 0, done.stderr
    assert "PARITY" in done.stdout and "precision" in done.stdout
