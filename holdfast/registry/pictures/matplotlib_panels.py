"""One panel on Matplotlib axes: lines, bars or counts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from holdfast.errors import require
from holdfast.registry.pictures.chart import (
    BarPanel,
    HistogramPanel,
    LinePanel,
    legend_of,
    lone_points,
    shortened,
)
from holdfast.registry.pictures.units import number_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from holdfast.registry.pictures.chart import Key, Mark, Panel
    from holdfast.registry.pictures.theme import Theme

__all__ = ["draw", "legend_rows"]

_DASHES: tuple[Any, ...] = ("solid", (0, (4, 2)), (0, (1, 1.6)))
CHAR_INCHES = 0.078
"""How wide a character of a label is, about."""
NAME_CHARS = 24
LEGEND_POINTS = 9
LEGEND_ROW_POINTS = 13.5
LEGEND_KEY_INCHES = 0.6
"""What an entry of a legend takes beside its text."""
MOST_COLUMNS = 6
BAR_INCHES = 0.44
"""What a bar takes with the name above it."""
FEW_POINTS = 40
"""So many points are marked one by one."""


def legend_rows(panel: Panel, inches: float) -> int:
    """How many rows a panel's legend has above axes that are about ``inches`` wide."""
    keys = legend_of(panel) if isinstance(panel, LinePanel) else ()
    return -(-len(keys) // _legend_columns(keys, inches)) if keys else 0


def _legend_columns(keys: Sequence[Key], inches: float) -> int:
    """The most columns that there is room for, where entries fill one column after the other.

    Matplotlib makes columns as even as they can be: of 8 entries in 6 columns, two have 2. So that its rows are as full as
    they look, there are no more columns than their rows need.
    """
    widths = [_text_inches(shortened(key.label, NAME_CHARS)) + LEGEND_KEY_INCHES for key in keys]
    for rows in range(1, len(keys)):
        columns = -(-len(keys) // rows)
        if columns <= MOST_COLUMNS and sum(map(max, _evenly(widths, columns))) <= inches:
            return columns
    return 1


def _evenly(widths: Sequence[float], columns: int) -> Iterator[Sequence[float]]:
    least, more = divmod(len(widths), columns)
    end = 0
    for column in range(columns):
        begin, end = end, end + least + (column < more)
        yield widths[begin:end]


def _text_inches(text: str) -> float:
    """How wide an entry of a legend is as Matplotlib draws it."""
    fonts = require("matplotlib.font_manager", extra="plots", why="drawing with Matplotlib")
    paths = require("matplotlib.textpath", extra="plots", why="drawing with Matplotlib")
    font = fonts.FontProperties(size=LEGEND_POINTS)
    points: float = paths.text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]
    return points / 72


def draw(
    axes: Any, panel: Panel, theme: Theme, *, title_above: int | None, inches: float, height: float
) -> None:
    """Draw a panel on axes that are about ``inches`` wide and ``height`` high.

    ``title_above`` is how many rows of legend its title stands above, so that the titles in a row are level; None for no title.
    """
    axes.tick_params(colors=theme.soft, labelsize=9, length=3, color=theme.edge)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.edge)
    axes.set_axisbelow(True)
    axes.set_xlabel(panel.x_label, color=theme.soft, fontsize=9.5, parse_math=False)
    match panel:
        case LinePanel():
            _lines(axes, panel, theme, inches)
        case BarPanel():
            _bars(axes, panel, theme, inches, height)
        case HistogramPanel():
            _histogram(axes, panel, theme)
    if title_above is not None:
        axes.set_title(
            shortened(panel.title, int(inches / CHAR_INCHES / 1.15)),
            loc="left",
            pad=8 + LEGEND_ROW_POINTS * title_above,
            color=theme.text,
            fontsize=11,
            fontweight="bold",
            parse_math=False,
        )


def _lines(axes: Any, panel: LinePanel, theme: Theme, inches: float) -> None:
    ticker = require("matplotlib.ticker", extra="plots", why="drawing with Matplotlib")
    lines = require("matplotlib.lines", extra="plots", why="drawing with Matplotlib")
    axes.grid(visible=True, color=theme.grid, linewidth=0.8)
    axes.set_ylabel(panel.y_label, color=theme.soft, fontsize=9.5, parse_math=False)
    for line in panel.lines:
        few = len(line.x) <= FEW_POINTS
        axes.plot(
            line.x,
            line.y,
            color=theme.colour(line.colour),
            linestyle=_DASHES[line.dash],
            linewidth=1.8 if few else 1.3,
            marker="o",
            markersize=6 if len(line.x) == 1 else 3.6,
            markevery=list(range(len(line.x))) if few else lone_points(line.y),
            solid_joinstyle="round",
        )
    xs = [x for line in panel.lines for x in line.x]
    if panel.whole_x:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if xs and min(xs) == max(xs):
        axes.set_xlim(xs[0] - 0.5, xs[0] + 0.5)
        if panel.whole_x:
            axes.set_xticks([xs[0]])
    if panel.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    plain = ticker.FuncFormatter(lambda value, _: number_text(value))
    axes.yaxis.set_major_formatter(plain)
    if panel.y_range:
        axes.set_ylim(*panel.y_range)
    _marks(axes, panel.marks, theme, log_x=False)
    keys = legend_of(panel)
    if keys:
        few = all(len(line.x) <= FEW_POINTS for line in panel.lines)
        handles = [
            lines.Line2D(
                [],
                [],
                color=theme.soft if key.colour is None else theme.colour(key.colour),
                linestyle=_DASHES[key.dash],
                linewidth=1.8,
                marker="o" if few and key.colour is not None else None,
                markersize=3.6,
                label=shortened(key.label, NAME_CHARS),
            )
            for key in keys
        ]
        legend = axes.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            borderaxespad=0.2,
            borderpad=0.1,
            frameon=False,
            ncols=_legend_columns(keys, inches),
            fontsize=LEGEND_POINTS,
            labelcolor=theme.text,
            handlelength=2.4,
            columnspacing=1.4,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def _bars(axes: Any, panel: BarPanel, theme: Theme, inches: float, height: float) -> None:
    """Bars with their names above them, where a long name takes no room from the bars."""
    ticker = require("matplotlib.ticker", extra="plots", why="drawing with Matplotlib")
    places = range(len(panel.bars))
    axes.barh(
        places,
        [bar.value for bar in panel.bars],
        height=0.44,
        color=[theme.colour(bar.colour) for bar in panel.bars],
    )
    axes.set_yticks([])
    axes.grid(visible=True, axis="x", color=theme.grid, linewidth=0.8)
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: number_text(value)))
    # In a panel that is higher than its bars need, they stay as thick as everywhere.
    axes.set_ylim(max(len(panel.bars), height / BAR_INCHES) - 0.6, -0.75)
    share = min(0.75, (CHAR_INCHES * max(len(bar.text) for bar in panel.bars) + 0.15) / inches)
    most = max(bar.value for bar in panel.bars) or 1.0
    axes.set_xlim(0, most / (1 - share))
    for place, bar in zip(places, panel.bars, strict=True):
        style = {"textcoords": "offset points", "color": theme.text, "fontsize": 9, "parse_math": False}
        axes.annotate(bar.text, (bar.value, place), xytext=(5, 0), va="center", **style)
        name = shortened(bar.name, int(inches / CHAR_INCHES))
        axes.annotate(name, (0, place - 0.27), xytext=(4, 0), va="bottom", **style)


def _histogram(axes: Any, panel: HistogramPanel, theme: Theme) -> None:
    ticker = require("matplotlib.ticker", extra="plots", why="drawing with Matplotlib")
    colour = theme.colour(panel.colour)
    widths = [high - low for low, high in zip(panel.edges, panel.edges[1:], strict=False)]
    axes.bar(
        panel.edges[:-1],
        panel.counts,
        widths,
        align="edge",
        color=colour,
        edgecolor=theme.panel,
        linewidth=0.4,
    )
    axes.grid(visible=True, axis="y", color=theme.grid, linewidth=0.8)
    axes.set_ylabel(panel.y_label, color=theme.soft, fontsize=9.5, parse_math=False)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylim(0, 1.25 * max(panel.counts))
    if panel.log_x:
        axes.set_xscale("log")
        decades = math.log10(panel.edges[-1] / panel.edges[0])
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)))
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: number_text(value)))
    axes.set_xlim(panel.edges[0], panel.edges[-1])
    _marks(axes, panel.marks, theme, log_x=panel.log_x)


def _marks(axes: Any, marks: Sequence[Mark], theme: Theme, *, log_x: bool) -> None:
    """Upright lines with labels, one below the other so that near ones do not overlap."""
    low, high = axes.get_xlim()
    for turn, mark in enumerate(marks):
        axes.axvline(mark.x, color=theme.soft, linestyle=(0, (2, 2)), linewidth=1.1)
        at = (mark.x - low) / (high - low)
        if log_x:
            at = math.log(mark.x / low) / math.log(high / low)
        left = at > 0.6
        axes.annotate(
            mark.label,
            (mark.x, 0.03 + 0.085 * turn if mark.low else 0.97 - 0.085 * turn),
            xycoords=("data", "axes fraction"),
            xytext=(-5 if left else 5, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="bottom" if mark.low else "top",
            color=theme.text,
            fontsize=9,
            parse_math=False,
            bbox={"facecolor": theme.panel, "edgecolor": "none", "alpha": 0.85, "pad": 1.0},
        )
