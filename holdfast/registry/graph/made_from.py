"""What was made from a thing: the links of all records, turned round, in a table of the registry.

What is named or comes out of a run is noted by the database itself, in the same transaction. Its records are read when somebody
asks next, so naming waits for nothing, and an answer always knows of everything that was named before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdfast.errors import HoldfastError
from holdfast.registry.graph.record_links import Link, links_in
from holdfast.storage.cid import DAG_CBOR, Cid

if TYPE_CHECKING:
    from collections.abc import Iterable

    from holdfast.registry.database import Database
    from holdfast.storage.content import ContentStore

__all__ = ["MadeFrom"]

_AT_ONCE = 4096
"""Roots that are read between two transactions."""


class MadeFrom:
    """The arrows between all records that the registry ever named, or that its runs made.

    Args:
        database: The registry's; an older one gets its arrows at the first question.
        store: Where the records are; only records are read, never files or rows.
    """

    def __init__(self, database: Database, store: ContentStore) -> None:
        self._database = database
        self._store = store

    def wholes(self, part: Cid, *, limit: int) -> list[Link]:
        """The arrows that begin at ``part``, at most ``limit`` of them; their ends were made from it."""
        self.refresh()
        rows = self._database.rows(
            "SELECT part, role, whole FROM made_from WHERE part = ? ORDER BY whole, role LIMIT ?",
            (part.raw, limit),
        )
        return [_link(row) for row in rows]

    def parts(self, whole: Cid) -> list[Link]:
        """The arrows that end at ``whole``, also at a file that a run made, which has no links itself."""
        self.refresh()
        rows = self._database.rows(
            "SELECT part, role, whole FROM made_from WHERE whole = ? ORDER BY part, role", (whole.raw,)
        )
        return [_link(row) for row in rows]

    def kinds(self, cids: Iterable[Cid]) -> dict[Cid, str]:
        """What those of ``cids`` are that are records of the table."""
        found: dict[Cid, str] = {}
        for cid in cids:
            for row in self._database.rows("SELECT kind FROM made_from_records WHERE cid = ?", (cid.raw,)):
                found[cid] = row["kind"]
        return found

    def of_kind(self, kind: str) -> list[Cid]:
        """Every record of a kind, such as ``dataset``, that is known."""
        self.refresh()
        rows = self._database.rows("SELECT cid FROM made_from_records WHERE kind = ? ORDER BY cid", (kind,))
        return [Cid(row["cid"]) for row in rows]

    def names_of(self, cid: Cid) -> tuple[str, ...]:
        """What points at ``cid`` now: ``digits:1.0.0``, and ``digits@champion``."""
        names: list[str] = []
        for row in self._database.rows(
            "SELECT kind, name, version FROM versions WHERE cid = ? AND kind != 'conversion' ORDER BY name, sort_key",
            (str(cid),),
        ):
            names.append(f"{row['name']}:{row['version']}")
            aliases = self._database.rows(
                "SELECT alias FROM aliases WHERE kind = ? AND name = ? AND version = ? ORDER BY alias",
                (row["kind"], row["name"], row["version"]),
            )
            names += [f"{row['name']}@{alias['alias']}" for alias in aliases]
        return tuple(names)

    def refresh(self) -> None:
        """Read the records of what was named since the last time; of everything where the table is empty."""
        if not self._database.rows("SELECT 1 FROM made_from_records LIMIT 1"):
            with self._database.writing() as sql:
                sql.execute("INSERT OR IGNORE INTO made_from_waiting SELECT cid FROM versions")
                sql.execute(
                    "INSERT OR IGNORE INTO made_from_waiting SELECT json_extract(result, '$.model') FROM runs "
                    "WHERE json_extract(result, '$.model') IS NOT NULL"
                )
        while True:
            rows = self._database.rows("SELECT cid FROM made_from_waiting LIMIT ?", (_AT_ONCE,))
            if not rows:
                return
            links, kinds = self._read(Cid.parse(row["cid"]) for row in rows)
            with self._database.writing() as sql:
                sql.executemany(
                    "INSERT OR IGNORE INTO made_from VALUES (?, ?, ?)",
                    [(link.part.raw, link.role, link.whole.raw) for link in links],
                )
                sql.executemany(
                    "INSERT OR REPLACE INTO made_from_records VALUES (?, ?)",
                    [(cid.raw, kind) for cid, kind in kinds.items()],
                )
                sql.executemany(
                    "DELETE FROM made_from_waiting WHERE cid = ?", [(row["cid"],) for row in rows]
                )

    def rebuild(self) -> None:
        """Read every record again, such as after blocks that were missing came back."""
        with self._database.writing() as sql:
            for table in ("made_from", "made_from_records"):
                sql.execute(f"DELETE FROM {table}")  # noqa: S608 -- two constants
        self.refresh()

    def _read(self, roots: Iterable[Cid]) -> tuple[list[Link], dict[Cid, str]]:
        """The arrows below some roots, as far as the table does not know them."""
        links: list[Link] = []
        kinds: dict[Cid, str] = {}
        pending = list(roots)
        while pending:
            cid = pending.pop()
            if cid in kinds or self._known(cid):
                continue
            try:
                record = self._store.get_record(cid)
            except HoldfastError:
                continue  # nobody has it: what it was made from can't be known, and what links it still is
            kind = record.get("kind") if isinstance(record, dict) else None
            kinds[cid] = kind if isinstance(kind, str) and kind else "record"
            found = links_in(cid, record)
            links += found
            pending += [link.part for link in found if link.part.codec == DAG_CBOR and link.whole == cid]
        return links, kinds

    def _known(self, cid: Cid) -> bool:
        return bool(self._database.rows("SELECT 1 FROM made_from_records WHERE cid = ?", (cid.raw,)))


def _link(row: Any) -> Link:
    return Link(Cid(row["part"]), row["role"], Cid(row["whole"]))
