"""The names of one home, in SQLite: each change is one transaction, and a commit record behind the one before."""

from __future__ import annotations

from contextlib import closing, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from holdfast.errors import Conflict, HoldfastError
from holdfast.registry.database import Database
from holdfast.registry.names import history
from holdfast.registry.names.facts import facts_to_record
from holdfast.registry.names.name_table import NameTable
from holdfast.registry.names.names import UNCHECKED, NameEntry
from holdfast.registry.names.references import (
    Reference,
    checked_name,
    checked_tag,
    checked_version,
    checked_word,
)
from holdfast.registry.names.transaction import Transaction, hold_label, is_needed
from holdfast.registry.user import this_user
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from holdfast.registry.names.facts import Facts
    from holdfast.registry.names.history import Commit, HistoryCheck
    from holdfast.storage.content import ContentStore

__all__ = ["SqliteNames"]

MAX_WHO_CHARACTERS = 200


class SqliteNames(NameTable):
    """The names of one home; see :class:`~holdfast.registry.names.names.Names`.

    Args:
        database: The tables.
        store: Where the commit records go, and where what is named is held.
        who: Stands in the commits; default: ``user@host`` of this process.
    """

    def __init__(self, database: Database, store: ContentStore, *, who: str | None = None) -> None:
        super().__init__(database)
        self._store = store
        said = this_user() if who is None else who
        self._who = "".join(c if c.isprintable() else "?" for c in said[:MAX_WHO_CHARACTERS])

    def by(self, who: str) -> SqliteNames:
        """The same names, changed by somebody else; it is theirs to say who they are."""
        return SqliteNames(self._database, self._store, who=who)

    # ------------------------------------------------------------------------------------------- versions

    def register(
        self, kind: str, name: str, version: str | None, cid: Cid, facts: Facts | None = None
    ) -> NameEntry:
        """Give ``cid`` a version of a name; see :class:`Names`."""
        checked_name(kind, name)
        if version is not None:
            checked_version(version)
        recorded = facts_to_record(facts)
        with self._changing() as change:
            if version is None:
                version = change.version_of(kind, name, cid)
            taken = change.cid_of("versions", kind, name, version)
            removed = change.cid_of("removed", kind, name, version)
            for was, told in ((taken, "is {} already"), (removed, "was {} before it was removed")):
                if was not in (None, str(cid)):
                    raise Conflict(
                        f"{kind} {name}:{version} {told.format(was)}, and a version never means two things; register {cid} "
                        "under another version"
                    )
            made: dict[str, Any] = {"kind": kind, "name": name, "version": version}
            if taken is None:
                # Held before it is named: a crash between the two keeps too much, never too little.
                change.hold(hold_label(kind, name, version), cid)
                with_facts = {"facts": recorded} if recorded else {}
                change.commit({"op": "register", **made, "cid": cid, **with_facts})
            elif facts is not None and recorded != change.facts_of(kind, name, version):
                change.commit({"op": "facts", **made, "facts": recorded})
            (entry,) = self.versions(kind, name, version)
        return entry

    def unregister(self, kind: str, name: str, version: str | None = None) -> list[NameEntry]:
        """Remove a version of a name, or all of them; see :class:`Names`."""
        if version is not None:
            checked_version(version)
        with self._changing() as change:
            gone = self.versions(kind, name, version)
            for entry in gone:
                change.let_go(hold_label(kind, name, entry.version))
                made = {"op": "unregister", "kind": kind, "name": name, "version": entry.version}
                change.commit(made | {"was": entry.cid, "aliases": list(entry.aliases)})
        return gone

    def rename(self, kind: str, old: str, new: str) -> list[NameEntry]:
        """Give all versions of a name another name; see :class:`Names`."""
        checked_name(kind, new)
        with self._changing() as change:
            moving = self.versions(kind, old)
            if change.sql.execute("SELECT 1 FROM names WHERE kind = ? AND name = ?", (kind, new)).fetchone():
                raise Conflict(f"{kind} {old} can't be renamed to {new}: there is a {kind} of this name")
            for entry in moving:
                was = change.cid_of("removed", kind, new, entry.version)
                if was not in (None, str(entry.cid)):
                    raise Conflict(
                        f"{kind} {old} can't be renamed to {new}: {new}:{entry.version} was {was} before it was removed, and "
                        f"{old}:{entry.version} is {entry.cid}; a version never means two things"
                    )
            for entry in moving:
                change.hold(hold_label(kind, new, entry.version), entry.cid)
                change.let_go(hold_label(kind, old, entry.version))
            change.commit({"op": "rename", "kind": kind, "name": old, "to": new})
            return self.versions(kind, new)

    # ----------------------------------------------------------------------------------- aliases and tags

    def set_alias(
        self, kind: str, name: str, alias: str, version: str, *, expected: str | None = UNCHECKED
    ) -> NameEntry:
        """Point an alias at a version; see :class:`Names`."""
        checked_word(alias, "an alias")
        checked_version(version)
        with self._changing() as change:
            self.versions(kind, name, version)
            current = change.alias(kind, name, alias)
            if expected not in (UNCHECKED, current):
                raise Conflict(
                    f"{kind} {name}@{alias} points to {current or 'nothing'}, not to {expected or 'nothing'}, so it was not "
                    f"moved to {version}: look again before you move it"
                )
            if current != version:
                made = {"op": "alias", "kind": kind, "name": name, "alias": alias, "version": version}
                change.commit(made | {"was": current})
            (entry,) = self.versions(kind, name, version)
        return entry

    def delete_alias(
        self, kind: str, name: str, alias: str, *, expected: str | None = UNCHECKED
    ) -> NameEntry:
        """Remove an alias; see :class:`Names`."""
        checked_word(alias, "an alias")
        with self._changing() as change:
            current = change.alias(kind, name, alias)
            if expected not in (UNCHECKED, current):
                raise Conflict(
                    f"{kind} {name}@{alias} points to {current or 'nothing'}, not to {expected or 'nothing'}, so it was not "
                    "removed: look again before you remove it"
                )
            if current is None:
                raise self._not_found((kind,), Reference(name, alias=alias))
            change.commit({"op": "unalias", "kind": kind, "name": name, "alias": alias, "was": current})
            (entry,) = self.versions(kind, name, current)
        return entry

    def set_tag(
        self,
        kind: str,
        name: str,
        version: str,
        key: str,
        value: str | None,
        *,
        expected: str | None = UNCHECKED,
    ) -> NameEntry:
        """Tag a version; see :class:`Names`."""
        checked_version(version)
        checked_word(key, "the key of a tag")
        if value is not None:
            checked_tag(value)
        with self._changing() as change:
            (entry,) = self.versions(kind, name, version)
            current = entry.tags.get(key)
            if expected not in (UNCHECKED, current):
                said, wanted, new = (
                    "no value" if each is None else repr(each) for each in (current, expected, value)
                )
                raise Conflict(
                    f"the tag {key} of {kind} {name}:{version} has {said}, not {wanted}, so it did not get {new}: look "
                    "again before you change it"
                )
            if current != value:
                made = {"op": "tag", "kind": kind, "name": name, "version": version, "key": key}
                change.commit(made | {"value": value, "was": current})
            (entry,) = self.versions(kind, name, version)
        return entry

    # -------------------------------------------------------------------------------------------- history

    def at(self, when: float | datetime | Cid) -> NameTable:
        """The names as they were, rebuilt in memory; see :class:`Names`."""
        database = Database(None)
        history.replay(history.commits_until(self._commits(), when), database)
        return NameTable(database)

    def history(self, kind: str | None = None, name: str | None = None) -> list[Commit]:
        """Every change, newest first; see :class:`Names`."""
        return history.changes_of(self._commits(), kind, name)

    def verify_history(self) -> HistoryCheck:
        """Every commit hashed again and compared with the names as they are; see :class:`Names`."""
        # One moment of the file, seen by another connection: nobody has to wait for this.
        path = self._database.path
        with nullcontext(self._database) if path is None else closing(Database(path)) as now, now.reading():
            listed = [row["cid"] for row in now.rows("SELECT cid FROM commits ORDER BY seq DESC")]
            commits = list(history.follow(self._store, Cid.parse(listed[0]) if listed else None))
            history.check_list(listed, commits)
            with closing(Database(None)) as told:
                history.replay(commits, told)
                history.check_tables(now, told)
            (versions,) = now.rows("SELECT count(*) FROM versions")[0]
        newest = commits[0].cid if commits else None
        return history.HistoryCheck(commits=len(commits), newest=newest, versions=versions)

    def _commits(self) -> Iterator[Commit]:
        newest = self._database.rows("SELECT cid FROM commits ORDER BY seq DESC LIMIT 1")
        return history.follow(self._store, Cid.parse(newest[0]["cid"]) if newest else None)

    # ------------------------------------------------------------------------------------------- changing

    @contextmanager
    def _changing(self) -> Iterator[Transaction]:
        """One transaction; what it held is let go again when it fails, and what it lets go when it is done."""
        held: list[str] = []
        try:
            with self._database.writing() as sql:
                yield Transaction(sql, self._store, self._who, held)
        except BaseException:
            # If this fails, too, the next collection keeps too much, never too little: the first error is what counts.
            with suppress(HoldfastError):
                self._release(held)
            raise
        # The change is made: what can't be let go of now stays on the list until the next one.
        with suppress(HoldfastError):
            self._release([])

    def _release(self, labels: list[str]) -> None:
        """Let go of labels, and of those that committed changes let go of, unless something is called so now."""
        if not labels and not self._database.rows("SELECT 1 FROM to_release LIMIT 1"):
            return
        with self._database.writing() as sql:
            waiting = [row["label"] for row in sql.execute("SELECT label FROM to_release")]
            for label in (*labels, *waiting):
                if self._store.pins is not None and not is_needed(sql, label):
                    self._store.pins.release(label)
            if waiting:
                sql.execute("DELETE FROM to_release")
