"""Memory maps of segments, and which of their pages stay in a process's memory.

The kernel counts a page that was read through a map as this process's memory until somebody gives it back: who reads a large file once would seem to hold
all of it. So pages of what was handed out go back soon after. Nothing is lost: the kernel still has them in its cache, and whoever still reads there gets
them again, in about a microsecond for 64 KiB.
"""

from __future__ import annotations

import mmap
import threading
from typing import TYPE_CHECKING

from holdfast.errors import Corrupt

if TYPE_CHECKING:
    from typing import TypeAlias

    from holdfast.storage.local.segments import Segments

    _Loan: TypeAlias = tuple[mmap.mmap, int, int]

__all__ = ["SegmentMaps"]

_MAX_MAPS = 128  # each keeps a file descriptor
_TURN_BYTES = 32 << 20
"""Pages go back when so many bytes, and so many once more, were handed out after them."""
_LEAST_BYTES = 64 << 10
"""What the kernel maps around each byte that is read."""


class SegmentMaps:
    """Read-only maps of segments, kept for the next reader."""

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self._maps: dict[int, mmap.mmap] = {}
        self._lock = threading.Lock()
        # No lock guards these: what a race forgets stays in memory a little longer, and that is all.
        self._lent: list[_Loan] = []
        self._lent_before: list[_Loan] = []
        self._lent_bytes = 0

    def piece(self, number: int, offset: int, length: int) -> memoryview:
        """A part of a segment, with no copy.

        Raises:
            FileNotFoundError: The segment is gone.
            Corrupt: It was cut.
        """
        if length == 0:
            return memoryview(b"")
        mapped = self.whole(number, offset + length)
        if length <= _TURN_BYTES:  # a larger one is read bit by bit, and who does that says so
            self.lend(mapped, offset, length)
        return memoryview(mapped)[offset : offset + length]

    def whole(self, number: int, end: int) -> mmap.mmap:
        """The map of a segment, which reaches up to a byte at least; who reads through it says so by :meth:`lend`.

        Raises:
            FileNotFoundError: The segment is gone.
            Corrupt: It was cut.
        """
        mapped = self._maps.get(number)
        return self._map(number, end) if mapped is None or len(mapped) < end else mapped

    def lend(self, mapped: mmap.mmap, offset: int, length: int) -> None:
        """Note that a part of a map is about to be read, once; its pages go back a little later."""
        self._lent.append((mapped, offset, length))
        self._lent_bytes += max(length, _LEAST_BYTES)
        if self._lent_bytes >= _TURN_BYTES:
            lent, self._lent, self._lent_bytes = self._lent, [], 0
            old, self._lent_before = self._lent_before, lent
            _give_back(old)

    def _map(self, number: int, end: int) -> mmap.mmap:
        path = self._segments.path(number)
        with self._lock:
            try:
                with path.open("rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            except ValueError as error:
                raise Corrupt(f"the segment {path} is empty, but blocks lie in it") from error
            if len(mapped) < end:
                raise Corrupt(f"the segment {path} was cut: it ends before byte {end}")
            # Older, shorter or forgotten maps live as long as their views.
            if number not in self._maps and len(self._maps) >= _MAX_MAPS:
                self._forget(next(iter(self._maps)))
            self._maps[number] = mapped
        return mapped

    def numbers(self) -> list[int]:
        """The segments that are mapped."""
        with self._lock:
            return list(self._maps)

    def drop(self, number: int) -> None:
        """Forget a map; views of it stay valid."""
        with self._lock:
            self._forget(number)

    def clear(self) -> None:
        """Forget all maps."""
        with self._lock:
            self._maps.clear()
            self._lent, self._lent_before, self._lent_bytes = [], [], 0

    def _forget(self, number: int) -> None:
        """Forget a map and what was lent of it, which would keep it alive."""
        gone = self._maps.pop(number, None)
        self._lent = [loan for loan in self._lent if loan[0] is not gone]
        self._lent_before = [loan for loan in self._lent_before if loan[0] is not gone]


def _give_back(lent: list[_Loan]) -> None:
    """Give back the pages of these parts, neighbours at once."""
    lent.sort(key=lambda loan: (id(loan[0]), loan[1]))
    before: mmap.mmap | None = None
    start = end = 0
    for mapped, offset, length in lent:
        if mapped is before and offset <= end + _LEAST_BYTES:
            end = max(end, offset + length)
            continue
        _forget_pages(before, start, end)
        before, start, end = mapped, offset, offset + length
    _forget_pages(before, start, end)


def _forget_pages(mapped: mmap.mmap | None, start: int, end: int) -> None:
    if mapped is not None and start < len(mapped):
        start -= start % _LEAST_BYTES
        mapped.madvise(mmap.MADV_DONTNEED, start, min(end + _LEAST_BYTES, len(mapped)) - start)
