"""Datasets by name: what is stored, named, versioned, shared and removed, and what keeps it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from holdfast.config import load_settings
from holdfast.errors import Conflict, InvalidInput, NotFound
from holdfast.registry.dataset_manager import DatasetManager
from holdfast.registry.run_table import RunSpec, RunTable
from holdfast.storage.cid import Cid
from holdfast.storage.datasets.dataset import Dataset
from holdfast.storage.local.collector import Collector
from holdfast.storage.local.pins import Pins
from holdfast.storage.opening import write_peers


@pytest.fixture
def datasets(store, names):
    with DatasetManager(store, names) as manager:
        yield manager


@pytest.fixture
def frame():
    return pd.DataFrame({"n": np.arange(500), "kind": [f"k{n % 4}" for n in range(500)]})


def collected(store) -> int:
    local = store.pins._local
    return Collector(local, Pins(local), grace_s=0.0).collect().blocks


# --------------------------------------------------------------------------------------- storing, loading


def test_the_same_rows_are_the_same_dataset_under_every_name(datasets, frame):
    first = datasets.store_dataset(frame, name="frame")
    assert datasets.store_dataset(frame.copy(), name="same data, other name").cid == first.cid
    assert datasets.store_dataset(pa.Table.from_pandas(frame), name="frame").cid == first.cid
    assert [(e.name, e.version) for e in datasets.list_datasets()] == [
        ("frame", "1.0.0"),
        ("same data, other name", "1.0.0"),
    ]


def test_every_way_to_name_a_dataset_leads_to_it(datasets, names, frame):
    old = datasets.store_dataset(frame, name="frame", version="1.0.0")
    new = datasets.store_dataset(frame.head(10), name="frame")
    names.set_alias("dataset", "frame", "small", "1.1.0")
    for ref, wanted in (
        ("frame", new),
        ("frame:1.0.0", old),
        ("frame@small", new),
        (str(old.cid), old),
        (old.cid, old),
        (f"ipfs://{old.cid}", old),
    ):
        assert datasets.open(ref).cid == wanted.cid
        assert datasets.load_dataset(ref).cid == wanted.cid
    assert datasets.load_dataset("frame", "1.0.0").cid == old.cid
    assert datasets.load_dataset(cid=str(old.cid)).cid == old.cid
    assert datasets.get_dataset_cid("frame") == new.cid
    assert datasets.get_dataset_cid("frame", "1.0.0") == old.cid


def test_a_dataset_is_given_as_what_is_asked_for(datasets, frame):
    stored = datasets.store_dataset(frame, name="frame", metadata={"by": "me"})
    assert isinstance(datasets.load_dataset("frame"), Dataset)
    pd.testing.assert_frame_equal(datasets.load_dataset("frame", format="pandas"), frame, check_dtype=False)
    assert datasets.load_dataset("frame", format="arrow").equals(stored.to_arrow())
    loaded, known = datasets.load_dataset("frame", return_metadata=True)
    assert loaded.cid == stored.cid
    assert (known["by"], known["cid"], known["rows"]) == ("me", str(stored.cid), {"train": 500})
    assert known["names"] == ["frame:1.0.0"]
    with pytest.raises(InvalidInput, match="not as 'numpy'"):
        datasets.load_dataset("frame", format="numpy")


def test_files_are_stored_as_what_they_are_converted_to(datasets, tmp_path, frame):
    path = tmp_path / "data.txt"
    frame.to_csv(path, index=False)
    stored = datasets.store_dataset(dataset_path=path, format="csv", convert_to="arrow", chunk_size=1024)
    assert (stored.format, stored.chunk_size, stored.rows) == ("arrow-v2", 1024, 500)
    parquet = datasets.store_dataset(frame)
    assert parquet.format == "parquet-v2"
    assert datasets.diff(stored.cid, parquet).same


def test_what_can_not_be_stored_or_loaded_is_refused_before_any_work(datasets, frame, tmp_path):
    with pytest.raises(InvalidInput, match="either the rows"):
        datasets.store_dataset()
    with pytest.raises(InvalidInput, match="either the rows"):
        datasets.store_dataset(frame, tmp_path)
    with pytest.raises(InvalidInput, match="not a name"):
        datasets.store_dataset(frame, name="a/b")
    with pytest.raises(InvalidInput, match="not a version"):
        datasets.store_dataset(frame, name="a", version="1")
    with pytest.raises(InvalidInput, match=r"of no name: give the name, too \(name=, --name\)"):
        datasets.store_dataset(frame, version="1.0.0")
    with pytest.raises(InvalidInput, match="is a reference"):
        datasets.store_dataset(frame, name="a@best")
    with pytest.raises(InvalidInput, match="name is text, not 5"):
        datasets.store_dataset(frame, name=5)
    with pytest.raises(InvalidInput, match="version is text, not 1"):
        datasets.store_dataset(frame, name="a", version=1)
    with pytest.raises(InvalidInput, match="metadata is a mapping"):
        datasets.store_dataset(frame, metadata=[1])
    for wrong in (datasets.load_dataset, datasets.history, lambda ref: datasets.filter(ref, "x > 0")):
        with pytest.raises(InvalidInput, match="name or CID is text, not 5"):
            wrong(5)
    with pytest.raises(NotFound):
        datasets.store_dataset(dataset_path=tmp_path / "nothing.csv")
    assert datasets.list_datasets() == []
    for arguments in ({}, {"name": "a", "cid": str(Cid.of(b"x"))}):
        with pytest.raises(InvalidInput, match="either a name or a CID"):
            datasets.load_dataset(**arguments)
    with pytest.raises(NotFound, match="no dataset named 'a'; there is none"):
        datasets.load_dataset("a")
    with pytest.raises(InvalidInput, match=r"has no version 1.0.0: give a name, or no version"):
        datasets.load_dataset(cid=Cid.of(b"x"), version="1.0.0")
    with pytest.raises(InvalidInput, match="''"):
        datasets.store_dataset(frame, convert_to="")
    with pytest.raises(InvalidInput, match="not a record"):
        datasets.load_dataset(cid=Cid.of(b"nothing"))


def test_a_version_never_becomes_other_rows(datasets, frame):
    datasets.store_dataset(frame, name="frame", version="1.0.0")
    with pytest.raises(Conflict, match=r"frame:1\.0\.0 is"):
        datasets.store_dataset(frame.head(3), name="frame", version="1.0.0")


def test_what_has_no_name_is_pinned_and_what_has_one_is_kept_by_it(datasets, store, frame):
    unnamed = datasets.store_dataset(frame.head(5))
    named = datasets.store_dataset(frame.head(7), name="seven")
    assert [pin.cid for pin in store.pins.pins()] == [unnamed.cid]
    collected(store)
    assert datasets.open(unnamed.cid).to_arrow().num_rows == 5
    assert datasets.open(named.cid).to_arrow().num_rows == 7


def test_what_is_stored_is_published_before_it_is_named(store, names, frame):
    told = []

    def publish(root, *, pin=False):
        told.append((root, pin, [entry.cid for entry in names.entries()]))

    datasets = DatasetManager(store, names, publish=publish)
    named = datasets.store_dataset(frame, name="frame")
    unnamed = datasets.append(named, frame.head(1))
    assert told == [(named.cid, False, []), (unnamed.cid, True, [named.cid])]


def test_a_home_of_its_own_is_opened_and_closed(tmp_path, frame):
    with DatasetManager(home=tmp_path / "home") as datasets:
        stored = datasets.store_dataset(frame, name="frame")
    with pytest.raises((Conflict, ValueError)):
        datasets.list_datasets()
    with DatasetManager(home=tmp_path / "home") as again:
        assert again.load_dataset("frame").cid == stored.cid
        assert again.load_dataset("frame").to_arrow().num_rows == 500


def test_it_is_found_where_people_look_for_it_without_loading_what_is_heavy():
    code = (
        "import sys, holdfast.storage\n"
        "from holdfast.storage import DatasetManager\n"
        "assert DatasetManager.__module__ == 'holdfast.registry.dataset_manager'\n"
        "print(*{m.partition('.')[0] for m in sys.modules})"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"pyarrow", "torch", "pandas", "ray"}.isdisjoint(loaded)


# ------------------------------------------------------------------------------------------------ versions


def test_versions_of_a_dataset_and_their_history(datasets, frame):
    first = datasets.store_dataset(frame, name="frame")
    second = datasets.append("frame", [{"n": 500, "kind": "new"}], name="frame")
    third = datasets.filter("frame", "n >= 100", name="frame")
    fourth = datasets.edit(third.cid, {"kind": "one"}, name="frame", version="2.0.0")
    history = datasets.history("frame")
    assert [step.cid for step in history] == [fourth.cid, third.cid, second.cid, first.cid]
    assert [step.names for step in history] == [
        ("frame:2.0.0",),
        ("frame:1.2.0",),
        ("frame:1.1.0",),
        ("frame:1.0.0",),
    ]
    assert [step.rows for step in history] == [401, 401, 501, 500]
    assert [step.provenance.get("operation") for step in history] == ["edit", "filter", "append", None]
    found = datasets.diff("frame:1.0.0", "frame:1.1.0", key="n")
    assert (found.added, found.removed, found.changed) == (1, 0, 0)
    assert datasets.diff(third, "frame", key="n").changed == 401


def test_a_train_test_split_comes_from_a_name_a_dataset_or_rows(datasets, frame):
    stored = datasets.store_dataset(frame, name="frame")
    made = datasets.create_train_test_split("frame", "cut", 0.25, random_state=1, stratify="kind")
    assert {split: made.rows_in(split) for split in made.splits} == {"train": 375, "test": 125}
    assert made.to_pandas("test")["kind"].value_counts().nunique() <= 2
    assert made.provenance["source"] == stored.cid
    assert datasets.load_dataset("cut").cid == made.cid
    for source in (stored, stored.cid, frame):
        again = datasets.create_train_test_split(source, test_size=0.25, random_state=1, stratify="kind")
        assert again.cid == made.cid


# ------------------------------------------------------------------------------------- sharing, forgetting


def test_sharing_says_how_others_get_it_and_keeps_it(datasets, store, frame, own_home):
    stored = datasets.store_dataset(frame, name="frame")
    shared = datasets.share_dataset("frame", "1.0.0")
    assert shared.to_json() == {
        "cid": str(stored.cid),
        "uri": f"ipfs://{stored.cid}",
        "gateway_url": None,
        "pin": f"holdfast pin add {stored.cid}",
    }
    assert [pin.cid for pin in store.pins.pins()] == [stored.cid]
    write_peers(
        load_settings(own_home).home,
        [],
        node_id="n",
        node_url="http://127.0.0.1:9",
        master="http://127.0.0.1:8",
    )
    assert datasets.share_dataset(stored.cid).gateway_url == f"http://127.0.0.1:9/ipfs/{stored.cid}"
    with pytest.raises(NotFound):
        datasets.share_dataset("nothing")


def test_a_removed_dataset_goes_with_the_next_collection(datasets, store, frame):
    datasets.store_dataset(frame, name="frame")
    other = datasets.store_dataset(frame.head(3), name="frame")
    gone = datasets.delete_dataset("frame", "1.0.0")
    assert [(entry.name, entry.version) for entry in gone] == [("frame", "1.0.0")]
    assert collected(store) > 0
    with pytest.raises(NotFound):
        store.get_record(gone[0].cid)
    assert datasets.load_dataset("frame").cid == other.cid
    assert [entry.version for entry in datasets.delete_dataset("frame")] == ["1.1.0"]
    assert datasets.list_datasets() == []
    with pytest.raises(NotFound, match="no dataset named 'frame'"):
        datasets.delete_dataset("frame")


def test_what_a_run_or_a_newer_version_refers_to_outlives_its_name(datasets, store, database, frame):
    used = datasets.store_dataset(frame, name="used")
    code = store.put_record({"kind": "code"})
    RunTable(database, store).create(
        RunSpec(code=code, data=used.cid, config={}, seed=0, workers=1, threads_per_worker=1)
    )
    parent = datasets.store_dataset(frame.head(50), name="old")
    datasets.append("old", frame.head(1), name="new")
    datasets.delete_dataset("used")
    datasets.delete_dataset("old")
    collected(store)
    assert datasets.open(used.cid).to_arrow().num_rows == 500
    assert datasets.open(parent.cid).to_arrow().num_rows == 50


def test_only_versions_can_be_removed(datasets, names, frame):
    stored = datasets.store_dataset(frame, name="frame")
    names.set_alias("dataset", "frame", "best", "1.0.0")
    with pytest.raises(InvalidInput, match="is an alias"):
        datasets.delete_dataset("frame@best")
    with pytest.raises(NotFound):
        datasets.delete_dataset(str(stored.cid))
    with pytest.raises(NotFound):
        datasets.delete_dataset("frame", "3.0.0")
    assert len(datasets.list_datasets()) == 1
