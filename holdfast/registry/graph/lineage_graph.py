"""The lineage of one thing, in both directions: what it is made of, and what was made from it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from holdfast.errors import InvalidInput
from holdfast.registry.graph.facts import describe
from holdfast.registry.graph.record_links import Link, links_in
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from holdfast.registry.graph.made_from import MadeFrom
    from holdfast.storage.content import ContentStore

__all__ = ["GraphNode", "LineageGraph", "lineage_graph"]

MAX_DEPTH = 32
MAX_NODES = 300
"""More is no picture that anybody reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphNode:
    """One thing: a record, a file or a folder."""

    cid: Cid
    kind: str
    names: tuple[str, ...] = ()
    """What points here now: ``digits:1.0.0``, ``digits@champion``."""
    facts: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "cid": str(self.cid),
            "kind": self.kind,
            "names": list(self.names),
            "facts": list(self.facts),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageGraph:
    """Things, and arrows from each part to what was made of it. It has no cycles but those that equal files make."""

    root: Cid
    """Whose lineage it is."""
    nodes: Mapping[Cid, GraphNode]
    """The root first."""
    links: tuple[Link, ...]
    cut: str = ""
    """Empty if this is all; else what was left out, as a sentence."""

    def parts_of(self, whole: Cid) -> list[Link]:
        """The arrows that end at ``whole``."""
        return [link for link in self.links if link.whole == whole]

    def made_from(self, part: Cid) -> list[Link]:
        """The arrows that begin at ``part``."""
        return [link for link in self.links if link.part == part]

    def called(self, name: str) -> LineageGraph:
        """The same, with ``name`` as the first of the root's names, if it is one."""
        root = self.nodes[self.root]
        if name not in root.names:
            return self
        first = replace(root, names=(name, *(other for other in root.names if other != name)))
        return replace(self, nodes={**self.nodes, self.root: first})

    def render(self) -> str:
        """Two trees as text: what it is made of, and what was made from it; one line each."""
        from holdfast.registry.graph.text import render

        return render(self)

    def to_svg(self) -> str:
        """A picture, light or dark as its viewer is set; needs no library and no font."""
        from holdfast.registry.graph.picture.svg import to_svg

        return to_svg(self)

    def to_png(self, *, dark: bool = False, scale: float = 2.0) -> bytes:
        """The same picture as pixels.

        Args:
            dark: Light on dark.
            scale: Pixels for each point of the SVG; less for a picture that would be too large.

        Raises:
            Unsupported: Matplotlib is not installed.
        """
        from holdfast.registry.graph.picture.png import to_png

        return to_png(self, dark=dark, scale=scale)

    def to_json(self) -> dict[str, Any]:
        """Plain values; :meth:`from_json` reads them."""
        return {
            "root": str(self.root),
            "nodes": [node.to_json() for node in self.nodes.values()],
            "links": [
                {"part": str(link.part), "role": link.role, "whole": str(link.whole)} for link in self.links
            ],
            "cut": self.cut,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> LineageGraph:
        """The graph that :meth:`to_json` wrote.

        Raises:
            InvalidInput: It is something else.
        """
        try:
            nodes = [
                GraphNode(
                    cid=Cid.parse(node["cid"]),
                    kind=node["kind"],
                    names=tuple(node["names"]),
                    facts=tuple(node["facts"]),
                )
                for node in body["nodes"]
            ]
            links = tuple(
                Link(Cid.parse(link["part"]), link["role"], Cid.parse(link["whole"]))
                for link in body["links"]
            )
            return cls(
                root=Cid.parse(body["root"]),
                nodes={node.cid: node for node in nodes},
                links=links,
                cut=body["cut"],
            )
        except (KeyError, TypeError) as error:
            raise InvalidInput(f"this is not a lineage: {error!r}") from error


def lineage_graph(
    store: ContentStore,
    cid: Cid,
    *,
    made_from: MadeFrom | None = None,
    upstream: bool = True,
    downstream: bool = True,
    max_depth: int = MAX_DEPTH,
    max_nodes: int = MAX_NODES,
) -> LineageGraph:
    """What ``cid`` is made of, and what was made from it; only records are read, and nothing is hashed again.

    Args:
        store: Gives the records.
        cid: Any CID.
        made_from: Knows names, and what was made from a thing; without it, only what the records themselves say is told.
        upstream: Follow what it is made of.
        downstream: Follow what was made from it.
        max_depth: So many steps from ``cid`` at most.
        max_nodes: So many things at most; with both directions, each gets half.

    Raises:
        InvalidInput: Neither direction is wanted, or a limit is below 1.
    """
    if not (upstream or downstream):
        raise InvalidInput("a lineage goes upstream, downstream, or both: neither was asked for")
    if max_depth < 1 or max_nodes < 1:
        raise InvalidInput(f"max_depth={max_depth} and max_nodes={max_nodes} must be at least 1")
    walk = _Walk(store, made_from, cid)
    room = max_nodes // 2 if upstream and downstream else max_nodes
    cut = []
    if upstream and walk.follow(walk.parts, max_depth, max(1, room)):
        cut.append("what it is made of")
    if downstream and walk.follow(walk.wholes, max_depth, max_nodes):
        cut.append("what was made from it")
    limits = f"{max_nodes} parts or {max_depth} steps"
    return LineageGraph(
        root=cid,
        nodes=walk.nodes,
        links=walk.links(),
        cut=f"cut at {limits}: there is more of {' and of '.join(cut)}" if cut else "",
    )


class _Walk:
    """Things that were met, each read once."""

    def __init__(self, store: ContentStore, made_from: MadeFrom | None, root: Cid) -> None:
        self._store = store
        self._made_from = made_from
        self._root = root
        self._told: dict[Cid, list[Link]] = {}
        self.nodes: dict[Cid, GraphNode] = {}
        self._meet(root)

    def _meet(self, cid: Cid) -> None:
        kind, facts, record = describe(self._store, cid)
        names = self._made_from.names_of(cid) if self._made_from is not None else ()
        self.nodes[cid] = GraphNode(cid=cid, kind=kind, names=names, facts=facts)
        self._told[cid] = links_in(cid, record)

    def follow(self, step: Callable[[Cid, int], Iterable[Cid]], depth: int, room: int) -> bool:
        """Meet what is reached from the root; whether some of it was left out."""
        pending = deque([(self._root, 0)])
        seen = {self._root}
        cut = False
        while pending:
            cid, steps = pending.popleft()
            for found in step(cid, room):
                if found in seen:
                    continue
                if steps == depth or (found not in self.nodes and len(self.nodes) >= room):
                    cut = True
                    continue
                seen.add(found)
                if found not in self.nodes:
                    self._meet(found)
                pending.append((found, steps + 1))
        return cut

    def parts(self, cid: Cid, _: int) -> list[Cid]:
        """What a thing is made of. Who made a file is asked of the file at the root only: what a record is made of, it says."""
        told = self._told[cid]
        if cid == self._root and self._made_from is not None:
            told = self._told[cid] = list(dict.fromkeys([*told, *self._made_from.parts(cid)]))
        return [link.part for link in told if link.whole == cid]

    def wholes(self, cid: Cid, room: int) -> list[Cid]:
        """What was made from a thing: one more than there is room for, so that a cut is noticed."""
        told = [link.whole for link in self._told[cid] if link.part == cid]
        if self._made_from is not None:
            told += [link.whole for link in self._made_from.wholes(cid, limit=2 * room + 2)]
        return list(dict.fromkeys(told))

    def links(self) -> tuple[Link, ...]:
        """Every arrow between two things that were met."""
        found = dict.fromkeys(link for told in self._told.values() for link in told)
        return tuple(link for link in found if link.part in self.nodes and link.whole in self.nodes)
