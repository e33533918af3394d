"""The history of names: commit records that link each other, followed, replayed, and compared with the tables."""

from __future__ import annotations

import math
import sqlite3
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from holdfast.errors import Corrupt, HoldfastError, InvalidInput, NotFound
from holdfast.registry.names.changes import apply_change
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from holdfast.registry.database import Database
    from holdfast.storage.content import ContentStore

__all__ = [
    "Commit",
    "HistoryCheck",
    "changes_of",
    "check_list",
    "check_tables",
    "commits_until",
    "follow",
    "moment_of",
    "replay",
]

_CLOCK_S = 0.0011
"""Times of before there were steps were kept with more digits than their commits have."""
_SHOWN = 10
_TABLES = {
    "versions": "kind, name, version, cid",
    "aliases": "kind, name, alias, version",
    "tags": "kind, name, version, key, value",
    "facts": "kind, name, version, key, value_number, value_text",
    "removed": "kind, name, version, cid",
    "renamed": "kind, name, target",
    "names": "kind, name, backwards",
}
"""What follows from the commits, and with which columns; times and sort keys are compared by themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One change of the names, as its record tells it."""

    cid: Cid
    """Of the record."""
    previous: Cid | None
    """The commit before; None for the first."""
    time: float
    """Seconds since 1970, to the millisecond."""
    who: str
    """Who made the change, as they said; empty in records of earlier holdfasts."""
    change: Mapping[str, Any]
    """``op`` (``register``, ``unregister``, ``alias``, ``unalias``, ``tag``, ``facts`` or ``rename``), ``kind``, ``name``, and
    what belongs to it."""

    @classmethod
    def from_record(cls, cid: Cid, record: Any) -> Commit:
        """The commit in a record.

        Raises:
            Corrupt: It is none.
        """
        match record:
            case {"kind": "commit", "previous": None | Cid(), "time_ms": int(), "change": {"op": str()}}:
                return cls(
                    cid=cid,
                    previous=record["previous"],
                    time=record["time_ms"] / 1000,
                    who=str(record.get("who", "")),
                    change=record["change"],
                )
        raise Corrupt(f"{cid}, which the history of the names links, is no commit record")

    def to_json(self) -> dict[str, Any]:
        """Plain values; :meth:`from_json` reads them."""
        return {
            "cid": str(self.cid),
            "previous": str(self.previous) if self.previous else None,
            "time": self.time,
            "who": self.who,
            "change": {k: {"/": str(v)} if isinstance(v, Cid) else v for k, v in self.change.items()},
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Commit:
        """The commit that :meth:`to_json` wrote.

        Raises:
            InvalidInput: It is none.
        """
        try:
            return cls(
                cid=Cid.parse(body["cid"]),
                previous=Cid.parse(body["previous"]) if body["previous"] else None,
                time=body["time"],
                who=body["who"],
                change={
                    k: Cid.parse(v["/"]) if isinstance(v, dict) and set(v) == {"/"} else v
                    for k, v in body["change"].items()
                },
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(f"this is no commit: {body!r:.100}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryCheck:
    """What was checked, and found to be right."""

    commits: int
    newest: Cid | None
    """Its CID stands for the whole history: whoever notes it elsewhere can tell later that nothing was rewritten."""
    versions: int
    """That the names have now."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; :meth:`from_json` reads them."""
        newest = str(self.newest) if self.newest else None
        return {"commits": self.commits, "newest": newest, "versions": self.versions}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> HistoryCheck:
        """What :meth:`to_json` wrote."""
        newest = Cid.parse(body["newest"]) if body["newest"] else None
        return cls(commits=body["commits"], newest=newest, versions=body["versions"])


def follow(store: ContentStore, newest: Cid | None) -> Iterator[Commit]:
    """The commits from the newest to the first, each read, and hashed, when it is reached.

    Raises:
        Corrupt: A record is not what its CID says, or no commit.
        NotFound: A record is missing.
    """
    cid = newest
    while cid is not None:
        try:
            commit = Commit.from_record(cid, store.get_record(cid))
        except NotFound as error:
            raise NotFound(f"the commit {cid} of the history of the names is missing: {error}") from error
        yield commit
        cid = commit.previous


def commits_until(commits: Iterable[Commit], when: float | datetime | Cid) -> list[Commit]:
    """Of commits, newest first, those that had been made at a time, or up to a commit.

    Raises:
        InvalidInput: It is neither a time nor a commit.
        NotFound: There is no such commit.
    """
    found = list(commits)
    if isinstance(when, Cid):
        at = next((at for at, commit in enumerate(found) if commit.cid == when), None)
        if at is None:
            raise NotFound(f"there is no commit {when} in the history of the names")
        return found[at:]
    moment = moment_of(when)
    # Clocks are set back now and then; the links are the order that counts.
    at = next((at for at, commit in enumerate(found) if commit.time <= moment), len(found))
    return found[at:]


def moment_of(when: float | datetime) -> float:
    """A time in seconds since 1970.

    Raises:
        InvalidInput: It is none.
    """
    moment = when.timestamp() if isinstance(when, datetime) else when
    if isinstance(moment, bool) or not isinstance(moment, (int, float)) or math.isnan(moment):
        raise InvalidInput(
            f"a moment is a datetime, seconds since 1970, or the Cid of a commit, not {when!r:.100}"
        )
    return float(moment)


def changes_of(commits: Iterable[Commit], kind: str | None, name: str | None) -> list[Commit]:
    """Of commits, newest first, those of a kind and a name; also of the names that it had before it was renamed."""
    found = []
    names = {name}
    for commit in commits:
        change = commit.change
        if kind not in (None, change.get("kind")):
            continue
        if name is not None and change["op"] == "rename" and change["to"] in names:
            names.add(change["name"])
        if name is None or change["name"] in names:
            found.append(commit)
    return found


def replay(commits: Iterable[Commit], database: Database) -> None:
    """Make the changes of commits, newest first, in a database that is empty.

    Raises:
        Corrupt: A change can't be made after those before it.
    """
    with database.writing() as sql:
        for commit in reversed(list(commits)):
            try:
                apply_change(sql, commit.change, round(commit.time * 1000))
            except (HoldfastError, sqlite3.Error, TypeError, ValueError, AttributeError) as error:
                raise Corrupt(
                    f"the commit {commit.cid} does not follow from those before it: {error}"
                ) from error


def check_list(listed: list[str], commits: list[Commit]) -> None:
    """Compare the table of commits, newest first, with the commits that their links lead to.

    Raises:
        Corrupt: They differ.
    """
    linked = [str(commit.cid) for commit in commits]
    if listed == linked:
        return
    at = next(
        (at for at, (cid, other) in enumerate(zip(listed, linked, strict=False)) if cid != other),
        min(len(listed), len(linked)),
    )
    told = linked[at] if at < len(linked) else "no commit"
    found = listed[at] if at < len(listed) else "none"
    raise Corrupt(f"the table of commits has {found} where the links of the commits lead to {told}")


def check_tables(now: Database, told: Database) -> None:
    """Compare the tables as they are with those that the commits tell.

    Raises:
        Corrupt: They differ; the message names the rows.
    """
    wrong: list[str] = []
    for table, columns in _TABLES.items():
        joined = f"{table} LEFT JOIN versions ON id = of" if table in ("tags", "facts") else table
        query = f"SELECT {columns} FROM {joined}"  # noqa: S608 -- constants
        rows, wanted = ({tuple(row) for row in of.rows(query)} for of in (now, told))
        wrong += [
            f"{table} has {_shown(row)}, of which no commit tells" for row in sorted(rows - wanted, key=repr)
        ]
        wrong += [f"{table} lacks {_shown(row)}" for row in sorted(wanted - rows, key=repr)]
    if not wrong:
        query = "SELECT created, sort_key, kind, name, version FROM versions ORDER BY kind, name, version"
        for row, other in zip(now.rows(query), told.rows(query), strict=True):
            if abs(row["created"] - other["created"]) > _CLOCK_S:
                wrong.append(f"versions has {_shown(row[2:])} with another time than its commit")
            if row["sort_key"] != other["sort_key"]:
                wrong.append(f"versions has {_shown(row[2:])} in a wrong place of the order")
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise Corrupt(
            f"the names in {now.path} are not what their commits tell: {'; '.join(wrong[:_SHOWN])}{more}"
        )


def _shown(row: Iterable[Any]) -> str:
    return " ".join(str(value) for value in row if value is not None)
