"""Changes of the index: one LMDB transaction each, which keeps the totals true."""

from __future__ import annotations

import struct
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

from holdfast.errors import InvalidInput
from holdfast.storage.local.index_rows import (
    ENTRY,
    NUMBER,
    PLACE,
    REFERENCE,
    TIME,
    TOTALS_KEY,
    SegmentUse,
    Totals,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["RENEW_AFTER_S", "Change", "Transaction"]

RENEW_AFTER_S = 600
"""An entry that is added again keeps its time if it is younger: not every add has to write."""

AT_ONCE = 10_000
_OPEN_TABLES = frozenset({"pins", "roots", "sources"})


class Change:
    """One write transaction on the blocks; it keeps the totals true."""

    def __init__(self, txn: Any, tables: dict[str, Any]) -> None:
        self.txn = txn
        self.tables = tables
        self.totals = Totals.unpack(txn.get(TOTALS_KEY, db=tables["meta"]))
        self.now_s = max(int(time.time()), self.totals.cutoff_s)  # a sweep spares what is younger than it
        self._segments: dict[int, SegmentUse] = {}
        self._file_uses: dict[int, int] = {}

    def segment(self, number: int) -> SegmentUse:
        """The row of a segment, to change; a new one if there is none."""
        row = self._segments.get(number)
        if row is None:
            raw = self.txn.get(NUMBER.pack(number), db=self.tables["segments"])
            if raw is None:
                row = SegmentUse()
                self.totals.segments += 1
                self.totals.next_segment = max(self.totals.next_segment, number + 1)
            else:
                row = SegmentUse.unpack(raw)
            self._segments[number] = row
        return row

    def set_end(self, number: int, end: int) -> None:
        """Move the committed end of a segment."""
        row = self.segment(number)
        self.totals.segment_bytes += end - row.end
        row.end = end

    def drop_segment(self, number: int) -> None:
        """Forget a segment in which nothing lies any more."""
        self.totals.segment_bytes -= self.segment(number).end
        self.totals.segments -= 1
        self.totals.compactions += 1
        del self._segments[number]
        self.txn.delete(NUMBER.pack(number), db=self.tables["segments"])

    def put(self, places: dict[bytes, bytes], *, replace: bool = False) -> None:
        """Enter blocks at their places.

        Where there is an own copy that is not about to be collected, it stays, and the new bytes are garbage, unless
        ``replace`` is set.
        """
        stamp = TIME.pack(self.now_s)
        blocks = self.tables["blocks"]
        kept: set[bytes] = set()
        for key, place in sorted(places.items()):
            if self.txn.put(key, place + stamp, db=blocks, overwrite=False):
                self.totals.blocks += 1
                continue
            there: bytes = self.txn.get(key, db=blocks)
            if not replace and self._stays(there, PLACE.unpack(place)[0]):
                kept.add(key)
            else:
                self._lose(there)
                self.txn.put(key, place + stamp, db=blocks)
        if kept:
            self.renew(kept)
            places = {key: place for key, place in places.items() if key not in kept}
        sums: dict[int, list[int]] = {}
        for segment, _, length in PLACE.iter_unpack(b"".join(places.values())):
            here = sums.setdefault(segment, [0, 0])
            here[0] += length
            here[1] += 1
        for segment, (size, count) in sums.items():
            self._use(segment, size, count)

    def _stays(self, there: bytes, new_segment: int) -> bool:
        segment, _, _, time_s = ENTRY.unpack(there)
        if segment & REFERENCE:
            return False
        return time_s >= self.totals.cutoff_s or bool(new_segment & REFERENCE)

    def move(self, key: bytes, old: bytes, place: bytes) -> bool:
        """Give a block another place, if it still lies where ``old`` says; it keeps its time."""
        entry: bytes | None = self.txn.get(key, db=self.tables["blocks"])
        if entry is None or entry[: PLACE.size] != old:
            return False
        self.txn.put(key, place + entry[PLACE.size :], db=self.tables["blocks"])
        self._lose(entry)
        segment, _, length = PLACE.unpack(place)
        self._use(segment, length, 1)
        return True

    def remove(self, key: bytes, *, cutoff_s: int) -> int | None:
        """Take a block out, if it is older than the cut-off; its length, or None if it stays or is gone."""
        entry: bytes | None = self.txn.get(key, db=self.tables["blocks"])
        if entry is None or ENTRY.unpack(entry)[3] >= cutoff_s:
            return None
        self.txn.delete(key, db=self.tables["blocks"])
        self.totals.blocks -= 1
        self._lose(entry)
        return int(ENTRY.unpack(entry)[2])

    def renew(self, keys: Iterable[bytes], *, until_s: int | None = None) -> list[bytes]:
        """Give blocks the present time, if theirs is old, or the time ``until_s``; those that are not here."""
        blocks = self.tables["blocks"]
        old = max(self.totals.cutoff_s, self.now_s - RENEW_AFTER_S) if until_s is None else until_s
        stamp = TIME.pack(self.now_s if until_s is None else until_s)
        missing = []
        left = iter(keys)
        while some := sorted(islice(left, AT_ONCE)):
            for key in some:
                entry = self.txn.get(key, db=blocks)
                if entry is None:
                    missing.append(key)
                elif TIME.unpack_from(entry, PLACE.size)[0] < old:
                    self.txn.put(key, entry[: PLACE.size] + stamp, db=blocks)
        return missing

    def stage(self, session: bytes, call: bytes, places: dict[bytes, bytes]) -> None:
        """Note blocks that are written but not committed, for a session to be resumed, and the call that wrote them."""
        staged = self.tables["staged"]
        for key, place in sorted(places.items()):
            segment, _, length = PLACE.unpack(place)
            if self.txn.put(session + key, place + call, db=staged, overwrite=False) and length:
                self.segment(segment).staged_bytes += length
                self.totals.staged_bytes += length
        self.txn.put(session, TIME.pack(int(time.time())), db=self.tables["sessions"])

    def unstage(self, session: bytes) -> dict[bytes, tuple[bytes, bytes]]:
        """Take staged blocks of a session out; their places, and the calls that wrote them.

        Some of them, to keep the transaction small. Without any left, the session is forgotten.
        """
        staged = self.tables["staged"]
        rows: dict[bytes, tuple[bytes, bytes]] = {}
        with self.txn.cursor(db=staged) as cursor:
            found = cursor.set_range(session)
            while found and len(rows) < AT_ONCE and cursor.key().startswith(session):
                key, row = cursor.item()
                rows[key[len(session) :]] = row[: PLACE.size], row[PLACE.size :]
                found = cursor.delete()
        for place, _ in rows.values():
            segment, _, length = PLACE.unpack(place)
            if length:
                self.segment(segment).staged_bytes -= length
                self.totals.staged_bytes -= length
        if not rows:
            self.txn.delete(session, db=self.tables["sessions"])
        return rows

    def use_file(self, number: int, blocks: int) -> None:
        """Count blocks that came into, or went from, a file of the user's; one without any is forgotten."""
        self._file_uses[number] = self._file_uses.get(number, 0) + blocks

    def finish(self) -> None:
        """Write the rows and totals that changed."""
        for number, row in self._segments.items():
            self.txn.put(NUMBER.pack(number), row.pack(), db=self.tables["segments"])
        for number, uses in self._file_uses.items():
            _count_file_uses(self.txn, self.tables["files"], number, uses)
        packed = self.totals.pack()
        if packed != self.txn.get(TOTALS_KEY, db=self.tables["meta"]):
            self.txn.put(TOTALS_KEY, packed, db=self.tables["meta"])

    def _lose(self, entry: bytes) -> None:
        segment, _, length, _ = ENTRY.unpack(entry)
        self._use(segment, -length, -1)

    def _use(self, segment: int, length: int, blocks: int) -> None:
        if segment & REFERENCE:
            self.totals.referenced_blocks += blocks
            self.totals.referenced_bytes += length
            self.use_file(segment ^ REFERENCE, blocks)
        elif length:
            self.totals.own_bytes += length
            row = self.segment(segment)
            row.live_bytes += length
            row.blocks += blocks


class Transaction:
    """One transaction on the tables that others keep beside the blocks: ``pins``, ``roots`` and ``sources``."""

    def __init__(self, txn: Any, tables: dict[str, Any], change: Change | None) -> None:
        self._tables = tables
        self._txn = txn
        self._change = change

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value of ``key``, or None."""
        value: bytes | None = self._txn.get(key, db=self._table(table))
        return value

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Set the value of ``key`` (1 to 511 bytes)."""
        self._txn.put(key, value, db=self._table(table))

    def delete(self, table: str, key: bytes) -> bool:
        """Take ``key`` out; whether it was there."""
        return bool(self._txn.delete(key, db=self._table(table)))

    def items(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """The keys that begin with ``prefix``, in order, with their values."""
        with self._txn.cursor(db=self._table(table)) as cursor:
            if cursor.set_range(prefix) if prefix else cursor.first():
                for key, value in cursor:
                    if not key.startswith(prefix):
                        return
                    yield key, value

    def entry(self, multihash: bytes) -> tuple[int, int, int, int] | None:
        """Segment, offset, length and time of a block, or None if it is not here."""
        raw = self._txn.get(multihash, db=self._tables["blocks"])
        return None if raw is None else ENTRY.unpack(raw)

    def renew(self, multihashes: Iterable[bytes]) -> list[bytes]:
        """Give blocks the present time, as adding them again would; returns those that are not here."""
        if self._change is None:
            raise InvalidInput("times are renewed in a transaction that was opened with write=True")
        return self._change.renew(multihashes)

    def _table(self, name: str) -> Any:
        if name not in _OPEN_TABLES:
            raise InvalidInput(f"there is no table {name!r}; there are {', '.join(sorted(_OPEN_TABLES))}")
        return self._tables[name]


def _count_file_uses(txn: Any, files: Any, number: int, uses: int) -> None:
    """Add to the number of blocks in a file of the user's; a file without any is forgotten."""
    key = b"#" + NUMBER.pack(number)
    row = txn.get(key, db=files)
    blocks = struct.unpack_from("<Q", row)[0] + uses
    if blocks > 0:
        txn.put(key, struct.pack("<Q", blocks) + row[8:], db=files)
    else:
        txn.delete(key, db=files)
        txn.delete(b"@" + row[8:24], db=files)
