import base64
import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import Corrupt
from holdfast.storage.cid import DAG_PB, RAW, Cid
from holdfast.storage.formats.dag_pb import (
    PbLink,
    PbNode,
    UnixFs,
    UnixFsType,
    decode_node,
    encode_node,
    link_cids,
)

cids = st.builds(Cid.of, st.binary(max_size=5), st.sampled_from([RAW, DAG_PB])) | st.builds(
    lambda data: Cid.of(data, version=0), st.binary(max_size=5)
)
numbers = st.integers(0, 2**63 - 1)
links = st.builds(PbLink, cids, st.none() | st.text(max_size=20), st.none() | numbers)
nodes = st.builds(PbNode, st.lists(links, max_size=6).map(tuple), st.none() | st.binary(max_size=50))
messages = st.builds(
    UnixFs,
    type=st.sampled_from(UnixFsType),
    data=st.none() | st.binary(max_size=30),
    file_size=st.none() | numbers,
    block_sizes=st.lists(numbers, max_size=6).map(tuple),
    hash_type=st.none() | numbers,
    fanout=st.none() | numbers,
)


@settings(max_examples=200, deadline=None)
@given(nodes)
def test_a_node_is_not_changed_by_being_stored(node):
    assert decode_node(encode_node(node)) == node


@settings(max_examples=200, deadline=None)
@given(messages)
def test_a_unixfs_message_is_not_changed_by_being_stored(message):
    assert UnixFs.decode(message.encode()) == message


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=40) | st.builds(lambda node, at: encode_node(node)[:at], nodes, st.integers(0, 200))
)
def test_one_node_has_one_encoding(data):
    try:
        node = decode_node(data)
    except Corrupt:
        return
    assert encode_node(node) == data


@settings(max_examples=200, deadline=None)
@given(nodes, st.data())
def test_a_changed_byte_is_never_read_as_another_spelling(node, data):
    encoded = bytearray(encode_node(node) or b"\x0a\x00")
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        changed = decode_node(bytes(encoded))
    except Corrupt:
        return
    assert encode_node(changed) == encoded


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_junk_in_a_unixfs_message_gives_our_error(data):
    try:
        UnixFs.decode(data)
    except Corrupt as error:
        assert str(error)  # noqa: PT017 -- either way is fine; another error is not


def test_public_fixtures_are_not_read_differently(public_fixtures):
    files = sorted((public_fixtures / "codec").glob("*/*.dag-pb"))
    assert len(files) == 17
    for path in files:
        data = path.read_bytes()
        Cid.parse(path.stem).check(data, source=str(path))
        node = decode_node(data)
        assert encode_node(node) == data
        assert as_json(node) == json.loads(next(path.parent.glob("*.dag-json")).read_bytes()), path


def as_json(node):
    out: dict[str, object] = {"Links": [link_as_json(link) for link in node.links]}
    if node.data is not None:
        out["Data"] = {"/": {"bytes": base64.b64encode(node.data).decode().rstrip("=")}}
    return out


def link_as_json(link):
    fields = {"Hash": {"/": str(link.cid)}, "Name": link.name, "Tsize": link.tsize}
    return {name: value for name, value in fields.items() if value is not None}


def test_public_negative_fixtures_are_not_accepted(public_fixtures):
    cases = json.loads((public_fixtures / "codec-negative/dag-pb/decode/edges.json").read_bytes())
    assert len(cases) > 5
    for case in cases:
        with pytest.raises(Corrupt):
            decode_node(bytes.fromhex(case["hex"]))


HASH = b"\x0a\x22" + Cid.of(b"", version=0).raw
HOSTILE = {
    "data twice": b"\x0a\x01a\x0a\x01b",
    "links behind the data": b"\x0a\x01a\x12\x24" + HASH,
    "a length beyond the end": b"\x0a\x05a",
    "a length of 2^63-1": b"\x0a" + b"\xff" * 8 + b"\x7f",
    "a length that never ends": b"\x0a" + b"\xff" * 30,
    "a length that is not minimal": b"\x0a\x81\x00a",
    "a tag that is not minimal": b"\x8a\x00\x01a",
    "a number for the data": b"\x08\x01",
    "a number for a link": b"\x10\x01",
    "field 3": b"\x1a\x01a",
    "field 0": b"\x02\x01a",
    "a group": b"\x0b\x0c",
    "fixed 64": b"\x09" + bytes(8),
    "fixed 32": b"\x0d" + bytes(4),
    "a link whose size is text": b"\x12\x27" + HASH + b"\x1a\x01a",
    "a link with its name before its hash": b"\x12\x27\x12\x01a" + HASH,
    "a link with its size before its name": b"\x12\x29" + HASH + b"\x18\x01\x12\x01a",
    "a link with two hashes": b"\x12\x48" + HASH + HASH,
    "a link with two names": b"\x12\x2a" + HASH + b"\x12\x01a\x12\x01b",
    "a link with field 4": b"\x12\x26" + HASH + b"\x20\x01",
    "a link whose name is not UTF-8": b"\x12\x27" + HASH + b"\x12\x01\xff",
    "a link whose size is not minimal": b"\x12\x27" + HASH + b"\x18\x81\x00",
    "a link whose hash is cut": b"\x12\x23\x0a\x21" + Cid.of(b"", version=0).raw[:-1],
    "a link whose hash is junk": b"\x12\x05\x0a\x03abc",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_nodes_are_refused(data):
    with pytest.raises(Corrupt):
        decode_node(data)


def test_a_unixfs_message_with_the_fields_of_version_1_5_is_still_read():
    message = UnixFs(type=UnixFsType.FILE, data=b"a", file_size=1)
    mode, mtime = b"\x38\xa4\x03", b"\x42\x07\x08\x80\x92\xb8\xc3\x98\xfe"
    assert UnixFs.decode(message.encode() + mode + mtime) == message


@pytest.mark.parametrize("data", [b"", b"\x08\x06", b"\x08\x7f", b"\x0a\x01\x02", b"\x12\x00", b"\x08"])
def test_a_unixfs_message_of_no_known_type_is_refused(data):
    with pytest.raises(Corrupt):
        UnixFs.decode(data)


@given(st.lists(st.tuples(st.binary(max_size=40), st.text(max_size=300), st.integers(0, 2**40)), max_size=30))
def test_the_quick_way_to_the_links_gives_the_links(parts):
    links = tuple(PbLink(Cid.of(content, DAG_PB), name, size) for content, name, size in parts)
    for payload in (None, b"", b"\x08\x01"):
        data = encode_node(PbNode(links, payload))
        assert link_cids(data) == [link.cid for link in decode_node(data).links]


@given(st.binary(max_size=200))
def test_the_quick_way_is_safe_from_any_bytes(data):
    with suppress(Corrupt):
        link_cids(data)
