"""The one mutable file of a home: names, aliases, runs, and who signed what, in SQLite."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from holdfast.errors import Conflict, Corrupt, Unavailable, disk_errors
from holdfast.registry.schema import migrate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Database"]

BUSY_S = 30.0
"""How long to wait for another process' transaction."""
CACHE_KIB = 16 << 10
"""Of pages kept in memory, at most: what look-ups among a hundred thousand names need."""


class Database:
    """SQLite with write-ahead logging, durable commits, and one writer at a time across processes.

    A file with the tables of an earlier holdfast gets today's when it is opened.

    Args:
        path: The file; None for tables in memory, which go when they are closed.

    Raises:
        Corrupt: The file is not a holdfast registry.
        Unavailable: The disk is full, or another process holds the lock for too long.
        Unsupported: The file was written by a newer holdfast.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = threading.RLock()
        if path is not None:
            with disk_errors(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
        with self._errors():
            self._connection = sqlite3.connect(
                ":memory:" if path is None else path,
                timeout=BUSY_S,
                isolation_level=None,
                check_same_thread=False,
            )
            self._connection.row_factory = sqlite3.Row
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                # SQLite does not wait here while another process opens or closes the file.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        self._connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        migrate(self._connection, path=self.path)

    def rows(self, query: str, values: tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        """All rows of a query."""
        with self._lock, self._errors():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that holds the write lock from its start: what is read in it is what is changed."""
        with self._lock, self._errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite ends it itself when the disk is full
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One moment: all that is read meanwhile is as it is at the first look, whatever others write."""
        with self._lock, self._errors():
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            text = str(error)
            if isinstance(error, sqlite3.OperationalError):
                raise Unavailable(f"the registry {self.path} can't be used now: {text}") from error
            if "not a database" in text or "malformed" in text:
                raise Corrupt(f"{self.path} is not a holdfast registry: {text}") from error
            if "closed database" in text:
                raise Conflict(f"the registry {self.path} is closed") from error
            raise
