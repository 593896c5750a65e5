"""One page for a browser: self-contained, nothing is fetched, every text of a trace stays text."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from tracekit.formats.whole_file import write_whole
from tracekit.report.sections import Alone, Compared, Section, alone_section, pair_section
from tracekit.report.seed_rows import postmortem_rows
from tracekit.trace import Json, TraceError
from tracekit.verdict.outcome import Postmortem

__all__ = ["Alone", "Compared", "write_page", "write_trace_page"]

EXTRA = "the report needs jinja2 and plotly: pip install 'tracekit[report]'"
ANOTHER = "name another file with -o"
MAP_CELLS = 1_500_000
"""Bytes that all maps of a page may have together, before base64 adds a third."""


def write_page(out: Path, pairs: Iterable[Compared], postmortem: Postmortem | None = None) -> None:
    """Write the page of some pairs of traces and, where there is one, of the postmortem that they are examples of.

    Pairs are taken one at a time, so an iterator may open and close their traces. Raises TraceError where jinja2 or
    plotly is missing, or where `out` cannot be written.
    """
    template, plotly = _libraries()
    sections = [pair_section(pair) for pair in pairs]
    seeds = None
    if postmortem is not None:
        seeds = postmortem_rows(postmortem, {section.view["title"] for section in sections})
    write_whole(out, _page(template, plotly, sections, seeds), ANOTHER)


def write_trace_page(out: Path, alone: Alone) -> None:
    """Write the page of one trace: what is in it, and its audit where its checkpoint is found. Raises TraceError."""
    template, plotly = _libraries()
    write_whole(out, _page(template, plotly, [alone_section(alone)], None), ANOTHER)


def _libraries() -> tuple[Any, str]:
    """The page's template, and plotly's script."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise TraceError(EXTRA) from None
    loader = PackageLoader("tracekit.report", "assets")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html"), get_plotlyjs()


def _page(template: Any, plotly: str, sections: list[Section], seeds: Json | None) -> bytes:
    maps = sum(len(section.maps) for section in sections)
    data = [section.data(MAP_CELLS // max(1, maps)) for section in sections]
    script = _asset("page.js")
    text: str = template.render(
        title=_title(sections, seeds),
        sections=[section.view | {"id": f"s{index}"} for index, section in enumerate(sections)],
        sites=[[site["name"] for site in section.sites] for section in sections],
        seeds=seeds,
        style=_markup(_asset("page.css")),
        plotly=_markup(plotly),
        script=_markup(script),
        hashes=" ".join(f"'sha256-{_digest(text)}'" for text in (plotly, script)),
        data=_markup(inline_json(data)),
    )
    # A lone surrogate, which a token's text may hold, is no character: it is shown as a question mark.
    return text.encode("utf-8", errors="replace")


def _title(sections: list[Section], seeds: Json | None) -> str:
    if seeds is not None:
        return str(seeds["headline"])
    return " · ".join(f"{section.view['title']}: {section.view['words']['badge']}" for section in sections[:3])


def inline_json(value: Any) -> str:
    """JSON that may stand inside a <script> element: no `<`, `>`, `&`, and ASCII alone."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _asset(name: str) -> str:
    return resources.files("tracekit.report").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """As a Content-Security-Policy names the one script that may run."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _markup(text: str) -> Any:
    """Text of the project's own, or JSON without markup, that the template must not escape."""
    from markupsafe import Markup

    return Markup(text)
