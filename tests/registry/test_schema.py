"""Tables of earlier holdfasts become today's when they are opened, all of them or none."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import Any

import pytest

from holdfast.errors import Corrupt, Unavailable, Unsupported
from holdfast.registry import Database, SqliteNames, schema
from holdfast.storage.cid import Cid

FIRST_SCHEMA = """
CREATE TABLE versions (
    kind TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, cid TEXT NOT NULL, created REAL NOT NULL,
    PRIMARY KEY (kind, name, version)
) STRICT;
CREATE TABLE aliases (
    kind TEXT NOT NULL, name TEXT NOT NULL, alias TEXT NOT NULL, version TEXT NOT NULL,
    PRIMARY KEY (kind, name, alias)
) STRICT;
CREATE TABLE removed (
    kind TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, cid TEXT NOT NULL,
    PRIMARY KEY (kind, name, version)
) STRICT;
CREATE TABLE commits (seq INTEGER PRIMARY KEY AUTOINCREMENT, cid TEXT NOT NULL) STRICT;
CREATE TABLE runs (
    id TEXT PRIMARY KEY, spec TEXT NOT NULL, state TEXT NOT NULL, created REAL NOT NULL, started REAL, finished REAL,
    error TEXT, result TEXT
) STRICT;
CREATE TABLE events (
    run TEXT NOT NULL REFERENCES runs(id), seq INTEGER NOT NULL, time REAL NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (run, seq)
) STRICT;
"""
"""Of the first holdfast, before tables had steps."""

THINGS = {version: Cid.of(version.encode()) for version in ("1.9.0", "1.10.0", "2.0.0-rc.1", "0.1.0")}
START_S = 1_700_000_000.123456


@pytest.fixture
def old_file(tmp_path, store):
    """A registry as the first holdfast wrote it: four versions, one of them removed, an alias, a run; and its commits."""
    path = tmp_path / "home" / "registry.db"
    path.parent.mkdir(exist_ok=True)
    register = [
        {"op": "register", "kind": "model", "name": "m", "version": version, "cid": cid}
        for version, cid in THINGS.items()
    ]
    alias = {
        "op": "alias",
        "kind": "model",
        "name": "m",
        "alias": "champion",
        "version": "1.9.0",
        "was": None,
    }
    removal = {
        "op": "unregister",
        "kind": "model",
        "name": "m",
        "version": "0.1.0",
        "was": THINGS["0.1.0"],
        "aliases": [],
    }
    previous = None
    changes: list[dict[str, Any]] = [*register, alias, removal]
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.execute("PRAGMA journal_mode = WAL")
        sql.executescript(FIRST_SCHEMA)
        for number, change in enumerate(changes):
            now = START_S + number
            record = {"kind": "commit", "previous": previous, "time_ms": int(now * 1000), "change": change}
            previous = store.put_record(record)
            sql.execute("INSERT INTO commits (cid) VALUES (?)", (str(previous),))
            if change["op"] == "register":
                row = ("model", "m", change["version"], str(change["cid"]))
                sql.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?)", (*row, now))
        sql.execute("INSERT INTO aliases VALUES ('model', 'm', 'champion', '1.9.0')")
        sql.execute(
            "INSERT INTO removed SELECT kind, name, version, cid FROM versions WHERE version = '0.1.0'"
        )
        sql.execute("DELETE FROM versions WHERE version = '0.1.0'")
        sql.execute("INSERT INTO runs (id, spec, state, created) VALUES ('r', '{}', 'done', 1.5)")
        sql.execute("INSERT INTO events VALUES ('r', 1, 2.5, '{}')")
    return path


def dump(path):
    with closing(sqlite3.connect(path)) as sql:
        return list(sql.iterdump()), sql.execute("PRAGMA user_version").fetchone()


def test_an_old_registry_is_opened_with_all_that_was_in_it(old_file, store):
    with closing(Database(old_file)) as database:
        names = SqliteNames(database, store)
        assert [(entry.version, entry.cid) for entry in names.entries()] == [
            (version, THINGS[version]) for version in ("1.9.0", "1.10.0", "2.0.0-rc.1")
        ]
        assert names.resolve("model", "m").version == "2.0.0-rc.1"
        assert names.resolve("model", "m:1").version == "1.10.0"
        assert names.resolve("model", "m@champion").created == START_S
        assert names.verify_history().commits == 6
        assert names.register("model", "m", None, Cid.of(b"next")).version == "2.1.0"
        assert names.at(START_S + 3).resolve("model", "m:0.1.0").cid == THINGS["0.1.0"]
        assert [tuple(row) for row in database.rows("SELECT run, seq, time FROM events")] == [("r", 1, 2.5)]
        assert database.rows("PRAGMA user_version")[0][0] == len(schema.MIGRATIONS)
        assert database.rows("PRAGMA foreign_key_check") == []
        assert database.rows("PRAGMA integrity_check")[0][0] == "ok"
    with closing(Database(old_file)) as database:
        assert len(SqliteNames(database, store).entries()) == 4


def test_old_tables_and_new_ones_are_the_same_tables(old_file, tmp_path):
    query = "SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
    told = []
    for path in (old_file, tmp_path / "new.db"):
        with closing(Database(path)) as database:
            told.append(
                [
                    (row["type"], row["name"], " ".join(row["sql"].replace(" IF NOT EXISTS", "").split()))
                    for row in database.rows(query)
                ]
            )
    assert told[0] == told[1]


def test_a_step_that_fails_leaves_the_old_file_as_it_was(old_file, monkeypatch):
    before = dump(old_file)
    broken = [*schema.MIGRATIONS, ("CREATE TABLE one (x TEXT) STRICT", "INSERT INTO nowhere VALUES (1)")]
    monkeypatch.setattr(schema, "MIGRATIONS", broken)
    with pytest.raises(Unavailable, match="nowhere"):
        Database(old_file)
    assert dump(old_file) == before


def test_a_registry_of_a_newer_holdfast_is_left_alone(old_file):
    with closing(sqlite3.connect(old_file)) as sql:
        sql.execute("PRAGMA user_version = 99")
    before = dump(old_file)
    with pytest.raises(Unsupported, match=r"registry\.db was written by a newer holdfast"):
        Database(old_file)
    assert dump(old_file) == before


_OPENER = """
import sys
from pathlib import Path
from holdfast.registry import Database

print("ready", flush=True)
sys.stdin.readline()
Database(Path(sys.argv[1])).close()
"""


def test_processes_that_open_an_old_registry_at_once_change_it_once(old_file, store):
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _OPENER, str(old_file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    with closing(Database(old_file)) as database:
        assert SqliteNames(database, store).verify_history().versions == 3


def test_a_file_of_another_program_is_named(tmp_path):
    with closing(sqlite3.connect(tmp_path / "registry.db")) as sql:
        sql.execute("CREATE TABLE versions (something TEXT)")
    with pytest.raises((Corrupt, Unavailable), match=r"registry\.db"):
        Database(tmp_path / "registry.db")
