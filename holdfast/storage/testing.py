"""The conformance suite of block stores: subclass it, give ``make_store``, and pytest does the rest.

::

    class TestMyStore(BlockStoreTests):
        @pytest.fixture
        def make_store(self, tmp_path):
            return lambda: MyStore(tmp_path)

Only this module needs pytest; nothing in holdfast imports it.
"""

# ruff: noqa: S101, D102 -- asserts are what tests are made of, and their names say what harm they prevent

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from holdfast.errors import Conflict, Corrupt, InvalidInput, NotFound, Unsupported
from holdfast.storage.block_store import (
    MAX_BLOCK_BYTES,
    BlockStore,
    SupportsExtent,
    SupportsMap,
    SupportsRepair,
    SupportsView,
)
from holdfast.storage.cid import DAG_PB, RAW, Buffer, Cid
from holdfast.storage.local.references import FileRange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

__all__ = ["BlockReadTests", "BlockStoreTests", "block"]

JOIN_TIMEOUT_S = 60.0


def block(content: bytes, codec: int = RAW) -> tuple[Cid, bytes]:
    """A block of these bytes, as ``put_many`` takes it."""
    return Cid.of(content, codec), content


class BlockReadTests:
    """What every :class:`~holdfast.storage.BlockStore` promises to those who read; enough for one that can't be written.

    A subclass gives the fixture ``make_store``: a function that opens a store. The first call of a test opens an
    empty one. A store that can't be written overrides :meth:`fill`.
    """

    def fill(self, store: BlockStore, blocks: Iterable[tuple[Cid, Buffer]]) -> None:
        """Bring it about that ``store`` has these blocks."""
        store.put_many(blocks)

    @pytest.fixture
    def make_store(self) -> Callable[[], BlockStore]:
        """A function that opens the store under test."""
        pytest.fail("a subclass of BlockReadTests gives the fixture make_store")

    @pytest.fixture
    def store(self, make_store: Callable[[], BlockStore]) -> Iterator[BlockStore]:
        """One open store, closed after the test."""
        store = make_store()
        yield store
        store.close()

    @pytest.mark.parametrize("size", [0, 1, 31, 32, 1 << 10, 1 << 20, MAX_BLOCK_BYTES])
    def test_a_block_is_not_lost_or_changed(self, store: BlockStore, size: int) -> None:
        cid, data = block(bytes(range(256)) * (size // 256) + bytes(size % 256))
        self.fill(store, [(cid, data)])
        assert store.has(cid)
        assert bytes(store.get(cid)) == data

    def test_a_missing_block_is_not_made_up(self, store: BlockStore) -> None:
        cid, _ = block(b"never stored")
        assert not store.has(cid)
        with pytest.raises(NotFound, match=str(cid)):
            store.get(cid)

    def test_another_codec_or_version_does_not_hide_a_block(self, store: BlockStore) -> None:
        content = b"one block, three names"
        self.fill(store, [block(content)])
        for name in (Cid.of(content, DAG_PB), Cid.of(content, version=0)):
            assert store.has(name)
            assert bytes(store.get(name)) == content

    def test_a_block_that_lies_in_its_name_is_there_without_being_stored(self, store: BlockStore) -> None:
        inline = Cid(b"\x01\x55\x00\x05hello")
        assert store.has(inline)
        assert bytes(store.get(inline)) == b"hello"

    def test_a_reader_can_not_change_the_store(self, store: BlockStore) -> None:
        cid, data = block(b"read only")
        self.fill(store, [(cid, data)])
        assert memoryview(store.get(cid)).readonly

    def test_what_was_read_stays_valid_after_closing(self, store: BlockStore) -> None:
        cid, data = block(b"outlives its store" * 1000)
        self.fill(store, [(cid, data)])
        held = store.get(cid)
        store.close()
        assert bytes(held) == data

    def test_a_closed_store_says_so_instead_of_missing_blocks(self, store: BlockStore) -> None:
        cid, data = block(b"here")
        self.fill(store, [(cid, data)])
        store.close()
        store.close()
        with pytest.raises(Conflict, match="closed"):
            store.get(cid)
        with pytest.raises(Conflict, match="closed"):
            store.has(cid)

    def test_a_view_is_the_joined_blocks_or_nothing(self, store: BlockStore) -> None:
        if not isinstance(store, SupportsView):
            pytest.skip("this store gives no views")
        blocks = [block(b"%03d" % i * 11) for i in range(40)]
        self.fill(store, blocks)
        for chosen in (blocks, blocks[7:9], blocks[::2], blocks[::-1], [blocks[3], blocks[3]], blocks[:1]):
            joined = store.view([cid for cid, _ in chosen])
            assert joined is None or bytes(joined) == b"".join(data for _, data in chosen)
            assert joined is None or joined.readonly

    def test_a_view_never_covers_a_missing_block(self, store: BlockStore) -> None:
        if not isinstance(store, SupportsView):
            pytest.skip("this store gives no views")
        here, missing = block(b"here"), block(b"missing")
        self.fill(store, [here])
        for chosen in ([here[0], missing[0]], [missing[0], here[0]]):
            with suppress(NotFound):
                assert store.view(chosen) is None

    def test_a_map_has_all_blocks_in_their_order_or_is_none(self, store: BlockStore) -> None:
        if not isinstance(store, SupportsMap):
            pytest.skip("this store gives no maps")
        blocks = [block(b"%03d" % i * 11) for i in range(40)]
        missing = block(b"missing")
        self.fill(store, blocks)
        for chosen in (blocks, blocks[7:9], blocks[::-1], [blocks[3], blocks[3]], [blocks[0], missing]):
            found = store.mapped([cid for cid, _ in chosen])
            assert found is None or missing not in chosen
            if found is not None:
                assert b"".join(piece.memory for piece in found) == b"".join(data for _, data in chosen)
                assert all(piece.memory.readonly for piece in found)
                found[0].check(chosen[0][0], 0, len(chosen[0][1]))


class BlockStoreTests(BlockReadTests):
    """What every :class:`~holdfast.storage.BlockStore` promises that can be written.

    A subclass gives the fixture ``make_store``: a function that opens a store. The first call of a test opens an
    empty one, later calls open the same blocks again (unless ``reopens`` is False).
    """

    reopens = True
    """Whether blocks outlive :meth:`BlockStore.close`."""

    @pytest.mark.parametrize("size", [0, 1, 31, 32, 1 << 10, 1 << 20, MAX_BLOCK_BYTES])
    def test_only_what_is_new_is_counted(self, store: BlockStore, size: int) -> None:
        data = bytes(size)
        assert store.put_many([block(data)]) == size
        assert store.put_many([block(data), block(data, DAG_PB), (Cid.of(data, version=0), data)]) == 0

    def test_a_closed_store_takes_no_block(self, store: BlockStore) -> None:
        store.close()
        with pytest.raises(Conflict, match="closed"):
            store.put_many([block(b"late")])

    def test_the_same_block_is_not_stored_twice(self, store: BlockStore) -> None:
        assert store.put_many([block(b"twice"), block(b"once"), block(b"twice")]) == 9
        assert store.put_many([block(b"twice")]) == 0
        assert len(list(store.multihashes())) == 2

    def test_what_a_caller_builds_on_must_be_here(self, store: BlockStore) -> None:
        here, absent = block(b"here already"), block(b"not here")
        store.put_many([here])
        assert store.put_many([(here[0], None), block(b"new")]) == 3
        with pytest.raises(NotFound, match=str(absent[0])):
            store.put_many([block(b"never visible"), (absent[0], None)])
        assert not store.has(block(b"never visible")[0])

    def test_nothing_to_store_is_no_error(self, store: BlockStore) -> None:
        assert store.put_many([]) == 0
        assert list(store.multihashes()) == []

    def test_a_buffer_that_is_reused_does_not_change_what_was_stored(self, store: BlockStore) -> None:
        buffer = bytearray(b"first")
        expected = []

        def blocks() -> Iterator[tuple[Cid, Buffer]]:
            for content in (b"first", b"other", b"third"):
                buffer[:] = content
                expected.append((Cid.of(content), content))
                yield Cid.of(buffer), memoryview(buffer)

        store.put_many(blocks())
        buffer[:] = b"wrong"
        for cid, content in expected:
            assert bytes(store.get(cid)) == content

    def test_a_block_that_no_peer_would_take_is_refused(self, store: BlockStore) -> None:
        small, large = block(b"small"), block(bytes(MAX_BLOCK_BYTES + 1))
        with pytest.raises(InvalidInput, match=str(large[0])):
            store.put_many([small, large])
        assert not store.has(small[0])
        assert not store.has(large[0])

    @pytest.mark.parametrize(
        "error", [RuntimeError("source"), PermissionError(13, "source"), KeyboardInterrupt("source")]
    )
    def test_a_source_that_breaks_leaves_nothing_behind(
        self, store: BlockStore, error: BaseException
    ) -> None:
        before = block(b"stored before")
        store.put_many([before])
        broken = [block(b"%d" % i * 100) for i in range(10)]

        def blocks() -> Iterator[tuple[Cid, Buffer]]:
            yield from broken
            raise error

        with pytest.raises(type(error), match="source") as caught:
            store.put_many(blocks())
        assert caught.value is error
        assert list(store.multihashes()) == [before[0].multihash]
        assert not any(store.has(cid) for cid, _ in broken)
        store.put_many(broken)  # and the store still works
        for cid, data in [before, *broken]:
            assert bytes(store.get(cid)) == data

    def test_a_source_may_use_the_store_while_it_is_written(self, store: BlockStore) -> None:
        old, new, inner = block(b"old"), block(b"new"), block(b"inner")
        store.put_many([old])

        def blocks() -> Iterator[tuple[Cid, Buffer]]:
            assert bytes(store.get(old[0])) == b"old"
            yield new
            store.put_many([inner])
            assert not store.has(new[0])  # not before the call returns

        store.put_many(blocks())
        for cid, data in (old, new, inner):
            assert bytes(store.get(cid)) == data

    def test_listing_misses_nothing_and_is_in_order(self, store: BlockStore) -> None:
        blocks = [block(b"listed %d" % i) for i in range(300)]
        store.put_many(blocks)
        listed = list(store.multihashes())
        assert listed == sorted(cid.multihash for cid, _ in blocks)

    def test_threads_do_not_disturb_each_other(self, store: BlockStore) -> None:
        wrong: list[object] = []

        def work(worker: int) -> None:
            try:
                for turn in range(8):
                    mine = [block(b"%d/%d/%d" % (worker, turn, i) * 50) for i in range(5)]
                    store.put_many([*mine, block(b"shared by all")])
                    wrong.extend(cid for cid, data in mine if bytes(store.get(cid)) != data)
            except Exception as error:  # noqa: BLE001 -- the test reports it, whatever it is
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(JOIN_TIMEOUT_S)
        assert not any(thread.is_alive() for thread in threads)
        assert wrong == []
        assert len(list(store.multihashes())) == 6 * 8 * 5 + 1

    def test_blocks_are_not_lost_when_the_store_is_closed(self, make_store: Callable[[], BlockStore]) -> None:
        if not self.reopens:
            pytest.skip("this store does not outlive its closing")
        blocks = [block(b"kept %d" % i) for i in range(20)]
        first = make_store()
        first.put_many(blocks)
        first.close()
        second = make_store()
        try:
            for cid, data in blocks:
                assert bytes(second.get(cid)) == data
            assert second.put_many(blocks) == 0
        finally:
            second.close()

    # ------------------------------------------------------------------------------------ work with a name

    def test_work_with_a_name_is_stored_like_any_other(self, store: BlockStore) -> None:
        blocks = [block(b"named %d" % i) for i in range(20)]
        size = sum(len(data) for _, data in blocks)
        assert store.put_many(blocks, resume=b"work") == size
        assert store.put_many(blocks, resume=b"work") == 0
        for cid, data in blocks:
            assert bytes(store.get(cid)) == data

    @pytest.mark.parametrize("error", [RuntimeError("source"), KeyboardInterrupt("source")])
    def test_interrupted_work_is_visible_to_nobody_and_can_be_done_again(
        self, store: BlockStore, error: BaseException
    ) -> None:
        blocks = [block(b"interrupted %d" % i) for i in range(20)]

        def source() -> Iterator[tuple[Cid, Buffer]]:
            yield from blocks[:15]
            raise error

        for name in (b"work", b"other work"):
            with pytest.raises(type(error), match="source"):
                store.put_many(source(), resume=name)
            assert list(store.multihashes()) == []
        store.put_many(blocks, resume=b"work")
        assert list(store.multihashes()) == sorted(cid.multihash for cid, _ in blocks)
        for cid, data in blocks:
            assert bytes(store.get(cid)) == data

    # ----------------------------------------------------------------------------- what some stores can do

    def test_a_range_of_a_file_is_that_range_or_unsupported(self, store: BlockStore, tmp_path: Path) -> None:
        path = tmp_path / "a user's file"
        path.write_bytes(b"before, the block itself, behind")
        cid = Cid.of(b"the block itself")
        try:
            store.put_many([(cid, FileRange(path, 8, 16))])
        except Unsupported:
            assert not store.has(cid)
        else:
            assert bytes(store.get(cid)) == b"the block itself"

    def test_an_extent_leads_to_the_blocks_own_bytes(self, store: BlockStore) -> None:
        if not isinstance(store, SupportsExtent):
            pytest.skip("this store gives no extents")
        blocks = [block(b"%d" % i * 100) for i in range(20)]
        store.put_many(blocks)
        for cid, data in blocks:
            extent = store.extent(cid)
            assert extent is not None
            with extent.path.open("rb") as file:
                file.seek(extent.offset)
                assert file.read(extent.length) == data
        assert store.extent(Cid.of(b"never stored")) is None

    def test_right_bytes_take_the_place_of_wrong_ones(self, store: BlockStore) -> None:
        if not isinstance(store, SupportsRepair):
            pytest.skip("this store can't be repaired")
        right, other, new = b"right bytes", block(b"another"), block(b"new")
        cid = Cid.of(right)
        store.put_many([(cid, b"wrong bytes"), other])  # the caller vouches for CIDs, and was wrong
        held: Buffer = b"wrong bytes"
        with suppress(Corrupt):  # a store that hashes what it reads
            held = store.get(cid)
        store.replace_many([(cid, right), new])
        assert bytes(store.get(cid)) == right
        assert bytes(held) == b"wrong bytes"  # what a reader holds does not change under its eyes
        assert bytes(store.get(other[0])) == other[1]
        assert bytes(store.get(new[0])) == new[1]
        assert len(list(store.multihashes())) == 3

    def test_a_repair_that_fails_changes_nothing(self, store: BlockStore) -> None:
        if not isinstance(store, SupportsRepair):
            pytest.skip("this store can't be repaired")
        cid = Cid.of(b"right bytes")
        store.put_many([(cid, b"right bytes")])

        def source() -> Iterator[tuple[Cid, Buffer]]:
            yield cid, b"wrong bytes"
            yield block(b"new")
            raise RuntimeError("source")

        with pytest.raises(RuntimeError, match="source"):
            store.replace_many(source())
        assert bytes(store.get(cid)) == b"right bytes"
        with pytest.raises(InvalidInput, match="at most"):
            store.replace_many([block(bytes(MAX_BLOCK_BYTES + 1))])
        assert list(store.multihashes()) == [cid.multihash]
