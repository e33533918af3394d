"""Charts as Matplotlib figures. No global state: neither pyplot nor its settings are touched unless a figure is shown."""

from __future__ import annotations

import io
import textwrap
from functools import partial
from typing import TYPE_CHECKING, Any

from holdfast.errors import require
from holdfast.registry.pictures import screen
from holdfast.registry.pictures.chart import BarPanel, HistogramPanel, LinePanel, shortened
from holdfast.registry.pictures.matplotlib_panels import BAR_INCHES, draw, legend_rows

if TYPE_CHECKING:
    from holdfast.registry.pictures.chart import Chart, Panel
    from holdfast.registry.pictures.theme import Theme

__all__ = ["MatplotlibBackend"]

DOTS_PER_INCH = 150
_SHOWN_PER_INCH = 96
"""What browsers take for an inch."""
PANEL_INCHES = 6.0
MARGIN_INCHES = 0.22
LABELS_INCHES, LEGEND_ROW_INCHES = 1.02, 0.19
"""What a row of panels needs beside its axes: title and labels, and each row of a legend."""
AXES_INCHES = 1.1
"""What labels and margins take of a panel's width."""
TITLE_CHAR_INCHES = 0.135
SUBTITLE_CHARS_PER_INCH = 12.5


class MatplotlibBackend:
    """Draws with Matplotlib, for PNG and SVG files and pages that need no script.

    Raises:
        Unsupported: Matplotlib is not installed.
    """

    name = "matplotlib"
    formats = frozenset({"png", "svg"})

    def __init__(self) -> None:
        self._figures = require("matplotlib.figure", extra="plots", why="drawing with Matplotlib")

    def figure(self, chart: Chart, theme: Theme) -> Any:
        """The chart as a ``matplotlib.figure.Figure``, one or two panels wide."""
        columns = 2 if len(chart.panels) > 1 else 1
        rows = [chart.panels[i : i + columns] for i in range(0, len(chart.panels), columns)]
        heights = [max(_height(panel) for panel in row) for row in rows] or [1.6]
        width = columns * PANEL_INCHES
        subtitle = textwrap.wrap(chart.subtitle, int(width * SUBTITLE_CHARS_PER_INCH))
        header = 0.62 + 0.2 * len(subtitle)
        inches = [
            (width if len(row) < columns or columns == 1 else PANEL_INCHES) - AXES_INCHES for row in rows
        ]
        legends = [
            max(legend_rows(panel, room) for panel in row) for row, room in zip(rows, inches, strict=True)
        ]
        height = header + 0.1 + sum(heights) + len(rows) * LABELS_INCHES + LEGEND_ROW_INCHES * sum(legends)
        figure = self._figures.Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor=theme.panel)
        figure._repr_png_ = partial(_inline, figure)  # IPython asks for it
        figure.text(
            MARGIN_INCHES / width,
            1 - 0.2 / height,
            shortened(chart.title, int((width - 2 * MARGIN_INCHES) / TITLE_CHAR_INCHES)),
            color=theme.text,
            fontsize=14,
            fontweight="bold",
            va="top",
            parse_math=False,
        )
        figure.text(
            MARGIN_INCHES / width,
            1 - 0.5 / height,
            "\n".join(subtitle),
            color=theme.soft,
            fontsize=9.5,
            va="top",
            linespacing=1.3,
            parse_math=False,
        )
        if not chart.panels:
            figure.text(
                MARGIN_INCHES / width,
                1 - (header + 0.3) / height,
                chart.nothing,
                color=theme.soft,
                fontsize=11,
                va="top",
                parse_math=False,
            )
            return figure
        # A band as high as the header stays free above what the layout arranges.
        figure.set_layout_engine(
            "constrained",
            rect=(0.0, 0.0, 1.0, 1 - header / height),
            w_pad=MARGIN_INCHES,
            h_pad=0.12,
            wspace=0.02,
            hspace=0.02,
        )
        grid = figure.add_gridspec(len(rows), columns, height_ratios=heights)
        titled = len(chart.panels) > 1
        for place, row in enumerate(rows):
            for column, panel in enumerate(row):
                cell = grid[place, :] if len(row) < columns else grid[place, column]
                draw(
                    figure.add_subplot(cell, facecolor=theme.panel),
                    panel,
                    theme,
                    title_above=_title_above(panel, legends[place], inches[place]) if titled else None,
                    inches=inches[place],
                    height=heights[place],
                )
        return figure

    def written(self, figure: Any, file_format: str) -> bytes:
        """A PNG of 150 dots an inch, or an SVG whose text is outlines; equal figures give equal bytes."""
        return _written(figure, file_format)

    def show(self, figure: Any) -> bool:
        """Show a figure inline in a notebook, or in a window where Matplotlib has one."""
        if screen.notebook():
            display = require("IPython.display", extra="plots", why="showing a figure in a notebook")
            display.display(figure)
            return True
        if not screen.has_screen():
            return False
        pyplot = require("matplotlib.pyplot", extra="plots", why="showing a figure")
        if pyplot.get_backend().lower() == "agg":
            return False
        window = pyplot.figure(figsize=figure.get_size_inches())
        window.canvas.manager.canvas.figure = figure
        figure.set_canvas(window.canvas)
        pyplot.show(block=False)
        return True


def _written(figure: Any, file_format: str) -> bytes:
    import matplotlib as mpl

    file = io.BytesIO()
    metadata = {"Software": None} if file_format == "png" else {"Date": None, "Creator": None}
    with mpl.rc_context({"svg.hashsalt": "holdfast", "svg.fonttype": "path"}):
        figure.savefig(
            file,
            format=file_format,
            dpi=DOTS_PER_INCH,
            facecolor=figure.get_facecolor(),
            metadata=metadata,
        )
    return file.getvalue()


def _inline(figure: Any) -> tuple[bytes, dict[str, int]]:
    """What a notebook shows of a figure that a cell gives: it does not need pyplot to be seen."""
    return _written(figure, "png"), {"width": round(_SHOWN_PER_INCH * figure.get_figwidth())}


def _title_above(panel: Panel, most: int, inches: float) -> int:
    """How many rows of legend a title stands above: those of its row where they are few, so that titles are level."""
    return most if most <= 1 else legend_rows(panel, inches)


def _height(panel: Panel) -> float:
    """Inches that a panel's axes need."""
    match panel:
        case BarPanel():
            return BAR_INCHES * max(2, len(panel.bars)) + 0.1
        case HistogramPanel():
            return 2.2
        case LinePanel():
            return 2.4
