"""The words above the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.registry.graph.picture.boxes import fitted, short_cid

if TYPE_CHECKING:
    from holdfast.registry.graph.lineage_graph import LineageGraph

__all__ = ["subtitle_of", "title_of"]

_TITLE_WIDTH = 420.0


def title_of(graph: LineageGraph) -> str:
    """Whose lineage it is."""
    root = graph.nodes[graph.root]
    name = root.names[0] if root.names else short_cid(root.cid)
    return fitted(f"Lineage of {root.kind} {name}", _TITLE_WIDTH, 18.0, bold=True)


def subtitle_of(graph: LineageGraph) -> str:
    """How to read it, and what is missing in it."""
    count = len(graph.nodes)
    if count == 1 and not graph.cut:
        return "made of nothing else; nothing known was made from it"
    return (
        graph.cut.partition(":")[0] + f", {count} shown"
        if graph.cut
        else f"{count} parts; arrows lead from each to what was made of it"
    )
