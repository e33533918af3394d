"""A lineage as text: two trees, one line for each thing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.printable import printable
from holdfast.registry.graph.record_links import role_name
from holdfast.registry.versions import is_version, version_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from holdfast.registry.graph.lineage_graph import GraphNode, LineageGraph
    from holdfast.storage.cid import Cid

__all__ = ["render"]

_Step = tuple[str, "Cid"]


def render(graph: LineageGraph) -> str:
    """What the root is made of, and what was made from it; what comes again is not unfolded again."""

    def parts(cid: Cid) -> list[_Step]:
        return [(role_name(link.role), link.part) for link in graph.parts_of(cid)]

    def wholes(cid: Cid) -> list[_Step]:
        return [("", whole) for whole in sorted((link.whole for link in graph.made_from(cid)), key=order)]

    def order(cid: Cid) -> tuple[bool, str, bytes, bool]:
        """Versions of one name from the first to the last, each behind the run that made it; what has no name comes last."""
        own = graph.nodes[cid].names
        made = [name for link in graph.made_from(cid) for name in graph.nodes[link.whole].names]
        named = [(name, version) for name, _, version in (text.partition(":") for text in own or made)]
        keys = [(name, version_key(version)) for name, version in named if is_version(version)]
        return (not keys, *min(keys, default=("", b"")), bool(own))

    lines = [_label("", graph.nodes[graph.root])]
    for title, step in (("made of", parts), ("made from it", wholes)):
        below = list(_below(graph, graph.root, step))
        if below:
            lines += ["", title, *below]
    if len(lines) == 1:
        lines += ["", "made of nothing else, and nothing known was made from it"]
    if graph.cut:
        lines += ["", graph.cut]
    return "\n".join(lines)


def _below(graph: LineageGraph, root: Cid, step: Callable[[Cid], list[_Step]]) -> Iterator[str]:
    """The lines below the root, without recursion: a chain of versions may be long."""
    seen = {root}
    pending = [(child, "", index == last) for child, index, last in _counted(step(root))][::-1]
    while pending:
        (role, cid), indent, is_last = pending.pop()
        again = cid in seen
        seen.add(cid)
        children = [] if again else step(cid)
        note = "  see above" if again and step(cid) else ""
        yield f"{indent}{'└─ ' if is_last else '├─ '}{_label(role, graph.nodes[cid])}{note}"
        below = indent + ("   " if is_last else "│  ")
        pending += [(child, below, index == last) for child, index, last in _counted(children)][::-1]


def _counted(steps: list[_Step]) -> list[tuple[_Step, int, int]]:
    unique = list({cid: (role, cid) for role, cid in reversed(steps)}.values())[::-1]
    return [(one, index, len(unique) - 1) for index, one in enumerate(unique)]


def _label(role: str, node: GraphNode) -> str:
    """``data: dataset wine:1.0.0  bafy...  120 train rows``."""
    told = f"{role}: " if role and role != node.kind else ""
    names = f" {', '.join(node.names)}" if node.names else ""
    facts = f"  {', '.join(node.facts)}" if node.facts else ""
    return printable(f"{told}{node.kind}{names}  {node.cid}{facts}")
