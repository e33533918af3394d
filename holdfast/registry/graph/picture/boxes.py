"""What each box of the picture says: its lines, cut to fit, and the ports at which arrows arrive."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.registry.graph.record_links import role_name

if TYPE_CHECKING:
    from holdfast.registry.graph.lineage_graph import GraphNode, LineageGraph
    from holdfast.storage.cid import Cid

__all__ = ["BOX_WIDTH", "Box", "Port", "TextLine", "boxes_of", "fitted", "short_cid"]

BOX_WIDTH = 236.0
PADDING = 14.0
BAR = 6.0
"""Width of the coloured edge on the left, and radius of the corners."""
KIND_SIZE, NAME_SIZE, SMALL_SIZE = 10.0, 14.0, 11.0
_LEADS = {"kind": 21.0, "name": 20.0, "alias": 16.0, "cid": 16.0, "fact": 16.0}
"""From the line before to this one's baseline."""
_PORT_HEIGHT = 17.0
_WIDE, _NARROW = set("mwMW@%&"), set("iljtfrI.,:;'|!()[]- ")


@dataclass(frozen=True, slots=True)
class TextLine:
    """One line of a box, its baseline ``y`` points below the top of it."""

    text: str
    style: str
    """``kind``, ``name``, ``alias``, ``cid`` or ``fact``."""
    y: float


@dataclass(frozen=True, slots=True)
class Port:
    """Where arrows of one role arrive, ``y`` points below the top of the box."""

    role: str
    sources: tuple[Cid, ...]
    y: float


@dataclass(frozen=True, slots=True)
class Box:
    """One thing as it is drawn; its size and its lines, in points."""

    node: GraphNode
    lines: tuple[TextLine, ...]
    ports: tuple[Port, ...]
    divider: float | None
    """Where what it is ends and what it is made of begins; None if it is made of nothing that is shown."""
    height: float
    is_root: bool

    @property
    def out(self) -> float:
        """Where arrows leave."""
        return min(self.height, self.divider or self.height) / 2

    def with_ports(self, order: dict[Cid, float]) -> Box:
        """The same box, with its ports in the order of where their arrows come from."""
        ranked = sorted(
            self.ports,
            key=lambda port: (sum(order[source] for source in port.sources) / len(port.sources), port.role),
        )
        places = [port.y for port in self.ports]
        ports = tuple(Port(port.role, port.sources, y) for port, y in zip(ranked, places, strict=True))
        return Box(self.node, self.lines, ports, self.divider, self.height, self.is_root)


def short_cid(cid: Cid) -> str:
    """The beginning and the end of a CID, which is what people compare."""
    text = str(cid)
    return text if len(text) <= 20 else f"{text[:10]}…{text[-6:]}"


def fitted(text: str, width: float, size: float, *, mono: bool = False, bold: bool = False) -> str:
    """``text`` without control characters, cut with an ellipsis where it would be wider than ``width`` in any usual font."""
    clean = "".join(c for c in text if unicodedata.category(c)[0] != "C")
    if _width(clean, size, mono=mono, bold=bold) <= width:
        return clean
    while clean and _width(clean + "…", size, mono=mono, bold=bold) > width:
        clean = clean[:-1]
    return clean.rstrip() + "…"


def _width(text: str, size: float, *, mono: bool, bold: bool) -> float:
    """An upper bound of what sans-serif fonts need: no font is asked, the viewer has its own."""
    if mono:
        ems = sum(2.0 if unicodedata.east_asian_width(c) in "WF" else 0.62 for c in text)
    else:
        ems = sum(_em(c) for c in text) * (1.09 if bold else 1.0)
    return ems * size


def _em(char: str) -> float:
    if unicodedata.east_asian_width(char) in "WF":
        return 1.05
    if char in _WIDE:
        return 0.98
    if char in _NARROW:
        return 0.38
    return 0.72 if char.isupper() else 0.64


def boxes_of(graph: LineageGraph) -> dict[Cid, Box]:
    """A box for each node, in the graph's order."""
    ports: dict[Cid, dict[str, list[Cid]]] = {cid: {} for cid in graph.nodes}
    for link in graph.links:
        if link.part != link.whole:
            ports[link.whole].setdefault(role_name(link.role), []).append(link.part)
    return {cid: _box(node, ports[cid], is_root=cid == graph.root) for cid, node in graph.nodes.items()}


def _box(node: GraphNode, roles: dict[str, list[Cid]], *, is_root: bool) -> Box:
    room = BOX_WIDTH - BAR - 2 * PADDING
    lines: list[TextLine] = []
    y = 4.0

    def add(
        text: str, style: str, size: float, *, width: float = room, mono: bool = False, bold: bool = False
    ) -> None:
        nonlocal y
        y += _LEADS[style]
        lines.append(TextLine(fitted(text, width, size, mono=mono, bold=bold), style, y))

    add(node.kind.upper(), "kind", KIND_SIZE, width=room - 22, bold=True)
    versions = [name for name in node.names if "@" not in name]
    own = versions[0].partition(":")[0] + "@" if versions else "@"
    aliases = ["@" + name.removeprefix(own) for name in node.names if name.startswith(own)]
    aliases += [name for name in node.names if "@" in name and not name.startswith(own)]
    if versions:
        more = f" +{len(versions) - 1}" if len(versions) > 1 else ""
        add(_kept_end(versions[0], room, more), "name", NAME_SIZE, bold=True)
        if aliases:
            add(" ".join(aliases), "alias", SMALL_SIZE, bold=True)
        add(short_cid(node.cid), "cid", SMALL_SIZE, mono=True)
    else:
        add(short_cid(node.cid), "cid", SMALL_SIZE, mono=True)
    for fact in node.facts:
        add(fact, "fact", SMALL_SIZE)
    y += 11.0
    divider = None
    placed: list[Port] = []
    if roles:
        divider = y
        y += 4.0
        for role, sources in roles.items():
            y += _PORT_HEIGHT
            placed.append(Port(role, tuple(dict.fromkeys(sources)), y - _PORT_HEIGHT / 2))
        y += 5.0
    return Box(node, tuple(lines), tuple(placed), divider, y, is_root)


def _kept_end(name: str, room: float, more: str) -> str:
    """A name cut in its middle where it is too long: its version is what tells it from others."""
    if _width(name + more, NAME_SIZE, mono=False, bold=True) <= room:
        return name + more
    base, _, version = name.rpartition(":")
    while base and _width(f"{base}…:{version}{more}", NAME_SIZE, mono=False, bold=True) > room:
        base = base[:-1]
    return f"{base}…:{version}{more}"
