"""The picture as SVG: text stays text, every box tells its whole CID to who points at it, and no font is brought along."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from holdfast.registry.graph.picture.boxes import BAR, BOX_WIDTH, PADDING
from holdfast.registry.graph.picture.layout import lay_out
from holdfast.registry.graph.picture.style import (
    DARK,
    HEAD,
    LIGHT,
    MARGIN,
    SIGN_SIZE,
    TITLE_HEIGHT,
    Theme,
    colour_class,
    sign_of,
)
from holdfast.registry.graph.picture.titles import subtitle_of, title_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from holdfast.registry.graph.lineage_graph import LineageGraph
    from holdfast.registry.graph.picture.boxes import Box
    from holdfast.registry.graph.picture.layout import Arrow

__all__ = ["to_svg"]

_STYLE = """\
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; fill: var(--text) }
.mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace }
.title { font-size: 18px; font-weight: 700 }
.subtitle { font-size: 12px; fill: var(--quiet) }
.page { fill: var(--page) }
.box { fill: var(--box); stroke: var(--border) }
.root .box { stroke-width: 2.5 }
.kind { font-size: 10px; font-weight: 700; letter-spacing: .06em }
.name { font-size: 14px; font-weight: 700 }
.alias { font-size: 11px; font-weight: 600 }
.cid, .fact, .role { font-size: 11px; fill: var(--quiet) }
.divider { stroke: var(--border) }
.arrow { fill: none; stroke: var(--arrow); stroke-width: 1.4 }
.head { fill: var(--arrow) }"""


def to_svg(graph: LineageGraph) -> str:
    """A whole SVG document; light or dark as its viewer is set."""
    return "\n".join(_document(graph)) + "\n"


def _document(graph: LineageGraph) -> Iterator[str]:
    layout = lay_out(graph)
    width = max(layout.width, 420.0) + 2 * MARGIN
    height = layout.height + 2 * MARGIN + TITLE_HEIGHT
    title = escape(title_of(graph))
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-labelledby="title">'
    )
    yield f'<title id="title">{title}</title>'
    yield f"<style>\n{_colours()}\n{_STYLE}\n</style>"
    yield f'<rect class="page" width="{width:.0f}" height="{height:.0f}"/>'
    yield f'<text class="title" x="{MARGIN:.0f}" y="{MARGIN + 14:.0f}">{title}</text>'
    yield f'<text class="subtitle" x="{MARGIN:.0f}" y="{MARGIN + 35:.0f}">{escape(subtitle_of(graph))}</text>'
    yield f'<g transform="translate({MARGIN:.0f} {MARGIN + TITLE_HEIGHT:.0f})">'
    for arrow in layout.arrows:
        yield f'<path class="arrow" d="{_path(arrow)}"/>'
    for cid, box in layout.boxes.items():
        yield from _box(box, *layout.places[cid])
    yield "</g>"
    yield "</svg>"


def _colours() -> str:
    return f":root {{ {_variables(LIGHT)} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}"


def _variables(theme: Theme) -> str:
    plain = {name: getattr(theme, name) for name in ("page", "box", "border", "text", "quiet", "arrow")}
    return "; ".join(f"--{name}: {colour}" for name, colour in {**plain, **theme.kinds}.items())


def _path(arrow: Arrow) -> str:
    points = arrow.points
    parts = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for at in range(0, len(points), 2):
        (x, y), (to_x, to_y) = points[at], points[at + 1]
        middle = (x + to_x) / 2
        if at:
            parts.append(f"H{x:.1f}")
        parts.append(f"C{middle:.1f} {y:.1f} {middle:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}")
    return "".join(parts)


def _box(box: Box, x: float, y: float) -> Iterator[str]:
    colour = f"var(--{colour_class(box.node.kind)})"
    names = f"{', '.join(box.node.names)}\n" if box.node.names else ""
    yield f'<g class="{"root" if box.is_root else "thing"}" transform="translate({x:.1f} {y:.1f})">'
    yield f"<title>{escape(_printable(f'{box.node.kind} {names}{box.node.cid}'))}</title>"
    outline = f' style="stroke: {colour}"' if box.is_root else ""
    yield f'<rect class="box"{outline} width="{BOX_WIDTH:.0f}" height="{box.height:.1f}" rx="{BAR:.0f}"/>'
    yield (
        f'<path style="fill: {colour}" d="M{BAR:.0f} 0V{box.height:.1f}a{BAR:.0f} {BAR:.0f} 0 0 1 -{BAR:.0f} -{BAR:.0f}'
        f'V{BAR:.0f}a{BAR:.0f} {BAR:.0f} 0 0 1 {BAR:.0f} -{BAR:.0f}z"/>'
    )
    left = BAR + PADDING
    for line in box.lines:
        mono = " mono" if line.style == "cid" else ""
        indent = SIGN_SIZE + 8 if line.style == "kind" else 0.0
        fill = f' style="fill: {colour}"' if line.style in ("kind", "alias") else ""
        if line.style == "kind":
            yield from _sign(box.node.kind, colour, left, line.y - SIGN_SIZE + 2.5)
        yield f'<text class="{line.style}{mono}"{fill} x="{left + indent:.1f}" y="{line.y:.1f}">{escape(line.text)}</text>'
    if box.divider is not None:
        yield f'<path class="divider" d="M{BAR:.0f} {box.divider:.1f}H{BOX_WIDTH - 1:.0f}"/>'
    for port in box.ports:
        yield f'<path class="head" d="M{-HEAD:.0f} {port.y - 4:.1f}l{HEAD - 1:.0f} 4l{1 - HEAD:.0f} 4z"/>'
        yield f'<text class="role" x="{left:.1f}" y="{port.y + 3.8:.1f}">{escape(port.role)}</text>'
    yield "</g>"


def _sign(kind: str, colour: str, x: float, y: float) -> Iterator[str]:
    for polygon in sign_of(kind):
        points = " ".join(f"{x + SIGN_SIZE * px:.1f},{y + SIGN_SIZE * py:.1f}" for px, py in polygon)
        yield f'<polygon style="fill: {colour}" points="{points}"/>'


def _printable(text: str) -> str:
    """Without characters that XML can't hold."""
    return "".join(c for c in text if c.isprintable() or c in "\n ")
