"""Names: versions never change, aliases move by compare-and-swap, and every change is on record."""

from __future__ import annotations

import itertools
import re
import sqlite3

import pytest

from holdfast.errors import Conflict, Corrupt, InvalidInput, NotFound, Unavailable
from holdfast.registry import Database, NameEntry, Reference
from holdfast.storage.cid import DAG_CBOR, Cid
from holdfast.storage.local.collector import Collector
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
    "text",
    [
        "m",
        "m:1.0.0-rc.1",
        "m@champion",
        "a.b_c-d@X",
        "rows of May, cleaned:1.0.0",
        "dataset/m",
        "model/m@champion",
        "dataset/rows of May, cleaned:^1.0",
    ],
)
def test_a_reference_is_the_same_after_it_was_written(text):
    assert str(Reference.parse(text)) == text


def test_of_several_kinds_with_one_name_the_reference_says_which_is_meant(names):
    for kind, cid in (("dataset", A), ("model", B)):
        names.register(kind, "wine", "1.0.0", cid)
        names.set_alias(kind, "wine", "best", "1.0.0")
    for which in ("", ":1.0.0", ":^1.0", "@best"):
        assert names.resolve(None, f"wine{which}").cid == names.resolve(None, f"model/wine{which}").cid == B
        assert names.resolve(None, f"dataset/wine{which}").cid == A
        assert names.resolve("dataset", f"dataset/wine{which}").cid == A
        with pytest.raises(
            InvalidInput, match=f"^dataset/wine{re.escape(which)} is a dataset, and a model is wanted here"
        ):
            names.resolve("model", f"dataset/wine{which}")
    with pytest.raises(NotFound):
        names.resolve(None, "index/wine")
    for text in ("dataset/", "/wine", "run/wine", "dataset/model/wine"):
        with pytest.raises(InvalidInput):
            names.resolve(None, text)


def test_what_has_several_names_is_called_by_the_oldest_or_as_it_was_asked_for(names):
    for kind, name in (("model", "wine"), ("model", "a-later-one"), ("dataset", "b")):
        names.register(kind, name, None, A)
    names.set_alias("model", "a-later-one", "best", "1.0.0")
    assert names.name_of(A).name == "wine"
    assert names.name_of(A, "dataset").name == "b"
    assert names.name_of(B) is None
    assert [names.meant(None, ref)[1].name for ref in (A, str(A), "a-later-one@best")] == [
        "wine",
        "wine",
        "a-later-one",
    ]


def test_a_dataset_s_name_may_be_words_and_an_alias_is_one(names):
    names.register("dataset", "same data, other name", None, A)
    assert names.resolve("dataset", "same data, other name:1.0.0").cid == A
    with pytest.raises(InvalidInput, match="not a name of a model"):
        names.register("model", "dig its", None, A)  # it becomes part of URLs
    with pytest.raises(InvalidInput, match="not an alias"):
        names.set_alias("dataset", "same data, other name", "the best", "1.0.0")


@pytest.mark.parametrize("name", [str(A), str(Cid.of(b"data", version=0, codec=0x70))])
def test_a_cid_is_no_name_for_it_would_never_be_reached(names, name):
    names.register("model", "m", None, A)
    for call in (
        lambda: names.register("model", name, None, A),
        lambda: names.rename("model", "m", name),
    ):
        with pytest.raises(InvalidInput, match="the CID would be meant"):
            call()


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
