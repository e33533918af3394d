"""The picture: boxes never overlap, arrows never run through text, and no name can break the file."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import InvalidInput
from holdfast.registry.graph.lineage_graph import GraphNode, LineageGraph
from holdfast.registry.graph.picture.boxes import BOX_WIDTH
from holdfast.registry.graph.picture.layout import lay_out, spread
from holdfast.registry.graph.picture.style import DARK, LIGHT
from holdfast.registry.graph.record_links import Link
from holdfast.storage.cid import Cid

KINDS = ("dataset", "run", "model", "index", "conversion", "code", "environment", "file", "directory", "new")


def cid_of(number: int) -> Cid:
    return Cid.of(str(number).encode())


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 24))
    nodes = {}
    for number in range(count):
        cid = cid_of(number)
        nodes[cid] = GraphNode(
            cid=cid,
            kind=draw(st.sampled_from(KINDS)),
            names=tuple(
                draw(st.lists(st.sampled_from(["wine:1.0.0", "x" * 90 + ":2.0.0", "a@b"]), max_size=3))
            ),
            facts=tuple(draw(st.lists(st.text(max_size=80), max_size=3))),
        )
    ends = st.tuples(
        st.integers(0, count - 1), st.integers(0, count - 1), st.sampled_from(["data", "outputs.w", "x"])
    )
    links = tuple(
        dict.fromkeys(
            Link(cid_of(a), role, cid_of(b)) for a, b, role in draw(st.lists(ends, max_size=2 * count))
        )
    )
    return LineageGraph(root=cid_of(0), nodes=nodes, links=links)


@given(graphs())
@settings(deadline=None, max_examples=60)
def test_no_box_overlaps_another_and_no_arrow_runs_through_a_box(graph):
    layout = lay_out(graph)
    spans = {
        cid: (x, x + BOX_WIDTH, y, y + layout.boxes[cid].height) for cid, (x, y) in layout.places.items()
    }
    boxes = list(spans.values())
    for number, (left, right, top, bottom) in enumerate(boxes):
        for other_left, other_right, other_top, other_bottom in boxes[:number]:
            apart = left >= other_right or other_left >= right
            assert apart or top >= other_bottom - 1e-6 or other_top >= bottom - 1e-6
    for arrow in layout.arrows:
        for (x, y), (to_x, to_y) in pairwise(arrow.points):
            assert x <= to_x
            for left, right, top, bottom in boxes:
                beside = to_x <= left + 1e-6 or x >= right - 1e-6
                assert beside or y < top or y > bottom, "a straight piece in a column runs past the boxes"
                if not beside:
                    assert y == to_y, "it bends between columns only"
    assert max(right for _, right, _, _ in boxes) <= layout.width + 1e-6
    assert max(bottom for *_, bottom in boxes) <= layout.height + 1e-6
    assert min(top for _, _, top, _ in boxes) >= -1e-6


@given(graphs())
@settings(deadline=None, max_examples=60)
def test_each_arrow_arrives_at_a_port_that_tells_its_role_and_none_is_lost_without_a_cycle(graph):
    forward = tuple(
        link
        for link in graph.links
        if list(graph.nodes).index(link.part) < list(graph.nodes).index(link.whole)
    )
    graph = LineageGraph(root=graph.root, nodes=graph.nodes, links=forward)
    layout = lay_out(graph)
    drawn = sorted((arrow.part, arrow.whole) for arrow in layout.arrows)
    assert drawn == sorted((link.part, link.whole) for link in forward)
    for arrow in layout.arrows:
        (x, y), box = layout.places[arrow.whole], layout.boxes[arrow.whole]
        assert any(
            arrow.part in port.sources and abs(arrow.points[-1][1] - y - port.y) < 1e-6 for port in box.ports
        )
        assert arrow.points[-1][0] < x, "the head stands before the box"
        assert layout.places[arrow.part][0] < x, "parts stand to the left"


@given(
    st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(0.1, 10), st.floats(1, 300)), min_size=1, max_size=30)
)
def test_things_that_are_spread_keep_their_order_and_never_overlap(things):
    wanted, weights, heights = (list(column) for column in zip(*things, strict=True))
    places = spread(wanted, weights, heights)
    for (place, height), (after, _) in pairwise(zip(places, heights, strict=True)):
        assert after >= place + height - 1e-5
    if all(b >= a + h for a, b, h in zip(wanted, wanted[1:], heights, strict=False)):
        assert places == pytest.approx(wanted, abs=1e-6), "what fits already is left alone"


@given(graphs())
@settings(deadline=None, max_examples=40)
def test_the_svg_is_well_formed_whatever_the_names_and_facts_are(graph):
    root = ET.fromstring(graph.to_svg())
    groups = [g for g in root.iter("{http://www.w3.org/2000/svg}g") if g.get("class") in ("root", "thing")]
    assert len(groups) == len(graph.nodes)
    assert {str(cid) for cid in graph.nodes} <= {
        (title.text or "").rpartition("\n")[2].rpartition(" ")[2]
        for title in root.iter("{http://www.w3.org/2000/svg}title")
    }


def test_markup_in_a_stranger_s_record_stays_text():
    evil = '</text><script>alert(1)</script>\x00\x1b"&'
    cid = cid_of(1)
    node = GraphNode(cid=cid, kind=evil, names=(f"{evil}:1.0.0",), facts=(evil,))
    svg = LineageGraph(root=cid, nodes={cid: node}, links=()).to_svg()
    assert "<script" not in svg
    assert ET.fromstring(svg).get("role") == "img"


def test_the_same_graph_gives_the_same_picture():
    nodes = {cid_of(n): GraphNode(cid=cid_of(n), kind="run") for n in range(6)}
    links = tuple(Link(cid_of(a), "data", cid_of(b)) for a, b in [(0, 2), (1, 2), (2, 3), (0, 4), (4, 5)])
    graph = LineageGraph(root=cid_of(2), nodes=nodes, links=links)
    assert graph.to_svg() == graph.to_svg()
    assert graph.to_png(scale=0.5) == graph.to_png(scale=0.5)


def test_the_png_is_a_png_of_the_asked_size_and_a_huge_one_gets_fewer_pixels():
    nodes = {
        cid_of(n): GraphNode(cid=cid_of(n), kind="dataset", facts=("$x^2$ not a formula",)) for n in range(3)
    }
    graph = LineageGraph(root=cid_of(0), nodes=nodes, links=())
    sizes = {}
    for scale in (1.0, 2.0, 500.0):
        png = graph.to_png(scale=scale, dark=scale == 2.0)
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        sizes[scale] = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    assert sizes[2.0] == pytest.approx((2 * sizes[1.0][0], 2 * sizes[1.0][1]), abs=3)
    assert sizes[500.0][0] * sizes[500.0][1] <= 41_000_000
    with pytest.raises(InvalidInput, match="above 0"):
        graph.to_png(scale=0)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_text_can_be_read_on_its_ground(theme):
    def contrast(a, b):
        high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for colour in (theme.text, theme.quiet, *theme.kinds.values()):
        assert contrast(colour, theme.box) >= 4.5, colour
    assert contrast(theme.quiet, theme.page) >= 4.5
    assert contrast(theme.arrow, theme.page) >= 2.5


def test_the_svg_brings_no_font_no_script_and_nothing_from_elsewhere():
    cid = cid_of(0)
    svg = LineageGraph(root=cid, nodes={cid: GraphNode(cid=cid, kind="model")}, links=()).to_svg()
    assert not re.search(r"@font-face|<script|href|url\(|@import", svg)
    assert "prefers-color-scheme: dark" in svg
