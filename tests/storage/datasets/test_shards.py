import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from holdfast.errors import Corrupt, InvalidInput, NotFound
from holdfast.storage.block_store import VerifyingStore, bring_near
from holdfast.storage.content import ContentStore
from holdfast.storage.datasets.dataset import open_dataset
from holdfast.storage.datasets.schema import logical_schema
from holdfast.storage.datasets.shards.arrow_groups import ArrowGroups
from holdfast.storage.datasets.shards.shard import ColumnStatistics, RowGroup, Shard
from holdfast.storage.datasets.shards.shard_format import new_encoder, shard_profile, stored_format
from holdfast.storage.datasets.shards.shard_reader import ShardReader
from holdfast.storage.datasets.writer import DatasetWriter
from holdfast.storage.exchange.fetcher import Fetcher, FetchingStore, Provider
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.stored_file import StoredFile
from tests.storage.datasets.example_columns import COLUMNS, tensors

FORMATS = ["parquet", "arrow"]


def written(store, table, format="parquet", chunk_size=64):  # noqa: A002
    with DatasetWriter(store, table.schema, format=format, chunk_size=chunk_size) as writer:
        writer.write("train", table)
        return writer.finish()


def numbers(rows=2000):
    random = np.random.default_rng(0)
    return pa.table(
        {
            "id": np.arange(rows),
            "x": random.random(rows),
            "text": [f"text {number} of a row" for number in random.integers(0, 1 << 30, rows)],
            "v": tensors(random.random((rows, 4, 8)).astype(np.float32)),
        }
    )


def parts_of(column):
    yield "whole", column
    yield "a slice", column[1:4]
    yield "several groups", pa.concat_arrays([column] * 60)[3:291]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", COLUMNS)
def test_no_value_of_any_type_is_lost(store, name, format):  # noqa: A002
    for what, column in parts_of(COLUMNS[name]):
        table = pa.table({"c": column, "i": pa.array(range(len(column)))})
        made = written(store, table, format)
        got = made.to_arrow()
        got.validate(full=True)
        assert got.schema.equals(table.schema), what
        assert str(got.to_pylist()) == str(table.to_pylist()), what
        some = made.to_arrow(columns=["c"])
        assert str(some.to_pylist()) == str(table.select(["c"]).to_pylist()), what
        assert made.to_arrow(columns=["i", "c"]).schema.names == ["i", "c"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", COLUMNS)
def test_rows_do_not_make_other_bytes_when_they_come_one_by_one(store, name, format):  # noqa: A002
    column = pa.concat_arrays([COLUMNS[name]] * 6)[2:29]
    table = pa.table({"c": column, "i": pa.array(range(len(column)))})
    wanted = written(store, table, format).cid
    with DatasetWriter(store, table.schema, format=format, chunk_size=64) as writer:
        for row in range(len(table)):
            writer.write("train", table.slice(row, 1))
        assert writer.finish().cid == wanted


def test_what_lies_under_nulls_does_not_change_an_arrow_shard(store):
    def with_hidden(values):
        valid = pa.array([True, False, True]).buffers()[1]
        integers = pa.Array.from_buffers(pa.int32(), 3, [valid, pa.py_buffer(np.array(values, np.int32))])
        offsets = pa.py_buffer(np.array([0, 1, 1 + values[1], 2 + values[1]], np.int32))
        text = pa.Array.from_buffers(
            pa.string(), 3, [valid, offsets, pa.py_buffer(b"abcdefghijklmnopqrstuvwxyz")]
        )
        inside = pa.StructArray.from_arrays(
            [integers, text], names=["i", "t"], mask=pa.array([False, True, False])
        )
        return pa.table({"i": integers, "s": inside, "l": pa.array([[1], None, []])})

    made = [written(store, with_hidden(values), "arrow") for values in ([1, 2, 3], [1, 9, 3])]
    text = [row["s"]["t"] for row in made[0].to_arrow().to_pylist() if row["s"]]
    assert text == ["a", "d"]
    first = made[0].to_arrow().column("i")
    assert first.equals(made[1].to_arrow().column("i"))
    same = with_hidden([1, 2, 3])
    rebuilt = pa.table({"i": [1, None, 3], "s": same["s"].to_pylist(), "l": same["l"]}, schema=same.schema)
    assert written(store, rebuilt, "arrow").cid == made[0].cid


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("format", FORMATS)
def test_tensors_come_back_without_a_copy_of_their_own(store, dtype, format):  # noqa: A002
    values = np.arange(300 * 12).astype(dtype).reshape(300, 3, 4)
    made = written(store, pa.table({"t": tensors(values)}), format, 1000)
    got = made.to_arrow().column("t").combine_chunks()
    np.testing.assert_array_equal(got.to_numpy_ndarray(), values)
    none = pa.table({"t": tensors(values)}).slice(0, 0)
    with DatasetWriter(store, none.schema, format=format, chunk_size=1000) as writer:
        writer.write("train", none)
        writer.write("train", pa.table({"t": tensors(values)}))
        writer.write("train", none)
        assert writer.finish().cid == made.cid


def test_any_parquet_reader_reads_the_shards(store):
    made = written(store, numbers(), chunk_size=20_000)
    for shard in made.shards("train"):
        file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(store.open(shard.cid))))
        assert file.metadata.created_by == "holdfast parquet-v2"
        assert file.metadata.num_row_groups == len(shard.groups)
        assert file.metadata.serialized_size < shard.size_bytes
        table = file.read()
        assert table.column("id").equals(made.read_shard(shard).column("id"))
        assert table.schema.field("v").type == pa.binary(4 * 8 * 4)


def test_any_arrow_reader_reads_the_shards(store):
    made = written(store, numbers(), "arrow", 20_000)
    for shard in made.shards("train"):
        with pa.ipc.open_file(pa.py_buffer(store.open(shard.cid))) as file:
            assert file.num_record_batches == len(shard.groups)
            assert file.read_all().equals(made.read_shard(shard))


def test_text_that_looks_like_the_writers_name_is_not_replaced(store):
    name = "parquet-cpp-arrow version 99"
    table = pa.table({name: pa.array([name, "created by " + name])})
    made = written(store, table)
    assert made.to_arrow().equals(table)
    file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(store.open(made.shards("train")[0].cid))))
    assert file.metadata.created_by == "holdfast parquet-v2"


def test_columns_whose_names_look_like_paths_are_not_mixed_up(store):
    table = pa.table({"a": pa.array([{"b": 1}]), "a.b": [2], "": [3], "list.element": [4], "c": [[5]]})
    for format in FORMATS:  # noqa: A001
        made = written(store, table, format)
        assert made.to_arrow().equals(table)
        for name in table.schema.names:
            assert made.to_arrow(columns=[name]).equals(table.select([name]))


@pytest.mark.parametrize("format", FORMATS)
def test_groups_are_where_the_manifest_says(store, format):  # noqa: A002
    table = numbers(4000)
    made = written(store, table, format, 10_000)
    assert len(made.shards("train")) > 1
    row = 0
    for shard in made.shards("train"):
        reader = made.open_shard(shard)
        assert shard.rows == sum(group.rows for group in shard.groups)
        assert shard.size_bytes == store.stat(shard.cid).size
        for index, group in enumerate(shard.groups):
            batch = reader.read_group(index)
            assert pa.Table.from_batches([batch]).equals(table.slice(row, group.rows))
            assert reader.size_bytes(index) <= group.size_bytes
            assert 0 < reader.size_bytes(index, ["id"]) < reader.size_bytes(index, ["id", "v"])
            row += group.rows
    assert row == len(table)
    first = made.open_shard(made.shards("train")[0])
    assert first.read_group(0, []).num_rows == made.shards("train")[0].groups[0].rows
    with pytest.raises(InvalidInput, match="no group 99"):
        first.read_group(99)
    with pytest.raises(InvalidInput, match="no column 'z'; there are id, x"):
        first.read_group(0, ["z"])


def test_what_is_known_of_a_row_group_is_true(store):
    table = pa.table(
        {
            "i": pa.array([3, None, 1, 2]),
            "u": pa.array([(1 << 64) - 1, 0, None, None], pa.uint64()),
            "f": [1.5, float("nan"), -2.0, 0.0],
            "t": ["b", None, "ä", "a"],
            "ts": pa.array([5, 1, None, 2], pa.timestamp("us", "UTC")),
            "b": [True, False, None, True],
            "d": pa.array([4, 5, 6, None], pa.duration("s")),
            "n": pa.nulls(4, pa.int8()),
            "l": [[1], [], None, [2]],
            "long": ["x" * 65, "y", "z", None],
            "inf": [float("inf"), 1.0, 2.0, 3.0],
        }
    )
    made = written(store, table, chunk_size=100_000)
    (shard,) = made.shards("train")
    wanted = {
        "i": ColumnStatistics(1, 1, 3),
        "u": ColumnStatistics(2, 0, (1 << 64) - 1),
        "f": ColumnStatistics(0, -2.0, 1.5),
        "t": ColumnStatistics(1, "a", "ä"),
        "ts": ColumnStatistics(1, 1, 5),
        "b": ColumnStatistics(1, False, True),
        "d": ColumnStatistics(1, 4, 6),
        "n": ColumnStatistics(4, None, None),
        "l": ColumnStatistics(1, None, None),
        "long": ColumnStatistics(1, None, "z"),
        "inf": ColumnStatistics(0, 1.0, None),
    }
    assert shard.statistics == wanted
    reader = made.open_shard(shard)
    in_file = {name: known for name, known in wanted.items() if name not in ("l", "f", "inf")}
    assert reader.statistics(0) == in_file
    assert reader.statistics(0, ["i", "l"]) == {"i": wanted["i"]}
    arrow = written(store, table, "arrow", 100_000)
    assert arrow.shards("train")[0].statistics == wanted
    assert arrow.open_shard(arrow.shards("train")[0]).statistics(0) == {}


@pytest.mark.parametrize("format", FORMATS)
def test_no_shard_has_to_be_copied_because_it_begins_as_others_do(store, format):  # noqa: A002
    made = written(store, numbers(40_000), format, 100_000)
    shards = made.shards("train")
    assert len(shards) > 2
    for shard in shards:
        assert bytes(store.open(shard.cid)[:4]) in (b"PAR1", b"ARRO")
        file = StoredFile(store, shard.cid)
        assert len(file.cids(0, file.size)) > 3
        assert file.unverified(0, file.size) is not None


@pytest.mark.parametrize("format", FORMATS)
def test_threads_that_share_a_reader_do_not_get_each_others_rows(store, format):  # noqa: A002
    table = numbers(4000)
    made = written(store, table, format, 50_000)
    shard = made.shards("train")[0]
    reader = made.open_shard(shard)
    wanted = [made.open_shard(shard).read_group(index) for index in range(len(shard.groups))]

    def read(task):
        index = task % len(shard.groups)
        columns = ["id", "text"] if task % 3 else None
        batch = reader.read_group(index, columns)
        return batch.equals(wanted[index] if columns is None else wanted[index].select(columns))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(200)))


# ----------------------------------------------------------------------------------------------- broken


def stored_shard(store, data, rows, groups):
    cid = store.add_stream(io.BytesIO(data), pin=False)
    return Shard(cid, rows, len(data), groups)


def rewritten(store, shard):
    """The shard, as if the writer were one for which readers go beyond the bytes of a column."""
    data = bytes(store.open(shard.cid)).replace(b"holdfast parquet-v2", b"parquet-mr version ")
    return stored_shard(store, data, shard.rows, shard.groups)


@pytest.mark.parametrize("format", FORMATS)
def test_a_shard_that_is_not_what_the_manifest_says_is_refused(store, format):  # noqa: A002
    table = numbers(500)
    made = written(store, table, format, 20_000)
    right, other = made.shards("train")[0], written(store, numbers(700).select(["id"]), format, 2000)
    schema = made.schema
    groups = right.groups
    longer = (RowGroup(groups[0].rows + 1, groups[0].offset, groups[0].size_bytes), *groups[1:])
    moved = (RowGroup(groups[0].rows, groups[0].offset + 8, groups[0].size_bytes - 8), *groups[1:])
    wrong = {
        "no file of this format": stored_shard(store, b"no such thing" * 100, 5, (RowGroup(5, 0, 1300),)),
        "another dataset's": Shard(right.cid, right.rows, right.size_bytes, other.shards("train")[0].groups),
        "shorter": Shard(right.cid, right.rows, right.size_bytes - 1, groups),
        "with other rows": Shard(right.cid, right.rows + 1, right.size_bytes, longer),
        "elsewhere": Shard(right.cid, right.rows, right.size_bytes, moved),
        **({"of another writer": rewritten(store, right)} if format == "parquet" else {}),
        "a directory": Shard(store.add_files({"a": b"x"}), right.rows, right.size_bytes, groups),
        "a record": Shard(store.put_record([1]), right.rows, right.size_bytes, groups),
    }
    for shard in wrong.values():
        reader = ShardReader(store, shard, schema, format=stored_format(format))
        with pytest.raises(Corrupt, match=str(shard.cid)):
            reader.read_group(0)
    types = pa.schema([("id", pa.string()), *list(schema)[1:]])
    names = pa.schema([("key", pa.int64()), *list(schema)[1:]])
    for wrong_schema in (types, *([names] if format == "parquet" else []), pa.schema(list(schema)[:2])):
        reader = ShardReader(store, right, logical_schema(wrong_schema), format=stored_format(format))
        with pytest.raises(Corrupt, match=str(right.cid)):
            reader.read_group(0)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", range(4))
def test_bytes_of_anybodys_making_are_never_an_answer_and_never_a_crash(store, format, seed):  # noqa: A002
    table = pa.table(
        {"i": pa.array(range(50)), "t": [f"t{n}" for n in range(50)], "l": [[n] for n in range(50)]}
    )
    made = written(store, table, format, 400)
    shard = made.shards("train")[0]
    data = bytearray(store.open(shard.cid))
    random = np.random.default_rng(seed)
    for _ in range(60):
        at = int(random.integers(len(data)))
        before, data[at] = data[at], int(random.integers(256))
        broken = stored_shard(store, bytes(data), shard.rows, shard.groups)
        reader = ShardReader(store, broken, made.schema, format=made.format)
        for columns in (None, ["t"]):
            for index in range(len(shard.groups)):
                try:
                    batch = reader.read_group(index, columns)
                except Corrupt as error:
                    assert str(broken.cid) in str(error)  # noqa: PT017
                else:
                    batch.validate(full=True)
                    assert batch.num_rows == shard.groups[index].rows
        data[at] = before


@pytest.mark.parametrize("format", FORMATS)
def test_a_rotten_block_is_an_error_that_names_the_shard(store, blocks, format):  # noqa: A002
    made = written(store, numbers(3000), format, 100_000)
    shard = made.shards("train")[0]
    file = StoredFile(store, shard.cid)
    group = shard.groups[2]
    cid = file.cids(group.offset + group.size_bytes // 2, group.offset + group.size_bytes // 2 + 1)[0]
    place = blocks.extent(cid)
    with place.path.open("r+b") as segment:
        segment.seek(place.offset + place.length // 2)
        byte = segment.read(1)[0]
        segment.seek(-1, io.SEEK_CUR)
        segment.write(bytes([byte ^ 1]))
    with pytest.raises(Corrupt, match=str(shard.cid)):
        made.read_shard(shard)
    assert made.open_shard(shard).read_group(0).num_rows == shard.groups[0].rows


def test_a_missing_shard_is_missing_and_not_corrupt(store, tmp_path):
    with closing(LocalStore(tmp_path / "elsewhere")) as elsewhere:
        made = written(ContentStore(elsewhere), numbers(50))
        shard = made.shards("train")[0]
    reader = ShardReader(store, shard, made.schema, format=made.format)
    with pytest.raises(NotFound, match=f"shard {shard.cid}"):
        reader.read_group(0)


# ---------------------------------------------------------------------------------------------- fetching


@pytest.mark.parametrize("format", FORMATS)
def test_some_columns_are_read_without_fetching_the_others(tmp_path, blocks, start_node, format):  # noqa: A002
    random = np.random.default_rng(0)
    rows = 20_000
    table = pa.table(
        {
            "small": random.integers(0, 1 << 60, rows),
            "large": tensors(random.random((rows, 100))),
            "text": [f"{number}" for number in random.integers(0, 1 << 60, rows)],
        }
    )
    with closing(LocalStore(tmp_path / "other")) as other:
        made = written(ContentStore(other), table, format, 4 << 20)
        node = start_node(VerifyingStore(other, source="the other disk"))
        with closing(FetchingStore(blocks, Fetcher(lambda: [Provider(node.url)]))) as fetching:
            here = open_dataset(ContentStore(fetching), made.cid)
            assert here.to_arrow(columns=["small"]).equals(table.select(["small"]))
            leaves = {
                str(cid)
                for shard in made.shards("train")
                for cid in StoredFile(made.store, shard.cid).cids(0, shard.size_bytes)
            }
            sizes = {cid: blocks.extent(found).length for cid, found in located(blocks, made)}
            fetched = sum(sizes[cid] for cid in set(node.asked) & leaves)
            assert len(node.asked) == len(set(node.asked))
            assert fetched < made.size_bytes * (0.05 if format == "parquet" else 0.55)


def located(blocks, made):
    for shard in made.shards("train"):
        for cid in StoredFile(made.store, shard.cid).cids(0, shard.size_bytes):
            if blocks.has(cid):
                yield str(cid), cid


def test_what_was_brought_near_is_not_fetched_again(tmp_path, blocks, start_node):
    with closing(LocalStore(tmp_path / "other")) as other:
        made = written(ContentStore(other), numbers(100_000), chunk_size=2 << 20)
        node = start_node(VerifyingStore(other, source="the other disk"))
        with closing(FetchingStore(blocks, Fetcher(lambda: [Provider(node.url)]))) as fetching:
            here = open_dataset(ContentStore(fetching), made.cid)
            shard = here.shards("train")[0]
            reader = here.open_shard(shard)
            some = reader.missing(1, ["id", "x"])
            assert 0 < sum(some.values()) < shard.groups[1].size_bytes
            bring_near(fetching, list(some), shard.cid)
            asked = len(node.asked)
            reader.read_group(1, ["id", "x"])
            assert reader.missing(1, ["id", "x"]) == {}
            assert len(node.asked) == asked
            assert reader.missing(1)
            reader.read_group(1)
            assert len(node.asked) == len(set(node.asked))


def test_what_an_arrow_shard_has_in_its_messages_is_found_without_reading_the_columns(store):
    table = numbers(300)
    encoder = new_encoder("arrow-v2", table.schema)
    (batch,) = table.combine_chunks().to_batches()
    encoder.write(batch)
    stream, size, groups = encoder.finish()
    cid = store.add_stream(stream, profile=shard_profile("arrow-v2"), pin=False)
    shard = Shard(cid, 300, size, groups)
    arrow = ArrowGroups(StoredFile(store, cid), shard, table.schema)
    parts = [arrow.ranges(0, [column]) for column in range(4)]
    data = [sum(end - start for start, end in ranges[1:]) for ranges in parts]
    assert data[0] == data[1] == 300 * 8
    assert data[3] == 300 * 4 * 8 * 4
