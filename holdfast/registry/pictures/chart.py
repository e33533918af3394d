"""What a picture shows, independent of who draws it: panels of lines, bars or counts, with their labels and units."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = [
    "Bar",
    "BarPanel",
    "Chart",
    "HistogramPanel",
    "Key",
    "Line",
    "LinePanel",
    "Mark",
    "Panel",
    "count_of",
    "legend_of",
    "lone_points",
    "shortened",
    "thinned",
]

MAX_POINTS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Points joined by a line; a y of NaN is a gap."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    colour: int
    """Its place in the theme's palette."""
    dash: int = 0
    """0 is a solid line, 1 dashes, 2 dots."""
    group: str = ""
    """What its colour stands for, where several lines have it."""
    role: str = ""
    """What its dashes stand for then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """An entry of a legend."""

    label: str
    colour: int | None
    """None for what is explained for all colours."""
    dash: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A place on the x axis that has a name, such as a percentile."""

    x: float
    label: str
    low: bool = False
    """Its label stands at the bottom, since the lines are at the top there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinePanel:
    """Lines over a common x axis."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()
    whole_x: bool = False
    """x counts something, such as epochs."""
    log_y: bool = False
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar with its value written beside it."""

    name: str
    value: float
    text: str
    colour: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BarPanel:
    """Horizontal bars, the first one on top."""

    title: str
    x_label: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramPanel:
    """How many values lie between each edge and the next."""

    title: str
    x_label: str
    y_label: str
    edges: tuple[float, ...]
    """One more than there are counts, ascending."""
    counts: tuple[int, ...]
    marks: tuple[Mark, ...] = ()
    log_x: bool = False
    colour: int = 0


Panel: TypeAlias = LinePanel | BarPanel | HistogramPanel


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A picture: panels under one title."""

    key: str
    """Its file name without an ending, such as ``training``."""
    title: str
    subtitle: str = ""
    panels: tuple[Panel, ...] = ()
    nothing: str = ""
    """What to say in the picture's stead when there is no panel."""
    facts: tuple[tuple[str, str], ...] = field(default=())
    """Key figures: label and value."""


def legend_of(panel: LinePanel) -> tuple[Key, ...]:
    """What tells the lines apart; nothing where the panel's own labels say what its one line is.

    Lines of several groups have an entry for each colour, and then one for each kind of dashes.
    """
    told = {panel.title.lower(), panel.y_label.lower()}
    if len(panel.lines) == 1 and panel.lines[0].name.lower() in told:
        return ()
    groups = {line.group: line.colour for line in panel.lines if line.group}
    roles = {line.role: line.dash for line in panel.lines if line.role}
    if len(groups) < 2 or len(roles) < 2:
        return tuple(Key(label=line.name, colour=line.colour, dash=line.dash) for line in panel.lines)
    return (
        *(Key(label=group, colour=colour, dash=0) for group, colour in groups.items()),
        *(Key(label=role, colour=None, dash=dash) for role, dash in roles.items()),
    )


def lone_points(y: tuple[float, ...]) -> list[int]:
    """The indices of points without a neighbour, which no line would show."""
    gap = [True, *(math.isnan(value) for value in y), True]
    return [i for i in range(len(y)) if gap[i] and not gap[i + 1] and gap[i + 2]]


def shortened(name: str, chars: int) -> str:
    """A name of at most ``chars`` characters: its middle is left out, since names differ at their ends."""
    if len(name) <= chars:
        return name
    head = (chars - 1) // 2
    return f"{name[:head]}…{name[len(name) - (chars - 1 - head) :]}"


def count_of(number: float, what: str) -> str:
    """A number with the plural that it needs: ``1 load``, ``1,200 loads``."""
    return f"{number:,.0f} {what}{'' if number == 1 else 's'}"


def thinned(
    x: tuple[float, ...], y: tuple[float, ...], most: int = MAX_POINTS
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """At most about ``most`` of the points: of each stretch of them the lowest, the highest and a gap, all of them real."""
    if len(x) <= most:
        return x, y
    stretch = -(-len(x) // (most // 3))
    kept: list[int] = []
    for begin in range(0, len(x), stretch):
        here = range(begin, min(begin + stretch, len(x)))
        good = [i for i in here if not math.isnan(y[i])]
        chosen = {min(good, key=y.__getitem__), max(good, key=y.__getitem__)} if good else set()
        kept += sorted(chosen | set([i for i in here if math.isnan(y[i])][:1]))
    kept = sorted({0, *kept, len(x) - 1})
    return tuple(x[i] for i in kept), tuple(y[i] for i in kept)
