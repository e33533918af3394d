import asyncio
import io

import multiformats
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import Corrupt, Unsupported
from holdfast.storage.block_store import MAX_BLOCK_BYTES
from holdfast.storage.cid import DAG_CBOR, DAG_PB, RAW, Cid, write_varint
from holdfast.storage.formats import dag_cbor
from holdfast.storage.formats.car import MAX_FRAME_BYTES, car_blocks, car_frames, read_car
from holdfast.storage.formats.dag import links_of
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


def v2(
    payload: bytes,
    *,
    characteristics: bytes = bytes(16),
    padding: int = 0,
    index: bytes = b"",
    offset: int | None = None,
    size: int | None = None,
    index_offset: int | None = None,
) -> bytes:
    """A CARv2 around a CARv1; its numbers can be made to lie."""
    begin = 51 + padding
    where = begin + len(payload) if index else 0
    numbers = (
        begin if offset is None else offset,
        len(payload) if size is None else size,
        where if index_offset is None else index_offset,
    )
    return (
        PRAGMA
        + characteristics
        + b"".join(number.to_bytes(8, "little") for number in numbers)
        + bytes(padding)
        + payload
        + index
    )


PRAGMA = bytes.fromhex("0aa16776657273696f6e02")
EMPTY = header({"roots": [], "version": 1})
BLOCK = b"".join(car_frames([], [block(b"x")]))
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
    "a header without roots": header({"version": 1}),
    "a header whose roots are no CIDs": header({"roots": ["a"], "version": 1}),
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
    with pytest.raises(Unsupported, match="version 3"):
        read(header({"version": 3}))
    with pytest.raises(Unsupported, match="byte 51 states version 2"):
        read(v2(v2(BLOCK)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(contents, max_size=8),
    st.binary(min_size=16, max_size=16),
    st.sampled_from([0, 1, 77, 3 << 20]),
    st.booleans(),
)
def test_a_car_of_version_2_loses_no_block(blocks, characteristics, padding, indexed):
    data = v2(
        b"".join(car_frames([cid for cid, _ in blocks], blocks)),
        characteristics=characteristics,
        padding=padding,
        index=b"\x81\x08" + b"junk" * 9 if indexed else b"",
    )
    assert read(data) == blocks
    reader = car_blocks(io.BytesIO(data))
    assert (reader.version, reader.roots) == (2, tuple(cid for cid, _ in blocks))
    assert list(reader) == blocks


@settings(max_examples=60, deadline=None)
@given(st.lists(contents, min_size=1, max_size=4), st.data())
def test_a_car_of_version_2_that_is_cut_off_is_not_taken_for_whole(blocks, data):
    whole = v2(b"".join(car_frames([], blocks)), padding=5)
    with pytest.raises(Corrupt):
        read(whole[: data.draw(st.integers(0, len(whole) - 1))])


WRONG_V2 = {
    "no header": PRAGMA,
    "a short header": PRAGMA + bytes(39),
    "data that begins inside the header": v2(BLOCK, offset=50),
    "data of no bytes": v2(BLOCK, size=0),
    "data of 2^64-1 bytes": v2(BLOCK, size=(1 << 64) - 1),
    "data that ends inside a frame": v2(BLOCK, size=len(BLOCK) - 1),
    "data that ends inside the header": v2(BLOCK, size=5),
    "data longer than the stream": v2(BLOCK, size=len(BLOCK) + 1),
    "an index inside the data": v2(BLOCK, index_offset=60),
    "an offset behind the end": v2(BLOCK, offset=1 << 40),
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("data", WRONG_V2.values(), ids=WRONG_V2)
def test_offsets_that_can_not_be_are_refused(data):
    with pytest.raises(Corrupt, match="byte"):
        read(data)
    with pytest.raises(Corrupt, match="byte"):
        list(car_blocks(io.BytesIO(data)))


class Trickle(io.RawIOBase):
    """A pipe: it can't seek, and gives what it likes; notes the largest piece that was asked for."""

    def __init__(self, data: bytes) -> None:
        self.source = io.BytesIO(data)
        self.largest = 0

    def read(self, size: int = -1) -> bytes:
        assert size >= 0
        self.largest = max(self.largest, size)
        return self.source.read(min(size, 7))


@settings(max_examples=40, deadline=None)
@given(st.lists(contents, max_size=8))
def test_both_readers_give_the_same_from_any_stream(blocks):
    roots = [cid for cid, _ in blocks[:3]]
    data = b"".join(car_frames(roots, blocks))
    reader = car_blocks(Trickle(data))  # type: ignore[arg-type]
    assert (reader.version, reader.roots) == (1, tuple(roots))
    assert list(reader) == read(data) == blocks
    assert list(reader) == []


@pytest.mark.timeout(10)
@pytest.mark.parametrize("data", NOT_CARS.values(), ids=NOT_CARS)
def test_the_synchronous_reader_refuses_the_same(data):
    stream = Trickle(data)
    with pytest.raises(Corrupt):
        list(car_blocks(stream))  # type: ignore[arg-type]
    assert stream.largest <= MAX_FRAME_BYTES


def test_damage_is_found_where_it_is():
    frames = list(car_frames([], [block(b"one"), block(b"two"), block(b"three")]))
    at = len(frames[0]) + len(frames[1])
    broken = b"".join(frames)
    broken = broken[: at + 37] + b"?" + broken[at + 38 :]
    reader = iter(car_blocks(io.BytesIO(broken)))
    assert next(reader) == block(b"one")
    with pytest.raises(Corrupt, match=f"byte {at}.*{block(b'two')[0]}"):
        next(reader)
    with pytest.raises(Corrupt, match=f"cut off at byte {len(broken) - 1}"):
        list(car_blocks(io.BytesIO(b"".join(frames)[:-1])))


def test_other_hashes_are_checked_or_named():
    data = b"of another hash"
    blake3 = (Cid.of(data, hash="blake3"), data)
    identity = (Cid(b"\x01\x55\x00" + bytes([len(data)]) + data), data)
    assert list(car_blocks(io.BytesIO(b"".join(car_frames([], [blake3, identity]))))) == [blake3, identity]
    for cid in (blake3[0], identity[0]):
        with pytest.raises(Corrupt, match=str(cid)):
            read(b"".join(car_frames([], [(cid, b"forged")])))
    unknown = Cid(b"\x01\x55\x13\x40" + bytes(64))
    with pytest.raises(Unsupported, match=str(unknown)):
        read(b"".join(car_frames([], [(unknown, data)])))


def test_the_cars_of_the_gateway_conformance_suite_are_read(public_fixtures, blocks):
    files = sorted((public_fixtures / "gateway").glob("*.car"))
    assert len(files) > 10
    for path in files:
        found = read(path.read_bytes())
        assert found, path
        with path.open("rb") as file:
            reader = car_blocks(file)
            assert reader.roots
            assert list(reader) == found
        for cid, data in found:
            assert multiformats.multihash.digest(data, "sha2-256") == cid.multihash or cid.multihash[0] == 0
            if cid.codec in (RAW, DAG_PB, DAG_CBOR) and "plain-cbor" not in path.name:
                links_of(cid, data)
        blocks.put_many(found)
        for cid, data in found:
            assert bytes(blocks.get(cid)) == data
