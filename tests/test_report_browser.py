"""The report in a real Chromium: nothing goes wrong, nothing is fetched, a mouse and a keyboard reach everything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

import tracekit as tk
from tests.hostile_run import SITES, write_hostile
from tests.small_run import VOCABULARY, write_run
from tests.speech_traces import tracekit
from tests.test_report import outcome, pair_of
from tracekit.align.pair import Pair
from tracekit.report.json import record_of
from tracekit.report.page import Compared, write_page
from tracekit.report.text import verdict_text

TRACES = Path(__file__).parent.parent / "traces"
CULPRIT = "model.layers.1.self_attn.o_proj:in"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium is not None, "chromium is missing: sh scripts/check_chromium.sh"
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox does not run as root
        opened = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tabs: an error in a layer, with an audit; and one in the filter, without layers."""
    out = tmp_path_factory.mktemp("pairs") / "report.html"
    code, output = tracekit("report", TRACES / "python.h5", TRACES / "layer.h5", TRACES / "filter.h5", "-o", out)
    assert code == 0, output
    return out


@pytest.fixture(scope="module")
def postmortem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("postmortem")
    one, other = write_run(folder / "one.tklog"), write_run(folder / "other.tklog", noise=1)
    write_page(folder / "report.html", [pair_of(one, other, "first"), pair_of(one, other, "layer-gain")], outcome())
    return folder / "report.html"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    one, other = write_hostile(folder / "one.tklog"), write_hostile(folder / "other.tklog", wrong=True)
    reference, candidate = tk.open(one), tk.open(other)
    verdict = tk.diff(reference, candidate)
    text = verdict_text(verdict, reference, candidate) + "\n</pre><script>alert(9)</script>"
    title = "<img src=x onerror=alert(10)>"
    again = Compared(f"{title}2", Pair.of(reference, candidate), record_of(verdict), text)
    write_page(
        folder / "report.html",
        [Compared(title, Pair.of(reference, candidate), record_of(verdict), text), again],
        outcome(),
    )
    return folder / "report.html"


@dataclass
class Watch:
    """What went wrong, and what was asked for, while a page was open."""

    trouble: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)


def visit(browser: Browser, report: Path, *, width: int = 1280, scheme: str = "light") -> tuple[Page, Watch]:
    """The page with its first map drawn. Contexts are closed with the browser."""
    watch = Watch()
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    page.on("console", lambda message: watch.trouble.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: watch.trouble.append(str(error)))
    page.on("request", lambda request: watch.asked.append(request.url))

    def dismiss(dialog: object) -> None:
        watch.dialogs.append(dialog.message)  # type: ignore[attr-defined]
        dialog.dismiss()  # type: ignore[attr-defined]

    page.on("dialog", dismiss)
    page.goto(report.as_uri())
    draw(page)
    return page, watch


def draw(page: Page) -> None:
    """Bring every chart of the open tab into view, and wait until it is drawn."""
    for kind in ("error-chart", "layers-chart"):
        chart = page.locator(f".{kind}:visible")
        if chart.count():
            chart.scroll_into_view_if_needed()
            expect(page.locator(f".{kind}[data-drawn]:visible .nsewdrag")).to_be_attached()


def outside(watch: Watch, report: Path) -> list[str]:
    """What was asked for besides the page and what stands in it."""
    return [url for url in watch.asked if url != report.as_uri() and not url.startswith(("data:", "blob:"))]


def site_shown(page: Page) -> str:
    return page.locator(".site-select:visible").evaluate("list => list.selectedOptions[0].text")


@pytest.mark.parametrize("which", ["pairs", "postmortem", "hostile"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800])
def test_it_opens_without_an_error_or_a_request_and_fits(
    browser: Browser, which: str, scheme: str, width: int, request: pytest.FixtureRequest
):
    report = request.getfixturevalue(which)
    page, watch = visit(browser, report, width=width, scheme=scheme)
    assert (watch.trouble, outside(watch, report)) == ([], [])
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_click_on_the_map_opens_the_site(browser: Browser, pairs: Path):
    page, watch = visit(browser, pairs)
    assert site_shown(page) == CULPRIT  # where a reader begins
    area = page.locator(".error-chart:visible .nsewdrag")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box is not None
    sites = page.locator(".site-select:visible option").all_inner_texts()
    row = sites.index("model.layers.0.mlp.up_proj")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] * (row + 0.5) / len(sites)
    page.mouse.move(x, y)
    expect(page.locator("#hover")).to_contain_text("model.layers.0.mlp.up_proj")
    expect(page.locator("#hover")).to_contain_text("local error over bound")
    page.mouse.click(x, y)
    expect(page.locator(".site-facts:visible")).to_contain_text("model.layers.0.mlp.up_proj.weight")
    assert site_shown(page) == "model.layers.0.mlp.up_proj"
    expect(page.locator(".steps-chart:visible .scatterlayer .trace")).to_have_count(2)
    assert watch.trouble == []


def test_the_other_map_is_a_button_away(browser: Browser, pairs: Path):
    page, watch = visit(browser, pairs)
    drawn = "image => image.href.baseVal"
    before = page.locator(".error-chart:visible image").evaluate(drawn)
    page.get_by_role("button", name="local error over bound").click()
    after = page.locator(".error-chart:visible image").evaluate(drawn)
    assert before.startswith("data:image/png")
    assert before != after
    assert watch.trouble == []


def test_a_keyboard_reaches_tabs_sites_and_theme(browser: Browser, pairs: Path):
    page, watch = visit(browser, pairs)
    page.evaluate("window.scrollTo(0, 0)")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "tab"
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", selected=True)).to_contain_text("filter.h5")
    expect(page.locator("#errors .empty:visible")).to_contain_text("recorded no layers")
    page.keyboard.press("Home")
    expect(page.get_by_role("tab", selected=True)).to_contain_text("layer.h5")
    page.locator(".site-select:visible").focus()
    page.keyboard.press("ArrowDown")
    assert site_shown(page) == CULPRIT.removesuffix(":in")
    expect(page.locator(".site-facts:visible")).to_contain_text("model.layers.1.self_attn.o_proj.weight")
    page.locator("#theme").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert watch.trouble == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_until_the_button_turns_it(browser: Browser, pairs: Path, scheme: str):
    page, watch = visit(browser, pairs, scheme=scheme)

    def darkness() -> tuple[bool, bool]:
        """Whether the page is dark, and whether the chart's labels are light."""
        return page.evaluate(
            """() => {
                const parts = (colour) => colour.match(/[0-9.]+/g).slice(0, 3).map(Number);
                const light = (colour) => Math.max(...parts(colour)) > 128;
                const label = document.querySelector('.error-chart .ytick text');
                return [!light(getComputedStyle(document.body).backgroundColor), light(getComputedStyle(label).fill)];
            }"""
        )

    other = "light" if scheme == "dark" else "dark"
    assert darkness() == [scheme == "dark"] * 2
    page.get_by_role("button", name=f"Switch to {other}").click()
    assert darkness() == [other == "dark"] * 2
    page.get_by_role("button", name=f"Switch to {scheme}").click()
    assert darkness() == [scheme == "dark"] * 2
    assert watch.trouble == []


def test_the_token_strip_begins_at_the_first_difference(browser: Browser, tmp_path: Path):
    """Of a run so long that it does not fit the page."""
    one = write_run(tmp_path / "one.tklog", steps=80)

    def another(step: int, token: int, ids: np.ndarray) -> int:
        return (token + 1) % VOCABULARY if step == 70 else token

    other = write_run(tmp_path / "other.tklog", steps=80, pick=another)
    write_page(tmp_path / "report.html", [pair_of(one, other)])
    page, watch = visit(browser, tmp_path / "report.html")
    first = page.locator(".col.first")
    assert first.locator("i").inner_text() == "70"
    strip, box = page.locator(".tokens").bounding_box(), first.bounding_box()
    assert strip is not None and box is not None
    assert strip["x"] < box["x"] < strip["x"] + strip["width"]
    assert watch.trouble == []


def test_seeds_are_sorted_and_filtered(browser: Browser, postmortem: Path):
    page, watch = visit(browser, postmortem)

    def seeds() -> list[str]:
        return page.locator("table.seeds tbody tr:visible td:first-child").all_inner_texts()

    assert seeds() == ["0", "1", "2", "3"]
    page.locator("table.seeds th button").first.click()
    assert seeds() == ["3", "2", "1", "0"]
    page.locator(".state-filter").select_option("latent")
    assert seeds() == ["2"]
    page.locator(".state-filter").select_option("")
    page.locator(".seed-filter").fill("panicked")
    assert seeds() == ["3"]
    expect(page.locator(".seed-count")).to_have_text("1 of 4 seeds")
    assert watch.trouble == []


def test_a_group_shows_its_example(browser: Browser, postmortem: Path):
    page, watch = visit(browser, postmortem)
    expect(page.get_by_role("tab", selected=True)).to_have_text("first")
    page.get_by_role("button", name="Show the example").click()
    expect(page.get_by_role("tab", selected=True)).to_have_text("layer-gain")
    draw(page)
    assert site_shown(page) in ("up", "down", "logits")
    assert watch.trouble == []


def test_hostile_texts_do_nothing(browser: Browser, hostile: Path):
    page, watch = visit(browser, hostile)
    area = page.locator(".error-chart:visible .nsewdrag")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box is not None
    for row in range(len(SITES)):
        page.mouse.move(box["x"] + 30, box["y"] + box["height"] * (row + 0.5) / (len(SITES) + 1))
        expect(page.locator("#hover b")).to_have_text(SITES[row])
        page.mouse.click(box["x"] + 30, box["y"] + box["height"] * (row + 0.5) / (len(SITES) + 1))
        assert site_shown(page) == SITES[row]
    draw(page)
    for details in page.locator("summary:visible").all():
        details.click()
    for tab in page.get_by_role("tab").all():
        tab.click()
    assert page.locator("main img, main svg[onload], main u, main script").count() == 0
    assert (watch.dialogs, watch.trouble, outside(watch, hostile)) == ([], [], [])


def test_a_script_that_got_in_would_not_run(browser: Browser, pairs: Path, tmp_path: Path):
    """The page's policy lets its own two scripts run and nothing else: a second line of defence, tried on purpose."""
    spoiled = pairs.read_text().replace("<main", "<script>alert(1)</script><img src=x onerror=alert(2)><main", 1)
    (tmp_path / "spoiled.html").write_text(spoiled)
    page, watch = visit(browser, tmp_path / "spoiled.html")
    assert watch.dialogs == []
    assert any("Content Security Policy" in line for line in watch.trouble)
    assert site_shown(page) == CULPRIT
