"""The index of the embedded store: where each block lies and since when, in LMDB tables that several processes share.

An entry of the table ``blocks`` is a multihash with its place (segment, offset, length) and a time: when the block was
written, or added again. A segment number with the bit :data:`REFERENCE` set is the number of a row in ``files``: the block
lies in the user's own file. ``segments`` counts what of each segment file is in use; ``meta`` has the format's number
and the totals, which every change keeps true, so that statistics cost nothing.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb

from holdfast.errors import (
    Conflict,
    Corrupt,
    Denied,
    HoldfastError,
    InvalidInput,
    Unavailable,
    Unsupported,
)
from holdfast.storage.local.index_changes import Change
from holdfast.storage.local.index_rows import EMPTY_PLACE, NUMBER, PLACE, TIME, TOTALS_KEY, SegmentUse, Totals

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FORMAT", "Index"]

FORMAT = 2
"""What this module writes. Format 1 had neither a number, nor times, nor totals."""

_TABLES = ("blocks", "segments", "meta", "staged", "sessions", "files", "pins", "roots", "sources")
_FORMAT_KEY = b"format"

_open_environments: dict[str, tuple[Any, dict[str, Any], int]] = {}
_open_environments_lock = threading.Lock()
"""LMDB forbids opening one environment twice in a process, so stores on the same folder share it."""


def _close_inherited() -> None:
    """In a forked child: let go of the parent's environments, which LMDB forbids to use; each store opens its own again.

    Closing gives up the parent's reader slots that are in use at this moment. It takes new ones for its next reads, and a read
    that is under way would need two commits of others before it ends to miss its slot.
    """
    global _open_environments_lock  # noqa: PLW0603 -- somebody may have held it at the moment of the fork
    _open_environments_lock = threading.Lock()
    for env, _, _ in _open_environments.values():
        with suppress(lmdb.Error):
            env.close()
    _open_environments.clear()


os.register_at_fork(after_in_child=_close_inherited)


class Index:
    """The tables of one store.

    Args:
        folder: The store's folder; the index lies in ``index/``.
        map_size_bytes: Address space that it may grow into.

    Raises:
        Corrupt: The index is not one.
        Denied: The folder can't be written.
        Unsupported: A newer holdfast wrote it.
    """

    def __init__(self, folder: Path, *, map_size_bytes: int) -> None:
        self.folder = folder
        self.path = folder / "index"
        self.closed = False
        self._map_size = map_size_bytes
        self._open()
        try:
            self._check_format()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        try:
            self.env, self.tables = _open_environment(str(self.path), self._map_size)
        except lmdb.Error as error:
            raise self.error(error) from error
        self.blocks, self.meta = self.tables["blocks"], self.tables["meta"]
        self._process = os.getpid()

    def close(self) -> None:
        """Close it; closing twice is fine."""
        if not self.closed:
            self.closed = True
            if self._process == os.getpid():
                _close_environment(str(self.path))

    def error(self, error: lmdb.Error) -> HoldfastError:
        """What an error of LMDB means to the caller."""
        if self.closed:
            return Conflict(f"the store {self.folder} is closed")
        if isinstance(error, (lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError)):
            return Corrupt(f"the index of {self.folder} is damaged: {error}")
        if isinstance(error, lmdb.MapFullError):
            return Unavailable(
                f"the index of {self.folder} is full: raise the setting storage.index_map_size_bytes"
            )
        if isinstance(error, lmdb.BadValsizeError):
            return InvalidInput(f"the index of {self.folder} takes keys of 1 to 511 bytes: {error}")
        if not os.access(self.path if self.path.exists() else self.folder, os.W_OK):
            return Denied(f"no permission to write under {self.folder}: {error}")
        return Unavailable(f"the disk that holds {self.folder} is full or failing: {error}")

    def begin(self, *, write: bool = False) -> Any:
        """A plain LMDB transaction."""
        if self.closed:
            raise Conflict(f"the store {self.folder} is closed")
        if self._process != os.getpid():  # LMDB forbids to go on with an environment behind a fork
            self._open()
        try:
            return self.env.begin(write=write)
        except lmdb.Error as error:
            raise self.error(error) from error

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """One moment of the index, to read from."""
        try:
            with self.begin() as txn:
                yield txn
        except lmdb.Error as error:
            raise self.error(error) from error

    @contextmanager
    def changing(self) -> Iterator[Change]:
        """One change of the index: all of it, or, if the body raises, nothing."""
        try:
            with self.begin(write=True) as txn:
                change = Change(txn, self.tables)
                yield change
                change.finish()
        except lmdb.Error as error:
            raise self.error(error) from error

    def totals(self) -> Totals:
        """The totals at this moment."""
        with self.reading() as txn:
            return Totals.unpack(txn.get(TOTALS_KEY, db=self.meta))

    def packed_totals(self, txn: Any) -> bytes:
        """The totals within a transaction, to slice with :data:`COMPACTIONS` or :data:`EPOCH`."""
        packed: bytes = txn.get(TOTALS_KEY, db=self.meta)
        return packed

    def segment(self, number: int) -> SegmentUse | None:
        """The row of one segment, or None if there is none."""
        with self.reading() as txn:
            raw = txn.get(NUMBER.pack(number), db=self.tables["segments"])
        return None if raw is None else SegmentUse.unpack(raw)

    def segments(self) -> dict[int, SegmentUse]:
        """The rows of all segments."""
        with self.reading() as txn, txn.cursor(db=self.tables["segments"]) as cursor:
            return {NUMBER.unpack(key)[0]: SegmentUse.unpack(raw) for key, raw in cursor}

    def entries(self, *, batch_blocks: int) -> Iterator[list[tuple[bytes, bytes]]]:
        """All of ``blocks`` in order, still packed; each list is one short transaction."""
        last = b""
        while True:
            batch: list[tuple[bytes, bytes]] = []
            with self.reading() as txn, txn.cursor(db=self.blocks) as cursor:
                found = cursor.set_range(last) if last else cursor.first()
                if found and cursor.key() == last:
                    found = cursor.next()
                if found:
                    for item in cursor:
                        batch.append(item)
                        if len(batch) >= batch_blocks:
                            break
            if not batch:
                return
            yield batch
            last = batch[-1][0]

    def size_bytes(self) -> int:
        """Of the index file."""
        return (self.path / "data.mdb").stat().st_size

    def _check_format(self) -> None:
        with self.reading() as txn:
            raw = txn.get(_FORMAT_KEY, db=self.meta)
        if raw is None:
            try:
                with self.begin(write=True) as txn:
                    if txn.get(_FORMAT_KEY, db=self.meta) is None:  # nobody else was quicker
                        _write_format(txn, self.tables)
            except lmdb.Error as error:
                raise self.error(error) from error
        elif TIME.unpack(raw)[0] > FORMAT:
            raise Unsupported(
                f"the store {self.folder} has the format {TIME.unpack(raw)[0]}, and this holdfast knows none "
                f"above {FORMAT}: install a newer holdfast to open it"
            )


def _write_format(txn: Any, tables: dict[str, Any]) -> None:
    """Make an empty index, or one of format 1 (extents without time, segments with their end only), one of ours."""
    totals = Totals()
    rows: dict[int, SegmentUse] = {}
    with txn.cursor(db=tables["segments"]) as cursor:
        for key, value in cursor:
            number = NUMBER.unpack(key)[0]
            rows[number] = SegmentUse(end=struct.unpack("<Q", value)[0])
            totals.segment_bytes += rows[number].end
            totals.segments += 1
            totals.next_segment = max(totals.next_segment, number + 1)
    stamp = TIME.pack(int(time.time()))
    with txn.cursor(db=tables["blocks"]) as cursor:
        found = cursor.first()
        while found:
            key, place = cursor.item()
            segment, _, length = PLACE.unpack(place)
            if length:
                rows[segment].live_bytes += length
                rows[segment].blocks += 1
            totals.blocks += 1
            totals.own_bytes += length
            cursor.put(key, (place if length else EMPTY_PLACE) + stamp)
            found = cursor.next()
    for number, row in rows.items():
        txn.put(NUMBER.pack(number), row.pack(), db=tables["segments"])
    txn.put(TOTALS_KEY, totals.pack(), db=tables["meta"])
    txn.put(_FORMAT_KEY, TIME.pack(FORMAT), db=tables["meta"])


def _open_environment(path: str, map_size: int) -> tuple[Any, dict[str, Any]]:
    """The environment in ``path``, shared within the process, and its tables."""
    with _open_environments_lock:
        env, tables, users = _open_environments.get(path, (None, {}, 0))
        if env is None:
            Path(path).mkdir(exist_ok=True)
            env = lmdb.open(path, map_size=map_size, max_dbs=len(_TABLES), max_readers=512, mode=0o600)
            try:
                env.reader_check()  # processes that were killed while they read still hold their places
                tables = _open_tables(env)
            except lmdb.Error:
                env.close()
                raise
        _open_environments[path] = (env, tables, users + 1)
        return env, tables


def _open_tables(env: Any) -> dict[str, Any]:
    with env.begin(write=True) as txn:  # handles that a reading transaction opened end with it
        return {name: env.open_db(name.encode(), txn=txn) for name in _TABLES}


def _close_environment(path: str) -> None:
    with _open_environments_lock:
        env, tables, users = _open_environments.pop(path)
        if users > 1:
            _open_environments[path] = (env, tables, users - 1)
        else:
            with suppress(lmdb.Error):
                env.close()
