"""Segment files: payloads back to back in ``segments/NNNNNNNN.seg``, with nothing between them.

A file that was added in one go is one extent of a segment and can be handed out as one memory map. Bytes below a segment's
committed end never change as long as the file exists. Whoever writes behind that end, or removes the file, holds its lock,
which the kernel releases when the process dies.
"""

from __future__ import annotations

import fcntl
import itertools
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from holdfast.errors import Corrupt
from holdfast.storage.disk_io import WRITE_BACK_BYTES, preallocate, start_write_back

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from holdfast.storage.cid import Buffer
    from holdfast.storage.local.index import Index

__all__ = ["SegmentWriter", "Segments", "lock_file"]

_FLUSH_BYTES = 1 << 20
_FLUSH_PIECES = 512  # the kernel takes at most 1024 at once
_PREALLOCATE_BYTES = 64 << 20


def lock_file(path: Path, *, create: bool = True, shared: bool = False, wait: bool = False) -> int | None:
    """Open a file and lock it; the lock holds until the handle is closed, or the process dies.

    Returns:
        The handle, or None where somebody else holds the lock, or the file is missing and not to be made.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        try:
            handle = os.open(path, flags, 0o600)
        except FileNotFoundError:
            if create:
                raise
            return None
        try:
            fcntl.flock(handle, how)
            # Whoever removed the file between the opening and the lock has locked it for good: look for its successor.
            if path.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


class Segments:
    """The folder of segment files of one store.

    Args:
        index: Tells which segments there are, and how far they are committed.
        size_bytes: A segment that is this large is not begun again.
    """

    def __init__(self, index: Index, *, size_bytes: int) -> None:
        self.folder = index.folder / "segments"
        self.size_bytes = size_bytes
        self._index = index
        self._last: int | None = None

    def path(self, number: int) -> Path:
        """Where a segment lies."""
        return self.folder / f"{number:08d}.seg"

    def claim(self) -> SegmentWriter:
        """A segment with room that nobody else writes, from its committed end on."""
        for number in self._candidates():
            known = self._index.segment(number)
            handle = lock_file(self.path(number), create=known is None)
            if handle is None:
                continue
            try:
                writer = self._writer(number, handle)
            except BaseException:
                os.close(handle)
                raise
            if writer is not None:
                self._last = number
                return writer
            os.close(handle)
        raise AssertionError("unreachable: the count of candidates has no end")

    def _candidates(self) -> Iterator[int]:
        if self._last is not None:
            yield self._last
        rows = self._index.segments()
        yield from (number for number, row in rows.items() if row.end < self.size_bytes)
        yield from itertools.count(self._index.totals().next_segment)

    def _writer(self, number: int, handle: int) -> SegmentWriter | None:
        """The writer of a segment that is locked now, if there is room in it."""
        row = self._index.segment(number)  # somebody may have committed to it, or removed it, before the lock
        if row is None:
            if number < self._index.totals().next_segment:
                self.path(number).unlink(missing_ok=True)  # numbers are not used twice
                return None
            sync_folder(self.folder)  # the file's name must survive a power cut, too
            end = 0
        else:
            end = row.end
            if end >= self.size_bytes or os.fstat(handle).st_size < end:
                return None  # full, or damaged
        os.ftruncate(handle, end)
        return SegmentWriter(number, handle, end)

    def tidy(self) -> None:
        """Cut off what dead writers left behind, and remove files that the index has forgotten."""
        sizes: dict[int, int] = {}
        with os.scandir(self.folder) as files:
            for file in files:
                if file.name.endswith(".seg") and file.name[:-4].isdecimal():
                    with suppress(FileNotFoundError):  # a collector has just removed it
                        sizes[int(file.name[:-4])] = file.stat().st_size
        rows = self._index.segments()
        for number, size in sizes.items():
            row = rows.get(number)
            if row is None or size > row.end:
                self.cut(number)

    def cut(self, number: int) -> bool:
        """Cut a segment to its committed end, or remove its file if there is none; whether nobody writes it."""
        handle = lock_file(self.path(number), create=False)
        if handle is None:
            return not self.path(number).exists()
        try:
            row = self._index.segment(number)
            if row is None:
                self.path(number).unlink(missing_ok=True)
            elif os.fstat(handle).st_size > row.end:
                os.ftruncate(handle, row.end)
        finally:
            os.close(handle)
        return True


class SegmentWriter:
    """The one writer of a segment file, for as long as it holds the file's lock."""

    def __init__(self, number: int, handle: int, end: int) -> None:
        self.number = number
        self.start = end
        self.end = end
        """Behind everything appended, written or not."""
        self.reserved_end = end
        """How far the quota lets it write."""
        self._handle = handle
        self._written = self._pushed = self._synced = self._allocated = end
        self._pending: list[Buffer] = []
        self._pending_bytes = 0
        os.lseek(handle, end, os.SEEK_SET)

    def append(self, data: Buffer, size: int) -> None:
        """Put ``data`` at the end; it is durable after :meth:`sync`."""
        self._pending.append(data)
        self._pending_bytes += size
        self.end += size
        # Only what can't change may wait until there is more of it.
        if (
            type(data) is not bytes
            or self._pending_bytes >= _FLUSH_BYTES
            or len(self._pending) >= _FLUSH_PIECES
        ):
            self.flush()

    def copy(self, source: int, offset: int, length: int) -> None:
        """Put a piece of another file at the end, without it passing through this process."""
        self.flush()
        self.end += length
        while length:
            done = os.sendfile(self._handle, source, offset, length)
            if not done:
                raise Corrupt(f"a segment ends before its byte {offset + length}, but blocks lie there")
            offset += done
            length -= done
            self._written += done
        self._push()

    def flush(self) -> None:
        """Hand over to the kernel what waits here."""
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        size = sum(map(len, pending))
        self._allocate(size)
        done = os.writev(self._handle, pending) if pending else 0
        self._written += done
        if done < size:  # a signal or a nearly full disk: go on where it stopped
            rest = memoryview(b"".join(pending))[done:]
            while rest:
                done = os.write(self._handle, rest)
                self._written += done
                rest = rest[done:]
        self._push()

    def sync(self) -> None:
        """Make everything appended durable. The index may point to it from now on."""
        self.flush()
        if self._written > self._synced:
            if self._allocated > self._written:
                os.ftruncate(self._handle, self._written)
                self._allocated = self._written
            os.fdatasync(self._handle)
        self._synced = self._written

    def cut(self, end: int) -> None:
        """Drop everything behind ``end``, which the index does not point to."""
        self._pending, self._pending_bytes = [], 0
        os.ftruncate(self._handle, end)
        os.lseek(self._handle, end, os.SEEK_SET)
        self.end = self._written = self._pushed = self._synced = self._allocated = end

    def close(self) -> None:
        """Release the lock, and give back the space of what was never synced."""
        with suppress(OSError):
            if max(self._written, self._allocated) > self._synced or self._pending:
                os.ftruncate(self._handle, self._synced)
        os.close(self._handle)

    def _allocate(self, size: int) -> None:
        """Set room aside for a long write: the kernel then has less to do for each page. A quota has no room to spare."""
        beyond = self._written + size
        if (
            beyond > self._allocated
            and beyond - self.start >= WRITE_BACK_BYTES
            and self.reserved_end <= self.start
        ):
            preallocate(self._handle, self._written, _PREALLOCATE_BYTES)
            self._allocated = self._written + _PREALLOCATE_BYTES  # also if it did not: once is enough to try

    def _push(self) -> None:
        """Let the disk begin with what is written, so that the sync at the end finds little left to do."""
        if self._written - self._pushed >= WRITE_BACK_BYTES:
            start_write_back(self._handle, self._pushed, self._written - self._pushed)
            self._pushed = self._written


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
