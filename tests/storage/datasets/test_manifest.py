import copy
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import Corrupt, InvalidInput, NotFound
from holdfast.storage.block_store import MAX_BLOCK_BYTES
from holdfast.storage.cid import DAG_CBOR, RAW, Cid
from holdfast.storage.datasets.dataset import open_dataset
from holdfast.storage.datasets.manifest import (
    MAX_SHARDS_IN_LIST,
    Manifest,
    ShardLists,
    SplitSummary,
    shards_from_plain,
)
from holdfast.storage.datasets.shards.shard import ColumnStatistics, RowGroup, Shard
from holdfast.storage.datasets.writer import DatasetWriter
from holdfast.storage.formats import dag_cbor

CID = Cid.of(b"x", DAG_CBOR)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
BOUNDS = st.none() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False, allow_infinity=False)
STATISTICS = st.builds(ColumnStatistics, st.integers(0, 1000), BOUNDS, BOUNDS)


def shard_of(number, rows=10, groups=1, statistics=None):
    each = RowGroup(rows, 4, 100)
    many = tuple(RowGroup(rows, 4 + 100 * at, each.size_bytes) for at in range(groups))
    return Shard(Cid.of(b"%d" % number, RAW), rows * groups, 100 * groups + 50, many, statistics or {})


def stored_list(store, shards):
    lists, links = ShardLists(), []
    for shard in shards:
        record = lists.add(shard)
        links += [] if record is None else [store.put_record(record)]
    record = lists.rest()
    return [*links, *([] if record is None else [store.put_record(record)])]


def manifest_of(store, shards, **changed):
    summary = SplitSummary(
        sum(shard.rows for shard in shards),
        sum(shard.size_bytes for shard in shards),
        len(shards),
        tuple(stored_list(store, shards)),
    )
    values = {
        "format": "parquet-v2",
        "chunk_size": 4096,
        "schema": pa.schema([("a", pa.int64()), ("b", pa.string())]),
        "splits": {"train": summary},
        "metadata": {},
        "provenance": {},
        "parent": None,
    }
    return Manifest(**{**values, **changed})


@settings(deadline=None)
@given(
    metadata=st.dictionaries(st.text(), PLAIN, max_size=3),
    provenance=st.dictionaries(st.text(), PLAIN, max_size=3),
    splits=st.dictionaries(st.text(min_size=1), st.integers(1, 10), min_size=1, max_size=3),
    parent=st.sampled_from([None, CID]),
)
def test_nothing_of_a_manifest_is_lost(metadata, provenance, splits, parent):
    manifest = Manifest(
        format="arrow-v2",
        chunk_size=4096,
        schema=pa.schema([("a", pa.int64())]),
        splits={split: SplitSummary(rows, 7, 1, (CID,)) for split, rows in splits.items()},
        metadata=metadata,
        provenance=provenance,
        parent=parent,
    )
    data = dag_cbor.encode(manifest.to_plain())
    assert Manifest.from_plain(CID, dag_cbor.decode(data)) == manifest


@settings(deadline=None)
@given(st.lists(st.lists(STATISTICS, min_size=2, max_size=2), max_size=5), st.integers(1, 3))
def test_nothing_of_a_shard_is_lost(statistics, groups):
    columns = ["a", "b"]
    shards = [
        shard_of(number, groups=groups, statistics=dict(zip(columns, both, strict=True)))
        for number, both in enumerate(statistics)
    ]
    lists = ShardLists()
    assert [lists.add(shard) for shard in shards] == [None] * len(shards)
    record = lists.rest()
    if record is None:
        assert not shards
        return
    found = shards_from_plain(CID, dag_cbor.decode(dag_cbor.encode(record)), columns)
    assert found == shards
    assert [shard.statistics for shard in found] == [shard.statistics for shard in shards]


def test_tens_of_thousands_of_shards_do_not_outgrow_a_block(store):
    known = {name: ColumnStatistics(0, "m" * 64, "n" * 64) for name in ("a", "b")}
    shards = [shard_of(number, groups=16, statistics=known) for number in range(10_500)]
    manifest = manifest_of(store, shards)
    links = manifest.splits["train"].lists
    assert len(links) >= len(shards) // MAX_SHARDS_IN_LIST
    cid = store.put_record(manifest.to_plain())
    assert len(store.blocks.get(cid)) < 10_000
    assert max(len(store.blocks.get(link)) for link in links) < MAX_BLOCK_BYTES
    made = open_dataset(store, cid)
    assert made.rows == 10_500 * 160
    assert made.shards("train") == tuple(shards)
    assert made.shards("train")[-1].statistics == known


def test_statistics_of_many_columns_do_not_outgrow_a_block(store):
    columns = [f"column {number}" for number in range(900)]
    known = {name: ColumnStatistics(0, "m" * 64, "n" * 64) for name in columns}
    shards = [shard_of(number, statistics=known) for number in range(40)]
    links = stored_list(store, shards)
    assert len(links) > 1
    found = [shard for link in links for shard in shards_from_plain(link, store.get_record(link), columns)]
    assert found == shards


def test_another_cid_is_not_opened_as_a_dataset(store):
    with pytest.raises(InvalidInput, match="not a record"):
        open_dataset(store, store.add_bytes(b"x"))
    with pytest.raises(InvalidInput, match="not a record"):
        open_dataset(store, store.add_files({"a": b"x"}))
    with pytest.raises(InvalidInput, match="is not a dataset but a model"):
        open_dataset(store, store.put_record({"kind": "model"}))
    others: list[Any] = [[1], {}, {"kind": 7}, "text", None]
    for other in others:
        with pytest.raises(InvalidInput, match="is not a dataset but another record"):
            open_dataset(store, store.put_record(other))
    with pytest.raises(InvalidInput, match="format 'parquet-v9'; this version reads parquet-v2 and arrow-v2"):
        open_dataset(store, store.put_record({"kind": "dataset", "format": "parquet-v9"}))
    with pytest.raises(InvalidInput, match="dataset-shards"):
        open_dataset(store, stored_list(store, [shard_of(1)])[0])
    with pytest.raises(NotFound):
        open_dataset(store, Cid.of(b"missing", DAG_CBOR))


WRONG: list[Any] = [None, True, -1, "x", [], {}, b"x", 1.5]
WRONG_IN_SPLITS: list[Any] = [None, -1, "x", [1], {}, True]
WRONG_IN_SHARDS: list[Any] = [None, -1, "x", [1], {}, [[1, 2]], [[0, 4, 100]], [["a", 4, 100]]]
FIELDS = ("chunk_size", "columns", "splits", "metadata", "provenance", "parent")


@pytest.mark.parametrize("name", FIELDS)
def test_a_manifest_with_a_broken_field_is_corrupt(store, name):
    plain = manifest_of(store, [shard_of(1)]).to_plain()
    allowed: dict[str, list[Any]] = {"parent": [None], "metadata": [{}], "provenance": [{}]}
    for wrong in WRONG:
        if not any(type(wrong) is type(fine) for fine in allowed.get(name, [])):
            cid = store.put_record({**plain, name: wrong})
            with pytest.raises(Corrupt, match=str(cid)):
                open_dataset(store, cid)
    if name != "parent":
        del plain[name]
        cid = store.put_record(plain)
        with pytest.raises(Corrupt, match=str(cid)):
            open_dataset(store, cid)


def test_a_manifest_with_a_broken_split_is_corrupt(store):
    plain = manifest_of(store, [shard_of(1)]).to_plain()
    split = plain["splits"]["train"]
    for key in ("rows", "bytes", "shards", "lists"):
        for wrong in WRONG_IN_SPLITS:
            cid = store.put_record({**plain, "splits": {"train": {**split, key: wrong}}})
            with pytest.raises(Corrupt, match=str(cid)):
                open_dataset(store, cid)
    for splits in ({}, {"train": 1}, {"": split}, {"train": {**split, "rows": 0, "shards": 0, "lists": []}}):
        cid = store.put_record({**plain, "splits": splits})
        with pytest.raises(Corrupt, match=str(cid)):
            open_dataset(store, cid)


def test_a_broken_list_of_shards_is_corrupt(store):
    manifest = manifest_of(store, [shard_of(1), shard_of(2)])
    plain = manifest.to_plain()
    link = plain["splits"]["train"]["lists"][0]
    right = store.get_record(link)
    broken = []
    for key in ("cid", "rows", "bytes", "groups", "statistics"):
        for wrong in WRONG_IN_SHARDS:
            record = copy.deepcopy(right)
            record["shards"][1][key] = wrong
            broken.append(record)
    overlapping = copy.deepcopy(right)
    overlapping["shards"][0]["groups"] = [[5, 4, 100], [5, 50, 50]]
    broken += [
        overlapping,
        {**right, "shards": right["shards"][:1]},
        {**right, "kind": "model"},
        [],
        {"shards": []},
    ]
    for record in broken:
        plain["splits"]["train"]["lists"] = [store.put_record(record)]
        made = open_dataset(store, store.put_record(plain))
        assert made.rows == 20
        with pytest.raises(Corrupt, match="list"):
            made.shards("train")
    plain["splits"]["train"]["lists"] = [store.add_bytes(b"no record")]
    with pytest.raises(Corrupt, match="not a record"):
        open_dataset(store, store.put_record(plain)).to_arrow()


def test_there_is_nothing_of_a_machine_in_a_manifest(store):
    with DatasetWriter(store, pa.schema([("a", pa.int64())])) as writer:
        writer.write("train", pa.table({"a": [1]}))
        plain = store.get_record(writer.finish().cid)
    assert sorted(plain) == [
        *("chunk_size", "columns", "format", "kind", "metadata", "parent", "provenance", "splits"),
    ]
    assert plain["columns"] == [{"name": "a", "type": "int64"}]
