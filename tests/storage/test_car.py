import asyncio
import io

import multiformats
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import Corrupt, Unsupported
from holdfast.storage import dag_cbor
from holdfast.storage.block_store import MAX_BLOCK_BYTES
from holdfast.storage.car import MAX_FRAME_BYTES, car_frames, read_car
from holdfast.storage.cid import DAG_CBOR, DAG_PB, RAW, Cid, write_varint
from holdfast.storage.content import links_of
from holdfast.storage.testing import block


def read(data: bytes) -> list[tuple[Cid, bytes]]:
    stream = io.BytesIO(data)
    largest = []

    async def exactly(size: int) -> bytes:
        largest.append(size)
        return stream.read(size)

    async def collect():
        return [pair async for pair in read_car(exactly)]

    try:
        return asyncio.run(collect())
    finally:
        assert max(largest) <= MAX_FRAME_BYTES  # no frame makes us ask for more memory than that


def header(value: object) -> bytes:
    data = dag_cbor.encode(value)
    return write_varint(len(data)) + data


EMPTY = header({"roots": [], "version": 1})
contents = st.builds(
    lambda data, codec, version: (Cid.of(data, codec, version=version), data),
    st.binary(max_size=300),
    st.sampled_from([RAW, DAG_PB, DAG_CBOR]),
    st.sampled_from([0, 1]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(contents, max_size=12))
def test_no_block_is_lost_or_changed_on_the_way_through_a_car(blocks):
    assert read(b"".join(car_frames([cid for cid, _ in blocks[:2]], blocks))) == blocks


@settings(max_examples=60, deadline=None)
@given(st.lists(contents, min_size=1, max_size=4), st.data())
def test_a_car_that_is_cut_off_is_not_taken_for_whole(blocks, data):
    frames = list(car_frames([], blocks))
    whole = b"".join(frames)
    ends = {sum(map(len, frames[:i])) for i in range(1, len(frames) + 1)}
    cut = data.draw(st.integers(0, len(whole) - 1).filter(lambda at: at not in ends))
    with pytest.raises(Corrupt):
        read(whole[:cut])


@settings(max_examples=60, deadline=None)
@given(st.lists(contents, min_size=1, max_size=4), st.data())
def test_a_changed_byte_never_changes_a_block(blocks, data):
    frames = bytearray(b"".join(car_frames([], blocks)))
    at = data.draw(st.integers(0, len(frames) - 1))
    frames[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        got = read(bytes(frames))
    except (Corrupt, Unsupported):
        return
    assert {data for _, data in got} <= {data for _, data in blocks}


def test_a_block_that_does_not_hash_to_its_cid_is_refused():
    good, (cid, _) = block(b"good"), block(b"wanted")
    with pytest.raises(Corrupt, match=str(cid)):
        read(b"".join(car_frames([cid], [good, (cid, b"forged")])))


def test_the_largest_block_passes():
    large = block(bytes(MAX_BLOCK_BYTES))
    assert read(b"".join(car_frames([], [large]))) == [large]


NOT_CARS = {
    "nothing": b"",
    "a web page": b"<!DOCTYPE html><html></html>",
    "junk": b"\xff" * 100,
    "a header of another kind": header({"a": 1}),
    "a header that is a list": header([1]),
    "a header whose version is text": header({"version": "1"}),
    "a header that is cut": EMPTY[:-1],
    "a header that is not canonical": b"\x0a\xa2\x67version\x01",
    "an empty header": b"\x00",
    "a frame of a terabyte": EMPTY + write_varint(1 << 40),
    "a frame of 2^63-1": EMPTY + b"\xff" * 8 + b"\x7f",
    "a frame length that never ends": EMPTY + b"\xff" * 50,
    "a frame length that is not minimal": EMPTY + b"\x80\x00",
    "a giant header": write_varint(MAX_FRAME_BYTES + 1),
    "an empty frame": EMPTY + b"\x00",
    "a frame of junk": EMPTY + b"\x05hello",
    "a CID longer than its frame": EMPTY + b"\x05\x01\x55\x12\x20a",
    "a digest of 2^63-1": EMPTY + b"\x0c\x01\x55\x12" + b"\xff" * 8 + b"\x7f",
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("data", NOT_CARS.values(), ids=NOT_CARS)
def test_what_is_no_car_is_refused_at_once(data):
    with pytest.raises(Corrupt):
        read(data)


def test_another_version_is_named():
    with pytest.raises(Unsupported, match="version 2"):
        read(bytes.fromhex("0aa16776657273696f6e02") + bytes(40))


def test_the_cars_of_the_gateway_conformance_suite_are_read(public_fixtures, blocks):
    files = sorted((public_fixtures / "gateway").glob("*.car"))
    assert len(files) > 10
    for path in files:
        found = read(path.read_bytes())
        assert found, path
        for cid, data in found:
            assert multiformats.multihash.digest(data, "sha2-256") == cid.multihash or cid.multihash[0] == 0
            if cid.codec in (RAW, DAG_PB, DAG_CBOR) and "plain-cbor" not in path.name:
                links_of(cid, data)
        blocks.put_many(found)
        for cid, data in found:
            assert bytes(blocks.get(cid)) == data
