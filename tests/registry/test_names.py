"""Names: versions never change, aliases move by compare-and-swap, and every change is on record."""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from holdfast.errors import Conflict, Corrupt, InvalidInput, NotFound, Unavailable
from holdfast.registry import Database, NameEntry, Reference, SqliteNames, open_registry
from holdfast.storage.cid import DAG_CBOR, Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.local.collector import Collector
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.local.pins import Pins

A, B, C = (Cid.of(text) for text in (b"a", b"b", b"c"))

# semver.org, item 11, and what lies around it: each is newer than the one before.
IN_ORDER = [
    "0.0.0",
    "0.0.1",
    "0.1.0",
    "1.0.0-0",
    "1.0.0-2",
    "1.0.0-10",
    "1.0.0--",
    "1.0.0-1a",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "1.0.1",
    "1.2.0",
    "1.10.0",
    "2.0.0",
    "10.0.0",
    "999999999.0.0",
]


# ------------------------------------------------------------------------------------------------- versions


def test_a_version_never_becomes_another_thing(names):
    names.register("model", "m", "1.0.0", A)
    with pytest.raises(Conflict, match=rf"model m:1\.0\.0 is {A} already"):
        names.register("model", "m", "1.0.0", B)
    assert names.resolve("model", "m:1.0.0").cid == A


def test_registering_twice_is_registering_once(names):
    first = names.register("model", "m", "1.0.0", A)
    assert names.register("model", "m", "1.0.0", A) == first
    assert len(names.history()) == 1


def test_kinds_do_not_share_their_names(names):
    names.register("model", "x", "1.0.0", A)
    names.register("dataset", "x", "1.0.0", B)
    assert (names.resolve("model", "x").cid, names.resolve("dataset", "x").cid) == (A, B)
    assert [entry.kind for entry in names.entries()] == ["dataset", "model"]
    assert [entry.cid for entry in names.entries("model")] == [A]


def test_a_version_that_is_not_given_is_the_next_one(names):
    assert names.register("model", "m", None, A).version == "1.0.0"
    assert names.register("model", "m", None, B).version == "1.1.0"
    assert names.register("model", "m", None, A).version == "1.0.0", "the same thing needs no second version"
    names.register("model", "m", "3.4.5", C)
    assert names.register("model", "m", None, Cid.of(b"d")).version == "3.5.0"
    names.register("model", "m", "7.0.0-rc.1", Cid.of(b"e"))
    assert names.register("model", "m", None, Cid.of(b"f")).version == "7.1.0"


def test_the_next_version_of_the_last_one_is_an_error_and_not_a_broken_entry(names):
    names.register("model", "m", "1.999999999.0", A)
    with pytest.raises(InvalidInput, match="not a version"):
        names.register("model", "m", None, B)
    assert [entry.version for entry in names.entries()] == ["1.999999999.0"]
    assert len(names.history()) == 1


def test_the_newest_version_is_the_newest_and_not_the_last_registered(names):
    for at in (7, 3, 21, 0, 14, 9, 1, 20, 2, 19, 4, 18, 5, 17, 6, 16, 8, 15, 10, 13, 11, 12):
        names.register("model", "m", IN_ORDER[at], Cid.of(IN_ORDER[at].encode()))
    assert [entry.version for entry in names.entries()] == IN_ORDER
    assert names.resolve("model", "m").version == IN_ORDER[-1]


@pytest.mark.parametrize(
    "version",
    [
        "",
        "1.0.0.0",
        "v1.0.0",
        "1.0.0-",
        "1.0.0-a..b",
        "1.0.0-.",
        "1.0.0-a.",
        "1.0.0+b",
        "01.0.0",
        "1.0.00",
        "1.0.0-01",
        "1.0.0-rc.01",
        "-1.0.0",
        " 1.0.0",
        "1.0.0\n",
        "1.0.0-a\n",
        "1.0.0 ",
        "\u0661.0.0",
        "1.0.0-é",
        "9999999999.0.0",
        "1.0.0-" + "a" * 65,
    ],
)
def test_a_version_that_has_no_place_in_the_order_is_refused(names, version):
    with pytest.raises(InvalidInput):
        names.register("model", "m", version, A)
    with pytest.raises(InvalidInput):
        Reference.parse(f"m:{version}")
    assert names.entries() == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "-a",
        "_a",
        " a",
        "a ",
        "a  b",
        "a ,b",
        "a,b",
        "a,",
        "a/b",
        "a@b",
        "a:b",
        "é",
        "a\n",
        "a\tb",
        "a" * 129,
        "../a",
        "a\0",
    ],
)
def test_a_name_that_could_be_something_else_is_refused(names, name):
    for kind in ("model", "dataset"):
        with pytest.raises(InvalidInput):
            names.register(kind, name, "1.0.0", A)
    names.register("model", "good", "1.0.0", A)
    with pytest.raises(InvalidInput):
        names.set_alias("model", "good", name, "1.0.0")


@pytest.mark.parametrize(
    "text",
    ["", "@", ":", "m@", "m:", "@a", ":1.0.0", "m@a@b", "m:1.0.0@a", "m@a:1.0.0", "m  m", "m@a b", "m @a"],
)
def test_a_reference_that_is_none_is_refused(names, text):
    with pytest.raises(InvalidInput):
        names.resolve("model", text)


@pytest.mark.parametrize(
    "text", ["m", "m:1.0.0-rc.1", "m@champion", "a.b_c-d@X", "rows of May, cleaned:1.0.0"]
)
def test_a_reference_is_the_same_after_it_was_written(text):
    assert str(Reference.parse(text)) == text


def test_a_dataset_s_name_may_be_words_and_an_alias_is_one(names):
    names.register("dataset", "same data, other name", None, A)
    assert names.resolve("dataset", "same data, other name:1.0.0").cid == A
    with pytest.raises(InvalidInput, match="not a name of a model"):
        names.register("model", "dig its", None, A)  # it becomes part of URLs
    with pytest.raises(InvalidInput, match="not an alias"):
        names.set_alias("dataset", "same data, other name", "the best", "1.0.0")


# -------------------------------------------------------------------------------------------------- removal


def test_a_removed_version_is_gone_with_its_aliases_and_nothing_else_is(names):
    names.register("dataset", "d", "1.0.0", A)
    names.register("dataset", "d", "2.0.0", B)
    names.register("model", "d", "1.0.0", A)
    names.set_alias("dataset", "d", "clean", "1.0.0")
    names.set_alias("dataset", "d", "best", "2.0.0")
    gone = names.unregister("dataset", "d", "1.0.0")
    assert [(entry.version, entry.cid, entry.aliases) for entry in gone] == [("1.0.0", A, ("clean",))]
    assert [(e.kind, e.version, e.aliases) for e in names.entries()] == [
        ("dataset", "2.0.0", ("best",)),
        ("model", "1.0.0", ()),
    ]
    with pytest.raises(NotFound, match=r"there is no dataset d:1\.0\.0; d has :2\.0\.0, @best"):
        names.resolve("dataset", "d:1.0.0")


def test_a_name_that_is_removed_whole_has_no_versions_left(names):
    for version, cid in (("1.0.0", A), ("2.0.0", B)):
        names.register("dataset", "d", version, cid)
    assert [entry.version for entry in names.unregister("dataset", "d")] == ["1.0.0", "2.0.0"]
    assert names.entries() == []
    for gone in (None, "1.0.0"):
        with pytest.raises(NotFound):
            names.unregister("dataset", "d", gone)


def test_a_removal_is_in_the_history_with_what_it_removed(names):
    names.register("dataset", "d", "1.0.0", A)
    names.set_alias("dataset", "d", "best", "1.0.0")
    names.unregister("dataset", "d")
    assert names.history()[0].change == {
        "op": "unregister",
        "kind": "dataset",
        "name": "d",
        "version": "1.0.0",
        "was": A,
        "aliases": ["best"],
    }
    assert names.history()[1].change["op"] == "alias"


def test_a_removed_version_never_comes_back_as_something_else(names):
    names.register("dataset", "d", "1.0.0", A)
    names.unregister("dataset", "d", "1.0.0")
    with pytest.raises(Conflict, match=rf"d:1\.0\.0 was {A} before it was removed"):
        names.register("dataset", "d", "1.0.0", B)
    assert names.register("dataset", "d", None, B).version == "1.1.0", "not the number that was removed"
    assert names.register("dataset", "d", "1.0.0", A).cid == A


def test_what_a_removed_name_kept_goes_with_the_next_collection_and_what_another_keeps_stays(names, store):
    kept, loose = (store.put_record({"kind": "dataset", "n": n}) for n in (1, 2))
    names.register("dataset", "d", "1.0.0", kept)
    names.register("dataset", "d", "2.0.0", loose)
    names.register("dataset", "other", "1.0.0", kept)
    collect(store)
    assert store.blocks.has(kept)
    assert store.blocks.has(loose)
    names.unregister("dataset", "d")
    collect(store)
    assert store.blocks.has(kept)
    assert not store.blocks.has(loose)
    assert len(names.history()) == 5


def collect(store) -> None:
    local = store.pins._local
    Collector(local, Pins(local), grace_s=0.0).collect()


def test_what_is_not_there_is_answered_with_what_is(names):
    with pytest.raises(NotFound, match="no model named 'digits'; there is none at all"):
        names.resolve("model", "digits")
    names.register("model", "digits", "1.0.0", A)
    names.register("model", "letters", "1.0.0", B)
    names.register("dataset", "rows", "1.0.0", B)
    names.set_alias("model", "digits", "champion", "1.0.0")
    with pytest.raises(NotFound, match=r"no model named 'digit'; there is digits, letters$"):
        names.resolve("model", "digit")
    for ref in ("digits:2.0.0", "digits@best"):
        with pytest.raises(NotFound, match=rf"no model {ref}; digits has :1\.0\.0, @champion$"):
            names.resolve("model", ref)


def test_an_entry_is_the_same_behind_a_server(names):
    names.register("model", "m", "1.0.0", A)
    entry = names.set_alias("model", "m", "champion", "1.0.0")
    assert entry.aliases == ("champion",)
    assert NameEntry.from_json(entry.to_json()) == entry


# -------------------------------------------------------------------------------------------------- aliases


def test_an_alias_moves_only_from_where_the_caller_saw_it(names):
    for version, cid in (("1.0.0", A), ("2.0.0", B)):
        names.register("model", "m", version, cid)
    with pytest.raises(Conflict, match=r"m@champion points to nothing, not to 1\.0\.0"):
        names.set_alias("model", "m", "champion", "2.0.0", expected="1.0.0")
    names.set_alias("model", "m", "champion", "1.0.0", expected=None)
    with pytest.raises(Conflict, match=r"points to 1\.0\.0, not to nothing"):
        names.set_alias("model", "m", "champion", "2.0.0", expected=None)
    names.set_alias("model", "m", "champion", "2.0.0", expected="1.0.0")
    assert names.resolve("model", "m@champion").cid == B
    names.set_alias("model", "m", "champion", "1.0.0")
    assert names.resolve("model", "m@champion").cid == A
    assert [entry.aliases for entry in names.entries()] == [("champion",), ()]


def test_an_alias_never_points_to_nothing(names):
    names.register("model", "m", "1.0.0", A)
    for name, version in (("m", "2.0.0"), ("n", "1.0.0")):
        with pytest.raises(NotFound):
            names.set_alias("model", name, "champion", version)
    assert names.history()[0].change["op"] == "register"


_RACER = """
import sys
from holdfast.errors import Conflict
from holdfast.registry import open_registry
from holdfast.storage.cid import Cid

home, me, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
store, names = open_registry(home)
print("ready", flush=True)
sys.stdin.readline()
for number in range(rounds):
    names.register("model", "m", None, Cid.of(f"{me}/{number}".encode()))
    try:
        names.set_alias("model", "m", f"lock-{number}", "1.0.0", expected=None)
        names.set_alias("model", "m", f"lock-{number}", f"1.0.0-{me}", expected="1.0.0")
        print("won", number, flush=True)
    except Conflict:
        pass
store.close()
"""


def start(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_of_several_processes_exactly_one_wins_and_no_change_is_lost(tmp_path):
    """Each opens the new home at once, too: the schema is made by whoever comes first."""
    racers, rounds = ["ann", "bob", "cyd", "dan"], 6
    running = [start(_RACER, tmp_path, racer, rounds) for racer in racers]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    store, names = open_registry(tmp_path)
    with closing(store):
        for version in ("1.0.0", *(f"1.0.0-{racer}" for racer in racers)):
            names.register("model", "m", version, Cid.of(version.encode()))
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        wins: list[str] = []
        for process in running:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            wins += out.split("\n")[:-1]
        assert sorted(wins) == sorted(f"won {number}" for number in range(rounds))
        entries = names.entries("model")
        assert len({entry.version for entry in entries}) == len({entry.cid for entry in entries})
        assert len(entries) == 1 + len(racers) + len(racers) * rounds
        history = names.history()
        assert len(history) == len(entries) + 2 * rounds
        names._database.close()


# -------------------------------------------------------------------------------------------------- history


def test_every_change_is_on_record_and_links_the_one_before(names, store):
    names.register("model", "m", "1.0.0", A)
    names.register("model", "m", "2.0.0", B)
    names.set_alias("model", "m", "champion", "1.0.0")
    names.set_alias("model", "m", "champion", "1.0.0")
    names.set_alias("model", "m", "champion", "2.0.0")
    with pytest.raises(Conflict):
        names.register("model", "m", "2.0.0", A)
    history = names.history()
    assert [commit.change for commit in reversed(history)] == [
        {"op": "register", "kind": "model", "name": "m", "version": "1.0.0", "cid": A},
        {"op": "register", "kind": "model", "name": "m", "version": "2.0.0", "cid": B},
        {"op": "alias", "kind": "model", "name": "m", "alias": "champion", "version": "1.0.0", "was": None},
        {
            "op": "alias",
            "kind": "model",
            "name": "m",
            "alias": "champion",
            "version": "2.0.0",
            "was": "1.0.0",
        },
    ]
    assert history[-1].previous is None
    for newer, older in itertools.pairwise(history):
        assert newer.previous == older.cid == store.put_record(store.get_record(older.cid))
        assert newer.time >= older.time


def test_a_history_that_was_tampered_with_is_not_told(names, tmp_path):
    names.register("model", "m", "1.0.0", A)
    cid = names._database.rows("SELECT cid FROM commits")[0]["cid"]
    segment = next((tmp_path / "home" / "blocks" / "segments").iterdir())
    data = segment.read_bytes()
    assert data.count(b"1.0.0") == 1
    segment.write_bytes(data.replace(b"1.0.0", b"6.6.6"))
    with pytest.raises(Corrupt, match=cid):
        names.history()


# ---------------------------------------------------------------------------------------------------- model


class NamesMachine(RuleBasedStateMachine):
    """The names against plain dicts, in any order of calls, with the registry opened anew now and then."""

    @initialize()
    def open(self):
        self.folder = tempfile.TemporaryDirectory()
        self.blocks = LocalStore(Path(self.folder.name) / "blocks")
        self.database = Database(Path(self.folder.name) / "registry.db")
        self.names = SqliteNames(self.database, ContentStore(self.blocks))
        self.versions: dict[tuple[str, str], dict[str, Cid]] = {}
        self.aliases: dict[tuple[str, str, str], str] = {}
        self.removed: dict[tuple[str, str, str], Cid] = {}
        self.changes = 0

    def teardown(self):
        if hasattr(self, "folder"):
            self.database.close()
            self.blocks.close()
            self.folder.cleanup()

    kinds = st.sampled_from(["model", "dataset"])
    some_names = st.sampled_from(["m", "n"])
    some_versions = st.sampled_from(["1.0.0", "1.0.0-rc.1", "0.9.0", "2.0.0"])
    some_cids = st.sampled_from([A, B, C])
    some_aliases = st.sampled_from(["champion", "best"])

    @rule(kind=kinds, name=some_names, version=some_versions | st.none(), cid=some_cids)
    def register(self, kind, name, version, cid):
        known = self.versions.setdefault((kind, name), {})
        try:
            entry = self.names.register(kind, name, version, cid)
        except Conflict:
            assert known.get(version, self.removed.get((kind, name, version))) != cid
            return
        assert entry.cid == cid
        assert version in (None, entry.version)
        assert known.get(entry.version, cid) == cid
        assert self.removed.get((kind, name, entry.version), cid) == cid
        if version is None and cid in known.values():
            assert entry.version in known
        self.changes += entry.version not in known
        known[entry.version] = cid

    @rule(
        kind=kinds,
        name=some_names,
        alias=some_aliases,
        version=some_versions,
        expected=some_versions | st.none(),
    )
    def move(self, kind, name, alias, version, expected):
        now = self.aliases.get((kind, name, alias))
        try:
            entry = self.names.set_alias(kind, name, alias, version, expected=expected)
        except NotFound:
            assert version not in self.versions.get((kind, name), {})
            return
        except Conflict:
            assert now != expected
            return
        assert now == expected
        assert alias in entry.aliases
        self.changes += now != version
        self.aliases[kind, name, alias] = version

    @rule(kind=kinds, name=some_names, version=some_versions | st.none())
    def remove(self, kind, name, version):
        known = self.versions.get((kind, name), {})
        wanted = [version] if version is not None else list(known)
        try:
            gone = self.names.unregister(kind, name, version)
        except NotFound:
            assert not set(wanted) & set(known)
            return
        assert {entry.version for entry in gone} == set(wanted)
        for each in wanted:
            self.removed[kind, name, each] = known.pop(each)
        self.aliases = {
            key: target
            for key, target in self.aliases.items()
            if key[:2] != (kind, name) or target not in wanted
        }
        self.changes += len(wanted)

    @rule()
    def reopen(self):
        self.database.close()
        self.database = Database(Path(self.folder.name) / "registry.db")
        self.names = SqliteNames(self.database, ContentStore(self.blocks))

    @invariant()
    def nothing_else_is_there(self):
        if not hasattr(self, "names"):
            return
        found = {(e.kind, e.name, e.version): e.cid for e in self.names.entries()}
        assert found == {
            (k, n, v): cid for (k, n), known in self.versions.items() for v, cid in known.items()
        }
        pointing = {(e.kind, e.name, a): e.version for e in self.names.entries() for a in e.aliases}
        assert pointing == self.aliases
        assert len(self.names.history()) == self.changes


TestNamesModel = NamesMachine.TestCase
TestNamesModel.settings = settings(max_examples=12, stateful_step_count=12, deadline=None)


# --------------------------------------------------------------------------------------------------- crashes

_WRITER = """
import sys
from holdfast.registry import open_registry
from holdfast.storage.cid import Cid

store, names = open_registry(sys.argv[1])
for number in range(10_000):
    entry = names.register("model", "m", None, Cid.of(f"{sys.argv[2]}/{number}".encode()))
    names.set_alias("model", "m", "newest", entry.version)
    print(entry.version, flush=True)
"""


def test_a_writer_killed_at_any_point_leaves_all_that_it_acknowledged_and_nothing_half(tmp_path):
    acknowledged = set()
    for attempt in range(3):
        process = start(_WRITER, tmp_path, attempt)
        assert process.stdout is not None
        for _ in range(5 + 3 * attempt):
            acknowledged.add(process.stdout.readline().strip())
        os.kill(process.pid, signal.SIGKILL)
        acknowledged |= {line for line in process.communicate()[0].split("\n")[:-1] if line}
    store, names = open_registry(tmp_path)
    with closing(store):
        entries = names.entries()
        assert acknowledged <= {entry.version for entry in entries}
        assert len(entries) <= len(acknowledged) + 3
        newest = names.resolve("model", "m@newest")
        assert newest.version in {entry.version for entry in entries[-2:]}
        history = names.history()
        registered = [c.change for c in history if c.change["op"] == "register"]
        assert {(c["version"], c["cid"]) for c in registered} == {(e.version, e.cid) for e in entries}
        assert len(registered) == len(entries)
        names.register("model", "m", None, A)
        names._database.close()


def test_a_failed_transaction_does_not_spoil_the_next_one(database, names):
    names.register("model", "m", "1.0.0", A)

    def change(*statements: str) -> None:
        with database.writing() as sql:
            for statement in statements:
                sql.execute(statement)

    for last in ("INSERT INTO versions SELECT * FROM versions", "UPDATE versions SET cid = NULL"):
        with pytest.raises(sqlite3.IntegrityError):
            change("DELETE FROM commits", "DELETE FROM aliases", last)
    with pytest.raises(Unavailable, match="nowhere"):
        change("DELETE FROM versions", "SELECT * FROM nowhere")
    assert names.resolve("model", "m").cid == A
    names.register("model", "m", "2.0.0", B)


def test_a_file_that_is_no_registry_is_named(tmp_path):
    (tmp_path / "registry.db").write_bytes(b"not a database, whatever its name says" * 100)
    with pytest.raises(Corrupt, match=r"registry\.db is not a holdfast registry"):
        Database(tmp_path / "registry.db")


def test_a_closed_registry_says_so(database, names):
    database.close()
    with pytest.raises(Conflict, match="closed"):
        names.entries()
    with pytest.raises(Conflict, match="closed"):
        names.register("model", "m", None, A)


def test_a_record_of_a_change_is_a_record(names, store):
    names.register("model", "m", "1.0.0", A)
    cid = Cid.parse(names._database.rows("SELECT cid FROM commits")[0]["cid"])
    assert cid.codec == DAG_CBOR
    assert store.get_record(cid)["kind"] == "commit"


def test_what_is_named_survives_a_collection_and_so_does_its_history(names, store):
    local = store.blocks.inner
    collector = Collector(local, Pins(local), grace_s=0.0)
    first = store.put_record({"kind": "model", "weights": store.add_bytes(b"w" * 100_000, pin=False)})
    second = store.put_record({"kind": "model", "parent": first})
    nobody = store.add_bytes(b"not named", pin=False)
    names.register("model", "m", "1.0.0", second)
    names.set_alias("model", "m", "champion", "1.0.0")
    assert collector.collect().blocks == 1
    assert not local.has(nobody)
    assert bytes(store.open(store.get_record(first)["weights"])) == b"w" * 100_000
    assert [commit.change["op"] for commit in names.history()] == ["alias", "register"]
    assert collector.why(first) == [f"model m:1.0.0: {second} → {first}"]
