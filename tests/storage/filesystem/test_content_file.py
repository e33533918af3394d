"""Reading stored files piece by piece: the same bytes as in memory, and no block that is not needed."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.exchange.fetcher import FetchingStore
from holdfast.storage.filesystem.content_tree import FileMissing, Remembered
from holdfast.storage.filesystem.filesystem import IpfsFileSystem
from holdfast.storage.formats.chunkers import FixedChunker
from holdfast.storage.formats.unixfs import PROFILES
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.opening import open_store, write_peers
from tests.storage.filesystem.parquet_files import leaves_of, numbers, parquet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
def far(tmp_path: Path) -> Iterator[ContentStore]:
    """The content of another node."""
    with closing(LocalStore(tmp_path / "far" / "blocks")) as blocks:
        yield ContentStore(blocks)


@pytest.fixture
def peer(tmp_path: Path, far: ContentStore, start_node: Callable[..., Any]) -> Any:
    """That node, which the home fetches from; it notes what it is asked for."""
    node = start_node(far.blocks)
    write_peers(tmp_path / "home", [node.url])
    return node


@pytest.fixture
def fs(tmp_path: Path, peer: Any) -> Iterator[IpfsFileSystem]:
    """A home that has nothing, and one peer."""
    assert peer.url
    with open_store(tmp_path / "home") as store:
        yield IpfsFileSystem(store=store, skip_instance_cache=True)


# --------------------------------------------------------------------------------------- what is fetched


def test_a_column_is_read_without_the_blocks_of_the_others(far, peer, fs):
    table = numbers(4 * MIB // 8, 8)  # eight columns of 4 MiB, each its own chunk
    cid = far.add_bytes(parquet(table, row_group_size=table.num_rows, data_page_size=MIB))
    everything = leaves_of(cid, far)
    assert len(everything) > 32
    read = pq.read_table(str(cid), filesystem=fs, columns=["c3"])
    assert read.equals(table.select(["c3"]))
    fetched = set(peer.asked) - {str(cid)}
    # The column spans at most 5 blocks of 1 MiB; the footer at most 2.
    assert {str(each) for each in everything[13:16]} <= fetched <= {str(each) for each in everything}
    assert len(fetched) <= 7
    assert not fetched & {str(each) for each in everything[:11]}


def test_the_end_of_a_file_is_read_without_its_beginning(far, peer, fs):
    data = os.urandom(20 * MIB + 5)
    cid = far.add_bytes(data)
    with fs.open(str(cid)) as file:
        file.seek(-8, os.SEEK_END)
        assert file.read(8) == data[-8:]
        file.seek(3 * MIB - 4)
        assert file.read(4) == data[3 * MIB - 4 : 3 * MIB]
    leaves = [str(each) for each in leaves_of(cid, far)]
    assert sorted(peer.asked) == sorted({str(cid), leaves[2], leaves[19], leaves[20]})


def test_a_large_read_fetches_its_own_blocks_and_no_more(far, peer, fs):
    data = os.urandom(20 * MIB)
    cid = far.add_bytes(data)
    with fs.open(str(cid)) as file:
        for start, size in (
            (MIB + 10, 2 * MIB),
            (3 * MIB + 10, MIB),
            (9 * MIB, 3 * MIB),
            (12 * MIB, 2 * MIB + 10),
            (17 * MIB, 600_000),
        ):
            file.seek(start)
            assert file.read(size) == data[start : start + size]
    leaves = [str(each) for each in leaves_of(cid, far)]
    assert set(peer.asked) == {str(cid), *leaves[1:5], *leaves[9:15], leaves[17]}
    assert len(peer.asked) == len(set(peer.asked))


def test_reading_on_in_small_steps_fetches_ahead_but_jumping_does_not(far, peer, fs):
    data = os.urandom(40 * MIB)
    cid = far.add_bytes(data)
    leaves = [str(each) for each in leaves_of(cid, far)]
    ahead = []
    with fs.open(str(cid)) as file:
        for block in range(20):
            assert file.read(1000) == data[block * MIB : block * MIB + 1000]
            ahead.append(len(peer.asked) - 1 - (block + 1))
            while file.tell() < (block + 1) * MIB:
                file.read(min(60_000, (block + 1) * MIB - file.tell()))
        assert ahead[:2] == [0, 0]
        assert 1 <= max(ahead) <= 7
        before = set(peer.asked)
        for block in (38, 30, 36, 34, 32):
            file.seek(block * MIB + 5)
            assert file.read(10) == data[block * MIB + 5 :][:10]
    assert set(peer.asked) - before == {leaves[block] for block in (30, 32, 34, 36, 38)} - before


def test_ranges_are_fetched_together_and_alone(far, peer, fs, monkeypatch):
    data = os.urandom(12 * MIB)
    cid, small = far.add_bytes(data), far.add_bytes(b"small")
    missing = Cid.of(b"nobody has it")
    together: list[set[str]] = []
    prefetch = FetchingStore.prefetch

    def noted(self: FetchingStore, cids: Iterable[Cid], **options: Any) -> None:
        together.append({str(each) for each in cids})
        prefetch(self, cids, **options)

    monkeypatch.setattr(FetchingStore, "prefetch", noted)
    pieces = fs.cat_ranges(
        [str(cid), f"ipfs://{cid}", str(small), str(missing), str(cid)],
        [5, -3, None, 0, 7 * MIB],
        [9, None, 3, 1, 5],
    )
    assert pieces[:3] == [data[5:9], data[-3:], b"sma"]
    assert isinstance(pieces[3], FileNotFoundError)
    assert pieces[4] == b""
    leaves = [str(each) for each in leaves_of(cid, far)]
    assert next(each for each in together if leaves[0] in each) == {leaves[0], leaves[11], str(small)}
    assert set(peer.asked) - {str(missing)} == {str(cid), str(small), leaves[0], leaves[11]}
    assert fs.cat_ranges([str(cid)] * 2, 0, 4) == [data[:4]] * 2
    with pytest.raises(FileMissing):
        fs.cat_ranges([str(missing)], 0, 1, on_error="raise")


# ------------------------------------------------------------------------------------- the same as in memory


def operations(limit: int) -> st.SearchStrategy[list[tuple[str, tuple[int, ...]]]]:
    sizes = st.integers(0, limit) | st.sampled_from([0, 1, 65_535, 65_536, 65_537, -1])
    places = st.one_of(
        st.tuples(st.integers(0, limit + 5), st.just(os.SEEK_SET)),
        st.tuples(st.integers(-limit - 5, 5), st.sampled_from([os.SEEK_CUR, os.SEEK_END])),
    )
    return st.lists(
        st.one_of(
            st.tuples(st.just("read"), st.tuples(sizes)),
            st.tuples(st.just("read1"), st.tuples(st.integers(1, 20))),
            st.tuples(st.just("readline"), st.tuples(sizes) | st.just(())),
            st.tuples(st.just("readinto"), st.tuples(st.integers(0, limit))),
            st.tuples(st.just("readlines"), st.just(())),
            st.tuples(st.just("seek"), places),
            st.tuples(st.just("tell"), st.just(())),
        ),
        max_size=25,
    )


def outcome(file: Any, name: str, arguments: tuple[int, ...]) -> Any:
    if name == "readinto":
        buffer = bytearray(arguments[0])
        return file.readinto(buffer), bytes(buffer)
    try:
        return getattr(file, name)(*arguments)
    except ValueError:
        return "refused"


SHAPES = list(itertools.product((True, False), ((16, 300), (50_000, 900_000), (16, 0), (16, 5))))
"""Raw or wrapped leaves, the size of a chunk, and of the file."""


class Samples:
    """Files in a store: a class, because hypothesis prints what it is given."""

    def __init__(self, blocks: LocalStore) -> None:
        self.fs = IpfsFileSystem(store=ContentStore(blocks))
        self.files: list[tuple[Cid, bytes]] = []


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Samples]:
    """Files of these shapes, in a store of few links a node."""
    generator = np.random.default_rng(3)
    with closing(LocalStore(tmp_path_factory.mktemp("samples"))) as blocks:
        made = Samples(blocks)
        for raw_leaves, (chunk, size) in SHAPES:
            profile = dataclasses.replace(
                PROFILES["unixfs-v1-2025"], chunker=FixedChunker(chunk), max_links=3, raw_leaves=raw_leaves
            )
            data = generator.choice(np.frombuffer(b"abcdefgh\n", np.uint8), size).tobytes()
            made.files.append((ContentStore(blocks).add_stream(io.BytesIO(data), profile=profile), data))
        yield made


def steps(number: int) -> st.SearchStrategy[tuple[int, list[tuple[str, tuple[int, ...]]]]]:
    return st.tuples(st.just(number), operations(SHAPES[number][1][1]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.one_of([steps(number) for number in range(len(SHAPES))]))
def test_a_file_does_whatever_bytes_in_memory_do(samples, chosen):
    cid, data = samples.files[chosen[0]]
    with samples.fs.open(str(cid)) as file, io.BytesIO(data) as expected:
        for name, arguments in chosen[1]:
            found = outcome(file, name, arguments)
            base = {os.SEEK_SET: 0, os.SEEK_CUR: expected.tell(), os.SEEK_END: len(data)}
            if name == "seek" and base[arguments[1]] + arguments[0] < 0:
                assert found == "refused"  # as a file on the disk does; BytesIO goes to the beginning
            elif name == "read1":  # how much it gives at once is up to each
                assert found == data[file.tell() - len(found) : file.tell()]
                assert found or expected.tell() >= len(data)
                expected.seek(file.tell())
            else:
                assert found == outcome(expected, name, arguments), (name, arguments)
        assert file.tell() == expected.tell()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=st.integers(0, 7),
    start=st.none() | st.integers(-400, 400),
    end=st.none() | st.integers(-400, 400),
)
def test_a_range_is_the_slice_of_the_same_numbers(samples, chosen, start, end):
    cid, data = samples.files[chosen]
    assert samples.fs.cat_file(str(cid), start, end) == data[start:end]
    assert samples.fs.cat_ranges([str(cid)], [start], [end]) == [data[start:end]]


def test_what_is_remembered_of_folders_is_bounded():
    remembered: Remembered[int] = Remembered(10)
    cids = [Cid.of(b"%d" % i) for i in range(20)]
    for i, cid in enumerate(cids):
        remembered.put(cid, i, 3)
        remembered.get(cids[0])
    kept = [i for i, cid in enumerate(cids) if remembered.get(cid) is not None]
    assert kept == [0, 18, 19]
    remembered.put(Cid.of(b"large"), 1, 1000)
    assert remembered.get(Cid.of(b"large")) == 1
    assert remembered.get(cids[19]) is None
    off: Remembered[int] = Remembered(0)
    off.put(cids[0], 1)
    assert off.get(cids[0]) is None
