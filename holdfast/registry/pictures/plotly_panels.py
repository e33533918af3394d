"""One panel as Plotly's traces and axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from holdfast.registry.pictures.chart import (
    BarPanel,
    HistogramPanel,
    LinePanel,
    legend_of,
    lone_points,
    shortened,
)
from holdfast.registry.pictures.units import number_text, rounded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.registry.pictures.chart import Mark, Panel
    from holdfast.registry.pictures.theme import Theme

__all__ = ["traces"]

_DASHES = ("solid", "dash", "dot")
FEW_POINTS = 40
BAR_NAME_CHARS = 48
BAR_PX = 44
"""What a bar takes with the name above it."""
LEGEND_CHARS = 18

Described = tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any], list[dict[str, Any]]]


def traces(panel: Panel, theme: Theme, *, number: int, height: int) -> Described:
    """The traces of the ``number``-th panel, which is ``height`` pixels high, what its x and y axis need, and its marks as shapes with annotations."""
    end = "" if number == 1 else str(number)
    axes = {"xaxis": f"x{end}", "yaxis": f"y{end}"}
    match panel:
        case LinePanel():
            return _lines(panel, theme, axes, end)
        case BarPanel():
            return _bars(panel, theme, axes, height)
        case HistogramPanel():
            return _histogram(panel, theme, axes)


def _lines(panel: LinePanel, theme: Theme, axes: dict[str, str], end: str) -> Described:
    data: list[dict[str, Any]] = []
    keys = legend_of(panel)
    by_group = any(key.colour is None for key in keys)
    named: set[str] = set()
    for line in panel.lines:
        name = line.group if by_group else line.name
        few = len(line.x) <= FEW_POINTS
        lone = set(lone_points(line.y))
        sizes = [(8 if len(line.x) == 1 else 5) if few or i in lone else 0 for i in range(len(line.x))]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if few or lone else "lines",
                "name": _text(shortened(name, LEGEND_CHARS)),
                "x": line.x,
                "y": line.y,
                "line": {
                    "color": theme.colour(line.colour),
                    "dash": _DASHES[line.dash],
                    "width": 2 if few else 1.5,
                },
                "marker": {"size": sizes, "color": theme.colour(line.colour)},
                "hovertemplate": f"{_text(panel.x_label)} %{{x:,.6~g}}<br>%{{y:,.6~g}}<extra>{_text(line.name)}</extra>",
                "showlegend": bool(keys) and name not in named,
                "legend": f"legend{end}",
                "legendgroup": name,
                **axes,
            }
        )
        named.add(name)
    # A line without points for each kind of dashes, which say the same in all colours.
    data += [
        {
            "type": "scatter",
            "mode": "lines",
            "name": _text(key.label),
            "x": [None],
            "y": [None],
            "line": {"color": theme.soft, "dash": _DASHES[key.dash], "width": 2},
            "legend": f"legend{end}",
            **axes,
        }
        for key in keys
        if key.colour is None
    ]
    x_axis: dict[str, Any] = {}
    xs = [x for line in panel.lines for x in line.x]
    if panel.whole_x:
        x_axis |= {"tickformat": ",d"}
        if xs and max(xs) - min(xs) <= 10:
            x_axis |= {"dtick": 1}
    if xs and min(xs) == max(xs):
        x_axis |= {"range": [xs[0] - 0.5, xs[0] + 0.5]}
    y_axis: dict[str, Any] = {
        "title": {"text": _text(panel.y_label), "standoff": 10},
        "tickformat": ",.6~g",
    }
    if panel.log_y:
        y_axis |= {"type": "log", "dtick": 1}
    if panel.y_range:
        y_axis |= {"range": list(panel.y_range)}
    ends = (min(xs), max(xs)) if xs else (0.0, 1.0)
    return data, x_axis, y_axis, _marks(panel.marks, theme, axes, ends, log_x=False)


def _bars(panel: BarPanel, theme: Theme, axes: dict[str, str], height: int) -> Described:
    """Bars with their names above them, where a long name takes no room from the bars."""
    places = list(range(len(panel.bars)))
    most = max(bar.value for bar in panel.bars) or 1.0
    longest = max(len(bar.text) for bar in panel.bars)
    names = [_text(shortened(bar.name, BAR_NAME_CHARS)) for bar in panel.bars]
    common = {"showlegend": False, "cliponaxis": False, **axes}
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "x": [bar.value for bar in panel.bars],
            "y": places,
            "width": 0.44,
            "marker": {"color": [theme.colour(bar.colour) for bar in panel.bars]},
            "text": [_text(bar.text) for bar in panel.bars],
            "textposition": "outside",
            "textfont": {"color": theme.text},
            "customdata": [_text(bar.name) for bar in panel.bars],
            "hovertemplate": "%{customdata}<br>%{text}<extra></extra>",
            **common,
        },
        {
            "type": "scatter",
            "mode": "text",
            "x": [0] * len(places),
            "y": [place - 0.24 for place in places],
            "text": names,
            "textposition": "top right",
            "textfont": {"color": theme.text},
            "hoverinfo": "skip",
            **common,
        },
    ]
    y_axis = {
        "range": [max(len(panel.bars), height / BAR_PX) - 0.6, -0.8],
        "showgrid": False,
        "showticklabels": False,
        "ticks": "",
    }
    return data, {"range": [0, most * (1.08 + 0.022 * longest)], "tickformat": ",.6~g"}, y_axis, []


def _histogram(panel: HistogramPanel, theme: Theme, axes: dict[str, str]) -> Described:
    """Steps, not bars: on a logarithmic axis Plotly's bars would not reach from edge to edge."""
    colour = theme.colour(panel.colour)
    texts = [
        f"{number_text(rounded(low))} to {number_text(rounded(high))}: {count:,}"
        for low, high, count in zip(panel.edges, panel.edges[1:], panel.counts, strict=False)
    ]
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": (panel.edges[0], *panel.edges),
            "y": (0, *panel.counts, 0),
            "line": {"shape": "hv", "color": colour, "width": 1},
            "fill": "tozeroy",
            "fillcolor": colour,
            "text": ["", *texts, ""],
            "hovertemplate": "%{text}<extra></extra>",
            "showlegend": False,
            **axes,
        }
    ]
    ends = panel.edges[0], panel.edges[-1]
    x_axis: dict[str, Any] = {"range": [*ends]}
    if panel.log_x:
        ticks = _log_ticks(*ends)
        x_axis = {
            "type": "log",
            "range": [math.log10(end) for end in ends],
            "tickvals": ticks,
            "ticktext": [number_text(tick) for tick in ticks],
        }
    y_axis: dict[str, Any] = {
        "title": {"text": _text(panel.y_label), "standoff": 10},
        "range": [0, 1.25 * max(panel.counts)],
        "tickformat": ",d",
    }
    if max(panel.counts) <= 5:
        y_axis["dtick"] = 1
    return data, x_axis, y_axis, _marks(panel.marks, theme, axes, ends, log_x=panel.log_x)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade; the decades alone where there are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
    ticks = (float(f"{step}e{decade}") for decade in decades for step in steps)
    return [tick for tick in ticks if low <= tick <= high]


def _marks(
    marks: Sequence[Mark],
    theme: Theme,
    axes: dict[str, str],
    ends: tuple[float, float],
    *,
    log_x: bool,
) -> list[dict[str, Any]]:
    """Upright lines with labels beside them, on the side where there is room."""
    made = []
    for mark in marks:
        low, high, x = (math.log10(value) if log_x else value for value in (*ends, mark.x))
        left = high > low and (x - low) / (high - low) > 0.6
        refs = {"xref": axes["xaxis"], "yref": f"{axes['yaxis']} domain"}
        made.append(
            {
                "low": mark.low,
                # An annotation's x is the logarithm on such an axis; a shape's is the value itself.
                "shape": {
                    "type": "line",
                    "x0": mark.x,
                    "x1": mark.x,
                    "y0": 0,
                    "y1": 1,
                    "line": {"color": theme.soft, "width": 1, "dash": "dot"},
                    **refs,
                },
                "annotation": {
                    "x": x,
                    "text": _text(mark.label),
                    "showarrow": False,
                    "xanchor": "right" if left else "left",
                    "yanchor": "bottom" if mark.low else "top",
                    "xshift": -4 if left else 4,
                    "font": {"color": theme.text, "size": 11},
                    "bgcolor": theme.panel,
                    "borderpad": 1,
                    **refs,
                },
            }
        )
    return made


def _text(text: str) -> str:
    """Text that Plotly does not take for its markup, nor for a place to put a value."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "% {")
