"""One change of the names as a transaction: what is looked up in it, what it holds and lets go of, and its commit record."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from holdfast.registry.names.changes import apply_change
from holdfast.registry.names.facts import facts_to_record
from holdfast.registry.versions import next_minor
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    import sqlite3

    from holdfast.storage.content import ContentStore

__all__ = ["Transaction", "hold_label", "is_needed"]

_COMMIT = "commit "
"""Before the CID of a commit, in the label that keeps it."""


class Transaction:
    """A transaction of the names, and what is looked up and done in it."""

    def __init__(self, sql: sqlite3.Connection, store: ContentStore, who: str, held: list[str]) -> None:
        self.sql = sql
        self._store = store
        self._who = who
        self._held = held

    def cid_of(self, table: str, kind: str, name: str, version: str) -> str | None:
        """What a version is (``versions``) or was (``removed``)."""
        row = self.sql.execute(
            f"SELECT cid FROM {table} WHERE kind = ? AND name = ? AND version = ?",  # noqa: S608 -- two constants
            (kind, name, version),
        ).fetchone()
        return row["cid"] if row else None

    def version_of(self, kind: str, name: str, cid: Cid) -> str:
        """The newest version that ``cid`` has under a name, or the next free one."""
        row = self.sql.execute(
            "SELECT version FROM versions WHERE cid = ? AND kind = ? AND name = ? ORDER BY sort_key DESC LIMIT 1",
            (str(cid), kind, name),
        ).fetchone()
        if row:
            return str(row["version"])
        newest = [
            self.sql.execute(
                f"SELECT max(sort_key) FROM {table} WHERE kind = ? AND name = ?",  # noqa: S608 -- two constants
                (kind, name),
            ).fetchone()[0]
            for table in ("versions", "removed")
        ]
        return next_minor(max(filter(None, newest), default=None))

    def alias(self, kind: str, name: str, alias: str) -> str | None:
        """Where an alias points."""
        row = self.sql.execute(
            "SELECT version FROM aliases WHERE kind = ? AND name = ? AND alias = ?", (kind, name, alias)
        ).fetchone()
        return row["version"] if row else None

    def facts_of(self, kind: str, name: str, version: str) -> dict[str, list[float | str]]:
        """The facts of a version, as :func:`facts_to_record` gives them."""
        found: dict[str, Any] = {}
        for row in self.sql.execute(
            "SELECT key, value_number, value_text FROM facts JOIN versions ON id = of "
            "WHERE kind = ? AND name = ? AND version = ?",
            (kind, name, version),
        ):
            number, text = row["value_number"], row["value_text"]
            found.setdefault(row["key"], []).append(number if text is None else text)
        return facts_to_record(found)

    def hold(self, label: str, cid: Cid, *, recursive: bool = True) -> None:
        """Keep content for a label; undone if the transaction fails."""
        self._held.append(label)
        self._store.hold(label, cid, recursive=recursive)

    def let_go(self, label: str) -> None:
        """Keep it for the label no longer once the transaction is done, even if this process then dies."""
        self.sql.execute("INSERT OR IGNORE INTO to_release VALUES (?)", (label,))

    def commit(self, change: dict[str, Any]) -> None:
        """Record a change behind the newest one, and make it."""
        row = self.sql.execute("SELECT cid FROM commits ORDER BY seq DESC LIMIT 1").fetchone()
        time_ms = int(time.time() * 1000)
        record = {
            "kind": "commit",
            "previous": Cid.parse(row["cid"]) if row else None,
            "time_ms": time_ms,
            "who": self._who,
            "change": change,
        }
        cid = self._store.put_record(record)
        self.hold(f"{_COMMIT}{cid}", cid, recursive=False)
        self.sql.execute("INSERT INTO commits (cid) VALUES (?)", (str(cid),))
        apply_change(self.sql, change, time_ms)


def hold_label(kind: str, name: str, version: str) -> str:
    """What the hold of a version is called."""
    return f"{kind} {name}:{version}"


def is_needed(sql: sqlite3.Connection, label: str) -> bool:
    """Whether a label stands for something that is there."""
    if label.startswith(_COMMIT):
        row = sql.execute("SELECT 1 FROM commits WHERE cid = ?", (label.removeprefix(_COMMIT),)).fetchone()
        return row is not None
    kind, _, rest = label.partition(" ")
    name, _, version = rest.rpartition(":")
    row = sql.execute(
        "SELECT 1 FROM versions WHERE kind = ? AND name = ? AND version = ?", (kind, name, version)
    ).fetchone()
    return row is not None
