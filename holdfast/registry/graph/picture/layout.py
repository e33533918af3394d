"""Where the boxes stand: in columns from left to right, parts before what was made of them, and arrows that cross no box.

The classic way in four steps (Sugiyama, Tagawa and Toda 1981): columns by the longest way, a lane through each column that an
arrow only passes, an order within the columns with few crossings, and then heights, so that arrows are straight where they can
be. What leaves one box goes through one lane, however many boxes it leads to.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.registry.graph.picture.boxes import BOX_WIDTH, boxes_of
from holdfast.registry.graph.picture.style import HEAD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from holdfast.registry.graph.lineage_graph import LineageGraph
    from holdfast.registry.graph.picture.boxes import Box
    from holdfast.storage.cid import Cid

__all__ = ["Arrow", "Layout", "lay_out"]

_GAP_Y = 22.0
_LANE_HEIGHT = 4.0
_GAP_X = 64.0
_GAP_X_PER_ARROW = 2.5
_GAP_X_MAX = 190.0
_ORDER_SWEEPS = 24
_HEIGHT_SWEEPS = 16

Spot = tuple["Cid", int]
"""A box in its own column, or the lane of what leaves it in another one."""


@dataclass(frozen=True, slots=True)
class Arrow:
    """From the right edge of a part, by straight pieces through columns, to a port of what was made of it."""

    part: Cid
    whole: Cid
    points: tuple[tuple[float, float], ...]
    """Pairs: between points 0 and 1, 2 and 3, and so on it bends in the gap between columns; else it runs straight."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Boxes with the places of their upper left corners, and arrows; in points from the upper left corner of the whole."""

    boxes: Mapping[Cid, Box]
    places: Mapping[Cid, tuple[float, float]]
    arrows: tuple[Arrow, ...]
    width: float
    height: float


def lay_out(graph: LineageGraph) -> Layout:
    """The layout of a graph; the same graph gives the same one."""
    boxes = boxes_of(graph)
    pairs = _without_cycles(
        list(dict.fromkeys((link.part, link.whole) for link in graph.links if link.part != link.whole)), boxes
    )
    columns = _columns(boxes, pairs)
    grid = _Grid(boxes, pairs, columns)
    grid.order()
    grid.set_heights()
    grid.boxes = {
        cid: box.with_ports(
            {part: grid.arrives_from(part, cid) for port in box.ports for part in port.sources}
        )
        for cid, box in boxes.items()
    }
    grid.set_heights()
    return grid.layout()


def _without_cycles(pairs: list[tuple[Cid, Cid]], boxes: Mapping[Cid, Box]) -> list[tuple[Cid, Cid]]:
    """The arrows without those that close a cycle: a run may put out a file that it also took in."""
    after: dict[Cid, list[Cid]] = {cid: [] for cid in boxes}
    for part, whole in pairs:
        after[part].append(whole)
    back: set[tuple[Cid, Cid]] = set()
    done: set[Cid] = set()
    for start in boxes:
        path = {start}
        pending = [(start, iter(after[start]))]
        if start in done:
            continue
        while pending:
            cid, rest = pending[-1]
            child = next(rest, None)
            if child is None:
                pending.pop()
                path.discard(cid)
                done.add(cid)
            elif child in path:
                back.add((cid, child))
            elif child not in done:
                path.add(child)
                pending.append((child, iter(after[child])))
    return [pair for pair in pairs if pair not in back]


def _columns(boxes: Mapping[Cid, Box], pairs: list[tuple[Cid, Cid]]) -> dict[Cid, int]:
    """Each box's column: behind all its parts, and then as near as can be to what was first made of it."""
    parts: dict[Cid, list[Cid]] = {cid: [] for cid in boxes}
    wholes: dict[Cid, list[Cid]] = {cid: [] for cid in boxes}
    for part, whole in pairs:
        parts[whole].append(part)
        wholes[part].append(whole)
    waiting = {cid: len(parts[cid]) for cid in boxes}
    ready = [cid for cid in boxes if not waiting[cid]]
    column = dict.fromkeys(boxes, 0)
    for cid in ready:
        for whole in wholes[cid]:
            column[whole] = max(column[whole], column[cid] + 1)
            waiting[whole] -= 1
            if not waiting[whole]:
                ready.append(whole)
    for cid in reversed(ready):
        if wholes[cid]:
            column[cid] = min(column[whole] for whole in wholes[cid]) - 1
    first = min(column.values())
    return {cid: at - first for cid, at in column.items()}


class _Grid:
    """The columns with their boxes and lanes while they are put in order."""

    def __init__(
        self, boxes: Mapping[Cid, Box], pairs: list[tuple[Cid, Cid]], columns: Mapping[Cid, int]
    ) -> None:
        self.boxes = boxes
        self._pairs = pairs
        self._column = columns
        self._at: list[list[Spot]] = [[] for _ in range(max(columns.values()) + 1)]
        self._steps: dict[tuple[Spot, Spot], list[Cid]] = {}
        """From a spot to one in the next column, and the boxes that arrive there."""
        for cid in boxes:
            self._at[columns[cid]].append((cid, columns[cid]))
        for part, whole in pairs:
            for at in range(columns[part], columns[whole]):
                last = at + 1 == columns[whole]
                step = ((part, at), (whole, at + 1) if last else (part, at + 1))
                if step not in self._steps and not last:
                    self._at[at + 1].append((part, at + 1))
                self._steps.setdefault(step, []).append(whole)
        self._before: dict[Spot, list[Spot]] = {spot: [] for spots in self._at for spot in spots}
        self._after: dict[Spot, list[Spot]] = {spot: [] for spots in self._at for spot in spots}
        for left, right in self._steps:
            self._before[right].append(left)
            self._after[left].append(right)
        self.y: dict[Spot, float] = {}

    def _is_lane(self, spot: Spot) -> bool:
        return self._column[spot[0]] != spot[1]

    def _height(self, spot: Spot) -> float:
        return _LANE_HEIGHT if self._is_lane(spot) else self.boxes[spot[0]].height

    # ---------------------------------------------------------------------------------------------- order

    def order(self) -> None:
        """Put the spots of each column in an order with few crossings: each near the middle of its neighbours."""
        best, fewest = [list(spots) for spots in self._at], self._crossings()
        for sweep in range(_ORDER_SWEEPS):
            if not fewest:
                break
            forth = sweep % 2 == 0
            numbers = range(1, len(self._at)) if forth else range(len(self._at) - 2, -1, -1)
            near = self._before if forth else self._after
            for number in numbers:
                place = {spot: at for spots in self._at for at, spot in enumerate(spots)}
                self._at[number].sort(
                    key=lambda spot, near=near, place=place: (  # type: ignore[misc]
                        sum(place[other] for other in near[spot]) / len(near[spot])
                        if near[spot]
                        else place[spot]
                    )
                )
            crossings = self._crossings()
            if crossings < fewest:
                best, fewest = [list(spots) for spots in self._at], crossings
        self._at = best

    def _crossings(self) -> int:
        place = {spot: at for spots in self._at for at, spot in enumerate(spots)}
        total = 0
        for number in range(len(self._at) - 1):
            ends = sorted(
                (place[left], place[right]) for left in self._at[number] for right in self._after[left]
            )
            met: list[int] = []
            for _, right in ends:
                total += len(met) - bisect_left(met, right + 1)
                insort(met, right)
        return total

    # -------------------------------------------------------------------------------------------- heights

    def set_heights(self) -> None:
        """Give each spot its height: as near to its neighbours as the order allows."""
        for spots in self._at:
            y = 0.0
            for spot in spots:
                self.y[spot] = y
                y += self._height(spot) + _GAP_Y
        for sweep in range(_HEIGHT_SWEEPS):
            forth = sweep % 2 == 0
            both = sweep >= _HEIGHT_SWEEPS - 4  # at last, neither side pulls alone
            numbers = range(len(self._at)) if forth else range(len(self._at) - 1, -1, -1)
            for number in numbers:
                spots = self._at[number]
                wanted = [self._wanted(spot, before=forth or both, after=not forth or both) for spot in spots]
                weights = [8.0 if self._is_lane(spot) else 1.0 + len(self._after[spot]) for spot in spots]
                heights = [self._height(spot) + _GAP_Y for spot in spots]
                self.y.update(zip(spots, spread(wanted, weights, heights), strict=True))
        top = min(self.y.values())
        self.y = {spot: y - top for spot, y in self.y.items()}

    def _wanted(self, spot: Spot, *, before: bool, after: bool) -> float:
        """Where the spot's top would make its arrows straight."""
        found = []
        if before:
            for left in self._before[spot]:
                found += [self._leaves(left) - self._port(spot, left[0])]
        if after:
            for right in self._after[spot]:
                found += [self.y[right] + self._port(right, spot[0]) - self._leaving(spot)]
        return sum(found) / len(found) if found else self.y[spot]

    def arrives_from(self, part: Cid, whole: Cid) -> float:
        """The height from which the arrow of a part comes into the column of what was made of it."""
        before = (part, self._column[whole] - 1)
        return self._leaves(before if before in self.y else (part, self._column[part]))

    def _leaving(self, spot: Spot) -> float:
        return _LANE_HEIGHT / 2 if self._is_lane(spot) else self.boxes[spot[0]].out

    def _leaves(self, spot: Spot) -> float:
        return self.y[spot] + self._leaving(spot)

    def _port(self, spot: Spot, part: Cid) -> float:
        """How far below the top of a spot the arrow of a part arrives."""
        if self._is_lane(spot):
            return _LANE_HEIGHT / 2
        ports = [port.y for port in self.boxes[spot[0]].ports if part in port.sources]
        return sum(ports) / len(ports)

    # --------------------------------------------------------------------------------------------- result

    def layout(self) -> Layout:
        """The finished layout."""
        lefts, x = [], 0.0
        for number in range(len(self._at)):
            lefts.append(x)
            leaving = sum(len(self._after[spot]) for spot in self._at[number])
            x += BOX_WIDTH + min(_GAP_X_MAX, _GAP_X + _GAP_X_PER_ARROW * leaving)
        arrows: list[Arrow] = []
        for part, whole in self._pairs:
            begin, end = self._column[part], self._column[whole]
            for port in self.boxes[whole].ports:
                if part not in port.sources:
                    continue
                points = [(lefts[begin] + BOX_WIDTH, self._leaves((part, begin)))]
                for at in range(begin + 1, end):
                    y = self._leaves((part, at))
                    points += [(lefts[at], y), (lefts[at] + BOX_WIDTH, y)]
                points.append((lefts[end] - HEAD, self.y[whole, end] + port.y))
                arrows.append(Arrow(part, whole, tuple(points)))
        places = {cid: (lefts[self._column[cid]], self.y[cid, self._column[cid]]) for cid in self.boxes}
        return Layout(
            boxes=self.boxes,
            places=places,
            arrows=tuple(arrows),
            width=lefts[-1] + BOX_WIDTH,
            height=max(self.y[spot] + self._height(spot) for spot in self.y),
        )


def spread(wanted: list[float], weights: list[float], heights: list[float]) -> list[float]:
    """The places nearest to the wanted ones, by weighted squares, at which things of these heights don't overlap.

    Things keep their order. It is the pool-adjacent-violators algorithm: those that push each other move as one.
    """
    offsets, at = [], 0.0
    for height in heights:
        offsets.append(at)
        at += height
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many
    for want, weight, offset in zip(wanted, weights, offsets, strict=True):
        pools.append((want - offset, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (mean, mass, count), (other, more, few) = pools.pop(), pools.pop()
            pools.append(((mean * mass + other * more) / (mass + more), mass + more, count + few))
    means = [mean for mean, _, count in pools for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]
