"""Sites under other names: maps of names, fused projections on either side, and maps that are proposed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tracekit_cli.main import group

import tracekit
from tests.spoken import evidence
from tracekit.align.proposals import FoundBy, propose
from tracekit.align.sites import align_sites
from tracekit.formats.log import LogWriter
from tracekit.formats.name_map import Alias, NameMap, read_names
from tracekit.inspection.losses import ResultsNotCompared, Rows, SitesUnlike
from tracekit.report.names_text import names_toml
from tracekit.report.words import sentence
from tracekit.trace import TraceError

ROOT = Path(__file__).parent.parent
FUSED = """
[names]
"self_attn.qkv_proj" = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
"mlp.gate_up_proj" = ["mlp.gate_proj", "mlp.up_proj"]
"""
BOTH = ("--variant", "fused-qkv-site", "--variant", "fused-gate-up-site")
Run = Callable[..., Path]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Records the native engine on a tiny Llama and gives the log's path."""
    spec = importlib.util.spec_from_file_location("make_tiny_model", ROOT / "scripts/make_tiny_model.py")
    assert spec is not None and spec.loader is not None
    tiny = importlib.util.module_from_spec(spec)
    sys.modules["make_tiny_model"] = tiny
    spec.loader.exec_module(tiny)
    folder = tmp_path_factory.mktemp("llama")
    tiny.make("llama", folder)
    engine = os.environ.get("TRACEKIT_NATIVE", str(ROOT / "hooks/rust/target/release/tracekit-native"))

    def record(*arguments: str) -> Path:
        log = folder / ("-".join(arguments).replace("/", "_") + ".tklog")
        if not log.exists():
            words = ["--model", str(folder), "--prompt-ids", "72,101,50,290", "--max-new-tokens", "8", "--seed", "0"]
            environment = {**os.environ, "TRACEKIT_LOG": str(log)}
            subprocess.run([engine, *words, *arguments], env=environment, check=True, capture_output=True)
        return log

    return record


@pytest.fixture
def fused(tmp_path: Path) -> Path:
    path = tmp_path / "names.toml"
    path.write_text(FUSED)
    return path


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(group, [str(word) for word in words])


def refused(*words: str | Path) -> str:
    """The one line of a command that is given something wrong."""
    with pytest.raises(TraceError) as caught:
        group.main([str(word) for word in words], standalone_mode=False)
    said = str(caught.value)
    assert "\n" not in said
    return said


# -------------------------------------------------------------------- fused projections


@pytest.mark.parametrize("fused_side", ["candidate", "reference"])
def test_fused_sites_are_compared_part_by_part(run: Run, fused: Path, fused_side: str) -> None:
    pair = (run(), run(*BOTH)) if fused_side == "candidate" else (run(*BOTH), run())
    without = tracekit.diff(*map(tracekit.open, pair))
    assert getattr(without.unmatched, fused_side)
    done = call("diff", "--strict", "--names", fused, *pair)
    assert (done.exit_code, "PARITY" in done.output) == (0, True), done.output
    verdict = tracekit.diff(*map(tracekit.open, pair), names=read_names(fused))
    assert verdict.compared is not None and without.compared is not None
    assert verdict.compared.sites > without.compared.sites
    assert verdict.audit is not None and not verdict.audit.not_audited


@pytest.mark.parametrize("module", ["self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"])
def test_a_mistake_in_a_part_of_a_fused_site_is_named(run: Run, fused: Path, module: str) -> None:
    site = f"model.layers.1.{module}"
    faulty = run(*BOTH, "--fault", f"gain:{site}:1.01")
    verdict = tracekit.diff(tracekit.open(run()), tracekit.open(faulty), names=read_names(fused))
    assert (verdict.cause, verdict.site, verdict.step) == ("layer", site, 0)
    assert verdict.explanation is not None and sentence(verdict.explanation) == "gain 1.01"
    whole = "qkv_proj" if "attn" in module else "gate_up_proj"
    assert any(f"{whole}, columns" in line for line in evidence(verdict))
    audited = call("audit", "--names", fused, faulty)
    assert audited.exit_code == 1 and f"{site} at step 0" in audited.output


def test_a_report_shows_the_parts_of_a_fused_site(run: Run, fused: Path, tmp_path: Path) -> None:
    part = "model.layers.1.self_attn.k_proj"
    page = tmp_path / "report.html"
    traces = run(), run(*BOTH, "--fault", f"gain:{part}:1.01")
    done = call("report", "--names", fused, "-o", page, *traces)
    assert done.exit_code == 0, done.output
    assert part in page.read_text() and "gain 1.01" in page.read_text()
    assert call("report", "-o", page, *traces).exit_code == 0
    assert "gain 1.01" not in page.read_text()
    assert "leave out --names" in refused("report", "--names", fused, traces[0])


# -------------------------------------------------------------------- other names


def write(path: Path, names: dict[str, str], prompt: tuple[int, ...] = (1, 2, 3), noise: float = 0.0) -> tracekit.Trace:
    """Two layers of three modules, 8, 6 and 6 wide, under the names given for `first`, `second` and `third`."""
    log = LogWriter(path)
    sites = [pattern.format(layer) for layer in range(2) for pattern in names.values()]
    log.open("python", dtype="float32", model={"hidden_size": 8})
    log.sites([{"name": name, "class": "Linear", "order": order} for order, name in enumerate(sites)])
    log.sequence(0, {"prompt/token_ids": np.array(prompt)})
    values = {}
    for index, name in enumerate(sites):
        truth = np.random.default_rng([index, *prompt]).standard_normal((len(prompt), 8 if index % 3 == 0 else 6))
        values[name] = (truth * (1.0 + noise)).astype(np.float32)
    log.call(0, 0, len(prompt), values)
    log.end_sequence(0, 0, "done")
    log.close()
    return tracekit.open(path)


OURS = {"first": "layers.{}.attn.out", "second": "layers.{}.mlp.up_proj", "third": "layers.{}.mlp.gate_proj"}
THEIRS = {"first": "layers.{}.attn.out", "second": "layers.{}.ffn.w3", "third": "layers.{}.ffn.w1"}


def test_names_are_proposed_by_values(tmp_path: Path) -> None:
    reference, candidate = write(tmp_path / "a.tklog", OURS), write(tmp_path / "b.tklog", THEIRS, noise=1e-7)
    found = propose(reference, candidate)
    assert {line.alias.name: line.alias.parts for line in found.lines} == {
        "layers.{N}.ffn.w3": ("layers.{N}.mlp.up_proj",),
        "layers.{N}.ffn.w1": ("layers.{N}.mlp.gate_proj",),
    }
    assert {line.by for line in found.lines} == {FoundBy.VALUES}
    assert (found.matched, found.left_reference, found.left_candidate) == (2, (), ())
    verdict = tracekit.diff(reference, candidate, names=found.names)
    assert verdict.verdict == "parity" and not verdict.unmatched.reference
    # The map says what belongs together, not that it is equal.
    off = write(tmp_path / "c.tklog", THEIRS, noise=0.05)
    named = tracekit.diff(reference, off, names=found.names)
    assert (named.cause, named.site) == ("layer", "layers.0.attn.out")


def test_names_are_proposed_by_likeness_where_values_cannot_tell(tmp_path: Path) -> None:
    theirs = OURS | {"second": "layers.{}.mlp.up", "third": "layers.{}.mlp.gate"}
    other_text = write(tmp_path / "b.tklog", theirs, prompt=(4, 5, 6))
    found = propose(write(tmp_path / "a.tklog", OURS), other_text)
    assert {line.alias.name: line.alias.parts[0] for line in found.lines} == {
        "layers.{N}.mlp.up": "layers.{N}.mlp.up_proj",
        "layers.{N}.mlp.gate": "layers.{N}.mlp.gate_proj",
    }
    assert FoundBy.VALUES not in {line.by for line in found.lines}


def test_a_name_that_the_other_side_has_with_more_before_it_stays(tmp_path: Path) -> None:
    """The line for `norm` stands for every name that ends so, and the reference's `model.norm` ends so."""
    ours = {"first": "model.norm.{}", "second": "model.layers.{}", "third": "model.layers.{}.mlp"}
    theirs = {"first": "norm.{}", "second": "layers.{}", "third": "layers.{}.ffn"}
    reference, candidate = write(tmp_path / "a.tklog", ours), write(tmp_path / "b.tklog", theirs, noise=1e-7)
    lines = (
        ("norm.{N}", "model.norm.{N}"),
        ("layers.{N}", "model.layers.{N}"),
        ("layers.{N}.ffn", "model.layers.{N}.mlp"),
    )
    names = NameMap(tuple(Alias(name, (value,)) for name, value in lines))
    verdict = tracekit.diff(reference, candidate, names=names)
    assert verdict.verdict == "parity" and verdict.compared.sites == 6
    assert not verdict.unmatched.reference and not verdict.unmatched.candidate
    off = tracekit.diff(reference, write(tmp_path / "c.tklog", theirs, noise=0.05), names=names)
    assert (off.cause, off.site) == ("layer", "model.norm.0")


def test_sites_of_layers_are_no_parts_of_a_site_outside_of_them(tmp_path: Path) -> None:
    """A map is proposed that `diff` can read: one number of the parts for one of the whole."""
    theirs = {"first": "a.{}", "second": "q.{}", "third": "r.{}"}
    reference = write(tmp_path / "a.tklog", OURS, prompt=(1, 2))
    log = LogWriter(tmp_path / "b.tklog")
    log.open("python", dtype="float32", model={})
    log.sites([{"name": "output", "class": "Linear", "order": 0}])
    log.sequence(0, {"prompt/token_ids": np.array([1, 2])})
    log.call(0, 0, 2, {"output": np.ones((2, 12), np.float32)})
    log.end_sequence(0, 0, "done")
    log.close()
    with tracekit.open(tmp_path / "b.tklog") as whole:
        found = propose(reference, whole)
        assert found.lines == () and found.left_candidate == ("output",)
    fused = write(tmp_path / "c.tklog", theirs, prompt=(1, 2))
    (tmp_path / "names.toml").write_text(names_toml(propose(reference, fused)))
    assert read_names(tmp_path / "names.toml").aliases


@pytest.mark.parametrize("third, compared", [("layers.{}.mlp.gate_proj", True), ("layers.{}.ffn.w1", False)])
def test_runs_without_steps_whose_results_have_other_names_are_no_parity(
    tmp_path: Path, third: str, compared: bool
) -> None:
    """What lies before a result that is compared may have any name."""
    reference = write(tmp_path / "a.tklog", OURS)
    verdict = tracekit.diff(reference, write(tmp_path / "b.tklog", THEIRS | {"third": third}))
    assert verdict.verdict == ("parity" if compared else "withheld")
    apart = [each for each in verdict.evidence if isinstance(each, ResultsNotCompared)]
    site, other = "layers.1.mlp.gate_proj", "layers.1.ffn.w1"
    assert apart == ([] if compared else [ResultsNotCompared(reference.path, 0, site, other)])


@pytest.mark.parametrize(
    ("width", "axis", "rows"),
    [(12, None, None), (8, None, Rows(8, None)), (12, "encoder", Rows(12, "encoder"))],
    ids=["alike", "another width", "another axis"],
)
def test_sites_that_cannot_be_compared_are_no_parity(
    tmp_path: Path, width: int, axis: str | None, rows: Rows | None
) -> None:
    """Both sides recorded them, so that neither lists them as its own."""
    for name, own_width, own_axis in (("a", 12, None), ("b", width, axis)):
        log = LogWriter(tmp_path / f"{name}.tklog")
        log.open("python", dtype="float32", model={})
        log.sites([{"name": site, "class": "Linear", "order": at} for at, site in enumerate(("first", "out"))])
        log.sequence(0, {"prompt/token_ids": np.array([1, 2])})
        log.call(0, 0, 2, {"first": np.ones((2, own_width), np.float32)}, own_axis)
        log.call(0, 0, 2, {"out": np.ones((2, 4), np.float32)})
        log.end_sequence(0, 0, "done")
        log.close()
    verdict = tracekit.diff(tmp_path / "a.tklog", tmp_path / "b.tklog")
    assert verdict.verdict == ("parity" if rows is None else "withheld")
    unlike = [each for each in verdict.evidence if isinstance(each, SitesUnlike)]
    path = str(tmp_path / "a.tklog")
    assert unlike == ([] if rows is None else [SitesUnlike(path, 0, "first", Rows(12, None), rows, 0)])


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ({"lm_head": ("Linear", "embed.weight", 1.0)}, "parity"),
        ({"lm_head": ("Linear", "embed.weight", 1.1)}, "divergence"),
        ({"lm_head": ("Linear", "lm_head.weight", 1.0)}, "withheld"),
        ({"lm_head": ("Conv1d", "embed.weight", 1.0)}, "withheld"),
        ({"one": ("Linear", "embed.weight", 1.0), "two": ("Linear", "embed.weight", 1.0)}, "withheld"),
    ],
    ids=["the same table", "a fault in it", "another table", "another class", "which of two is not known"],
)
def test_a_head_has_the_partner_that_reads_the_same_table(
    tmp_path: Path, rows: dict[str, tuple[str, str, float]], verdict: str
) -> None:
    """Each program has a name of its own for a head that shares the embeddings' table."""
    for file, heads in (("a", {"decoder": ("Linear", "embed.weight", 1.0)}), ("b", rows)):
        log = LogWriter(tmp_path / f"{file}.tklog")
        log.open("python", dtype="float32", model={})
        table = [{"name": "embed", "class": "Embedding", "order": 0, "parameters": {"weight": "embed.weight"}}]
        for order, (name, (kind, weight, _)) in enumerate(heads.items(), 1):
            table.append({"name": name, "class": kind, "order": order, "parameters": {"weight": weight}})
        log.sites(table)
        log.sequence(0, {"prompt/token_ids": np.array([1, 2])})
        values = {name: np.full((2, 4), gain, np.float32) for name, (_, _, gain) in heads.items()}
        log.call(0, 0, 2, {"embed": np.ones((2, 4), np.float32), **values})
        log.end_sequence(0, 0, "done")
        log.close()
    found = tracekit.diff(tmp_path / "a.tklog", tmp_path / "b.tklog")
    assert (found.verdict, found.site) == (verdict, "decoder" if verdict == "divergence" else None)


def test_what_is_like_nothing_is_left_and_said(tmp_path: Path) -> None:
    write(tmp_path / "a.tklog", OURS)
    write(tmp_path / "b.tklog", OURS | {"second": "zzz.{}.qqq"}, prompt=(7, 8))
    done = call("names", tmp_path / "a.tklog", tmp_path / "b.tklog")
    assert done.exit_code == 1 and "zzz.{N}.qqq" in done.output


def test_fused_projections_are_proposed_and_written(run: Run, tmp_path: Path) -> None:
    for pair in ((run(), run(*BOTH)), (run(*BOTH), run())):
        out = tmp_path / "proposed.toml"
        assert call("names", *pair, "-o", out).exit_code == 0
        proposed = read_names(out)
        told = json.loads(call("names", *pair, "--json").stdout)
        assert {row["name"]: tuple(row["parts"]) for row in told["names"]} == {
            alias.name: alias.parts for alias in proposed.aliases
        }
        assert told["unmatched"] == {"reference": [], "candidate": []}
        assert proposed.parts("model.layers.1.mlp.gate_up_proj") == (
            "model.layers.1.mlp.gate_proj",
            "model.layers.1.mlp.up_proj",
        )
        assert call("diff", "--strict", "--names", out, *pair).exit_code == 0


# -------------------------------------------------------------------- maps


def test_a_map_reads_what_it_writes(tmp_path: Path) -> None:
    lines = (Alias("a.{N}.b", ("c.{N}.d",)), Alias('q"k', ("q", "k")), Alias("h\\x", ("y",)))
    path = tmp_path / "names.toml"
    path.write_text(NameMap(lines).to_toml(["why", "", "# more"]))
    assert read_names(path).aliases == lines


def test_a_line_stands_for_names_that_end_so() -> None:
    names = NameMap((Alias("attn.qkv", ("attn.q", "attn.k")), Alias("h.{N}.{M}.fc", ("l.{M}.x.{N}",))))
    assert names.parts("model.layers.3.attn.qkv") == ("model.layers.3.attn.q", "model.layers.3.attn.k")
    assert names.parts("attn.qkv") == ("attn.q", "attn.k")
    assert names.parts("h.1.2.fc") == ("l.2.x.1",)
    assert names.parts("my_attn.qkv") is None and names.parts("h.1.fc") is None
    longer = NameMap((Alias("norm", ("model.norm",)), Alias("wide.{N}", ("a.{N}", "model.wide.{N}"))))
    assert longer.parts("norm") == ("model.norm",) and longer.parts("t.norm") == ("t.model.norm",)
    assert longer.parts("model.norm") is None and longer.parts("model.wide.3") is None
    assert longer.parts("b.wide.3") == ("b.a.3", "b.model.wide.3")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[names", "is not TOML"),
        ("x = 1", "has no table [names]"),
        ("[names]\na = 3", '"a": is neither a name nor a list'),
        ("[names]\na = []", '"a": is neither a name nor a list'),
        ('[names]\n"a.b" = "c.{N}"', "{N}, which the name has not"),
        ('[names]\n"a.{N}.{N}" = "c.{N}"', "a name of its own"),
        ('[names]\n"self_attn.qkv_proj" = ["self_attn.q_proj", "self_attn.v_proj"]', "wide, its parts"),
    ],
)
def test_a_bad_map_is_one_line_and_exit_2(run: Run, tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    line = refused("diff", "--names", path, run(), run(*BOTH))
    assert str(path) in line and said in line


def test_a_map_that_is_not_there(run: Run, tmp_path: Path) -> None:
    assert "cannot be read" in refused("diff", "--names", tmp_path / "none.toml", run(), run())


# -------------------------------------------------------------------- transposed weights


@pytest.mark.parametrize(("theirs", "verdict"), [("Linear", "parity"), ("Conv1D", "divergence")])
def test_a_weight_that_one_side_stores_transposed_is_no_other_weight(tmp_path: Path, theirs: str, verdict: str) -> None:
    """A port of GPT-2 holds the square weights of `Conv1D` transposed: other bytes, same weight."""

    def write_one(name: str, module_class: str, digest: int) -> tracekit.Trace:
        log = LogWriter(tmp_path / f"{name}.tklog")
        weight = {"name": "c_proj.weight", "dtype": "float32", "shape": [4, 4], "digest": digest}
        site = {"name": "c_proj", "class": module_class, "order": 0, "parameters": {"weight": "c_proj.weight"}}
        log.open("python", dtype="float32", weights=[weight], sites=[site])
        log.sequence(0)
        log.call(0, 0, 2, {"c_proj": np.arange(8.0, dtype=np.float32).reshape(2, 4)})
        log.end_sequence(0, 0, "done")
        log.close()
        return tracekit.open(log.path)

    found = tracekit.diff(write_one("one", "Conv1D", 1), write_one("other", theirs, 2))
    assert found.verdict == verdict
    assert found.cause == (None if verdict == "parity" else "weights")


# -------------------------------------------------------------------- a head that one side keeps as the logits


def head_log(path: Path, recorded_as: str | None, more: float = 0.0, prompt_rows: int = 0) -> tracekit.Trace:
    """Three steps of a model of one norm and its head, which is recorded as the logits, or as a site as well."""
    logits = np.random.default_rng(1).standard_normal((3 + prompt_rows, 5)).astype(np.float32)
    log = LogWriter(path)
    head = {"name": "lm_head", "class": "Linear", "order": 1, "input": "norm", "recorded_as": recorded_as}
    log.open("python", dtype="float32", sites=[{"name": "norm", "class": "RMSNorm", "order": 0}, head])
    log.sequence(0, {"prompt/ids": np.array([1, 2], np.int64)})
    for step in range(3):
        first, rows = (0, 2) if step == 0 else (1 + step, 1)
        values = {"norm": np.ones((rows, 4), np.float32)}
        log.call(0, first, rows, values)
        if recorded_as is None:
            kept = 1 + prompt_rows if step == 0 else 1
            at = 0 if step == 0 else prompt_rows + step
            log.call(0, 1 + step - (kept - 1), kept, {"lm_head": logits[at : at + kept]})
        row = logits[prompt_rows + step]
        log.step(0, step, 1 + step, int(row.argmax()), {"logits": row + np.float32(more)})
    log.end_sequence(0, 3, "length")
    log.close()
    return tracekit.open(path)


@pytest.mark.parametrize(
    ("more", "prompt_rows", "left"), [(0.0, 0, ()), (1.0, 0, ("lm_head",)), (0.0, 1, ("lm_head",))]
)
def test_a_head_that_is_the_logits_is_compared_with_them(
    tmp_path: Path, more: float, prompt_rows: int, left: tuple[str, ...]
) -> None:
    """Other logits, or rows of the prompt besides, are compared with nothing: then the site has no partner."""
    kept = head_log(tmp_path / "logits.tklog", "logits")
    stored = head_log(tmp_path / "site.tklog", None, more, prompt_rows)
    for one, other in ((kept, stored), (stored, kept)):
        found = align_sites(one, other)
        assert [pair.name for pair in found.pairs] == ["norm"]
        assert (found.unmatched_reference, found.unmatched_candidate) == ((left, ()) if one is stored else ((), left))
