"""Parts of stored files: the right bytes, verified, and no more fetched than is read."""

import os
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import Corrupt, InvalidInput
from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.exchange.fetcher import Fetcher, FetchingStore, Provider
from holdfast.storage.formats.unixfs import profile_named
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.stored_file import StoredFile

KIB = 1 << 10
MIB = 1 << 20


def small_blocks(blocks):
    return ContentStore(blocks, profile=profile_named("unixfs-v1-2025", "fixed-1KiB"))


def rot(blocks, cid):
    extent = blocks.extent(cid)
    with extent.path.open("r+b") as file:
        file.seek(extent.offset)
        first = file.read(1)
        file.seek(extent.offset)
        file.write(bytes((first[0] ^ 1,)))


@pytest.fixture(scope="module")
def long_file(tmp_path_factory):
    """A file of 40 blocks and a bit, in one piece, and another whose blocks lie scattered; both of the same bytes."""
    content = os.urandom(40 * KIB + 17)
    with (
        closing(LocalStore(tmp_path_factory.mktemp("whole"))) as whole,
        closing(LocalStore(tmp_path_factory.mktemp("scattered"))) as scattered,
    ):
        stores = [small_blocks(VerifyingStore(each, source="the disk")) for each in (whole, scattered)]
        stores[1].add_bytes(content[7 * KIB : 9 * KIB])  # two blocks that lie before the rest
        yield content, [StoredFile(store, store.add_bytes(content)) for store in stores]


BOUNDS = st.tuples(st.integers(0, 40 * KIB + 17), st.integers(0, 40 * KIB + 17)).map(sorted)


@settings(max_examples=200, deadline=None)
@given(which=st.integers(0, 1), bounds=st.lists(BOUNDS, max_size=4))
def test_every_range_has_the_bytes_of_the_file(long_file, which, bounds):
    content, files = long_file
    loaded = files[which].load([(start, end) for start, end in bounds])
    for start, end in bounds:
        assert files[which].view(start, end) == content[start:end]
        part = loaded.view(start, end)
        assert part == content[start:end]
        assert part.readonly
        lying = files[which].unverified(start, end)
        assert lying is None or lying == content[start:end]


@pytest.mark.parametrize("content", [b"", b"a", b"x" * KIB, b"x" * 5 * KIB], ids=len)
def test_small_files_and_files_of_equal_blocks(store, content):
    for each in (store, small_blocks(store.blocks)):
        file = StoredFile(each, each.add_bytes(content))
        assert file.size == len(content)
        assert file.view(0, len(content)) == content
        assert file.load([(0, len(content))]).view(0, len(content)) == content


def test_a_range_outside_of_the_file_is_refused(store):
    file = StoredFile(store, store.add_bytes(b"hello"))
    for start, end in ((0, 6), (-1, 2), (3, 2), (6, 6)):
        with pytest.raises(InvalidInput, match=str(file.cid)):
            file.view(start, end)


def test_a_file_in_one_piece_is_not_copied(store):
    content = os.urandom(3 * MIB)
    file = StoredFile(store, store.add_bytes(content))
    loaded = file.load([(0, 10), (MIB, 3 * MIB)])
    segment = loaded.view(0, 10).obj
    assert segment is loaded.view(MIB + 5, 3 * MIB).obj
    assert segment is file.view(5, 2 * MIB).obj
    whole = file.unverified(0, 3 * MIB)
    assert whole is not None
    assert segment is whole.obj


def test_memory_of_the_whole_file_is_given_where_it_lies_in_one_piece(long_file):
    content, (whole, scattered) = long_file
    files = [StoredFile(each._store, each.cid) for each in (whole, scattered)]
    assert files[0].load([(0, 10)]).file_memory is None  # not mapped yet
    assert [file.map() for file in files] == [True, True]
    memory = files[0].load([(5, 7 * KIB)]).file_memory
    assert memory is not None
    assert memory == content
    assert memory.readonly
    assert files[1].load([(5, 7 * KIB)]).file_memory is None


def test_what_was_not_loaded_can_not_be_read(store):
    file = StoredFile(store, store.add_bytes(os.urandom(3 * MIB)))
    loaded = file.load([(0, 10)])
    with pytest.raises(InvalidInput, match="were not loaded"):
        loaded.view(MIB - 1, MIB + 1)


def test_only_what_is_read_is_hashed_and_a_rotten_block_is_never_handed_out(blocks, store):
    content = os.urandom(4 * MIB)
    file = StoredFile(store, store.add_bytes(content))
    rotten = Cid.of(content[2 * MIB : 3 * MIB])
    rot(blocks, rotten)
    assert file.view(0, 2 * MIB) == content[: 2 * MIB]
    for _ in range(2):
        with pytest.raises(Corrupt, match=str(rotten)):
            file.view(2 * MIB - 1, 2 * MIB + 1)
    assert file.view(3 * MIB, 4 * MIB) == content[3 * MIB :]


def test_a_directory_or_a_record_is_no_file(store):
    for cid in (store.add_files({"a": b"1"}), store.put_record({"kind": "dataset"})):
        with pytest.raises(InvalidInput, match=str(cid)):
            StoredFile(store, cid)


class TestFromAPeer:
    @pytest.fixture
    def far(self, tmp_path):
        with closing(LocalStore(tmp_path / "far")) as blocks:
            yield small_blocks(VerifyingStore(blocks, source="the disk"))

    @pytest.fixture
    def node(self, far, start_node):
        return start_node(far.blocks)

    @pytest.fixture
    def here(self, tmp_path, node):
        fetcher = Fetcher(lambda: [Provider(node.url)])
        local = VerifyingStore(LocalStore(tmp_path / "here"), source="the disk")
        with closing(ContentStore(FetchingStore(local, fetcher))) as store:
            yield store

    def test_only_the_blocks_of_a_range_are_fetched(self, far, node, here):
        content = os.urandom(30 * KIB)
        cid = far.add_bytes(content)
        file = StoredFile(here, cid)
        assert node.asked == [str(cid)]
        wanted = [(5 * KIB, 7 * KIB), (6 * KIB, 6 * KIB + 1)]
        assert sum(file.missing(wanted).values()) == 2 * KIB
        file.near(wanted)
        assert file.missing([(5 * KIB, 7 * KIB)]) == {}
        loaded = file.load([(5 * KIB, 6 * KIB), (9 * KIB + 1, 9 * KIB + 3)])
        assert loaded.view(5 * KIB, 6 * KIB) == content[5 * KIB : 6 * KIB]
        assert loaded.view(9 * KIB + 1, 9 * KIB + 3) == content[9 * KIB + 1 : 9 * KIB + 3]
        parts = [content[at : at + KIB] for at in (5 * KIB, 6 * KIB, 9 * KIB)]
        assert sorted(node.asked[1:]) == sorted(str(Cid.of(part)) for part in parts)
        assert file.view(0, len(content)) == content

    def test_a_rotten_block_is_mended_by_the_peer(self, far, here):
        content = os.urandom(20 * KIB)
        first = StoredFile(here, far.add_bytes(content))
        assert not first.map()  # it is not here yet
        assert first.view(0, len(content)) == content
        file = StoredFile(here, first.cid)
        assert file.map()
        assert bytes(file.load([(0, 5 * KIB)]).file_memory or b"") == content
        assert isinstance(here.blocks, FetchingStore)
        rot(here.blocks, Cid.of(content[3 * KIB : 4 * KIB]))
        loaded = file.load([(3 * KIB, 5 * KIB)])
        assert loaded.view(3 * KIB, 5 * KIB) == content[3 * KIB : 5 * KIB]
        assert loaded.file_memory is None  # the rotten bytes are still in it
        assert file.load([(5 * KIB, 20 * KIB)]).file_memory is not None
        assert file.view(0, len(content)) == content
