"""Names as they stand in the tables, for reading: each look-up is one query by index, however many names there are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from holdfast.errors import NotFound
from holdfast.registry.names.names import KINDS, NameEntry, PastNames
from holdfast.registry.names.references import Reference
from holdfast.registry.names.suggestions import unknown_name, unknown_version
from holdfast.registry.versions import RELEASE, TRIPLE_BYTES
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from holdfast.registry.database import Database
    from holdfast.registry.names.searching import Search
    from holdfast.registry.versions import VersionRange

__all__ = ["NameTable"]

_ENTRIES = """
SELECT v.kind, v.name, v.version, v.cid, v.created,
    (SELECT group_concat(alias, ' ') FROM aliases a
        WHERE a.kind = v.kind AND a.name = v.name AND a.version = v.version),
    (SELECT json_group_object(key, value) FROM tags t WHERE t.of = v.id)
FROM versions v WHERE """
_NEWEST = f"{_ENTRIES} v.kind = ? AND v.name = ? ORDER BY v.sort_key DESC LIMIT 1"
_EXACT = f"{_ENTRIES} v.kind = ? AND v.name = ? AND v.version = ?"
_OF_ALIAS = "SELECT version FROM aliases WHERE kind = ?1 AND name = ?2 AND alias = ?3"
_BY_ALIAS = f"{_ENTRIES} v.kind = ?1 AND v.name = ?2 AND v.version = ({_OF_ALIAS})"
_IN_RANGE = (
    f"{_ENTRIES} v.kind = ? AND v.name = ? AND v.sort_key >= ? AND v.sort_key < ? "
    f"AND (substr(v.sort_key, {TRIPLE_BYTES + 1}) = x'{RELEASE.hex()}' OR substr(v.sort_key, 1, {TRIPLE_BYTES}) IN (%s)) "
    "ORDER BY v.sort_key DESC LIMIT 1"
)
_KINDS = "SELECT DISTINCT kind FROM names WHERE name = ?"
_ORDER = "ORDER BY v.kind, v.name, v.sort_key"


class NameTable(PastNames):
    """The names in a database, as far as they can be read; see :class:`~holdfast.registry.names.names.PastNames`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def close(self) -> None:
        """Close the database that the names are in."""
        self._database.close()

    def resolve(self, kind: str | None, ref: str) -> NameEntry:
        """The version that a reference means; see :class:`PastNames`."""
        wanted = Reference.parse(ref)
        kinds = wanted.kinds(kind, KINDS)
        for each in kinds:
            if rows := self._meant(each, wanted):
                return _entry(rows[0])
        raise self._not_found(kinds, wanted)

    def entries(self, kind: str | None = None) -> list[NameEntry]:
        """All versions of all names, newest last within a name."""
        return self.search(kind, limit=None)

    def find(self, search: Search) -> list[NameEntry]:
        """The versions of which everything in ``search`` is true, newest last within a name."""
        where, values = search.where(self._database)
        # Which ones they are is found out first: aliases and tags are looked up for those alone.
        these = f"SELECT v.id FROM versions v WHERE {where} {_ORDER} LIMIT ?"  # noqa: S608 -- values are parameters
        query = f"{_ENTRIES} v.id IN ({these}) {_ORDER}"
        rows = self._database.rows(query, (*values, -1 if search.limit is None else search.limit))
        return [_entry(row) for row in rows]

    def versions(self, kind: str, name: str, version: str | None = None) -> list[NameEntry]:
        """One version of a name, or all of them, newest last.

        Raises:
            NotFound: There is none.
        """
        if version is None:
            rows = self._database.rows(
                f"{_ENTRIES} v.kind = ? AND v.name = ? ORDER BY v.sort_key", (kind, name)
            )
        else:
            rows = self._database.rows(_EXACT, (kind, name, version))
        if not rows:
            raise self._not_found((kind,), Reference(name, version))
        return [_entry(row) for row in rows]

    def _meant(self, kind: str, wanted: Reference) -> list[sqlite3.Row]:
        if wanted.alias is not None:
            return self._database.rows(_BY_ALIAS, (kind, wanted.name, wanted.alias))
        if wanted.version is None:
            return self._database.rows(_NEWEST, (kind, wanted.name))
        if (among := wanted.range) is not None:
            return self._in_range(kind, wanted.name, among)
        return self._database.rows(_EXACT, (kind, wanted.name, wanted.version))

    def _in_range(self, kind: str, name: str, among: VersionRange) -> list[sqlite3.Row]:
        pre = sorted(among.pre_release_of)
        return self._database.rows(
            _IN_RANGE % ", ".join("?" * len(pre)), (kind, name, among.low, among.high, *pre)
        )

    def _not_found(self, kinds: Sequence[str], wanted: Reference) -> NotFound:
        known = {row["kind"] for row in self._database.rows(_KINDS, (wanted.name,))}
        if having := [kind for kind in kinds if kind in known]:
            return NotFound("; ".join(unknown_version(self._database, kind, wanted) for kind in having))
        return NotFound(unknown_name(self._database, kinds, wanted.name, sorted(known)))


def _entry(row: Any) -> NameEntry:
    kind, name, version, cid, created, aliases, tags = row
    return NameEntry(
        kind=kind,
        name=name,
        version=version,
        cid=Cid.parse(cid),
        aliases=tuple(sorted(aliases.split(" "))) if aliases else (),
        tags=json.loads(tags) if tags != "{}" else {},
        created=created,
    )
