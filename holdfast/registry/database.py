"""The one mutable file of a home: names, aliases, runs, and who signed what, in SQLite."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from holdfast.errors import Conflict, Corrupt, Unavailable, disk_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Database"]

BUSY_S = 30.0
"""How long to wait for another process' transaction."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS versions (
    kind TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, cid TEXT NOT NULL, created REAL NOT NULL,
    PRIMARY KEY (kind, name, version)
) STRICT;
CREATE TABLE IF NOT EXISTS aliases (
    kind TEXT NOT NULL, name TEXT NOT NULL, alias TEXT NOT NULL, version TEXT NOT NULL,
    PRIMARY KEY (kind, name, alias)
) STRICT;
CREATE TABLE IF NOT EXISTS removed (
    kind TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, cid TEXT NOT NULL,
    PRIMARY KEY (kind, name, version)
) STRICT;
CREATE TABLE IF NOT EXISTS commits (seq INTEGER PRIMARY KEY AUTOINCREMENT, cid TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY, spec TEXT NOT NULL, state TEXT NOT NULL, created REAL NOT NULL, started REAL, finished REAL,
    error TEXT, result TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS events (
    run TEXT NOT NULL REFERENCES runs(id), seq INTEGER NOT NULL, time REAL NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (run, seq)
) STRICT;
CREATE TABLE IF NOT EXISTS attestations (
    subject TEXT NOT NULL, attestation TEXT NOT NULL, keyid TEXT NOT NULL, time REAL NOT NULL,
    PRIMARY KEY (subject, attestation, keyid)
) STRICT;
"""


class Database:
    """SQLite with write-ahead logging, durable commits, and one writer at a time across processes.

    Raises:
        Corrupt: The file is not a holdfast registry.
        Unavailable: The disk is full, or another process holds the lock for too long.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        with disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._errors():
            self._connection = sqlite3.connect(
                path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
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
        self._connection.executescript(_SCHEMA)

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
