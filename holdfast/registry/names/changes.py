"""What each change does to the tables: the same for a change that is made now and for one that is read from the history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdfast.errors import Corrupt
from holdfast.registry.names.facts import fact_rows
from holdfast.registry.versions import version_key

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping

    Change = Mapping[str, Any]

__all__ = ["apply_change"]

_ID = "(SELECT id FROM versions WHERE kind = ? AND name = ? AND version = ?)"


def apply_change(sql: sqlite3.Connection, change: Change, time_ms: int) -> None:
    """Change the tables, inside the caller's transaction.

    Args:
        sql: The connection.
        change: What a commit record holds under ``change``.
        time_ms: When it was made, in milliseconds since 1970.

    Raises:
        Corrupt: There is no such change.
    """
    apply = _CHANGES.get(str(change.get("op")))
    if apply is None:
        raise Corrupt(f"a commit has a change that nobody knows: {change!r:.200}")
    try:
        apply(sql, change, time_ms)
    except KeyError as error:
        raise Corrupt(f"a commit lacks {error}: {change!r:.200}") from error


def _register(sql: sqlite3.Connection, change: Change, time_ms: int) -> None:
    kind, name, version = change["kind"], change["name"], change["version"]
    sql.execute(
        "INSERT INTO versions (kind, name, version, cid, created, sort_key) VALUES (?, ?, ?, ?, ?, ?)",
        (kind, name, version, str(change["cid"]), time_ms / 1000, version_key(version)),
    )
    sql.execute("INSERT OR IGNORE INTO names VALUES (?, ?, ?)", (kind, name, name[::-1]))
    sql.execute("DELETE FROM renamed WHERE kind = ? AND name = ?", (kind, name))
    _set_facts(sql, change, time_ms)


def _set_facts(sql: sqlite3.Connection, change: Change, _: int) -> None:
    version = (change["kind"], change["name"], change["version"])
    sql.execute(f"DELETE FROM facts WHERE of = {_ID}", version)  # noqa: S608 -- a constant
    sql.executemany(
        f"INSERT INTO facts (of, key, value_number, value_text) VALUES ({_ID}, ?, ?, ?)",  # noqa: S608 -- a constant
        [(*version, *row) for row in fact_rows(change.get("facts", {}))],
    )


def _unregister(sql: sqlite3.Connection, change: Change, _: int) -> None:
    version = (change["kind"], change["name"], change["version"])
    _remember_removed(sql, change["kind"], change["name"], change["version"])
    sql.execute("DELETE FROM aliases WHERE kind = ? AND name = ? AND version = ?", version)
    sql.execute("DELETE FROM versions WHERE kind = ? AND name = ? AND version = ?", version)
    sql.execute(
        "DELETE FROM names WHERE kind = ?1 AND name = ?2 AND NOT EXISTS "
        "(SELECT 1 FROM versions WHERE kind = ?1 AND name = ?2)",
        version[:2],
    )


def _remember_removed(sql: sqlite3.Connection, kind: str, name: str, version: str | None) -> None:
    sql.execute(
        "INSERT OR REPLACE INTO removed (kind, name, version, cid, sort_key) SELECT kind, name, version, cid, sort_key "
        "FROM versions WHERE kind = ?1 AND name = ?2 AND (?3 IS NULL OR version = ?3)",
        (kind, name, version),
    )


def _set_alias(sql: sqlite3.Connection, change: Change, _: int) -> None:
    values = (change["kind"], change["name"], change["alias"], change["version"])
    sql.execute("INSERT OR REPLACE INTO aliases (kind, name, alias, version) VALUES (?, ?, ?, ?)", values)


def _delete_alias(sql: sqlite3.Connection, change: Change, _: int) -> None:
    values = (change["kind"], change["name"], change["alias"])
    sql.execute("DELETE FROM aliases WHERE kind = ? AND name = ? AND alias = ?", values)


def _set_tag(sql: sqlite3.Connection, change: Change, _: int) -> None:
    tag = (change["kind"], change["name"], change["version"], change["key"])
    if change["value"] is None:
        sql.execute(f"DELETE FROM tags WHERE of = {_ID} AND key = ?", tag)  # noqa: S608 -- a constant
    else:
        query = f"INSERT OR REPLACE INTO tags (of, key, value) VALUES ({_ID}, ?, ?)"  # noqa: S608 -- a constant
        sql.execute(query, (*tag, change["value"]))


def _rename(sql: sqlite3.Connection, change: Change, _: int) -> None:
    kind, old, new = change["kind"], change["name"], change["to"]
    _remember_removed(sql, kind, old, None)
    sql.execute("UPDATE versions SET name = ? WHERE kind = ? AND name = ?", (new, kind, old))
    sql.execute("UPDATE aliases SET name = ? WHERE kind = ? AND name = ?", (new, kind, old))
    sql.execute("DELETE FROM names WHERE kind = ? AND name = ?", (kind, old))
    sql.execute("INSERT OR IGNORE INTO names VALUES (?, ?, ?)", (kind, new, new[::-1]))
    sql.execute("DELETE FROM renamed WHERE kind = ? AND name = ?", (kind, new))
    sql.execute("INSERT OR REPLACE INTO renamed VALUES (?, ?, ?)", (kind, old, new))


_CHANGES: dict[str, Callable[[sqlite3.Connection, Change, int], None]] = {
    "register": _register,
    "facts": _set_facts,
    "unregister": _unregister,
    "alias": _set_alias,
    "unalias": _delete_alias,
    "tag": _set_tag,
    "rename": _rename,
}
