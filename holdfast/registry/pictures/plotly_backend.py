"""Charts as Plotly figures: the same panels, which tell their values under the pointer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdfast.errors import require
from holdfast.registry.pictures import screen
from holdfast.registry.pictures.chart import BarPanel, HistogramPanel, LinePanel, legend_of, shortened
from holdfast.registry.pictures.plotly_panels import BAR_PX, traces

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.registry.pictures.chart import Chart, Panel
    from holdfast.registry.pictures.theme import Theme

__all__ = ["PlotlyBackend"]

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, sans-serif'
HEADER_PX, FOOTER_PX, GAP_PX, TITLE_PX = 76, 52, 88, 30
LEGEND_SHARE = 0.2
"""Of a column's width, what stands right of a panel for its legend."""
LEGEND_CHARS = 18
CHAR_PX = 7.0
NOTHING_PX = 80
PLOT_PX = 900
"""A width that names are cut for; figures are as wide as what they stand in."""


class PlotlyBackend:
    """Draws with Plotly, for notebooks and for pages with its script in them.

    Raises:
        Unsupported: Plotly is not installed.
    """

    name = "plotly"
    formats: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._plotly = require("plotly.graph_objects", extra="plots", why="drawing with Plotly")

    def figure(self, chart: Chart, theme: Theme) -> Any:
        """The chart as a ``plotly.graph_objects.Figure``, one or two panels wide."""
        columns = 2 if len(chart.panels) > 1 else 1
        rows = [chart.panels[i : i + columns] for i in range(0, len(chart.panels), columns)]
        heights = [max(_height(panel) for panel in row) for row in rows]
        inner = sum(heights) + GAP_PX * (len(rows) - 1) if rows else NOTHING_PX
        header = HEADER_PX + (TITLE_PX if columns > 1 else 0)
        layout: dict[str, Any] = {
            "template": self._plotly.layout.Template(),
            "title": {
                "text": _escaped(chart.title),
                "font": {"size": 18, "color": theme.text, "weight": 600},
                "subtitle": {
                    "text": _escaped(chart.subtitle),
                    "font": {"size": 12.5, "color": theme.soft},
                },
                "x": 0,
                "xref": "paper",
                "xanchor": "left",
                "y": 1,
                "yref": "container",
                "yanchor": "top",
                "pad": {"t": 16},
            },
            "font": {"family": FONT, "size": 12, "color": theme.soft},
            "paper_bgcolor": theme.panel,
            "plot_bgcolor": theme.panel,
            "margin": {"l": 70, "r": 24, "t": header, "b": FOOTER_PX},
            "height": inner + header + FOOTER_PX,
            "hoverlabel": {"font": {"family": FONT}},
            "annotations": [],
            "shapes": [],
        }
        data: list[dict[str, Any]] = []
        top = 0.0
        number = 0
        for height, row in zip(heights, rows, strict=True):
            across = _columns(row, columns)
            for panel, (left, right) in zip(row, across, strict=True):
                number += 1
                upper = 1 - top / inner
                self._place(
                    layout,
                    data,
                    panel,
                    theme,
                    number=number,
                    height=height,
                    across=(left, right),
                    upright=(max(0.0, upper - height / inner), upper),  # rounding may go below 0
                    titled=len(chart.panels) > 1,
                )
            top += height + GAP_PX
        if not chart.panels:
            layout["annotations"].append(_note(chart.nothing, theme, x=0, y=1, size=14))
            layout |= {"xaxis": {"visible": False}, "yaxis": {"visible": False}}
        return self._plotly.Figure(data=data, layout=layout)

    def _place(
        self,
        layout: dict[str, Any],
        data: list[dict[str, Any]],
        panel: Panel,
        theme: Theme,
        *,
        number: int,
        height: int,
        across: tuple[float, float],
        upright: tuple[float, float],
        titled: bool,
    ) -> None:
        """Add one panel to a figure: its axes, what is in them, its title and its legend."""
        end = "" if number == 1 else str(number)
        axis = {
            "color": theme.soft,
            "gridcolor": theme.grid,
            "linecolor": theme.edge,
            "showline": True,
            "zeroline": False,
            "automargin": True,
        }
        added, x_axis, y_axis, marks = traces(panel, theme, number=number, height=height)
        layout[f"xaxis{end}"] = axis | {
            "domain": list(across),
            "anchor": f"y{end}",
            "title": {"text": _escaped(panel.x_label), "standoff": 8},
            **x_axis,
        }
        layout[f"yaxis{end}"] = axis | {"domain": list(upright), "anchor": f"x{end}", **y_axis}
        if titled:
            room = int((across[1] - across[0]) * PLOT_PX / CHAR_PX)
            title = _note(shortened(panel.title, room), theme, x=across[0], y=upright[1], size=14)
            layout["annotations"].append(
                title
                | {"yanchor": "bottom", "yshift": 8, "font": {"size": 14, "color": theme.text, "weight": 600}}
            )
        if isinstance(panel, LinePanel) and legend_of(panel):
            layout[f"legend{end}"] = {
                "x": across[1] + 0.008,
                "y": upright[1],
                "xanchor": "left",
                "yanchor": "top",
                "bgcolor": "rgba(0,0,0,0)",
                "font": {"color": theme.text, "size": 12},
                "tracegroupgap": 0,
            }
        for turn, mark in enumerate(marks):
            layout["shapes"].append(mark["shape"])
            layout["annotations"].append(
                mark["annotation"] | {"y": 0.01 + 0.09 * turn if mark["low"] else 0.99 - 0.09 * turn}
            )
        data += added

    def written(self, figure: Any, file_format: str) -> bytes:
        """Nothing: pictures of Plotly figures need a browser, so that Matplotlib draws the files.

        Raises:
            Unsupported: Always.
        """
        from holdfast.errors import Unsupported

        raise Unsupported(
            f"a {file_format} of {type(figure).__name__} needs Matplotlib: pip install 'holdfast[plots]'"
        )

    def show(self, figure: Any) -> bool:
        """Show a figure in a notebook, or in a browser where there is a screen."""
        if screen.notebook() or screen.has_screen():
            figure.show()
            return True
        return False


def _columns(row: Sequence[Panel], columns: int) -> list[tuple[float, float]]:
    """From where to where the panels of a row go, of the plot's width; a last one without a neighbour has all of it."""
    if len(row) < columns or columns == 1:
        return [(0.0, 1 - LEGEND_SHARE / 2 if _has_legend(row[0]) else 1.0)]
    half = 0.455
    return [
        (left, left + half * (1 - LEGEND_SHARE * 1.35) if _has_legend(panel) else left + half)
        for left, panel in zip((0.0, 1 - half), row, strict=True)
    ]


def _has_legend(panel: Panel) -> bool:
    return isinstance(panel, LinePanel) and bool(legend_of(panel))


def _height(panel: Panel) -> int:
    """Pixels that a panel needs."""
    match panel:
        case BarPanel():
            return BAR_PX * max(2, len(panel.bars))
        case HistogramPanel():
            return 230
        case LinePanel():
            return 270


def _note(text: str, theme: Theme, *, x: float, y: float, size: int) -> dict[str, Any]:
    return {
        "text": _escaped(text),
        "x": x,
        "y": y,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "top",
        "showarrow": False,
        "font": {"size": size, "color": theme.soft},
    }


def _escaped(text: str) -> str:
    """Text that Plotly does not take for its markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
