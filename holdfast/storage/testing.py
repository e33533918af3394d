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

from holdfast.errors import Conflict, InvalidInput, NotFound
from holdfast.storage.block_store import MAX_BLOCK_BYTES, BlockStore, SupportsView
from holdfast.storage.cid import DAG_PB, RAW, Buffer, Cid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["BlockStoreTests", "block"]

JOIN_TIMEOUT_S = 60.0


def block(content: bytes, codec: int = RAW) -> tuple[Cid, bytes]:
    """A block of these bytes, as ``put_many`` takes it."""
    return Cid.of(content, codec), content


class BlockStoreTests:
    """What every :class:`~holdfast.storage.BlockStore` promises.

    A subclass gives the fixture ``make_store``: a function that opens a store. The first call of a test opens an
    empty one, later calls open the same blocks again (unless ``reopens`` is False).
    """

    reopens = True
    """Whether blocks outlive :meth:`BlockStore.close`."""

    @pytest.fixture
    def make_store(self) -> Callable[[], BlockStore]:
        """A function that opens the store under test."""
        pytest.fail("a subclass of BlockStoreTests gives the fixture make_store")

    @pytest.fixture
    def store(self, make_store: Callable[[], BlockStore]) -> Iterator[BlockStore]:
        """One open store, closed after the test."""
        store = make_store()
        yield store
        store.close()

    @pytest.mark.parametrize("size", [0, 1, 31, 32, 1 << 10, 1 << 20, MAX_BLOCK_BYTES])
    def test_a_block_is_not_lost_or_changed(self, store: BlockStore, size: int) -> None:
        cid, data = block(bytes(range(256)) * (size // 256) + bytes(size % 256))
        assert store.put_many([(cid, data)]) == size
        assert store.has(cid)
        assert bytes(store.get(cid)) == data

    def test_a_missing_block_is_not_made_up(self, store: BlockStore) -> None:
        cid, _ = block(b"never stored")
        assert not store.has(cid)
        with pytest.raises(NotFound, match=str(cid)):
            store.get(cid)

    def test_another_codec_or_version_does_not_hide_a_block(self, store: BlockStore) -> None:
        content = b"one block, three names"
        store.put_many([block(content)])
        for name in (Cid.of(content, DAG_PB), Cid.of(content, version=0)):
            assert store.has(name)
            assert bytes(store.get(name)) == content
        assert store.put_many([block(content, DAG_PB)]) == 0

    def test_the_same_block_is_not_stored_twice(self, store: BlockStore) -> None:
        assert store.put_many([block(b"twice"), block(b"once"), block(b"twice")]) == 9
        assert store.put_many([block(b"twice")]) == 0
        assert len(list(store.multihashes())) == 2

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

    def test_a_reader_can_not_change_the_store(self, store: BlockStore) -> None:
        cid, data = block(b"read only")
        store.put_many([(cid, data)])
        assert memoryview(store.get(cid)).readonly

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

    def test_what_was_read_stays_valid_after_closing(self, store: BlockStore) -> None:
        cid, data = block(b"outlives its store" * 1000)
        store.put_many([(cid, data)])
        held = store.get(cid)
        store.close()
        assert bytes(held) == data

    def test_a_closed_store_says_so_instead_of_missing_blocks(self, store: BlockStore) -> None:
        cid, data = block(b"here")
        store.put_many([(cid, data)])
        store.close()
        store.close()
        with pytest.raises(Conflict, match="closed"):
            store.get(cid)
        with pytest.raises(Conflict, match="closed"):
            store.has(cid)
        with pytest.raises(Conflict, match="closed"):
            store.put_many([(cid, data)])

    def test_a_view_is_the_joined_blocks_or_nothing(self, store: BlockStore) -> None:
        if not isinstance(store, SupportsView):
            pytest.skip("this store gives no views")
        blocks = [block(b"%03d" % i * 11) for i in range(40)]
        store.put_many(blocks)
        for chosen in (blocks, blocks[7:9], blocks[::2], blocks[::-1], [blocks[3], blocks[3]], blocks[:1]):
            joined = store.view([cid for cid, _ in chosen])
            assert joined is None or bytes(joined) == b"".join(data for _, data in chosen)
            assert joined is None or joined.readonly

    def test_a_view_never_covers_a_missing_block(self, store: BlockStore) -> None:
        if not isinstance(store, SupportsView):
            pytest.skip("this store gives no views")
        here, missing = block(b"here"), block(b"missing")
        store.put_many([here])
        for chosen in ([here[0], missing[0]], [missing[0], here[0]]):
            with suppress(NotFound):
                assert store.view(chosen) is None
