"""The embedded block store: append-only segment files and an LMDB index.

Payloads lie back to back in ``segments/NNNNNNNN.seg``, with nothing between them, so a file that was added in one go
is one extent and can be handed out as one memory map. The LMDB index maps a multihash to (segment, offset,
length). A block is visible once its index entry is committed, and the entry is committed after the payload
was synced: ``kill -9`` leaves at most an unindexed tail, which the next writer of that segment cuts off.

Several processes and threads read and write at once. Each writer owns one segment while it writes, by a file lock
that the kernel releases when the process dies.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import lmdb

from holdfast.errors import Conflict, Corrupt, HoldfastError, InvalidInput, NotFound, Unavailable, disk_errors
from holdfast.storage.block_store import MAX_BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from holdfast.storage.cid import Buffer, Cid

__all__ = ["LocalStore"]

_EXTENT = struct.Struct("<IQI")  # segment, offset, length
_LENGTH = struct.Struct("<Q")
_SEGMENT_KEY = struct.Struct(">I")  # big-endian: LMDB then lists segments in order

_MAX_MAPS = 128  # each keeps a file descriptor

_open_environments: dict[str, tuple[Any, int]] = {}
_open_environments_lock = threading.Lock()
"""LMDB forbids opening one environment twice in a process, so stores on the same folder share it."""


class LocalStore:
    """Blocks in one folder.

    Args:
        folder: Made if it does not exist.
        segment_size_bytes: A segment is closed once it is this large.
        index_map_size_bytes: Address space that the index may grow into.

    Raises:
        Unavailable: The disk is full.
        Denied: The folder can't be written.
        Corrupt: The index is not one.
    """

    def __init__(
        self, folder: Path, *, segment_size_bytes: int = 1 << 30, index_map_size_bytes: int = 1 << 36
    ) -> None:
        self._folder = folder.resolve()  # one name for one folder, as LMDB needs it
        self._segments = self._folder / "segments"
        self._index = str(self._folder / "index")
        self._segment_size = segment_size_bytes
        with disk_errors(folder):
            self._segments.mkdir(parents=True, exist_ok=True)
            self._closed = False
            try:
                self._env, self._blocks, self._lengths = _open_environment(self._index, index_map_size_bytes)
            except lmdb.Error as error:
                raise self._index_error(error) from error
        self._maps: dict[int, mmap.mmap] = {}
        self._maps_lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, cid: Cid) -> memoryview:
        """The block as a read-only view of its segment: no copy, not hashed.

        Raises:
            NotFound: It is not in this store.
            Corrupt: Its segment is missing or was cut.
        """
        extent = self._extents([cid])[0]
        if extent is None:
            raise NotFound(f"{cid} is not in the store {self._folder}")
        return self._slice(*extent)

    def view(self, cids: Sequence[Cid]) -> memoryview | None:
        """The blocks joined, with no copy, or None where they do not lie back to back."""
        extents = self._extents(cids)
        if not extents or extents[0] is None:
            return None
        segment, start, total = extents[0]
        for extent in extents[1:]:
            if extent is None or extent[:2] != (segment, start + total):
                return None
            total += extent[2]
        return self._slice(segment, start, total)

    def has(self, cid: Cid) -> bool:
        """Whether the block is here."""
        return self._extents([cid])[0] is not None

    def multihashes(self) -> Iterator[bytes]:
        """The multihash of every block, in the order of their bytes."""
        try:
            with self._begin() as txn, txn.cursor(db=self._blocks) as cursor:
                for key in cursor.iternext(keys=True, values=False):
                    yield bytes(key)
        except lmdb.Error as error:
            raise self._index_error(error) from error

    def put_many(self, blocks: Iterable[tuple[Cid, Buffer]]) -> int:
        """Store blocks; see :class:`~holdfast.storage.BlockStore`.

        One sync of the payloads and one of the index for the whole call, however many blocks it brings.
        """
        entries: dict[bytes, bytes] = {}
        writers: list[_SegmentWriter] = []
        new = 0
        try:
            for cid, data in blocks:  # what this raises is not about our disk, and passes as it is
                size = memoryview(data).nbytes
                if size > MAX_BLOCK_BYTES:
                    raise InvalidInput(f"{cid} has {size} bytes; a block has at most {MAX_BLOCK_BYTES}")
                key = cid.multihash
                if key in entries or self.has(cid):
                    continue
                with disk_errors(self._folder):
                    if not writers or writers[-1].end >= self._segment_size:
                        writers.append(self._claim_segment())
                    entries[key] = _EXTENT.pack(writers[-1].number, writers[-1].end, size)
                    writers[-1].append(data)
                new += size
            with disk_errors(self._folder):
                self._commit(writers, entries)
        finally:
            for writer in writers:
                writer.close()
        return new

    def statistics(self) -> dict[str, int]:
        """``blocks`` and ``bytes`` held, with the ``segments`` they lie in."""
        with self._begin() as txn:
            lengths = [_LENGTH.unpack(value)[0] for _, value in txn.cursor(db=self._lengths)]
            blocks = txn.stat(db=self._blocks)["entries"]
        return {"blocks": blocks, "bytes": sum(lengths), "segments": len(lengths)}

    def close(self) -> None:
        """Close the index; views handed out stay valid. Closing twice is fine."""
        if not self._closed:
            self._closed = True
            with self._maps_lock:
                self._maps.clear()
            _close_environment(self._index)

    def _begin(self, *, write: bool = False) -> Any:
        if self._closed:
            raise Conflict(f"the store {self._folder} is closed")
        try:
            return self._env.begin(write=write)
        except lmdb.Error as error:
            raise self._index_error(error) from error

    def _index_error(self, error: lmdb.Error) -> HoldfastError:
        """What an error of LMDB means to the caller."""
        if self._closed:
            return Conflict(f"the store {self._folder} is closed")
        if isinstance(error, (lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError)):
            return Corrupt(f"the index of {self._folder} is damaged: {error}")
        if isinstance(error, lmdb.MapFullError):
            return Unavailable(
                f"the index of {self._folder} is full: raise the setting storage.index_map_size_bytes"
            )
        return Unavailable(f"the disk that holds {self._folder} is full or failing: {error}")

    def _extents(self, cids: Sequence[Cid]) -> list[tuple[int, int, int] | None]:
        try:
            with self._begin() as txn:
                found = [txn.get(cid.multihash, db=self._blocks) for cid in cids]
        except lmdb.Error as error:
            raise self._index_error(error) from error
        return [None if entry is None else _EXTENT.unpack(entry) for entry in found]

    def _slice(self, segment: int, offset: int, length: int) -> memoryview:
        if length == 0:
            return memoryview(b"")
        with self._maps_lock:
            mapped = self._maps.get(segment)
            if mapped is None or len(mapped) < offset + length:
                path = self._segments / f"{segment:08d}.seg"
                try:
                    with path.open("rb") as file:
                        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
                except (FileNotFoundError, ValueError) as error:  # ValueError: the file is empty
                    raise Corrupt(f"the segment {path} is missing or empty, but blocks lie in it") from error
                if len(mapped) < offset + length:
                    raise Corrupt(f"the segment {path} was cut: it ends before byte {offset + length}")
                # Older, shorter or forgotten maps live as long as their views.
                if segment not in self._maps and len(self._maps) >= _MAX_MAPS:
                    del self._maps[next(iter(self._maps))]
                self._maps[segment] = mapped
        return memoryview(mapped)[offset : offset + length]

    def _claim_segment(self) -> _SegmentWriter:
        """A segment with room that nobody else writes, from its committed end on."""
        with self._begin() as txn:
            lengths = {
                _SEGMENT_KEY.unpack(key)[0]: _LENGTH.unpack(value)[0]
                for key, value in txn.cursor(db=self._lengths)
            }
        after = max(lengths, default=0) + 1
        open_ones = [number for number, length in lengths.items() if length < self._segment_size]
        for number in itertools.chain(open_ones, itertools.count(after)):
            writer = _SegmentWriter.lock(self._segments, number)
            if writer is None:
                continue
            # Somebody may have committed to it between the look at the index and the lock.
            end = self._committed_end(number)
            if end == 0:  # perhaps new: the file's name must survive a power cut, too
                _sync_folder(self._segments)
            if end < self._segment_size:
                writer.start_at(end)
                return writer
            writer.close()
        raise AssertionError("unreachable: the count has no end")

    def _committed_end(self, number: int) -> int:
        with self._begin() as txn:
            committed = txn.get(_SEGMENT_KEY.pack(number), db=self._lengths)
        return int(_LENGTH.unpack(committed)[0]) if committed else 0

    def _commit(self, writers: list[_SegmentWriter], entries: dict[bytes, bytes]) -> None:
        if not entries:
            return
        for writer in writers:
            writer.sync()
        try:
            with self._begin(write=True) as txn:
                for key, extent in entries.items():
                    txn.put(key, extent, db=self._blocks, overwrite=False)
                for writer in writers:
                    txn.put(_SEGMENT_KEY.pack(writer.number), _LENGTH.pack(writer.end), db=self._lengths)
        except lmdb.Error as error:
            for writer in writers:  # give the space back, as far as the index says that it is not used
                writer.start_at(self._committed_end(writer.number))
            raise self._index_error(error) from error


class _SegmentWriter:
    """The one writer of a segment file, for as long as it holds the file's lock."""

    def __init__(self, number: int, handle: int) -> None:
        self.number = number
        self.end = 0
        self._handle = handle
        self._synced_end = 0

    @classmethod
    def lock(cls, folder: Path, number: int) -> _SegmentWriter | None:
        """The writer of a segment, made if need be, or None where somebody else writes it."""
        handle = os.open(folder / f"{number:08d}.seg", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        return cls(number, handle)

    def start_at(self, committed: int) -> None:
        """Cut off what a writer that died left behind the committed end, and write from there."""
        os.ftruncate(self._handle, committed)
        os.lseek(self._handle, committed, os.SEEK_SET)
        self.end = self._synced_end = committed

    def append(self, data: Buffer) -> None:
        """Write ``data`` at the end; it is durable after :meth:`sync`."""
        view = memoryview(data).cast("B")
        size = view.nbytes
        while view:
            view = view[os.write(self._handle, view) :]
        self.end += size

    def sync(self) -> None:
        """Make everything appended durable. The index may point to it from now on."""
        os.fdatasync(self._handle)
        self._synced_end = self.end

    def close(self) -> None:
        """Release the lock, and give back the space of what was never synced."""
        with suppress(OSError):
            if self.end > self._synced_end:
                os.ftruncate(self._handle, self._synced_end)
        os.close(self._handle)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _open_environment(path: str, map_size: int) -> tuple[Any, Any, Any]:
    """The environment in ``path``, shared within the process, and its tables of blocks and of segments."""
    with _open_environments_lock:
        env, users = _open_environments.get(path, (None, 0))
        if env is None:
            Path(path).mkdir(exist_ok=True)
            env = lmdb.open(path, map_size=map_size, max_dbs=4, max_readers=512, mode=0o600)
            env.reader_check()  # processes that were killed while they read still hold their places
        try:
            tables = env.open_db(b"blocks"), env.open_db(b"segments")
        except lmdb.Error:
            if not users:
                env.close()
            raise
        _open_environments[path] = (env, users + 1)
        return env, *tables


def _close_environment(path: str) -> None:
    with _open_environments_lock:
        env, users = _open_environments.pop(path)
        if users > 1:
            _open_environments[path] = (env, users - 1)
        else:
            with suppress(lmdb.Error):
                env.close()
