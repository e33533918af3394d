import itertools
import os
import subprocess
import sys
import tempfile
from contextlib import closing, contextmanager

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.errors import Corrupt, InvalidInput, NotFound, Unavailable
from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.content import ContentStore
from holdfast.storage.datasets.dataset import open_dataset, store_dataset
from holdfast.storage.datasets.schema import MEDIA_KEY, media_of
from holdfast.storage.datasets.writer import DatasetWriter
from holdfast.storage.exchange.fetcher import Fetcher, FetchingStore, Provider
from holdfast.storage.formats.unixfs import profile_named
from holdfast.storage.local.collector import Collector
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.local.pins import Pins
from tests.storage.datasets.example_columns import COLUMNS, ROWS, tensors
from tests.storage.tiny_disk import tiny_disk

FORMATS = ["parquet", "arrow"]
GOLDEN = {
    "parquet": "bafyreidatokgkwywukokwbllplcavq5xefsm6nrs6nx3abrlr2jjyr4ivi",
    "arrow": "bafyreiakh7hlqoti7kh7qbvhjjlm7t35icngnp3zxd5ckuilelxfal2e6y",
}
"""Of :func:`every_type`. They never change: a dataset that somebody named yesterday has the same name tomorrow."""


def every_type(rows=200):
    columns = {name: pa.concat_arrays([column] * (rows // ROWS)) for name, column in COLUMNS.items()}
    return pa.table({"row": pa.array(range(rows)), **columns})


def people(rows, seed=1):
    random = np.random.default_rng(seed)
    words = np.array([f"w{number}" for number in range(5000)])
    return pa.table(
        {
            "id": np.arange(rows),
            "score": random.random(rows),
            "age": random.integers(0, 100, rows).astype(np.int32),
            "text": [" ".join(row) for row in words[random.integers(0, 5000, (rows, 25))]],
            "vector": tensors(random.random((rows, 32)).astype(np.float32)),
            "known": random.random(rows) > 0.5,
        }
    )


def written(store, table, format="parquet", chunk_size=None):  # noqa: A002
    with DatasetWriter(store, table.schema, format=format, chunk_size=chunk_size) as writer:
        writer.write("train", table)
        return writer.finish()


@contextmanager
def new_store(folder):
    with closing(LocalStore(folder)) as local:
        yield ContentStore(local)


# ------------------------------------------------------------------------------------- one name for one thing


@pytest.mark.parametrize("format", FORMATS)
def test_another_version_of_a_library_does_not_give_other_cids(store, format):  # noqa: A002
    assert str(written(store, every_type(), format, 1000).cid) == GOLDEN[format]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=4, unique=True),
    cuts=st.lists(st.integers(0, 300), max_size=8),
    format=st.sampled_from(FORMATS),
)
def test_the_batches_in_which_rows_come_do_not_change_the_cid(store, names, cuts, format):  # noqa: A002
    table = pa.table({name: pa.concat_arrays([COLUMNS[name]] * 60) for name in names})
    wanted = written(store, table, format, 500).cid
    bounds = [0, *sorted(cuts), 300]
    with DatasetWriter(store, table.schema, format=format, chunk_size=500) as writer:
        for start, end in itertools.pairwise(bounds):
            writer.write("train", table.slice(start, end - start))
        assert writer.finish().cid == wanted


@pytest.mark.parametrize("format", FORMATS)
def test_the_kind_of_table_that_rows_come_in_does_not_change_the_cid(tmp_path, store, format):  # noqa: A002
    table = pa.table(
        {
            "id": pa.array(range(300)),
            "name": pa.array([f"n{number % 17}" for number in range(300)]),
            "score": pa.array([number / 3 for number in range(300)]),
        }
    )
    wanted = store_dataset(store, table, format=format, chunk_size=500).cid
    large = table.set_column(1, "name", table["name"].cast(pa.large_string()))
    words = table.set_column(1, "name", table["name"].dictionary_encode())
    views = table.set_column(1, "name", table["name"].cast(pa.string_view()))
    strict = pa.schema([field.with_nullable(False).with_metadata({"a": "b"}) for field in table.schema])
    frame = table.to_pandas()
    frame.index = pd.Index(range(1000, 1300), name="number")
    table.to_pandas().to_parquet(tmp_path / "rows.parquet", row_group_size=77)
    same = {
        "large_string": large,
        "dictionary": words,
        "views": views,
        "metadata": table.cast(strict).replace_schema_metadata({"written": "today"}),
        "pandas": frame,
        "NumPy": {name: table[name].to_numpy() for name in table.column_names},
        "a split": {"train": table},
        "a reader": table.to_reader(max_chunksize=13),
        "rows": (row for row in table.to_pylist()),
    }
    for what, data in same.items():
        assert store_dataset(store, data, format=format, chunk_size=500).cid == wanted, what
    path = tmp_path / "rows.parquet"
    assert store_dataset(store, path=path, format=format, chunk_size=500).cid == wanted


def test_of_the_store_only_its_hash_changes_the_cid(tmp_path):
    cids = []
    stores = (
        ("unixfs-v1-2025", "sha2-256"),
        ("unixfs-v0-2015", "sha2-256"),
        ("kubo-v1-raw", "blake3"),
        ("unixfs-v1-2025", "blake3"),
    )
    for number, (profile, hash_name) in enumerate(stores):
        with closing(LocalStore(tmp_path / str(number))) as local:
            store = ContentStore(local, profile=profile_named(profile, hash=hash_name))
            made = written(store, people(500), chunk_size=10_000)
            cids.append(made.cid)
            assert made.to_arrow().equals(people(500))
    assert cids[0] == cids[1] != cids[2] == cids[3]


def test_what_matters_does_change_the_cid(store):
    table = pa.table({"id": pa.array(range(100), pa.int64())})
    made = store_dataset(store, table)
    marked = pa.schema([pa.field("id", pa.int64(), metadata={MEDIA_KEY: b"image"})])
    cids = [
        made.cid,
        store_dataset(store, table, format="arrow").cid,
        store_dataset(store, table, chunk_size=100).cid,
        store_dataset(store, table, metadata={"source": "x"}).cid,
        store_dataset(store, table, provenance={"source": "x"}).cid,
        store_dataset(store, table, parent=made.cid).cid,
        store_dataset(store, {"test": table}).cid,
        store_dataset(store, table.cast(pa.schema([("id", pa.int32())]))).cid,
        store_dataset(store, table.cast(marked)).cid,
        store_dataset(store, table.rename_columns(["key"])).cid,
        store_dataset(store, table.slice(1)).cid,
        store_dataset(store, table.take(list(reversed(range(100))))).cid,
        store_dataset(store, pa.table({"id": pa.array([*range(99), None], pa.int64())})).cid,
    ]
    assert len(set(cids)) == len(cids)


# -------------------------------------------------------------------------------------------- what it holds


@pytest.mark.parametrize("format", FORMATS)
def test_a_dataset_found_by_its_cid_is_the_same(store, format):  # noqa: A002
    table = people(300)
    data = {"train": table.slice(0, 200), "test": table.slice(200), "none": table.slice(0, 0)}
    made = store_dataset(
        store,
        data,
        format=format,
        chunk_size=2000,
        metadata={"license": "CC0", "notes": ["a", 1, None]},
        provenance={"from": "here"},
    )
    found = open_dataset(store, made.cid)
    assert found == made
    assert (found.rows, found.rows_in("train"), found.rows_in("test"), found.rows_in("none")) == (
        300,
        200,
        100,
        0,
    )
    assert set(found.splits) == {"train", "test", "none"}
    assert found.shards("none") == ()
    assert found.metadata == {"license": "CC0", "notes": ["a", 1, None]}
    assert found.provenance == {"from": "here"}
    assert found.parent is None
    assert found.chunk_size == 2000
    assert found.columns["vector"] == "tensor<float>[32]"
    for split, part in data.items():
        assert found.to_arrow(split).equals(part)
        assert found.to_arrow(split).schema.equals(part.schema)
        batches = list(found.batches(split, ["text", "id"]))
        assert [batch.num_rows for batch in batches] == [
            group.rows for shard in found.shards(split) for group in shard.groups
        ]
        assert pa.Table.from_batches(batches, part.select(["text", "id"]).schema).equals(
            part.select(["text", "id"])
        )
    pd.testing.assert_frame_equal(
        found.to_pandas("test")[["id", "text"]], data["test"].to_pandas()[["id", "text"]]
    )
    assert store_dataset(store, table, parent=made.cid).parent == made.cid
    with pytest.raises(NotFound, match="no split 'valid'; it has none, test, train"):
        found.to_arrow("valid")
    with pytest.raises(InvalidInput, match="no column 'z'"):
        found.to_arrow("none", ["z"])
    with pytest.raises(InvalidInput, match="'id' is asked for twice"):
        found.to_arrow("none", ["id", "id"])
    with pytest.raises(InvalidInput, match="columns is a list of names"):
        found.to_arrow("none", "id")


def test_a_single_split_is_the_default(store):
    table = pa.table({"a": [1, 2]})
    assert store_dataset(store, {"all": table}).to_arrow().equals(table)
    assert store_dataset(store, {"a": table.slice(1), "train": table}).to_arrow().equals(table)
    with pytest.raises(NotFound, match="no split 'train'; it has a, b"):
        store_dataset(store, {"a": table, "b": table}).to_arrow()


@pytest.mark.parametrize("format", FORMATS)
def test_the_mark_of_a_column_is_kept(store, format):  # noqa: A002
    schema = pa.schema(
        [pa.field("i", pa.binary(), metadata={MEDIA_KEY: b"image", b"x": b"y"}), ("y", pa.int8())]
    )
    made = written(store, pa.table([[b"png"], pa.array([1], pa.int8())], schema=schema), format)
    found = open_dataset(store, made.cid)
    assert [media_of(field) for field in found.schema] == ["image", None]
    assert [media_of(field) for field in found.to_arrow().schema] == ["image", None]
    assert media_of(next(found.batches("train", ["i"])).schema.field(0)) == "image"


@pytest.mark.parametrize("format", FORMATS)
def test_thousands_of_row_groups_are_read_in_order(store, format):  # noqa: A002
    table = pa.table({"id": pa.array(np.random.default_rng(0).integers(0, 1 << 60, 30_000))})
    made = written(store, table, format, 64)
    groups = sum(len(shard.groups) for shard in made.shards("train"))
    assert groups > 3000
    assert len(made.shards("train")) > 200
    assert made.to_arrow().equals(table)


def test_splits_that_are_written_by_turns_do_not_mix(store):
    table = people(400)
    wanted = store_dataset(store, {"a": table.slice(0, 200), "b": table.slice(200)}, chunk_size=2000).cid
    with DatasetWriter(store, table.schema, chunk_size=2000) as writer:
        for start in range(0, 200, 10):
            writer.write("b", table.slice(200 + start, 10))
            writer.write("a", table.slice(start, 10))
        assert writer.finish().cid == wanted


@pytest.mark.parametrize("format", FORMATS)
def test_shards_that_are_taken_over_make_the_dataset_that_their_rows_would(store, format):  # noqa: A002
    table = people(3000)
    made = written(store, table, format, 5000)
    more = people(200, seed=2)
    shards = made.shards("train")
    assert len(shards) > 3
    with DatasetWriter(store, made.schema, format=made.format, chunk_size=made.chunk_size) as writer:
        for shard in shards[:-1]:
            assert writer.at_shard_start("train")
            writer.reuse("train", shard)
        writer.write("train", made.read_shard(shards[-1]).slice(0, 1))
        with pytest.raises(InvalidInput, match="in the middle"):
            writer.reuse("train", shards[-1])
        writer.write("train", made.read_shard(shards[-1]).slice(1))
        writer.write("train", more)
        assert writer.finish().cid == written(store, pa.concat_tables([table, more]), format, 5000).cid


# -------------------------------------------------------------------------------------- what changes is little


@pytest.mark.parametrize(
    ("format", "chunk_size"), [("parquet", None), ("parquet", 1 << 18), ("arrow", 1 << 18)]
)
def test_one_row_more_or_less_does_not_store_everything_again(blocks, format, chunk_size):  # noqa: A002
    store = ContentStore(blocks)
    table = people(50_000)
    row, middle = table.slice(100, 1), 25_000
    changed = {
        "insert": [table.slice(0, middle), row, table.slice(middle)],
        "delete": [table.slice(0, middle), table.slice(middle + 1)],
        "change": [table.slice(0, middle), row, table.slice(middle + 1)],
        "append": [table, row],
        "front": [row, table],
    }

    def new_bytes(rows):
        before = blocks.statistics()["bytes"]
        assert written(store, rows, format, chunk_size).to_arrow().equals(rows)
        return blocks.statistics()["bytes"] - before

    whole = new_bytes(table)
    again = {what: new_bytes(pa.concat_tables(parts)) / whole for what, parts in changed.items()}
    # At the most one row group, which by default has a third of these rows.
    assert max(again.values()) < (0.35 if chunk_size is None else 0.06), again
    assert new_bytes(table) == 0


# ------------------------------------------------------------------------------------------------ bad input


REFUSED = {
    "no rows": (lambda: pa.table({"a": pa.array([], pa.int64())}), "without rows"),
    "only empty splits": (
        lambda: {
            "a": pa.table({"x": pa.array([], pa.int8())}),
            "b": pa.table({"x": pa.array([], pa.int8())}),
        },
        "without rows",
    ),
    "the same column twice": (
        lambda: pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]),
        "a",
    ),
    "splits with other columns": (
        lambda: {"x": pa.table({"a": [1]}), "y": pa.table({"b": [1]})},
        "split 'y' has other columns than 'x': b / a",
    ),
    "splits with other types": (
        lambda: {"x": pa.table({"a": [1]}), "y": pa.table({"a": ["1"]})},
        "split 'y' has other columns than 'x': 'a' is string / int64",
    ),
    "a union": (
        lambda: pa.table({"u": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])}),
        "column 'u'",
    ),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_dataset_is_refused_with_the_reason(store, blocks, make, reason):
    with pytest.raises(InvalidInput, match=reason):
        store_dataset(store, make())
    assert list(blocks.multihashes()) == []


def test_a_split_without_types_takes_those_of_the_others(store):
    made = store_dataset(store, {"a": pa.table({"x": pa.nulls(2)}), "b": pa.table({"x": [1]})})
    assert made.columns == {"x": "int64"}
    assert made.to_arrow("a").column("x").to_pylist() == [None, None]


def test_impossible_options_are_refused(store, blocks):
    table = pa.table({"a": [1]})
    for options, reason in (
        ({"chunk_size": 0}, "chunk_size"),
        ({"format": "orc"}, "stored as parquet or arrow, not as 'orc'"),
        ({"metadata": {"when": object()}}, "can't hold a object"),
        ({"provenance": {"x": float("nan")}}, "nan"),
    ):
        with pytest.raises(InvalidInput, match=reason):
            store_dataset(store, table, **options)
    for split in ("", "x" * 201, "\ud800"):
        with DatasetWriter(store, table.schema) as writer, pytest.raises(InvalidInput, match="split"):
            writer.write(split, table)
    with DatasetWriter(store, table.schema) as writer:
        with pytest.raises(InvalidInput, match=r"split 'train'.*column 'a'"):
            writer.write("train", pa.table({"a": ["text"]}))
        with pytest.raises(InvalidInput, match="has failed"):
            writer.finish()
    assert list(blocks.multihashes()) == []


def breaking(table, error):
    yield from table.to_batches(max_chunksize=100)
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no more"), MemoryError()])
def test_a_dataset_that_was_interrupted_leaves_nothing_behind(tmp_path, monkeypatch, error):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with closing(LocalStore(tmp_path / "blocks")) as local:
        store = ContentStore(local, pins=Pins(local))
        table = people(3000)
        kept = written(store, people(100, seed=3))
        store.pin(kept.cid)
        writer = DatasetWriter(store, table.schema, chunk_size=5000)

        def write_all():
            with writer:
                for batch in breaking(table, error):
                    writer.write("train", batch)

        with pytest.raises(type(error)) as caught:
            write_all()
        assert caught.value is error
        with pytest.raises(InvalidInput, match="failed"):
            writer.finish()
        whole_shards = len(list(local.multihashes())) - len(list(store.walk(kept.cid)))
        assert whole_shards > 10
        Collector(local, Pins(local), grace_s=0).collect()
        assert sorted(local.multihashes()) == sorted({cid.multihash for cid, _ in store.walk(kept.cid)})
        assert list(folder.iterdir()) == []
        assert written(store, table, chunk_size=5000).to_arrow().equals(table)


def test_what_is_being_written_is_not_collected_meanwhile(tmp_path):
    with closing(LocalStore(tmp_path)) as local:
        store = ContentStore(local, pins=Pins(local))
        table = people(2000)
        with DatasetWriter(store, table.schema, chunk_size=5000) as writer:
            writer.write("train", table.slice(0, 1500))
            collect = (
                "import sys\nfrom pathlib import Path\n"
                "from holdfast.storage.local.collector import Collector\n"
                "from holdfast.storage.local.local_store import LocalStore\n"
                "from holdfast.storage.local.pins import Pins\n"
                "local = LocalStore(Path(sys.argv[1]))\n"
                "try:\n    Collector(local, Pins(local), grace_s=0).collect()\n"
                "except Exception as error:\n    print(type(error).__name__)\n"
                "local.close()\n"
            )
            process = subprocess.Popen([sys.executable, "-c", collect, str(tmp_path)])
            writer.write("train", table.slice(1500))
            made = writer.finish()
            store.pin(made.cid)
        assert process.wait(60) == 0
        assert made.to_arrow().equals(table)


def test_reading_a_dataset_counts_as_using_it(tmp_path):
    with closing(LocalStore(tmp_path, max_bytes=256 << 20)) as local:
        made = store_dataset(ContentStore(local), {"x": np.arange(1000)})
        (shard,) = made.shards("train")
        seen = Pins(local)
        assert seen.last_uses() == {}
        read = open_dataset(ContentStore(local, pins=seen), made.cid)
        assert len(read.to_arrow()) == 1000
        assert {made.cid, shard.cid} <= set(seen.last_uses())


# -------------------------------------------------------------------------------------------- full disks


def test_a_full_disk_is_said_and_nothing_before_is_lost(tmp_path):
    with (
        tiny_disk(tmp_path / "disk", "6m") as disk,
        closing(LocalStore(disk / "store", segment_size_bytes=1 << 20)) as local,
    ):
        store = ContentStore(local, pins=Pins(local))
        table = people(1000)
        kept = written(store, table, chunk_size=20_000)
        store.pin(kept.cid)
        with pytest.raises(Unavailable, match=r"full.*garbage"):
            written(store, people(40_000, seed=2), chunk_size=50_000)
        assert kept.to_arrow().equals(table)
        Collector(local, Pins(local), grace_s=0).collect()
        more = people(1000, seed=4)
        assert written(store, more, chunk_size=20_000).to_arrow().equals(more)


def test_a_quota_is_not_exceeded(tmp_path):
    with closing(LocalStore(tmp_path, max_bytes=6 << 20)) as local:
        store = ContentStore(local, pins=Pins(local))
        with pytest.raises(Unavailable, match=r"quota of 6291456 bytes"):
            written(store, people(40_000), chunk_size=50_000)
        used = sum(
            os.path.getsize(os.path.join(folder, name))  # noqa: PTH118, PTH202
            for folder, _, names in os.walk(tmp_path / "segments")
            for name in names
        )
        assert used <= 6 << 20


# ----------------------------------------------------------------------------------------------- memory

STREAM = """
import resource, sys
import numpy as np, pyarrow as pa
from pathlib import Path
from holdfast.storage.content import ContentStore
from holdfast.storage.datasets.dataset import open_dataset
from holdfast.storage.datasets.writer import DatasetWriter
from holdfast.storage.local.local_store import LocalStore

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

random = np.random.default_rng(0)
store = ContentStore(LocalStore(Path(sys.argv[1])))
schema = pa.schema([("x", pa.float64()), ("b", pa.binary())])

def batch():
    return pa.record_batch({"x": random.random(2000), "b": [random.bytes(1000) for _ in range(2000)]}, schema=schema)

def write(batches):
    with DatasetWriter(store, schema, format=sys.argv[2], chunk_size=1 << 18) as writer:
        for _ in range(batches):
            writer.write("train", batch())
        return writer.finish()

write(20)
before = peak()
made = write(200)
assert made.size_bytes > 380 << 20, made.size_bytes
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_memory_does_not_grow_with_what_is_written(tmp_path, format):  # noqa: A002
    done = subprocess.run(
        [sys.executable, "-c", STREAM, str(tmp_path), format],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100, "MiB more for ten times as much"


# ----------------------------------------------------------------------------------------------- peers


def test_reading_one_split_does_not_fetch_the_others(tmp_path, blocks, start_node):
    with new_store(tmp_path / "other") as there:
        made = store_dataset(there, {"train": people(500), "test": people(90, seed=2)}, chunk_size=4000)
        node = start_node(VerifyingStore(there.blocks, source="the other disk"))
        with closing(FetchingStore(blocks, Fetcher(lambda: [Provider(node.url)]))) as fetching:
            here = open_dataset(ContentStore(fetching), made.cid)
            assert (here.rows, here.rows_in("test")) == (590, 90)
            assert node.asked == [str(made.cid)]
            assert here.to_arrow("test").equals(made.to_arrow("test"))
            train = {str(cid) for shard in made.shards("train") for cid, _ in there.walk(shard.cid)}
            assert not train & set(node.asked)
            shard = here.shards("train")[1]
            here.read_shard(shard)
            others = {
                str(cid) for each in made.shards("train") if each != shard for cid, _ in there.walk(each.cid)
            }
            assert not others & set(node.asked)


def test_corrupt_bytes_of_a_peer_are_never_rows(tmp_path, blocks, start_node):
    with closing(LocalStore(tmp_path / "other")) as other:
        made = written(ContentStore(other), people(2000), chunk_size=50_000)
        shard = made.shards("train")[0]
        cid = next(cid for cid, _ in made.store.walk(shard.cid) if cid != shard.cid)
        place = other.extent(cid)
        assert place is not None
        with place.path.open("r+b") as segment:
            segment.seek(place.offset)
            byte = segment.read(1)[0]
            segment.seek(place.offset)
            segment.write(bytes([byte ^ 1]))
        node = start_node(other)
        with closing(FetchingStore(blocks, Fetcher(lambda: [Provider(node.url)]))) as fetching:
            here = open_dataset(ContentStore(fetching), made.cid)
            with pytest.raises((Corrupt, NotFound, Unavailable), match=f"{cid}|{shard.cid}"):
                here.to_arrow()
