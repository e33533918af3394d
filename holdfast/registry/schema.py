"""The tables of ``registry.db``, as the steps that made them: an old file takes those that it has not taken yet.

A step is never edited once it was released; a change is a new step at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.errors import Unsupported
from holdfast.registry.versions import version_key

if TYPE_CHECKING:
    import sqlite3

__all__ = ["MIGRATIONS", "migrate"]

FIRST = (
    """CREATE TABLE IF NOT EXISTS versions (
        kind TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, cid TEXT NOT NULL, created REAL NOT NULL,
        PRIMARY KEY (kind, name, version)
    ) STRICT""",
    """CREATE TABLE IF NOT EXISTS aliases (
        kind TEXT NOT NULL, name TEXT NOT NULL, alias TEXT NOT NULL, version TEXT NOT NULL,
        PRIMARY KEY (kind, name, alias)
    ) STRICT""",
    """CREATE TABLE IF NOT EXISTS removed (
        kind TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, cid TEXT NOT NULL,
        PRIMARY KEY (kind, name, version)
    ) STRICT""",
    "CREATE TABLE IF NOT EXISTS commits (seq INTEGER PRIMARY KEY AUTOINCREMENT, cid TEXT NOT NULL) STRICT",
    """CREATE TABLE IF NOT EXISTS runs (
        id TEXT PRIMARY KEY, spec TEXT NOT NULL, state TEXT NOT NULL, created REAL NOT NULL, started REAL, finished REAL,
        error TEXT, result TEXT
    ) STRICT""",
    """CREATE TABLE IF NOT EXISTS events (
        run TEXT NOT NULL REFERENCES runs(id), seq INTEGER NOT NULL, time REAL NOT NULL, body TEXT NOT NULL,
        PRIMARY KEY (run, seq)
    ) STRICT""",
)
"""Files of before there were steps have these tables already, and step 0."""

NAMES_BY_INDEX = (
    # ``version_key`` orders versions as bytes, so that the newest one is the last in an index.
    """CREATE TABLE versions_by_index (
        id INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, cid TEXT NOT NULL,
        created REAL NOT NULL, sort_key BLOB NOT NULL, UNIQUE (kind, name, version)
    ) STRICT""",
    """INSERT INTO versions_by_index (kind, name, version, cid, created, sort_key)
        SELECT kind, name, version, cid, created, version_key(version) FROM versions ORDER BY rowid""",
    "DROP TABLE versions",
    "ALTER TABLE versions_by_index RENAME TO versions",
    "CREATE INDEX versions_in_order ON versions (kind, name, sort_key)",
    "CREATE INDEX versions_by_cid ON versions (cid)",
    "CREATE INDEX aliases_of_versions ON aliases (kind, name, version)",
    "CREATE INDEX aliases_by_alias ON aliases (alias)",
    "ALTER TABLE removed ADD COLUMN sort_key BLOB NOT NULL DEFAULT x''",
    "UPDATE removed SET sort_key = version_key(version)",
    "CREATE INDEX removed_in_order ON removed (kind, name, sort_key)",
    # Each name that has versions, once; ``backwards`` finds the names that end alike.
    """CREATE TABLE names (
        kind TEXT NOT NULL, name TEXT NOT NULL, backwards TEXT NOT NULL, PRIMARY KEY (kind, name)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX names_backwards ON names (kind, backwards)",
    "INSERT INTO names SELECT DISTINCT kind, name, backwards(name) FROM versions",
    # Tags and facts go where their version goes, under whatever name.
    """CREATE TABLE tags (
        of INTEGER NOT NULL REFERENCES versions(id) ON DELETE CASCADE, key TEXT NOT NULL, value TEXT NOT NULL,
        PRIMARY KEY (of, key)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX tags_by_value ON tags (key, value, of)",
    """CREATE TABLE facts (
        of INTEGER NOT NULL REFERENCES versions(id) ON DELETE CASCADE, key TEXT NOT NULL, value_number REAL, value_text TEXT
    ) STRICT""",
    "CREATE INDEX facts_of_versions ON facts (of)",
    "CREATE INDEX facts_by_number ON facts (key, value_number, of)",
    "CREATE INDEX facts_by_text ON facts (key, value_text, of)",
    """CREATE TABLE renamed (
        kind TEXT NOT NULL, name TEXT NOT NULL, target TEXT NOT NULL, PRIMARY KEY (kind, name)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX commits_by_cid ON commits (cid)",
    # Holds that nothing needs since a change that was committed; see ``SqliteNames``.
    "CREATE TABLE to_release (label TEXT PRIMARY KEY) STRICT, WITHOUT ROWID",
)

ATTESTATIONS = (
    """CREATE TABLE attestations (
    subject TEXT NOT NULL, attestation TEXT NOT NULL, keyid TEXT NOT NULL, time REAL NOT NULL,
    PRIMARY KEY (subject, attestation, keyid)
) STRICT, WITHOUT ROWID""",
)
"""Who signed what, found by what it is about."""

MIGRATIONS: list[tuple[str, ...]] = [FIRST, NAMES_BY_INDEX, ATTESTATIONS]
"""The steps, each a list of statements. ``PRAGMA user_version`` counts those that a file has taken."""


def migrate(connection: sqlite3.Connection, *, path: object) -> None:
    """Take the steps that a file lacks, all of them or none.

    Raises:
        Unsupported: The file has taken steps that this holdfast does not know.
    """
    if _steps(connection, path) == len(MIGRATIONS):
        return  # no need to wait for a writer
    connection.create_function("version_key", 1, version_key, deterministic=True)
    connection.create_function("backwards", 1, lambda text: text[::-1], deterministic=True)
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have been quicker.
        for step in MIGRATIONS[_steps(connection, path) :]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _steps(connection: sqlite3.Connection, path: object) -> int:
    steps: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if steps > len(MIGRATIONS):
        raise Unsupported(
            f"the registry {path} was written by a newer holdfast (step {steps} of its tables; this one knows "
            f"{len(MIGRATIONS)}): install that one"
        )
    return steps
