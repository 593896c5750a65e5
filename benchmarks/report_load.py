"""A large report: its size, the time to make it, and the time until a browser answers.

    python benchmarks/report_load.py [--steps 1000] [--sites 400] [--seeds 100] [--groups 3] [--keep large.html]

Runs of so many steps and sites are written by hand, one more for each group of seeds, with an error planted at one
site. The page of the postmortem is opened in Chromium; printed are bytes and seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import tracekit
from tracekit.align.pair import Pair
from tracekit.formats.log import LogWriter
from tracekit.report.json import record_of
from tracekit.report.page import Compared, write_page
from tracekit.report.text import verdict_text
from tracekit.verdict.outcome import Group, Postmortem, Rate, Run, Seed, State
from tracekit.verdict.record import VerdictRecord

if TYPE_CHECKING:
    from playwright.sync_api import Page

WIDTH, VOCABULARY, PROMPT = 8, 64, 6
LOADING = 6.0
"""Seconds after which a page is looked at."""
A_LAYER = 13
"""Sites of a layer."""
PLANTED = 1e-3
"""Relative error of the planted fault: a thousand times what float32 rounds."""
PARTS = (
    *("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj:in"),
    *("self_attn.o_proj", "post_attention_layernorm:in", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj"),
    *("mlp.down_proj:in", "mlp.down_proj"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("steps", 1000), ("sites", 400), ("seeds", 100), ("groups", 3), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep", type=Path, help="where to leave the page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        runs = write_runs(folder, options.steps, options.sites, options.groups)
        page = options.keep or folder / "large.html"
        began = time.perf_counter()
        write_page(page, pairs(runs), postmortem(runs, options.seeds, options.steps))
        print(f"{options.steps} steps x {options.sites} sites, {options.seeds} seeds in {options.groups} groups")
        print(f"{'size':34} {page.stat().st_size / 1e6:7.2f} MB (aim 10)")
        print(f"{'made in':34} {time.perf_counter() - began:7.2f} s, comparing the traces included")
        measured = [load(page) for _ in range(options.rounds)]
        for name in measured[0]:
            aim = " (aim 2)" if name == "the map is drawn" else ""
            print(f"{name:34} {statistics.median(row[name] for row in measured):7.2f} s{aim}")


def write_runs(folder: Path, steps: int, sites: int, groups: int) -> list[Path]:
    """The reference's log and one for each group."""
    wrong = [None, *(site_names(sites)[(2 * group + 1) * sites // (2 * groups)] for group in range(groups))]
    return [write_run(folder / f"run{index}.tklog", steps, sites, site, index) for index, site in enumerate(wrong)]


def site_names(count: int) -> list[str]:
    """As a decoder's are called, in execution order."""
    names = ["model.embed_tokens"]
    for layer in range(count // A_LAYER + 1):
        names += [f"model.layers.{layer}.{part}" for part in PARTS] + [f"model.layers.{layer}"]
    return names[: count - 1]  # the logits are the last


def write_run(path: Path, steps: int, sites: int, wrong: str | None, noise: int) -> Path:
    """A run that is forced onto given tokens: all positions come in two calls, so that it is written quickly."""
    names = site_names(sites)
    rounding = np.random.default_rng(noise)
    log = LogWriter(path)
    model = {"hidden_size": WIDTH, "vocab_size": VOCABULARY, "num_hidden_layers": sites // A_LAYER}
    rows = [{"name": name, "class": "Linear", "order": order} for order, name in enumerate(names)]
    log.open("native" if noise else "python", dtype="float32", seed=1, model=model, sites=rows)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, PROMPT + steps)
    settings = {"do_sample": True, "temperature": 0.8, "max_new_tokens": steps}
    log.sequence(0, {"prompt/token_ids": tokens[:PROMPT]}, sampling=settings, seed=1, prompt_text="a long speech")
    positions = PROMPT + steps - 1
    values = {
        name: _values(order, positions, rounding, wrong is not None and order >= names.index(wrong))
        for order, name in enumerate(names)
    }
    log.call(0, 0, PROMPT, {name: value[:PROMPT] for name, value in values.items()})
    log.call(0, PROMPT, positions - PROMPT, {name: value[PROMPT:] for name, value in values.items()})
    logits = np.random.default_rng(5).normal(size=(steps, VOCABULARY)) * (1 + 2.0**-23 * rounding.normal())
    for step in range(steps):
        token = int(tokens[PROMPT + step])
        draw = {"op": "multinomial", "generator": "mt19937", "seed": 1, "offset": 2 * step, "words": 2, "result": token}
        row = {"logits": logits[step].astype(np.float32)}
        log.step(0, step, PROMPT - 1 + step, token, row, text=f" word{token}", draws=[draw])
    log.end_sequence(0, steps, "length")
    log.close()
    return path


def _values(order: int, positions: int, rounding: np.random.Generator, wrong: bool) -> np.ndarray:
    truth = np.random.default_rng([order, 9]).normal(size=(positions, WIDTH))
    error = PLANTED * rounding.uniform(0.3, 3.0, size=(positions, 1)) if wrong else 0.0
    off = 1.0 + error + 2.0**-22 * (1 + order) ** 0.5 * rounding.normal(size=truth.shape)
    return (truth * off).astype(np.float32)


def pairs(runs: list[Path]) -> Iterator[Compared]:
    """One a group, compared as `tracekit diff` does."""
    with tracekit.open(runs[0]) as reference:
        for index, path in enumerate(runs[1:]):
            with tracekit.open(path) as candidate:
                verdict = tracekit.diff(reference, candidate)
                text = verdict_text(verdict, reference, candidate)
                yield Compared(f"group-{index}", Pair.of(reference, candidate), record_of(verdict), text)


def postmortem(runs: list[Path], count: int, steps: int) -> Postmortem:
    """Half of the seeds fail, in turn of each group."""
    groups = len(runs) - 1
    verdicts = [pair.verdict for pair in pairs(runs)]
    by_group = {index: tuple(range(2 * index, count, 2 * groups)) for index in range(groups)}
    of_seed = {seed: index for index, seeds in by_group.items() for seed in seeds}
    seeds = tuple(_seed(seed, steps, verdicts[of_seed[seed]] if seed in of_seed else None) for seed in range(count))
    found = tuple(
        Group(
            name=f"group-{index}",
            cause="layer",
            site=verdicts[index].site,
            mechanism=None,
            failing=True,
            seeds=members,
            steps=tuple(seed % steps for seed in members),
            latent=(),
            example=members[0],
            verdict=verdicts[index],
            text="DIVERGENCE  layer",
            rate=Rate(len(members), count, 0.8 * len(members) / count, 1.2 * len(members) / count),
        )
        for index, members in by_group.items()
        if members
    )
    failing = Rate(len(of_seed), count, 0.4, 0.6)
    return Postmortem("python example.py --seed {seed}", "./native --seed {seed}", seeds, found, failing)


def _seed(seed: int, steps: int, verdict: VerdictRecord | None) -> Seed:
    ours = Run(0, steps, ("length",), trace="reference.h5")
    theirs = Run(0, steps - seed % 7, ("length",), fallbacks=seed % 3, trace="candidate.h5")
    margins = tuple(np.random.default_rng(seed).exponential(size=steps).tolist())
    if verdict is None:
        return Seed(seed, State.PASS, ours, ours, margins=margins)
    return Seed(seed, State.FAIL, ours, theirs, 0, seed % steps, verdict, margins=margins)


def load(page: Path) -> dict[str, float]:
    """Seconds of one visit in a browser that was just started. Nobody watches it while it loads: an attached debugger
    has V8 work out source positions, half a second for plotly. The page keeps the milliseconds since it was asked for.
    """
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("report_load: chromium is missing; on Debian: sudo apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, sync_playwright() as playwright:
        words = ["--headless", "--window-size=1280,1000", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        words += ["--no-sandbox"] if os.geteuid() == 0 else []
        program = subprocess.Popen(
            [chromium, *words, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            address = _address(Path(profile) / "DevToolsActivePort")
            asked = urllib.request.Request(f"{address}/json/new?{page.as_uri()}", method="PUT")
            urllib.request.urlopen(asked).close()
            time.sleep(LOADING)
            browser = playwright.chromium.connect_over_cdp(address)
            view = next(one for one in browser.contexts[0].pages if one.url == page.as_uri())
            seconds = _visit(view)
            browser.close()
        finally:
            program.terminate()
            program.wait()
    return seconds


def _address(file: Path) -> str:
    """Where the browser listens, once it does."""
    while not file.exists() or not file.read_text().strip():
        time.sleep(0.1)
    time.sleep(1.0)  # its first window
    return f"http://127.0.0.1:{file.read_text().split()[0]}"


def _visit(view: Page) -> dict[str, float]:
    ready = int(view.get_attribute("html[data-ready]", "data-ready") or 0) / 1000
    drawn = int(view.get_attribute(".error-chart[data-drawn]", "data-drawn") or 0) / 1000
    view.evaluate("document.getElementById('errors').scrollIntoView()")
    box = view.locator(".error-chart .nsewdrag").first.bounding_box()
    assert box is not None
    before = view.locator(".site-select").first.input_value()
    began = time.perf_counter()
    view.mouse.click(box["x"] + box["width"] / 3, box["y"] + box["height"] / 5)
    view.wait_for_function("before => document.querySelector('.site-select').value !== before", arg=before)
    clicked = time.perf_counter() - began
    began = time.perf_counter()
    view.locator("[role=tab]").last.click()
    view.wait_for_selector("[data-of]:not([hidden]) .error-chart[data-drawn] .nsewdrag")
    other = time.perf_counter() - began
    return {
        "the page answers": ready,
        "the map is drawn": drawn,
        "a click shows its site": clicked,
        "another group's map": other,
    }


if __name__ == "__main__":
    main()
