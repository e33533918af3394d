"""Charts as text, for logs and for machines without a plotting library."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from holdfast.errors import Unsupported
from holdfast.registry.pictures.chart import BarPanel, HistogramPanel, LinePanel, shortened
from holdfast.registry.pictures.units import number_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from holdfast.registry.pictures.chart import Chart, Line, Panel
    from holdfast.registry.pictures.theme import Theme

__all__ = ["TextBackend"]

_STEPS = "▁▂▃▄▅▆▇█"
WIDTH = 40
NAME_CHARS = 40


class TextBackend:
    """Draws with letters: for each line where it begins, ends and lies, with its course in 40 characters."""

    name = "text"
    formats: frozenset[str] = frozenset()

    def figure(self, chart: Chart, theme: Theme) -> str:  # noqa: ARG002 -- letters have no colours
        """The chart as lines of text."""
        lines = [chart.title]
        lines += [chart.subtitle] * bool(chart.subtitle)
        if not chart.panels:
            lines.append(chart.nothing)
        for panel in chart.panels:
            lines += ["", *_panel(panel)]
        return "\n".join(lines)

    def written(self, figure: Any, file_format: str) -> bytes:  # noqa: ARG002 -- the protocol's
        """Nothing: it writes no pictures.

        Raises:
            Unsupported: Always.
        """
        raise Unsupported(f"a {file_format} picture needs Matplotlib: pip install 'holdfast[plots]'")

    def show(self, figure: str) -> bool:
        """Print the text."""
        print(figure)  # noqa: T201 -- that is what showing a text is
        return True


def _panel(panel: Panel) -> Iterator[str]:
    match panel:
        case LinePanel():
            unit = "" if panel.y_label.lower() == panel.title.lower() else f" ({panel.y_label})"
            yield f"{panel.title}{unit} by {panel.x_label}"
            name = max(len(shortened(line.name, NAME_CHARS)) for line in panel.lines)
            for line in panel.lines:
                course = f"{_course(line.y)}  " if len(line.y) > 1 else ""
                yield f"  {shortened(line.name, NAME_CHARS):<{name}}  {course}{_told(line)}"
            for mark in panel.marks:
                yield f"  {mark.label} at {panel.x_label} {number_text(mark.x)}"
        case BarPanel():
            yield f"{panel.title} ({panel.x_label})"
            name = max(len(shortened(bar.name, NAME_CHARS)) for bar in panel.bars)
            most = max(bar.value for bar in panel.bars) or 1.0
            for bar in panel.bars:
                blocks = "█" * max(1, round(WIDTH / 2 * bar.value / most))
                yield f"  {shortened(bar.name, NAME_CHARS):<{name}}  {blocks:<{WIDTH // 2}}  {bar.text}"
        case HistogramPanel():
            yield f"{panel.title}: {panel.y_label} by {panel.x_label}"
            ends = number_text(panel.edges[0]), number_text(panel.edges[-1])
            yield f"  {ends[0]} {_course(tuple(map(float, panel.counts)), low=0.0)} {ends[1]}"
            if panel.marks:
                yield "  " + ", ".join(mark.label for mark in panel.marks)


def _told(line: Line) -> str:
    good = [y for y in line.y if not math.isnan(y)]
    if not good:
        return "no finite value"
    if len(good) == 1:
        return number_text(good[0])
    gaps = len(line.y) - len(good)
    text = f"first {number_text(good[0])}, last {number_text(good[-1])}, min {number_text(min(good))}, max {number_text(max(good))}"
    return text + (f", {gaps} not finite" if gaps else "")


def _course(values: Sequence[float], *, low: float | None = None) -> str:
    """The course of values in at most 40 characters; a gap is a space."""
    width = min(WIDTH, len(values))
    cells = [values[i * len(values) // width : (i + 1) * len(values) // width] for i in range(width)]
    means = [
        math.fsum(good) / len(good) if (good := [v for v in cell if not math.isnan(v)]) else math.nan
        for cell in cells
    ]
    finite = [mean for mean in means if not math.isnan(mean)]
    bottom = min(finite, default=0.0) if low is None else low
    spread = max(finite, default=0.0) - bottom

    def step(mean: float) -> str:
        if math.isnan(mean):
            return " "
        return _STEPS[round((mean - bottom) / spread * (len(_STEPS) - 1)) if spread else 0]

    return "".join(map(step, means))
