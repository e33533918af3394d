"""Names for CIDs: the only mutable thing. Versions never change, aliases move by compare-and-swap.

Each change is also a commit record in the block store that links the one before it, so the history of every name can be
checked like everything else.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from holdfast.errors import Conflict, InvalidInput, NotFound
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    import sqlite3

    from holdfast.registry.database import Database
    from holdfast.storage.content import ContentStore

__all__ = ["NameEntry", "Names", "Reference", "SqliteNames"]

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TITLE = re.compile(r"(?=.{1,128}$)[A-Za-z0-9][A-Za-z0-9._-]*(?:,? [A-Za-z0-9._-]+)*")
"""Words with a space, or a comma and a space, between them: still nothing else that a reference or a path could mean."""
_TITLED = {"dataset"}
"""Kinds whose names may be several words; the others' are part of URLs."""
_NUMBER = r"(0|[1-9][0-9]{0,8})"
_PRE = r"(?:0|[1-9][0-9]{0,17}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-(?=.{{1,64}}$)({_PRE}(?:\.{_PRE})*))?")
"""Semantic versions (semver.org, item 9): no leading zeros, so that no two versions are equal in order."""
_SHOWN = 20
UNCHECKED = "*"
"""``expected`` of :meth:`Names.set_alias`: move the alias wherever it points now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NameEntry:
    """One version of one name."""

    kind: str
    name: str
    version: str
    cid: Cid
    aliases: tuple[str, ...] = ()
    created: float = 0.0
    """Seconds since 1970."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; :meth:`from_json` reads them."""
        return {
            "kind": self.kind,
            "name": self.name,
            "version": self.version,
            "cid": str(self.cid),
            "aliases": list(self.aliases),
            "created": self.created,
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> NameEntry:
        """The entry that :meth:`to_json` wrote."""
        return cls(**{**body, "cid": Cid.parse(body["cid"]), "aliases": tuple(body["aliases"])})


@dataclass(frozen=True, slots=True)
class Reference:
    """What people write for a version: ``name`` (the newest), ``name:1.0.0`` or ``name@alias``."""

    name: str
    version: str | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """The reference in ``text``.

        Raises:
            InvalidInput: It is not one.
        """
        name, colon, version = text.partition(":")
        if not colon:
            name, _, alias = text.partition("@")
            if "@" in text:
                return cls(_checked(_TITLE, name, "a name"), alias=_checked(_WORD, alias, "an alias"))
            return cls(_checked(_TITLE, name, "a name"))
        return cls(_checked(_TITLE, name, "a name"), version=_checked_version(version))

    def __str__(self) -> str:
        return self.name + (f":{self.version}" if self.version else f"@{self.alias}" if self.alias else "")


class Names(Protocol):
    """Where names are kept: a home's own table, or a master's over HTTP."""

    def register(self, kind: str, name: str, version: str | None, cid: Cid) -> NameEntry:
        """Give ``cid`` a version of a name; doing it twice is fine.

        Args:
            kind: ``dataset``, ``model``, ``index`` or ``conversion``.
            name: Letters, digits, dots, dashes and underscores; of a dataset, several such words.
            version: Like ``1.0.0``; None takes the next minor one.
            cid: What it names.

        Raises:
            Conflict: The version names something else already, or did before it was removed; versions never change.
        """
        ...

    def unregister(self, kind: str, name: str, version: str | None = None) -> list[NameEntry]:
        """Remove a version of a name, or all of them, with the aliases that point there.

        What they named goes with the next garbage collection, unless something else keeps it. The version can be given to the
        same thing again, and never to another.

        Args:
            kind: As in :meth:`register`.
            name: Whose version.
            version: Which one; None for all.

        Returns:
            What was removed.

        Raises:
            NotFound: No such name or version.
        """
        ...

    def resolve(self, kind: str, ref: str) -> NameEntry:
        """The version that a reference means now.

        Raises:
            NotFound: No such name, version or alias.
        """
        ...

    def set_alias(
        self, kind: str, name: str, alias: str, version: str, *, expected: str | None = UNCHECKED
    ) -> NameEntry:
        """Point an alias at a version.

        Args:
            kind: As in :meth:`register`.
            name: Whose alias.
            alias: Such as ``champion``.
            version: Where it shall point.
            expected: Where it must point now; None if it must not exist.

        Raises:
            Conflict: It points somewhere else than ``expected``.
            NotFound: No such version.
        """
        ...

    def entries(self, kind: str | None = None) -> list[NameEntry]:
        """All versions of all names, newest last within a name."""
        ...


def _checked(pattern: re.Pattern[str], text: str, what: str) -> str:
    if not pattern.fullmatch(text):
        words = "words of " if pattern is _TITLE else ""
        raise InvalidInput(
            f"{text!r} is not {what}: {words}letters, digits, '.', '_' and '-', starting with a letter or digit"
        )
    return text


def _checked_version(version: str) -> str:
    if not _VERSION.fullmatch(version):
        raise InvalidInput(f"{version!r} is not a version: three numbers such as 1.0.0, or 1.0.0-rc.1")
    return version


def _version_order(version: str) -> tuple[Any, ...]:
    """Sort key of semantic versions: a pre-release comes before its release (semver.org, item 11)."""
    match = _VERSION.fullmatch(version)
    if match is None:
        return (0, 0, 0, 0, ())
    *numbers, pre = match.groups()
    parts = tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in (pre or "").split(".") if p)
    return (*map(int, numbers), 0 if pre else 1, parts)


class SqliteNames:
    """The names of one home."""

    def __init__(self, database: Database, store: ContentStore) -> None:
        self._database = database
        self._store = store

    def close(self) -> None:
        """Close the file that the names are in."""
        self._database.close()

    def register(self, kind: str, name: str, version: str | None, cid: Cid) -> NameEntry:
        """Give ``cid`` a version of a name; see :class:`Names`."""
        _checked(_TITLE if kind in _TITLED else _WORD, name, f"a name of a {kind}")
        if version is not None:
            _checked_version(version)
        with self._database.writing() as sql:
            taken, removed = (
                {
                    row["version"]: row["cid"]
                    for row in sql.execute(
                        f"SELECT version, cid FROM {which} WHERE kind = ? AND name = ?",  # noqa: S608 -- two constants
                        (kind, name),
                    )
                }
                for which in ("versions", "removed")
            )
            if version is None:
                if str(cid) in taken.values():
                    version = next(v for v, c in taken.items() if c == str(cid))
                else:
                    newest = max(taken | removed, key=_version_order, default=None)
                    major, minor = _version_order(newest)[:2] if newest else (1, -1)
                    version = _checked_version(f"{major}.{minor + 1}.0")
            if taken.get(version, str(cid)) != str(cid):
                raise Conflict(
                    f"{kind} {name}:{version} is {taken[version]} already, and a version never changes; "
                    "register the new one under another version"
                )
            if removed.get(version, str(cid)) != str(cid):
                raise Conflict(
                    f"{kind} {name}:{version} was {removed[version]} before it was removed, and a version never means two "
                    "things; register the new one under another version"
                )
            if version not in taken:
                # Held before it is named: a crash between the two keeps too much, never too little.
                self._store.hold(f"{kind} {name}:{version}", cid)
                change = {"op": "register", "kind": kind, "name": name, "version": version, "cid": cid}
                now = self._commit(sql, change)
                sql.execute(
                    "INSERT INTO versions VALUES (?, ?, ?, ?, ?)", (kind, name, version, str(cid), now)
                )
        return self.resolve(kind, f"{name}:{version}")

    def unregister(self, kind: str, name: str, version: str | None = None) -> list[NameEntry]:
        """Remove a version of a name, or all of them; see :class:`Names`."""
        self.resolve(kind, f"{name}:{version}" if version else name)
        gone: list[NameEntry] = []
        with self._database.writing() as sql:
            for entry in self.entries(kind):
                if entry.name != name or version not in (None, entry.version):
                    continue
                change = {"op": "unregister", "kind": kind, "name": name, "version": entry.version}
                self._commit(sql, change | {"was": entry.cid, "aliases": list(entry.aliases)})
                where = (kind, name, entry.version)
                sql.execute("INSERT OR REPLACE INTO removed VALUES (?, ?, ?, ?)", (*where, str(entry.cid)))
                sql.execute("DELETE FROM aliases WHERE kind = ? AND name = ? AND version = ?", where)
                sql.execute("DELETE FROM versions WHERE kind = ? AND name = ? AND version = ?", where)
                gone.append(entry)
        # Held until it is named no more: a crash between the two keeps too much, never too little.
        with self._database.writing():
            again = {
                (entry.name, entry.version) for entry in self.entries(kind)
            }  # somebody may have been quick
            if self._store.pins is not None:
                for entry in gone:
                    if (name, entry.version) not in again:
                        self._store.pins.release(f"{kind} {name}:{entry.version}")
        return gone

    def set_alias(
        self, kind: str, name: str, alias: str, version: str, *, expected: str | None = UNCHECKED
    ) -> NameEntry:
        """Point an alias at a version; see :class:`Names`."""
        _checked(_WORD, alias, "an alias")
        self.resolve(kind, f"{name}:{version}")
        with self._database.writing() as sql:
            row = sql.execute(
                "SELECT version FROM aliases WHERE kind = ? AND name = ? AND alias = ?", (kind, name, alias)
            ).fetchone()
            current = row["version"] if row else None
            if expected not in (UNCHECKED, current):
                raise Conflict(
                    f"{kind} {name}@{alias} points to {current or 'nothing'}, not to {expected or 'nothing'}: "
                    "somebody moved it; look again before you move it"
                )
            if current != version:
                change = {"op": "alias", "kind": kind, "name": name, "alias": alias, "version": version}
                self._commit(sql, change | {"was": current})
                sql.execute(
                    "INSERT OR REPLACE INTO aliases VALUES (?, ?, ?, ?)", (kind, name, alias, version)
                )
        return self.resolve(kind, f"{name}:{version}")

    def resolve(self, kind: str, ref: str) -> NameEntry:
        """The version that a reference means now; see :class:`Names`."""
        wanted = Reference.parse(ref)
        entries = [entry for entry in self.entries(kind) if entry.name == wanted.name]
        if not entries:
            names = sorted({entry.name for entry in self.entries(kind)})
            shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            raise NotFound(f"there is no {kind} named {wanted.name!r}; there is {shown or 'none at all'}")
        known = [f":{e.version}" for e in entries] + [f"@{alias}" for e in entries for alias in e.aliases]
        if wanted.version is not None:
            entries = [entry for entry in entries if entry.version == wanted.version]
        elif wanted.alias is not None:
            entries = [entry for entry in entries if wanted.alias in entry.aliases]
        if not entries:
            raise NotFound(f"there is no {kind} {wanted}; {wanted.name} has {', '.join(known[-_SHOWN:])}")
        return entries[-1]

    def entries(self, kind: str | None = None) -> list[NameEntry]:
        """All versions of all names, newest last within a name."""
        aliases: dict[tuple[str, str, str], list[str]] = {}
        for row in self._database.rows("SELECT * FROM aliases ORDER BY alias"):
            aliases.setdefault((row["kind"], row["name"], row["version"]), []).append(row["alias"])
        found = [
            NameEntry(
                kind=row["kind"],
                name=row["name"],
                version=row["version"],
                cid=Cid.parse(row["cid"]),
                aliases=tuple(aliases.get((row["kind"], row["name"], row["version"]), ())),
                created=row["created"],
            )
            for row in self._database.rows("SELECT * FROM versions WHERE ? IN ('', kind)", (kind or "",))
        ]
        return sorted(found, key=lambda e: (e.kind, e.name, _version_order(e.version)))

    def history(self) -> list[dict[str, Any]]:
        """Every change, newest first, read by following the links of the commit records."""
        head = self._database.rows("SELECT cid FROM commits ORDER BY seq DESC LIMIT 1")
        cid = Cid.parse(head[0]["cid"]) if head else None
        out = []
        while cid is not None:
            record = self._store.get_record(cid)
            out.append(record)
            cid = record["previous"]
        return out

    def _commit(self, sql: sqlite3.Connection, change: dict[str, Any]) -> float:
        """Record a change behind the newest one, inside the caller's transaction; returns its time."""
        row = sql.execute("SELECT cid FROM commits ORDER BY seq DESC LIMIT 1").fetchone()
        now = time.time()
        record = {
            "kind": "commit",
            "previous": Cid.parse(row["cid"]) if row else None,
            "time_ms": int(now * 1000),
            "change": change,
        }
        cid = self._store.put_record(record)
        self._store.hold(f"commit {cid}", cid, recursive=False)
        sql.execute("INSERT INTO commits (cid) VALUES (?)", (str(cid),))
        return now
