import io
from contextlib import closing

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from holdfast.errors import Corrupt, InvalidInput, NotFound
from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.dataset import open_dataset, store_dataset
from holdfast.storage.exchange.fetcher import Fetcher, FetchingStore, Provider
from holdfast.storage.local.local_store import LocalStore

DIGITS = "bafyreicfsimxf5f7hsoctuwy6pghbqpsr2ilqck4uin6pi42prkeqtbwue"


def columns(rows=10, start=0):
    numbers = np.arange(start, start + rows)
    return {
        "id": numbers,
        "score": (numbers / 3).astype(np.float32),
        "even": numbers % 2 == 0,
        "name": np.array([f"row ä{i}" for i in numbers], dtype=object),
        "image": np.arange(rows * 6, dtype=np.uint8).reshape(rows, 2, 3),
    }


def test_the_digits_do_not_get_another_cid(store):
    from holdfast.training.examples.digits import load_digits

    assert str(store_dataset(store, load_digits(), rows_per_shard=180).cid) == DIGITS


def test_the_same_rows_do_not_get_two_cids(tmp_path, store):
    table = pa.table({"id": pa.array(range(100)), "name": pa.array([f"n{i}" for i in range(100)])})
    wanted = store_dataset(store, table, rows_per_shard=30).cid
    parquet = io.BytesIO()
    pq.write_table(table, parquet)
    numbered = pa.schema([field.with_metadata({"PARQUET:field_id": "7"}) for field in table.schema])
    padded = pa.concat_tables([table.slice(90), table, table.slice(0, 5)])
    same = [
        table.replace_schema_metadata({"written": "today"}),
        pa.concat_tables([table.slice(0, 7), table.slice(7, 50), table.slice(57)]),
        padded.slice(10, 100),
        pq.read_table(io.BytesIO(parquet.getvalue())),
        pa.Table.from_arrays(table.columns, schema=numbered),
    ]
    assert [store_dataset(store, each, rows_per_shard=30).cid for each in same] == [wanted] * len(same)
    with closing(LocalStore(tmp_path / "elsewhere")) as elsewhere:
        assert store_dataset(ContentStore(elsewhere), {"train": table}, rows_per_shard=30).cid == wanted


def test_numpy_arrays_do_not_get_two_cids_for_their_memory_layout(store):
    data = columns()
    wanted = store_dataset(store, data).cid
    odd = {
        "id": np.repeat(data["id"], 2)[::2],
        "score": data["score"].copy(),
        "even": data["even"],
        "name": data["name"],
        "image": np.asfortranarray(data["image"]),
    }
    assert store_dataset(store, odd).cid == wanted
    odd["image"] = np.ascontiguousarray(data["image"].transpose(2, 1, 0)).transpose(2, 1, 0)
    assert store_dataset(store, odd).cid == wanted


def test_a_change_that_matters_does_change_the_cid(store):
    table = pa.table({"id": pa.array(range(10), pa.int64())})
    cids = [
        store_dataset(store, table).cid,
        store_dataset(store, table, rows_per_shard=5).cid,
        store_dataset(store, table, metadata={"source": "x"}).cid,
        store_dataset(store, {"test": table}).cid,
        store_dataset(store, table.cast(pa.schema([("id", pa.int32())]))).cid,
        store_dataset(store, table.rename_columns(["key"])).cid,
        store_dataset(store, table.slice(1)).cid,
        store_dataset(store, pa.table({"id": pa.array([*range(9), None], pa.int64())})).cid,
    ]
    assert len(set(cids)) == len(cids)


def test_rows_come_back_as_they_were(store):
    data = columns(25)
    frame = pd.DataFrame({name: values for name, values in data.items() if name != "image"})
    arrow = pa.table(
        {
            "i": pa.array([1, None, 3]),
            "list": pa.array([[1, 2], [], None]),
            "struct": pa.array([{"a": 1}, {"a": None}, None]),
            "time": pa.array([0, 1, 2], pa.timestamp("us", "UTC")),
            "bytes": pa.array([b"", b"\0", None], pa.binary()),
            "decimal": pa.array([1, 2, 3], pa.int32()).cast(pa.decimal128(12, 2)),
            "word": pa.array(["a", "b", "a"]).dictionary_encode(),
            "nan": pa.array([float("nan"), -0.0, float("inf")]),
        }
    )
    for rows_per_shard in (1, 7, 100):
        numpy_set = store_dataset(store, data, rows_per_shard=rows_per_shard)
        got = numpy_set.to_arrow()
        assert numpy_set.rows == 25
        for name, values in data.items():
            column = got.column(name).combine_chunks()
            back = column.to_numpy_ndarray() if name == "image" else column.to_numpy(zero_copy_only=False)
            np.testing.assert_array_equal(back, values)
        pandas_set = store_dataset(store, frame, rows_per_shard=rows_per_shard)
        pd.testing.assert_frame_equal(pandas_set.to_pandas(), frame, check_dtype=False)
        arrow_set = store_dataset(store, arrow, rows_per_shard=rows_per_shard)
        back = arrow_set.to_arrow()
        assert back.schema.equals(arrow.schema)
        assert str(back.to_pylist()) == str(arrow.to_pylist())
        assert list(arrow_set.columns) == arrow.column_names


def test_a_dataset_found_by_its_cid_is_the_same(store):
    made = store_dataset(
        store,
        {
            "train": columns(7),
            "test": columns(3),
            "none": pa.table(store_dataset(store, columns(1)).to_arrow()).slice(1),
        },
        rows_per_shard=2,
        metadata={"license": "CC0", "notes": ["a", 1, None]},
    )
    found = open_dataset(store, made.cid)
    assert found == made
    assert (found.rows, found.rows_in("train"), found.rows_in("test"), found.rows_in("none")) == (10, 7, 3, 0)
    assert [shard.rows for shard in found.shards("train")] == [2, 2, 2, 1]
    assert found.metadata == {"license": "CC0", "notes": ["a", 1, None]}
    assert found.to_arrow("none").schema.equals(found.to_arrow("test").schema)
    assert len(found.to_pandas("none")) == 0
    with pytest.raises(NotFound, match="no split 'valid'; it has none, test, train"):
        found.to_arrow("valid")


REFUSED = {
    "no rows": (lambda: pa.table({"a": pa.array([], pa.int64())}), "without rows"),
    "no columns": (lambda: {"train": {}}, "without rows"),
    "no splits": (dict, "without rows"),
    "only empty splits": (lambda: {"a": pa.table({"x": pa.array([], pa.int8())})}, "without rows"),
    "the same column twice": (
        lambda: pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]),
        "same name: a",
    ),
    "the same pandas column twice": (
        lambda: pd.DataFrame([[1, 2]], columns=["a", "a"]),
        "[Dd]uplicate|same name",
    ),
    "columns of unequal length": (lambda: {"a": np.zeros(3), "b": np.zeros(4)}, "a 3, b 4"),
    "splits with other columns": (
        lambda: {"x": {"a": np.zeros(1)}, "y": {"b": np.zeros(1)}},
        "other columns",
    ),
    "splits with other types": (
        lambda: {"x": {"a": np.zeros(1)}, "y": {"a": np.zeros(1, np.int8)}},
        "split 'y' has other columns",
    ),
    "a list": (lambda: [1, 2], "not list"),
    "lists as columns": (lambda: {"a": [1, 2]}, "not list"),
    "a split of nothing": (lambda: {"train": None}, "not NoneType"),
    "arrays and lists": (lambda: {"a": np.zeros(2), "b": [1, 2]}, "not dict"),
    "a number as an array": (lambda: {"a": np.array(1.0)}, "Arrow table"),
    "complex numbers": (lambda: {"a": np.zeros(2, complex)}, "Arrow table"),
    "objects": (lambda: {"a": np.array([object(), object()])}, "Arrow table"),
    "mixed pandas objects": (lambda: pd.DataFrame({"a": [1, "x", object()]}), "Arrow table"),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_dataset_is_refused_with_the_reason(store, blocks, make, reason):
    with pytest.raises(InvalidInput, match=reason):
        store_dataset(store, make())
    assert list(blocks.multihashes()) == []


def test_impossible_options_are_refused(store):
    with pytest.raises(InvalidInput, match="rows_per_shard"):
        store_dataset(store, columns(), rows_per_shard=0)
    with pytest.raises(InvalidInput, match="metadata"):
        store_dataset(store, columns(), metadata={"when": object()})


def test_another_cid_is_not_opened_as_a_dataset(store):
    with pytest.raises(InvalidInput, match="not a record"):
        open_dataset(store, store.add_bytes(b"x"))
    with pytest.raises(InvalidInput, match="not a record"):
        open_dataset(store, store.add_files({"a": b"x"}))
    with pytest.raises(InvalidInput, match="a model"):
        open_dataset(store, store.put_record({"kind": "model"}))
    with pytest.raises(InvalidInput, match="another record"):
        open_dataset(store, store.put_record([1]))
    with pytest.raises(InvalidInput, match="format 'parquet-v9'"):
        open_dataset(store, store.put_record({"kind": "dataset", "format": "parquet-v9"}))
    with pytest.raises(Corrupt, match="lacks a field"):
        open_dataset(store, store.put_record({"kind": "dataset", "format": "parquet-plain-v1"}))
    with pytest.raises(NotFound):
        open_dataset(store, Cid.of(b"missing", 0x71))


def test_a_shard_that_is_not_what_the_manifest_says_is_refused(store):
    made = store_dataset(store, columns(4), rows_per_shard=2)
    manifest = store.get_record(made.cid)
    for cid, reason in (
        (store.add_bytes(b"no parquet at all"), "not a Parquet file"),
        (made.shards("train")[0].cid, "states 3"),
    ):
        manifest["splits"]["train"] = [{"cid": cid, "rows": 3, "bytes": 5}]
        with pytest.raises(Corrupt, match=reason):
            open_dataset(store, store.put_record(manifest)).to_arrow()


def test_reading_one_split_does_not_fetch_the_others(tmp_path, blocks, start_node):
    with closing(LocalStore(tmp_path / "other")) as other:
        there = ContentStore(other)
        made = store_dataset(there, {"train": columns(50), "test": columns(9, 100)}, rows_per_shard=5)
        node = start_node(VerifyingStore(other, source="the other disk"))
        fetcher = Fetcher(lambda: [Provider(node.url)])
        with closing(FetchingStore(blocks, fetcher)) as fetching:
            here = open_dataset(ContentStore(fetching), made.cid)
            assert node.asked == [str(made.cid)]
            assert here.to_arrow("test").equals(made.to_arrow("test"))
            wanted = {str(made.cid), *(str(shard.cid) for shard in made.shards("test"))}
            assert sorted(node.asked) == sorted(wanted)
            here.read_shard(here.shards("train")[3])
            assert sorted(node.asked) == sorted({*wanted, str(made.shards("train")[3].cid)})


def test_any_parquet_reader_reads_the_shards_and_sees_who_wrote_them(store, tmp_path):
    data = columns(6)
    made = store_dataset(store, data, rows_per_shard=4)
    for number, shard in enumerate(made.shards("train")):
        path = tmp_path / f"{number}.parquet"
        assert store.get(shard.cid, path) == shard.size_bytes == path.stat().st_size
        file = pq.ParquetFile(path)
        assert file.metadata.created_by == "holdfast parquet-plain-v1"
        assert file.metadata.num_row_groups == 1
        assert pq.read_table(path).equals(made.read_shard(shard))
        file.close()
    frame = pd.read_parquet(tmp_path / "0.parquet", columns=["id", "name"])
    assert list(frame["id"]) == [0, 1, 2, 3]
    assert list(frame["name"]) == list(data["name"][:4])


def test_text_that_looks_like_the_writers_name_is_not_replaced(store):
    name = "parquet-cpp-arrow version 99"
    table = pa.table({name: pa.array([name, "created by " + name])})
    made = store_dataset(store, table)
    assert made.to_arrow().equals(table)
    file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(store.open(made.shards("train")[0].cid))))
    assert file.metadata.created_by == "holdfast parquet-plain-v1"
