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
from typing import TYPE_CHECKING, Any

import lmdb

from holdfast.errors import Conflict, InvalidInput, NotFound, Unavailable, disk_errors
from holdfast.storage.block_store import MAX_BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from holdfast.storage.cid import Buffer, Cid

__all__ = ["LocalStore"]

_EXTENT = struct.Struct("<IQI")  # segment, offset, length
_LENGTH = struct.Struct("<Q")
_SEGMENT_KEY = struct.Struct(">I")  # big-endian: LMDB then lists segments in order

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
    """

    def __init__(
        self, folder: Path, *, segment_size_bytes: int = 1 << 30, index_map_size_bytes: int = 1 << 36
    ) -> None:
        self._folder = folder.absolute()
        self._segments = self._folder / "segments"
        self._segment_size = segment_size_bytes
        with disk_errors(folder):
            self._segments.mkdir(parents=True, exist_ok=True)
            self._env = _open_environment(str(self._folder / "index"), index_map_size_bytes)
        self._blocks = self._env.open_db(b"blocks")
        self._lengths = self._env.open_db(b"segments")
        self._maps: dict[int, mmap.mmap] = {}
        self._maps_lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> LocalStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, cid: Cid) -> memoryview:
        """The block as a read-only view of its segment: no copy, not hashed.

        Raises:
            NotFound: It is not in this store.
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
        with self._begin() as txn, txn.cursor(db=self._blocks) as cursor:
            for key in cursor.iternext(keys=True, values=False):
                yield bytes(key)

    def put_many(self, blocks: Iterable[tuple[Cid, Buffer]]) -> int:
        """Store blocks; see :class:`~holdfast.storage.BlockStore`.

        One sync of the payloads and one of the index for the whole call, however many blocks it brings.
        """
        entries: dict[bytes, bytes] = {}
        writers: list[_SegmentWriter] = []
        new = 0
        with disk_errors(self._folder):
            try:
                for cid, data in blocks:
                    size = memoryview(data).nbytes
                    if size > MAX_BLOCK_BYTES:
                        raise InvalidInput(f"{cid} has {size} bytes; a block has at most {MAX_BLOCK_BYTES}")
                    key = cid.multihash
                    if key in entries or self.has(cid):
                        continue
                    if not writers or writers[-1].end >= self._segment_size:
                        writers.append(self._claim_segment())
                    entries[key] = _EXTENT.pack(writers[-1].number, writers[-1].end, size)
                    writers[-1].append(data)
                    new += size
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
            _close_environment(str(self._folder / "index"))

    def _begin(self, *, write: bool = False) -> Any:
        if self._closed:
            raise Conflict(f"the store {self._folder} is closed")
        return self._env.begin(write=write)

    def _extents(self, cids: Sequence[Cid]) -> list[tuple[int, int, int] | None]:
        with self._begin() as txn:
            found = [txn.get(cid.multihash, db=self._blocks) for cid in cids]
        return [None if entry is None else _EXTENT.unpack(entry) for entry in found]

    def _slice(self, segment: int, offset: int, length: int) -> memoryview:
        if length == 0:
            return memoryview(b"")
        with self._maps_lock:
            mapped = self._maps.get(segment)
            if mapped is None or len(mapped) < offset + length:
                with (self._segments / f"{segment:08d}.seg").open("rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
                self._maps[segment] = mapped  # an older, shorter map lives as long as its views
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
            with self._begin() as txn:
                committed = txn.get(_SEGMENT_KEY.pack(number), db=self._lengths)
            end = _LENGTH.unpack(committed)[0] if committed else 0
            if end < self._segment_size:
                writer.start_at(end)
                return writer
            writer.close()
        raise AssertionError("unreachable: the count has no end")

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
        except lmdb.MapFullError as error:
            raise Unavailable(
                f"the index of {self._folder} is full: raise the setting storage.index_map_size_bytes"
            ) from error
        except lmdb.DiskError as error:
            raise Unavailable(f"the disk that holds {self._folder} is full or failing: {error}") from error


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
        path = folder / f"{number:08d}.seg"
        new = not path.exists()
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        if new:  # the file's name must survive a power cut, too
            directory = os.open(folder, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
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


def _open_environment(path: str, map_size: int) -> Any:
    with _open_environments_lock:
        env, users = _open_environments.get(path, (None, 0))
        if env is None:
            os.makedirs(path, exist_ok=True)
            env = lmdb.open(path, map_size=map_size, max_dbs=4, max_readers=512, mode=0o600)
        _open_environments[path] = (env, users + 1)
        return env


def _close_environment(path: str) -> None:
    with _open_environments_lock:
        env, users = _open_environments.pop(path)
        if users > 1:
            _open_environments[path] = (env, users - 1)
        else:
            with suppress(lmdb.Error):
                env.close()
