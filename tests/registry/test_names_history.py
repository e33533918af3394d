"""The history: what was tampered with is found, and named."""

from __future__ import annotations

import re
from typing import Any

import pytest

from holdfast.errors import Corrupt, NotFound
from holdfast.registry.names import Commit
from holdfast.registry.names.facts import facts_of_model
from holdfast.storage.cid import Cid

A, B = Cid.of(b"a"), Cid.of(b"b")


@pytest.fixture
def filled(names):
    names.register("model", "m", "1.0.0", A, facts_of_model(metrics={"accuracy": 0.5}, datasets=[B]))
    names.register("model", "m", "2.0.0", B)
    names.register("model", "gone", "1.0.0", B)
    names.unregister("model", "gone")
    names.set_alias("model", "m", "champion", "1.0.0")
    names.set_tag("model", "m", "1.0.0", "stage", "test")
    names.rename("model", "m", "n")
    return names


def test_a_history_that_nobody_touched_is_right(filled):
    check = filled.verify_history()
    assert (check.commits, check.versions) == (7, 2)
    assert check.newest == filled.history()[0].cid


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        (f"UPDATE versions SET cid = '{B}' WHERE version = '1.0.0'", f"versions has model n 1.0.0 {B}.*lacks model n 1.0.0 {A}"),
        ("DELETE FROM versions WHERE version = '2.0.0'", f"versions lacks model n 2.0.0 {B}"),
        ("UPDATE versions SET created = 5 WHERE version = '2.0.0'", "model n 2.0.0 with another time"),
        ("UPDATE versions SET sort_key = x'00' WHERE version = '2.0.0'", "model n 2.0.0 in a wrong place"),
        ("UPDATE aliases SET version = '2.0.0'", "aliases has model n champion 2.0.0, of which no commit tells"),
        ("DELETE FROM aliases", "aliases lacks model n champion 1.0.0"),
        ("UPDATE tags SET value = 'prod'", "tags has model n 1.0.0 stage prod"),
        ("UPDATE facts SET value_number = 0.9 WHERE value_number = 0.5", "facts has model n 1.0.0 metric.accuracy 0.9"),
        ("DELETE FROM facts WHERE key = 'dataset'", f"facts lacks model n 1.0.0 dataset {B}"),
        ("DELETE FROM removed WHERE name = 'gone'", f"removed lacks model gone 1.0.0 {B}"),
        ("UPDATE renamed SET target = 'x'", "renamed has model m x"),
        ("DELETE FROM names", "names lacks model n"),
        ("INSERT INTO versions VALUES (99, 'model', 'z', '1.0.0', 'x', 0, x'00')", "versions has model z 1.0.0 x"),
        ("DELETE FROM commits WHERE seq = 3", "the table of commits has .* where the links"),
        ("DELETE FROM commits WHERE seq = 1", "the table of commits has none where the links"),
        ("INSERT INTO commits SELECT 0, cid FROM commits LIMIT 1", "lead to no commit"),
        ("DELETE FROM commits WHERE seq = 7", "the names in .* are not what their commits tell"),
    ],
)  # fmt: skip
def test_a_table_that_was_changed_by_hand_is_named(filled, database, statement, named):
    with database.writing() as sql:
        sql.execute(statement)
    with pytest.raises(Corrupt, match=re.compile(named, re.DOTALL)):
        filled.verify_history()


def test_a_commit_that_was_changed_is_named(filled, tmp_path):
    third = filled.history()[-3].cid
    segment = next((tmp_path / "home" / "blocks" / "segments").iterdir())
    data = segment.read_bytes()
    at = data.rindex(b"gone", 0, data.index(b"unregister"))
    segment.write_bytes(data[:at] + b"GONE" + data[at + 4 :])
    for call in (filled.verify_history, filled.history, lambda: filled.at(0)):
        with pytest.raises(Corrupt, match=str(third)):
            call()


def test_a_commit_that_is_missing_is_named(filled, database):
    with database.writing() as sql:
        sql.execute("UPDATE commits SET cid = ? WHERE seq = 7", (str(Cid.of(b"nowhere", 0x71)),))
    with pytest.raises(NotFound, match=f"commit {Cid.of(b'nowhere', 0x71)} .* is missing"):
        filled.verify_history()


def test_a_record_that_is_no_commit_is_never_taken_for_one(filled, database, store):
    head = filled.history()[1].cid
    records: list[Any] = [
        {"kind": "model"},
        {"kind": "commit", "previous": head, "time_ms": 0, "change": {}},
        {"kind": "commit", "previous": "no CID", "time_ms": 0, "change": {"op": "register"}},
        {"kind": "commit", "previous": head, "time_ms": 0, "change": {"op": "explode"}},
        {"kind": "commit", "previous": head, "time_ms": 0, "change": {"op": "register", "kind": "model"}},
        {"kind": "commit", "previous": head, "time_ms": 0, "change": {
            "op": "register", "kind": "model", "name": "m", "version": "1.0.0", "cid": B}},
        [],
    ]  # fmt: skip
    for record in records:
        cid = store.put_record(record)
        with database.writing() as sql:
            sql.execute("UPDATE commits SET cid = ? WHERE seq = 7", (str(cid),))
        with pytest.raises(Corrupt, match=str(cid)):
            filled.verify_history()


def test_a_clock_that_was_set_back_does_not_hide_later_changes(names, store, database):
    names.register("model", "m", "1.0.0", A)
    head = names.history()[0].cid
    change = {"op": "alias", "kind": "model", "name": "m", "alias": "early", "version": "1.0.0", "was": None}
    cid = store.put_record({"kind": "commit", "previous": head, "time_ms": 5000, "change": change})
    with database.writing() as sql:
        sql.execute("INSERT INTO commits (cid) VALUES (?)", (str(cid),))
        sql.execute("INSERT INTO aliases VALUES ('model', 'm', 'early', '1.0.0')")
    assert names.verify_history().newest == cid
    assert names.at(5.0).resolve("model", "m@early").cid == A
    assert names.at(4.0).entries() == []


def test_commits_of_before_there_was_a_who_are_read(store):
    change = {"op": "register", "kind": "model", "name": "m", "version": "1.0.0", "cid": A}
    cid = store.put_record({"kind": "commit", "previous": None, "time_ms": 5000, "change": change})
    commit = Commit.from_record(cid, store.get_record(cid))
    assert (commit.who, commit.time, commit.change) == ("", 5.0, change)


def test_a_commit_is_the_same_behind_a_server(filled):
    for commit in filled.history():
        assert Commit.from_json(commit.to_json()) == commit
