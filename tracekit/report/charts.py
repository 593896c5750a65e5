"""The charts, as plotly's figures. Data are numbers and names; colours are those that read in light and in dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tracekit.report.error_map import EQUAL, INFINITE, Levels
from tracekit.report.layers import layer_of, layer_ticks
from tracekit.trace import Json

CALM, ACCENT, ALARM = "#7d8894", "#4c7fe0", "#d8433b"
BEYOND = ((0.0, "#f0b429"), (0.35, "#e8702a"), (0.7, "#d1345b"), (1.0, "#8e2fb0"))
"""From just beyond the limit to far beyond it."""
PALE = ("rgba(240,180,41,0.30)", "rgba(240,180,41,0.75)")
ROW_PIXELS, LEAST_PIXELS, MOST_PIXELS = 9, 400, 560
AXIS: Json = {"zeroline": False, "ticks": "outside", "ticklen": 3, "fixedrange": False}
LOG: Json = {"type": "log", "tickformat": "~g", "ticksuffix": "x"}
LAYOUT: Json = {
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "showlegend": False,
    "dragmode": "zoom",
    "hovermode": "closest",
    "font": {"size": 12},
}


def error_map_figure(found: Levels, limits: tuple[float, float], sites: Sequence[str]) -> Json:
    """Sites by steps. The page puts the codes in as `z`, so that they stand in it once."""
    ticks, labels = layer_ticks(sites)
    per_bin = found.steps_a_bin
    bar_codes, bar_texts = _decades(found)
    step = "step" if per_bin == 1 else f"step, {per_bin} a column"
    return {
        "data": [
            {
                "type": "heatmap",
                "x0": (per_bin - 1) / 2,
                "dx": per_bin,
                "zmin": 0,
                "zmax": INFINITE,
                "hoverinfo": "none",
                "colorscale": _colours(*map(found.fraction, limits)),
                "colorbar": {
                    "thickness": 10,
                    "outlinewidth": 0,
                    "tickvals": bar_codes,
                    "ticktext": bar_texts,
                    "ticks": "outside",
                    "ticklen": 3,
                },
            }
        ],
        "layout": {
            **LAYOUT,
            "height": max(LEAST_PIXELS, min(MOST_PIXELS, ROW_PIXELS * len(sites) + 60)),
            "margin": {"l": 66, "r": 8, "t": 8, "b": 40},
            "xaxis": {**AXIS, "title": {"text": step}, "showgrid": False, "tickformat": ",d"},
            "yaxis": {**AXIS, "autorange": "reversed", "showgrid": False, "tickvals": ticks, "ticktext": labels},
        },
    }


def _colours(limit: float, sure: float) -> list[list[object]]:
    """Not compared: nothing. Within the limit: faint to grey. What one position may reach: pale. Beyond: warm."""
    code = 1 / INFINITE
    scale: list[list[object]] = [[0.0, "rgba(0,0,0,0)"], [code / 2, "rgba(0,0,0,0)"]]
    scale += [[code / 2, "rgba(76,127,224,0.10)"], [(EQUAL + 0.5) * code, "rgba(76,127,224,0.10)"]]
    scale += [[(EQUAL + 0.5) * code, "rgba(125,136,148,0.10)"], [limit, "rgba(125,136,148,0.62)"]]
    scale += [[limit, PALE[0]], [sure, PALE[1]]] if sure > limit else []
    scale += [[sure + (1 - sure) * share, colour] for share, colour in BEYOND]
    return scale


def _decades(found: Levels) -> tuple[list[float], list[str]]:
    """Codes of powers of ten, ten at most, and what to write there."""
    low, high = math.ceil(found.low), math.floor(found.high)
    every = max(1, -(-(high - low) // 8))
    powers = [power for power in range(low, high + 1) if power % every == 0]
    return [found.fraction(10.0**power) * INFINITE for power in powers], [_power(power) for power in powers]


def _power(power: int) -> str:
    return f"{10.0**power:g}x" if -3 <= power <= 3 else f"1e{power}x"


def layers_figure(
    sites: Sequence[str], values: Mapping[str, float], guilty: Sequence[str], limit: float, unit: str
) -> Json:
    """A dot a site in execution order, the largest of each layer joined by a line; culprits stand out."""
    shown = [(row, site, values[site]) for row, site in enumerate(sites) if site in values]
    ticks, labels = layer_ticks(sites)
    least = max(1e-4, min((value for _, _, value in shown if value > 0), default=1e-3))
    sound, culprits = ([point for point in shown if (point[1] in guilty) is bad] for bad in (False, True))
    tops = _tops(shown)
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines",
                "x": [row for row, _ in tops],
                "y": [max(value, least) for _, value in tops],
                "line": {"color": ACCENT, "width": 1.2, "shape": "hvh"},
                "opacity": 0.55,
                "hoverinfo": "skip",
            },
            _dots(sound, ACCENT, 5, least),
            _dots(culprits, ALARM, 10, least),
        ],
        "layout": {
            **LAYOUT,
            "height": 260,
            "margin": {"l": 66, "r": 8, "t": 8, "b": 40},
            "xaxis": {**AXIS, "tickvals": ticks, "ticktext": labels, "showgrid": False, "range": [-1, len(sites)]},
            "yaxis": {**AXIS, **LOG, "title": {"text": unit}, "dtick": 1},
            "shapes": [_line(limit)],
        },
    }


def _tops(shown: list[tuple[int, str, float]]) -> list[tuple[float, float]]:
    """The middle row and the largest value of each layer."""
    layers: dict[int, list[tuple[int, float]]] = {}
    for row, site, value in shown:
        layer = layer_of(site)
        if layer is not None:
            layers.setdefault(layer, []).append((row, value))
    return [
        (sum(row for row, _ in points) / len(points), max(value for _, value in points)) for points in layers.values()
    ]


def _dots(points: list[tuple[int, str, float]], colour: str, size: int, least: float) -> Json:
    """Hover texts are set by the page, as text: plotly would read tags in a site's name."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [row for row, _, _ in points],
        "y": [max(value, least) for _, _, value in points],
        "marker": {"color": colour, "size": size, "symbol": "circle", "line": {"width": 0}},
        "hoverinfo": "none",
    }


def _line(limit: float) -> Json:
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": limit,
        "y1": limit,
        "line": {"color": CALM, "width": 1, "dash": "dot"},
    }


def steps_figure(limits: Sequence[float]) -> Json:
    """One site's ratio over the steps; the page puts the numbers in."""
    line: Json = {"type": "scatter", "mode": "lines+markers", "hovertemplate": "step %{x}: %{y:.3g}x<extra></extra>"}
    return {
        "data": [
            {**line, "line": {"color": ACCENT, "width": 1.5}, "marker": {"size": 4}},
            {**line, "line": {"color": ALARM, "width": 1.2, "dash": "dot"}, "marker": {"size": 3}},
        ],
        "layout": {
            **LAYOUT,
            "height": 190,
            "margin": {"l": 52, "r": 8, "t": 8, "b": 34},
            "xaxis": {**AXIS, "title": {"text": "step"}, "showgrid": False, "tickformat": ",d"},
            "yaxis": {**AXIS, **LOG, "nticks": 5},
            "shapes": [_line(limit) for limit in limits[:1]],
        },
    }
