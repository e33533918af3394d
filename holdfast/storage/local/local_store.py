"""The embedded block store: append-only segment files and an LMDB index.

A block is visible once its index entry is committed, and the entry is committed after the payload was synced: ``kill -9``
leaves at most an unindexed tail, which is cut off by the next who looks. Several processes and threads read, write and
collect at once. ``docs/design/002-storage.md`` says why nothing tears.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Self, TypeVar

import lmdb

from holdfast.errors import Conflict, Corrupt, InvalidInput, NotFound, disk_errors
from holdfast.storage.block_store import Extent, Mapped, inline_block
from holdfast.storage.local.compaction import Removed, remove
from holdfast.storage.local.epochs import Epochs
from holdfast.storage.local.index import Index
from holdfast.storage.local.index_changes import Transaction
from holdfast.storage.local.index_rows import COMPACTIONS, ENTRY, REFERENCE
from holdfast.storage.local.quota import Quota
from holdfast.storage.local.references import read_reference
from holdfast.storage.local.segment_maps import SegmentMaps
from holdfast.storage.local.segments import Segments
from holdfast.storage.local.writing import Writing, WritingContext, drop_stale

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import TypeAlias

    from holdfast.storage.block_store import Payload
    from holdfast.storage.cid import Buffer, Cid

    _Run: TypeAlias = tuple[int, int, int]
    """Segment, offset and length of blocks that lie back to back."""

__all__ = ["LocalStore", "Removed"]

_T = TypeVar("_T")
_LOOKS = 100  # at a block that a collector keeps moving
_SEGMENTS_IN_QUOTA = 16


class LocalStore:
    """Blocks in one folder.

    Args:
        folder: Made if it does not exist.
        segment_size_bytes: A segment is closed once it is this large; a file that begins in it stays in one piece.
            Under a quota it is at most a sixteenth of the quota.
        index_map_size_bytes: Address space that the index may grow into.
        max_bytes: Payload on the disk and the index file together stay below it; None for no quota. Adds leave room for
            one segment, which a collector needs to rewrite another.
        make_room: Called with the missing bytes when an add does not fit, outside of any transaction and epoch; it may
            collect. Afterwards the add tries once more.

    Raises:
        Unavailable: The disk is full.
        Denied: The folder can't be written.
        Corrupt: The index is not one.
        Unsupported: A newer holdfast wrote it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        segment_size_bytes: int = 1 << 30,
        index_map_size_bytes: int = 1 << 36,
        max_bytes: int | None = None,
        make_room: Callable[[int], None] | None = None,
    ) -> None:
        self._folder = folder.resolve()  # one name for one folder, as LMDB needs it
        self._max_bytes = max_bytes
        with disk_errors(folder):
            for name in ("segments", "locks"):
                (self._folder / name).mkdir(parents=True, exist_ok=True)
            self._index = Index(self._folder, map_size_bytes=index_map_size_bytes)
        if max_bytes is not None:
            segment_size_bytes = max(1, min(segment_size_bytes, max_bytes // _SEGMENTS_IN_QUOTA))
        segments = Segments(self._index, size_bytes=segment_size_bytes)
        quota = Quota(self._index, segments, max_bytes=max_bytes) if max_bytes is not None else None
        self._epochs = Epochs(self._index)
        self._context = WritingContext(self._index, segments, self._epochs, quota)
        self._context.make_room = make_room
        self._maps = SegmentMaps(segments)
        self._compactions = b""
        self._collecting: int | None = None
        try:
            with disk_errors(folder):
                segments.tidy()
        except BaseException:
            self._index.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """Where the store lies."""
        return self._folder

    @property
    def max_bytes(self) -> int | None:
        """The quota."""
        return self._max_bytes

    @property
    def make_room(self) -> Callable[[int], None] | None:
        """What is called when an add does not fit under the quota."""
        return self._context.make_room

    @make_room.setter
    def make_room(self, value: Callable[[int], None] | None) -> None:
        self._context.make_room = value

    def close(self) -> None:
        """Close the index; views handed out stay valid. Closing twice is fine."""
        self._maps.clear()
        self._index.close()

    # ------------------------------------------------------------------------------------------- reading

    def get(self, cid: Cid) -> memoryview:
        """The block as a read-only view of its segment: no copy, not hashed. From the user's own file it is both.

        Raises:
            NotFound: It is not in this store, or lies in a file of the user's that is gone.
            Corrupt: Its segment is missing or was cut, or the user's file has changed.
        """
        before: bytes | None = None
        for _ in range(_LOOKS):
            entry = self._entry(cid)
            if entry is None:
                inline = inline_block(cid)
                if inline is not None:
                    return memoryview(inline)
                raise NotFound(f"{cid} is not in the store {self._folder}")
            segment, offset, length, _ = ENTRY.unpack(entry)
            if segment & REFERENCE:
                data = read_reference(self._index, cid, segment ^ REFERENCE, offset, length)
                if data is not None:
                    return memoryview(data)
                continue
            try:
                return self._maps.piece(segment, offset, length)
            except FileNotFoundError as error:
                _check_moved(before, entry[: ENTRY.size - 4], error)
                before = entry[: ENTRY.size - 4]
        raise Corrupt(f"{cid} is moved again and again in {self._folder}")

    def view(self, cids: Sequence[Cid]) -> memoryview | None:
        """The blocks joined, with no copy, or None where they do not lie back to back."""
        return self._where_they_lie(cids, lambda runs: self._maps.piece(*runs[0]) if len(runs) == 1 else None)

    def mapped(self, cids: Sequence[Cid]) -> list[Mapped] | None:
        """The blocks as memory, in as many pieces as they lie in; this store itself hashes nothing that it reads."""
        return self._where_they_lie(cids, lambda runs: [self._piece(*run) for run in runs])

    def _where_they_lie(self, cids: Sequence[Cid], use: Callable[[list[_Run]], _T | None]) -> _T | None:
        """What ``use`` makes of the runs of some blocks; None if one is not in a segment.

        They are looked up again if a collector moves them in between.
        """
        before: list[_Run] | None = None
        for _ in range(_LOOKS):
            runs = self._runs(cids)
            if runs is None:
                return None
            try:
                return use(runs)
            except FileNotFoundError as error:
                _check_moved(before, runs, error)
                before = runs
        raise Corrupt(f"{cids[0]} is moved again and again in {self._folder}")

    def _piece(self, segment: int, offset: int, length: int) -> Mapped:
        whole = self._maps.whole(segment, offset + length)

        def about_to_read(_: Cid, start: int, end: int) -> None:
            self._maps.lend(whole, offset + start, end - start)

        return Mapped(memoryview(whole)[offset : offset + length], about_to_read)

    def extent(self, cid: Cid) -> Extent | None:
        """Where the block lies now; None if it is not here, has no bytes, or lies in a file of the user's.

        So where this gives None, ask :meth:`get`.
        """
        entry = self._entry(cid)
        if entry is None:
            return None
        segment, offset, length, _ = ENTRY.unpack(entry)
        return (
            None
            if segment & REFERENCE or not length
            else Extent(self._context.segments.path(segment), offset, length)
        )

    def has(self, cid: Cid) -> bool:
        """Whether the block is here."""
        return self._entry(cid) is not None or inline_block(cid) is not None

    def multihashes(self) -> Iterator[bytes]:
        """The multihash of every block, in the order of their bytes."""
        with self._index.reading() as txn, txn.cursor(db=self._index.blocks) as cursor:
            for key in cursor.iternext(keys=True, values=False):
                yield bytes(key)

    def entries(self, *, batch_blocks: int = 10_000) -> Iterator[list[tuple[bytes, int, int, int, int]]]:
        """Lists of (multihash, segment, offset, length, time in seconds), in the order of the multihashes.

        Each list is one moment; what changes between them is seen or not. A segment number of 2^31 and above is a
        file of the user's.
        """
        unpack = ENTRY.unpack
        for batch in self._index.entries(batch_blocks=batch_blocks):
            yield [(key, *unpack(entry)) for key, entry in batch]

    def statistics(self) -> dict[str, int]:
        """``blocks``, and the ``bytes`` of those that lie in ``segments``; what else takes room; and the sum on the disk.

        Under a quota ``disk_bytes`` is what counts for it: with what is reserved by adds that are at work.
        It takes the same time for any number of blocks.
        """
        totals = self._index.totals()
        self._forget_removed(totals.compactions.to_bytes(8, "little"))
        index_bytes = self._index.size_bytes()
        quota = self._context.quota
        disk_bytes = totals.segment_bytes + index_bytes if quota is None else quota.used_bytes()
        return {
            "blocks": totals.blocks,
            "bytes": totals.own_bytes,
            "segments": totals.segments,
            "staged_bytes": totals.staged_bytes,
            "garbage_bytes": totals.segment_bytes - totals.own_bytes - totals.staged_bytes,
            "referenced_blocks": totals.referenced_blocks,
            "referenced_bytes": totals.referenced_bytes,
            "index_bytes": index_bytes,
            "disk_bytes": disk_bytes,
        }

    # ------------------------------------------------------------------------------------------- writing

    def put_many(self, blocks: Iterable[tuple[Cid, Payload | None]], *, resume: bytes | None = None) -> int:
        """Store blocks; see :class:`~holdfast.storage.BlockStore`.

        One sync of the payloads and one of the index for the whole call, or, if the work has a name, every few seconds. A
        :class:`FileRange` is referred to, not copied; None in place of bytes means that the caller builds on a block
        that is here already.

        Args:
            blocks: With their CIDs.
            resume: Names the work. What a call with a name has written is kept every few seconds, so that after a crash or
                an interruption the next call of the same name does not write it again.

        Raises:
            NotFound: A block that the caller builds on, or a file to refer to, is not here.
            Conflict: Blocks that were here when the call began were removed by force.
            Unavailable: The disk or the quota is full; nothing was stored, or, if the disk failed at the very end of a work
                with a name, some of its blocks.
        """
        return Writing(self._context, resume=resume).run(blocks)

    @contextmanager
    def adding(self) -> Iterator[None]:
        """In the body, what this thread puts, or finds to be here already, can't be collected: time to pin it."""
        with Writing(self._context).around():
            yield

    def replace_many(self, blocks: Iterable[tuple[Cid, Buffer]]) -> None:
        """Store blocks as ``put_many`` does, also where there is one of the same CID already.

        Views of the old bytes keep the old bytes.
        """
        Writing(self._context, replace=True).run(blocks)

    @contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[Transaction]:
        """One transaction on the tables beside the blocks; if the body raises, nothing happened.

        Nothing may be added or removed in the body: this thread would wait for itself.
        """
        if write:
            with self._index.changing() as change:
                yield Transaction(change.txn, self._index.tables, change)
        else:
            with self._index.reading() as txn:
                yield Transaction(txn, self._index.tables, None)

    # ------------------------------------------------------------------------------------------ removing

    @contextmanager
    def epoch(self, cutoff_s: int, *, timeout_s: float | None = None) -> Iterator[int]:
        """Announce that blocks older than the cut-off may go, and wait until no add builds on them unseen.

        In the body, decide what goes, then :meth:`remove` it.

        Args:
            cutoff_s: In seconds since 1970.
            timeout_s: How long to wait for adds that neither end nor come to their next block; None for ever.

        Raises:
            Conflict: Somebody else is in an epoch of this store.
            Unavailable: The adds did not move on in time.
        """
        with self._epochs.collecting(cutoff_s, timeout_s=timeout_s):
            self._collecting = cutoff_s
            try:
                yield cutoff_s
            finally:
                self._collecting = None

    def remove(
        self,
        doomed: Collection[bytes] | Callable[[bytes], bool],
        *,
        cutoff_s: int,
        min_garbage: float = 0.25,
    ) -> Removed:
        """Take blocks out, and give space back to the file system; views of them stay valid.

        Args:
            doomed: Multihashes, or what tells whether one goes. Those that are not older than the cut-off stay.
            cutoff_s: At most that of the :meth:`epoch` in whose body this is called.
            min_garbage: Segments with a larger share of garbage are rewritten; 0 for all that have any.

        Raises:
            Conflict: It is not called within an epoch.
            InvalidInput: The cut-off is later than the epoch's.
        """
        if self._collecting is None:
            raise Conflict("blocks are removed within an epoch: with store.epoch(cutoff_s): ...")
        if cutoff_s > self._collecting:
            raise InvalidInput(f"the cut-off {cutoff_s} is later than the epoch's, {self._collecting}")
        with disk_errors(self._folder):
            removed = remove(self._context, doomed, cutoff_s=cutoff_s, min_garbage=min_garbage)
        self.statistics()  # lets go of maps of what was removed
        return removed

    def drop_stale(self, older_than_s: float) -> int:
        """Drop what interrupted calls with a name have staged, if nobody went on for so long; returns the bytes."""
        return drop_stale(self._context, older_than_s)

    # ------------------------------------------------------------------------------------------- lookups

    def _entry(self, cid: Cid) -> bytes | None:
        index = self._index
        try:
            with index.begin() as txn:
                entry: bytes | None = txn.get(cid.multihash, db=index.blocks)
                compactions = index.packed_totals(txn)[COMPACTIONS]
        except lmdb.Error as error:
            raise index.error(error) from error
        if compactions != self._compactions:
            self._forget_removed(compactions)
        return entry

    def _runs(self, cids: Sequence[Cid]) -> list[_Run] | None:
        """Segment, offset and length of each run of blocks that lie back to back; None if one is not in a segment."""
        keys = [cid.multihash for cid in cids]
        with self._index.reading() as txn, txn.cursor(db=self._index.blocks) as cursor:
            found = cursor.getmulti(keys)
            compactions = self._index.packed_totals(txn)[COMPACTIONS]
        if compactions != self._compactions:
            self._forget_removed(compactions)
        if not keys or len(found) < len(keys):
            return None
        runs: list[_Run] = []
        segment = start = total = 0
        for other, offset, length, _ in ENTRY.iter_unpack(b"".join([entry for _, entry in found])):
            if other & REFERENCE:
                return None
            if total and length and (other != segment or offset != start + total):
                runs.append((segment, start, total))
                total = 0
            if not total:
                segment, start = other, offset
            total += length
        return [*runs, (segment, start, total)]

    def _forget_removed(self, compactions: bytes) -> None:
        """Drop maps of segments that were removed since the last look, so that their space comes free."""
        if compactions == self._compactions:
            return
        for number in self._maps.numbers():
            if self._index.segment(number) is None:
                self._maps.drop(number)
        self._compactions = compactions


def _check_moved(before: object, now: object, error: FileNotFoundError) -> None:
    """Raise Corrupt if a block's segment is missing though the index has led there twice."""
    if before == now:
        raise Corrupt(f"the segment {error.filename} is missing, but blocks lie in it") from error
