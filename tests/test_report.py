"""`tracekit report`: the numbers on the page, what stands in it, and that no text of a trace becomes markup."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects
import pytest

import tracekit as tk
from benchmarks import report_load
from tests.hostile_run import PROMPT, SETTING, SITES, TOKENS, write_hostile
from tests.small_run import PROMPT as PROMPT_TOKENS
from tests.small_run import STEPS, write_run
from tests.speech_traces import tracekit
from tracekit.align.pair import Pair
from tracekit.compare.yardstick import Uncalibrated
from tracekit.report.error_map import EQUAL, INFINITE, NOT_COMPARED, compared_steps, levels, site_errors
from tracekit.report.json import record_of
from tracekit.report.page import Compared, write_page
from tracekit.report.text import verdict_text
from tracekit.verdict.outcome import EndsTooSoon, Group, Postmortem, Rate, Run, Seed, State

TRACES = Path(__file__).parent.parent / "traces"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Elements(HTMLParser):
    """Every element with its attributes, and the text that a reader sees."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    @property
    def data(self) -> Any:
        """What the page's script reads."""
        return json.loads(self.scripts[0])


def page_of(*words: object) -> Elements:
    code, output = tracekit("report", *words)
    assert code == 0, output
    return Elements(Path("report.html").read_text())


def pair_of(one: Path, other: Path, title: str = "pair") -> Compared:
    reference, candidate = tk.open(one), tk.open(other)
    verdict = tk.diff(reference, candidate)
    return Compared(
        title, Pair.of(reference, candidate), record_of(verdict), verdict_text(verdict, reference, candidate)
    )


# -------------------------------------------------------------------- numbers


def errors_of(one: Path, other: Path) -> dict[str, np.ndarray]:
    reference, candidate = tk.open(one), tk.open(other)
    pair = Pair.of(reference, candidate)
    found = site_errors(pair.sequences[0], pair.sites, Uncalibrated())
    return {name: errors.ratio for name, errors in found.items()}


def test_an_error_stands_at_its_step_and_site():
    position = PROMPT_TOKENS - 1 + 3
    one = write_run(Path("one.tklog"))
    other = write_run(
        Path("other.tklog"), noise=1, change=lambda s, p, row: row * 1.01 if (s, p) == ("up", position) else row
    )
    ratios = errors_of(one, other)
    assert list(ratios) == ["up", "down", "logits"]
    assert np.flatnonzero(ratios["up"] > 1.0).tolist() == [3]
    assert np.flatnonzero(ratios["down"] > 1.0).tolist() == [3]


def test_a_harmless_rewrite_is_within_its_yardstick_everywhere():
    ratios = errors_of(write_run(Path("one.tklog")), write_run(Path("other.tklog"), noise=1))
    assert all(row.shape == (STEPS,) and 0 < row.max() < 1.0 for row in ratios.values())


def test_the_prompt_belongs_to_step_0_and_its_worst_position_counts():
    one = write_run(Path("one.tklog"))
    other = write_run(
        Path("other.tklog"), change=lambda s, p, row: row * (1.0 + 0.01 * p) if s == "up" and p < 3 else row
    )
    ratios = errors_of(one, other)["up"]
    single = errors_of(one, write_run(Path("x.tklog"), change=lambda s, p, r: r * 1.02 if (s, p) == ("up", 2) else r))[
        "up"
    ]
    assert ratios[0] == pytest.approx(single[0])
    assert (ratios[1:] == 0).all()


def test_steps_after_the_tokens_part_are_not_on_the_map():
    one = write_run(Path("one.tklog"))
    other = write_run(Path("other.tklog"), pick=lambda step, token, ids: int(ids[-1]) if step == 2 else token)
    pair = Pair.of(tk.open(one), tk.open(other)).sequences[0]
    assert compared_steps(pair) == 3
    assert len(errors_of(one, other)["up"]) == 3


def test_a_ratio_survives_as_a_byte():
    ratios = np.array([[0.02, 0.9, 1.1, 3e4], [0.0, np.nan, np.inf, 7.0]])
    found = levels(ratios, 4, 1000)
    codes = np.frombuffer(base64.b64decode(str(found.to_json()["codes"])), np.uint8).reshape(2, 4)
    assert codes[1, :3].tolist() == [EQUAL, NOT_COMPARED, INFINITE]
    known = [0.02, 0.9, 1.1, 3e4, 7.0]
    back = 10 ** (found.low + (codes[[0, 0, 0, 0, 1], [0, 1, 2, 3, 3]] - 2.0) / 252 * (found.high - found.low))
    # Half a code: 10 ** (7 / 504) over the seven powers of ten that these numbers span.
    np.testing.assert_allclose(back, known, rtol=10 ** ((found.high - found.low) / 504) - 1 + 1e-9)


def test_more_steps_than_fit_share_columns_and_keep_the_largest():
    ratios = np.ones((3, 10))
    ratios[1, 7] = 500.0
    ratios[2, 9] = np.nan
    found = levels(ratios, 10, 12)
    assert (found.steps_a_bin, found.codes.shape) == (3, (3, 4))
    assert found.codes[1].argmax() == 2
    assert found.codes[2, 3] == NOT_COMPARED


# -------------------------------------------------------------------- what stands on the page


def test_the_verdict_comes_first_and_in_words():
    text = page_of(TRACES / "python.h5", TRACES / "layer.h5", "--oracle", TRACES / "oracle.h5").text
    order = [
        "A layer computes something else",
        "model.layers.1.self_attn.o_proj:in",
        "rotary theta 500000 instead of 10000",
        "The same up to step 5, where the tokens differ.",
        "29 sites by 6 steps",
        "recomputed in float64",
        "Step 5, where the tokens differ",
        "rope_theta",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_the_map_names_the_culprit_and_has_both_errors():
    data = page_of(TRACES / "python.h5", TRACES / "layer.h5").data[0]
    sites = [site["name"] for site in data["sites"]]
    assert [sites[row] for row in data["culprits"]] == ["model.layers.1.self_attn.o_proj:in"]
    assert [one["label"] for one in data["maps"]] == ["error over yardstick", "local error over bound"]
    own = data["maps"][1]
    codes = np.frombuffer(base64.b64decode(own["codes"]), np.uint8).reshape(own["rows"], own["columns"])
    assert sites[int(codes.max(axis=1).argmax())] == "model.layers.1.self_attn.o_proj:in"
    assert sites[-1] == "logits"


def test_what_plotly_draws_are_figures_that_plotly_accepts():
    data = page_of(TRACES / "python.h5", TRACES / "layer.h5").data[0]
    for figure in (*(one["figure"] for one in data["maps"]), data["layers"], data["steps"]):
        plotly.graph_objects.Figure(figure)  # raises ValueError for a name or a value that it does not know


def test_without_a_checkpoint_the_layers_show_the_error_against_the_reference_and_say_so():
    write_run(Path("one.tklog"))
    write_run(Path("other.tklog"), noise=1)
    page = page_of("one.tklog", "other.tklog")
    assert "inherited errors included" in page.text
    assert len(page.data[0]["maps"]) == 1


def test_traces_without_layers_have_a_sentence_in_place_of_the_map():
    page = page_of(TRACES / "python.h5", TRACES / "filter.h5")
    assert "The candidate recorded no layers" in page.text
    assert page.data[0]["maps"] == []
    assert "at the cut" in page.text


def test_other_prompts_have_a_sentence_in_place_of_the_map():
    write_run(Path("one.tklog"))
    write_run(Path("other.tklog"), prompt=(5, 6, 7, 9))
    page = page_of("one.tklog", "other.tklog")
    assert "The prompts differ" in page.text
    assert page.data[0]["maps"] == []


def test_noise_is_what_errors_are_measured_against():
    one, noise, other = (write_run(Path(f"{seed}.tklog"), noise=seed) for seed in range(3))
    text = page_of(one, other, "--noise", noise).text
    assert "harmless variation" in text and "oracle (tracekit oracle)" not in text
    code, said = tracekit("report", one, "--noise", noise)
    assert code == 2 and "leave out --noise" in said


def test_one_trace_alone_is_shown_with_its_audit():
    page = page_of(TRACES / "layer.h5", "--weights", TRACES / "model")
    assert "It departs from its checkpoint" in page.text
    assert "rotary theta 500000 instead of 10000" in page.text
    assert [one["label"] for one in page.data[0]["maps"]] == ["local error over bound"]


def test_one_trace_alone_without_a_checkpoint_says_what_it_holds():
    page = page_of(write_run(Path("one.tklog")))
    assert "6 steps in 1 sequences" not in page.text
    assert "6 steps, 2 sites" in page.text
    assert "give --weights" in page.text


def test_a_setting_that_acts_is_marked_and_one_that_only_reads_otherwise_is_not():
    write_run(Path("one.tklog"))
    write_run(Path("other.tklog"), stated={"top_p": 0.8}, used={"top_p": 0.8})
    page = Path("report.html") if page_of("one.tklog", "other.tklog") else None
    assert page is not None
    rows = re.findall(r'<tr class="([\w-]+)"><th scope="row">([\w.]+)</th>', page.read_text())
    marks = {name: mark for mark, name in rows}
    assert (marks["top_p"], marks["top_k"]) == ("acts", "same")


# -------------------------------------------------------------------- the postmortem


def outcome() -> Postmortem:
    """Four seeds, one in each state that a reader must tell apart."""
    run = Run(0, 6, ("length",))
    seeds = (
        Seed(0, State.FAIL, run, Run(0, 4, ("stop",), fallbacks=1), 0, 2, margins=(0.5, 0.02)),
        Seed(1, State.PASS, run, run, margins=(1.0,)),
        Seed(2, State.LATENT, run, run, apart=2e-4),
        Seed(3, State.CRASH, run, Run(101, 0, trouble="thread main panicked: <script>")),
    )
    rate = Rate(2, 4, 0.15, 0.85)
    group = Group(
        name="layer-gain",
        cause="layer",
        site="up",
        mechanism="gain",
        failing=True,
        seeds=(0, 2),
        steps=(2, 2),
        latent=(2,),
        example=0,
        verdict=None,
        text="DIVERGENCE  layer\n  at </pre><script>",
        rate=rate,
        luck=EndsTooSoon(10, 7, 3),
        overlaps={"crash": (3,)},
    )
    return Postmortem(
        "python a.py --seed {seed}", "./b --seed {seed}", seeds, (group,), rate, control=1, control_text="PARITY"
    )


def test_a_postmortem_shows_its_groups_and_its_seeds():
    write_page(Path("report.html"), [], outcome())
    page = Elements(Path("report.html").read_text())
    said = (
        "2 of 4 seeds fail, all alike",
        "2 of 4, 50 % (95 % interval 15 to 85 %)",
        "3 of 10 passing seeds end before step 7",
        "all the same with 1 of them: 2",
        "at </pre><script>",
        "thread main panicked: <script>",
        "seeds 3",
        "Control: seed 1",
    )
    assert [part for part in said if part not in page.text] == []
    states = [
        attributes["data-state"] for tag, attributes in page.elements if tag == "tr" and "data-state" in attributes
    ]
    assert states == ["fail", "pass", "latent", "crash"]


def test_a_group_links_to_its_example():
    one, other = write_run(Path("one.tklog")), write_run(Path("other.tklog"), noise=1)
    write_page(Path("report.html"), [pair_of(one, other, "layer-gain")], outcome())
    buttons = [attributes for tag, attributes in Elements(Path("report.html").read_text()).elements if tag == "button"]
    assert [one["data-title"] for one in buttons if "data-title" in one] == ["layer-gain"]


# -------------------------------------------------------------------- bytes


def test_the_same_traces_give_the_same_bytes_in_every_process():
    command = [
        sys.executable,
        "-m",
        "tracekit_cli.main",
        "report",
        *(str(TRACES / f"{name}.h5") for name in ("python", "layer", "rng")),
    ]
    for seed in ("1", "2"):
        subprocess.run([*command, "-o", f"{seed}.html"], check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    assert Path("1.html").read_bytes() == Path("2.html").read_bytes()


def test_the_same_postmortem_gives_the_same_bytes():
    one, other = write_run(Path("one.tklog")), write_run(Path("other.tklog"), noise=1)
    for name in ("1.html", "2.html"):
        write_page(Path(name), [pair_of(one, other)], outcome())
    assert Path("1.html").read_bytes() == Path("2.html").read_bytes()


def test_a_thousand_steps_by_four_hundred_sites_and_a_hundred_seeds_stay_below_10_mb():
    runs = report_load.write_runs(Path(), 1000, 400, 3)
    write_page(Path("report.html"), report_load.pairs(runs), report_load.postmortem(runs, 100, 1000))
    assert Path("report.html").stat().st_size < 10_000_000
    data = Elements(Path("report.html").read_text()).data
    assert [(one["maps"][0]["rows"], one["maps"][0]["columns"]) for one in data] == [(400, 1000)] * 3


# -------------------------------------------------------------------- hostile texts


def hostile_page() -> Elements:
    page_of(write_hostile(Path("one.tklog")), write_hostile(Path("other.tklog"), wrong=True))
    return Elements(Path("report.html").read_text())


def test_texts_of_a_trace_stay_text():
    page = hostile_page()
    allowed = {None, "application/json", "text/plain"}
    scripts = [attributes.get("type") for tag, attributes in page.elements if tag == "script"]
    assert scripts == ["application/json", "text/plain", None]
    assert set(scripts) <= allowed
    assert not [tag for tag, _ in page.elements if tag in ("img", "svg", "u", "iframe", "object", "link")]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text
    assert PROMPT.split("\u2028")[0] in page.text
    assert SETTING in page.text
    assert [site["name"] for site in page.data[0]["sites"]] == [*SITES, "logits"]


def test_what_is_inlined_for_the_script_holds_no_markup():
    hostile_page()
    page = Path("report.html").read_bytes()
    begin = page.index(b'id="data">') + len(b'id="data">')
    inlined = page[begin : page.index(b"</script>", begin)]
    assert not re.search(rb"[<>&\x80-\xff]", inlined)
    assert b"\\u003c/script\\u003e" in inlined


def test_control_characters_and_lone_surrogates_are_shown_as_escapes():
    text = hostile_page().text
    assert "\\u2028" in text and "\\ud800" in text
    assert "\u2028" not in text
    assert TOKENS[3] in text  # entities of the trace are not decoded


def test_the_page_may_connect_to_nothing_and_runs_two_scripts_of_its_own():
    page = hostile_page()
    policy = next(attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'; script-src 'sha256-")
    scripts = policy.split(";")[1]
    assert scripts.count("sha256-") == 2 and "unsafe" not in scripts
    assert not re.search(
        r"""(src|href)\s*=\s*["']?(https?:)?//""", Path("report.html").read_text().split('id="plotly"')[0]
    )


# -------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("missing.h5",), "cannot be read"),
        (("text.h5",), "neither a log"),
        ((TRACES / "python.h5", "text.h5"), "neither a log"),
        ((TRACES / "python.h5", TRACES / "native.h5", "--oracle", "text.h5"), "neither a log"),
        ((TRACES / "python.h5", "--oracle", TRACES / "oracle.h5"), "leave out --oracle"),
        ((TRACES / "layer.h5", "--weights", "missing"), "No such file or directory"),
        ((TRACES / "python.h5", TRACES / "native.h5", "-o", "missing/report.html"), "cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(words: tuple[object, ...], said: str):
    Path("text.h5").write_text("no trace")
    code, output = tracekit("report", *words)
    assert (code, said in output) == (2, True), output
    assert sorted(path.name for path in Path().iterdir()) == ["text.h5"]


@pytest.mark.parametrize("missing", ["jinja2", "plotly.offline"])
def test_without_its_libraries_it_says_how_to_get_them(missing: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, missing, None)  # what Python does where a module is not installed
    code, output = tracekit("report", TRACES / "python.h5", TRACES / "native.h5")
    assert (code, "pip install 'tracekit[report]'" in output) == (2, True), output


def test_a_page_that_is_there_is_replaced_whole():
    Path("report.html").write_text("yesterday's")
    page_of(TRACES / "python.h5", TRACES / "native.h5")
    assert "The two runs agree within rounding" in Path("report.html").read_text()
    assert sorted(path.name for path in Path().iterdir()) == ["report.html"]
