"""The quota: payload on the disk, garbage included, and the index file never exceed it.

Writers reserve room before they write, in steps. The file ``reserved`` says how far each writer may write its segment;
its lock makes the sum strict. A reservation counts for as long as somebody holds the segment's lock: those of the dead
are void, and what they left behind is cut off.
"""

from __future__ import annotations

import os
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from holdfast.storage.local.segments import lock_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from holdfast.storage.local.index import Index
    from holdfast.storage.local.segments import Segments, SegmentWriter

__all__ = ["NoRoom", "Quota"]

_ROW = struct.Struct("<IQ")  # segment, reserved end
_STEP_BYTES = 16 << 20
_PAGE_BYTES = 4096
_ENTRIES_PER_PAGE = 30  # of a table in which keys come in no order
_PAGES_OF_A_CHANGE = 48  # what it rewrites besides leaves: the ways down to them, totals, free pages


class NoRoom(Exception):  # noqa: N818 -- it never leaves the storage rooms
    """So many bytes do not fit."""

    def __init__(self, missing_bytes: int) -> None:
        super().__init__(missing_bytes)
        self.missing_bytes = missing_bytes


class Quota:
    """The quota of one store.

    Args:
        index: Knows what is committed.
        segments: Where it is written.
        max_bytes: The quota.
    """

    def __init__(self, index: Index, segments: Segments, *, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._index = index
        self._segments = segments
        self._path = index.folder / "locks" / "reserved"

    def used_bytes(self) -> int:
        """What counts now: all that is on the disk, and what is reserved."""
        with self._locked() as handle:
            return self._used(self._living(handle, but=None))

    def reserve(
        self, writer: SegmentWriter, size: int, *, blocks: int, spare_bytes: int | None = None
    ) -> None:
        """Let ``writer`` append ``size`` bytes; ``blocks`` will be committed with it, which the index needs room for.

        Args:
            writer: Where.
            size: How much.
            blocks: In the whole change.
            spare_bytes: What must stay free: usually a segment, for without it nothing could be rewritten.

        Raises:
            NoRoom: They do not fit.
        """
        wanted = writer.end + size
        with self._locked() as handle:
            rows = self._living(handle, but=writer.number)
            spare = self._segments.size_bytes if spare_bytes is None else spare_bytes
            room = self.max_bytes - spare - self._used(rows) - self._growth(blocks)
            committed = self._index.segment(writer.number)
            room += committed.end if committed is not None else 0
            if wanted > room:
                raise NoRoom(wanted - room)
            # A step ahead, but no more than an eighth of what is left: others want to write, too.
            writer.reserved_end = wanted + min(_STEP_BYTES, (room - wanted) // 8)
            self._write(handle, {**rows, writer.number: writer.reserved_end})

    @contextmanager
    def committing(self, writers: list[SegmentWriter], *, blocks: int) -> Iterator[int]:
        """Make sure that a change of the index fits, for as long as the body runs; then end the reservations.

        Raises:
            NoRoom: It does not fit.
        """
        with self._locked() as handle:
            rows = self._living(handle, but=None)
            mine = {writer.number: writer.end for writer in writers}
            missing = self._used({**rows, **mine}) + self._growth(blocks) - self.max_bytes
            if missing > 0:
                raise NoRoom(missing)
            yield handle
            self._write(handle, {number: end for number, end in rows.items() if number not in mine})

    @contextmanager
    def moving(self, number: int, writers: list[SegmentWriter], *, blocks: int) -> Iterator[None]:
        """As :meth:`committing`, for a change that empties a segment, whose file the body removes.

        Raises:
            NoRoom: The change of the index does not fit.
        """
        row = self._index.segment(number)
        with self.committing(writers, blocks=blocks) as handle:
            # Should this process die before the file is gone, it is known to be there, and to be nobody's.
            rows = self._living(handle, but=None)
            self._write(handle, {**rows, number: row.end if row is not None else 0})
            yield

    def _used(self, rows: dict[int, int]) -> int:
        used = self._index.totals().segment_bytes + self._index.size_bytes()
        for number, reserved_end in rows.items():
            row = self._index.segment(number)
            used += max(0, reserved_end - (row.end if row is not None else 0))
        return used

    def _growth(self, blocks: int) -> int:
        """How much larger the index file may be after so many new entries: a changed page is written anew."""
        with self._index.reading() as txn:
            leaves = txn.stat(db=self._index.blocks)["leaf_pages"]
        pages = min(blocks, leaves) + 2 * blocks // _ENTRIES_PER_PAGE + _PAGES_OF_A_CHANGE
        return int(pages) * _PAGE_BYTES

    @contextmanager
    def _locked(self) -> Iterator[int]:
        handle = lock_file(self._path, wait=True)
        assert handle is not None  # noqa: S101 -- it waited
        try:
            yield handle
        finally:
            os.close(handle)

    def _living(self, handle: int, *, but: int | None) -> dict[int, int]:
        """The reservations, without those of writers that are gone."""
        raw = os.pread(handle, os.fstat(handle).st_size, 0)
        whole = raw[: len(raw) - len(raw) % _ROW.size]
        rows = dict(_ROW.iter_unpack(whole))
        return {
            number: end for number, end in rows.items() if number != but and not self._segments.cut(number)
        }

    def _write(self, handle: int, rows: dict[int, int]) -> None:
        raw = b"".join(_ROW.pack(number, end) for number, end in rows.items())
        os.pwrite(handle, raw, 0)
        os.ftruncate(handle, len(raw))
