"""The picture as PNG, drawn by Matplotlib where it is installed."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from holdfast.errors import InvalidInput, require
from holdfast.registry.graph.picture.boxes import BAR, BOX_WIDTH, KIND_SIZE, NAME_SIZE, PADDING, SMALL_SIZE
from holdfast.registry.graph.picture.layout import lay_out
from holdfast.registry.graph.picture.style import (
    DARK,
    HEAD,
    LIGHT,
    MARGIN,
    SIGN_SIZE,
    TITLE_HEIGHT,
    colour_class,
    sign_of,
)
from holdfast.registry.graph.picture.titles import subtitle_of, title_of

if TYPE_CHECKING:
    from holdfast.registry.graph.lineage_graph import LineageGraph
    from holdfast.registry.graph.picture.boxes import Box
    from holdfast.registry.graph.picture.layout import Arrow
    from holdfast.registry.graph.picture.style import Theme

__all__ = ["to_png"]

MAX_PIXELS = 40_000_000
_SIZES = {"kind": KIND_SIZE, "name": NAME_SIZE, "alias": SMALL_SIZE, "cid": SMALL_SIZE, "fact": SMALL_SIZE}


def to_png(graph: LineageGraph, *, dark: bool = False, scale: float = 2.0) -> bytes:
    """The bytes of a PNG file.

    Args:
        graph: What to draw.
        dark: Light on dark.
        scale: Pixels a point; a picture of more than 40 million pixels gets fewer.

    Raises:
        InvalidInput: ``scale`` is not above 0.
        Unsupported: Matplotlib is not installed.
    """
    if not scale > 0:
        raise InvalidInput(f"scale={scale} must be above 0: it is pixels a point")
    why = "a lineage as PNG"
    figures = require("matplotlib.figure", extra="plots", why=why)
    require("matplotlib.backends.backend_agg", extra="plots", why=why)
    layout = lay_out(graph)
    width = max(layout.width, 420.0) + 2 * MARGIN
    height = layout.height + 2 * MARGIN + TITLE_HEIGHT
    scale = min(scale, (MAX_PIXELS / (width * height)) ** 0.5, 60_000 / max(width, height))
    theme = DARK if dark else LIGHT
    figure = figures.Figure(figsize=(width / 72, height / 72), dpi=72 * scale, facecolor=theme.page)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    painter = _Painter(axes, theme)
    painter.text(MARGIN, MARGIN + 14, title_of(graph), 18.0, theme.text, bold=True)
    painter.text(MARGIN, MARGIN + 35, subtitle_of(graph), 12.0, theme.quiet)
    for arrow in layout.arrows:
        painter.arrow(arrow, MARGIN, MARGIN + TITLE_HEIGHT)
    for cid, box in layout.boxes.items():
        x, y = layout.places[cid]
        painter.box(box, x + MARGIN, y + MARGIN + TITLE_HEIGHT)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=72 * scale, facecolor=theme.page, metadata={"Software": None})
    return file.getvalue()


class _Painter:
    """Draws on one pair of axes, in points from the upper left corner."""

    def __init__(self, axes: Any, theme: Theme) -> None:
        from matplotlib import patches
        from matplotlib.path import Path

        self._axes = axes
        self._theme = theme
        self._patches: Any = patches
        self._path: Any = Path

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        colour: str,
        *,
        bold: bool = False,
        mono: bool = False,
    ) -> None:
        self._axes.text(
            x,
            y,
            text,
            fontsize=size * 0.94,  # Matplotlib's own font is wider than those of browsers
            color=colour,
            fontweight="bold" if bold else "normal",
            family="monospace" if mono else "sans-serif",
            va="baseline",
            parse_math=False,
        )

    def arrow(self, arrow: Arrow, dx: float, dy: float) -> None:
        points = [(x + dx, y + dy) for x, y in arrow.points]
        vertices, codes = [points[0]], [self._path.MOVETO]
        for at in range(0, len(points), 2):
            (x, y), (to_x, to_y) = points[at], points[at + 1]
            if at:
                vertices.append((x, y))
                codes.append(self._path.LINETO)
            vertices += [((x + to_x) / 2, y), ((x + to_x) / 2, to_y), (to_x, to_y)]
            codes += [self._path.CURVE4] * 3
        path = self._path(vertices, codes)
        self._axes.add_patch(
            self._patches.PathPatch(path, facecolor="none", edgecolor=self._theme.arrow, linewidth=1.4)
        )

    def box(self, box: Box, x: float, y: float) -> None:
        theme = self._theme
        colour = theme.kinds[colour_class(box.node.kind)]
        style = f"round,pad=0,rounding_size={BAR}"
        outline = self._patches.FancyBboxPatch(
            (x, y),
            BOX_WIDTH,
            box.height,
            boxstyle=style,
            facecolor=theme.box,
            edgecolor=colour if box.is_root else theme.border,
            linewidth=2.5 if box.is_root else 1.0,
        )
        self._axes.add_patch(outline)
        bar = self._patches.Rectangle((x, y), BAR, box.height, facecolor=colour, edgecolor="none")
        self._axes.add_patch(bar)
        bar.set_clip_path(outline)
        left = x + BAR + PADDING
        for line in box.lines:
            indent = 0.0
            if line.style == "kind":
                indent = SIGN_SIZE + 8
                self._sign(box.node.kind, colour, left, y + line.y - SIGN_SIZE + 2.5)
            self.text(
                left + indent,
                y + line.y,
                line.text,
                _SIZES[line.style],
                colour
                if line.style in ("kind", "alias")
                else theme.text
                if line.style == "name"
                else theme.quiet,
                bold=line.style in ("kind", "name", "alias"),
                mono=line.style == "cid",
            )
        if box.divider is not None:
            at = y + box.divider
            self._axes.plot([x + BAR, x + BOX_WIDTH - 1], [at, at], color=theme.border, linewidth=1.0)
        for port in box.ports:
            at = y + port.y
            self._polygon([(x - HEAD, at - 4), (x - 1, at), (x - HEAD, at + 4)], theme.arrow)
            self.text(left, at + 3.8, port.role, SMALL_SIZE, theme.quiet)

    def _sign(self, kind: str, colour: str, x: float, y: float) -> None:
        for polygon in sign_of(kind):
            self._polygon([(x + SIGN_SIZE * px, y + SIGN_SIZE * py) for px, py in polygon], colour)

    def _polygon(self, points: list[tuple[float, float]], colour: str) -> None:
        self._axes.add_patch(self._patches.Polygon(points, facecolor=colour, edgecolor="none"))
