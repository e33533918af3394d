"""Versions: the same shards as if all had been stored at once, and nothing read that did not have to be."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.errors import InvalidInput, NotFound
from holdfast.storage.datasets.dataset import open_dataset, store_dataset
from holdfast.storage.datasets.versions import append, edit, filter_rows
from tests.storage.datasets.stored import FORMATS, TABLE, comparable, fetched, span, stored

DAY = dt.datetime(2020, 1, 1)  # noqa: DTZ001 -- the column has no zone
RELAXED = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def numbered(rows: int, first: int = 0) -> pa.Table:
    return pa.table(
        {"n": np.arange(first, first + rows), "s": [f"row {n}" for n in range(first, first + rows)]}
    )


def cids(dataset, split="train"):
    return [str(shard.cid) for shard in dataset.shards(split)]


# ------------------------------------------------------------------------------------------------- append


@RELAXED
@given(
    table=TABLE,
    data=st.data(),
    form=st.sampled_from(FORMATS),
    chunk_size=st.sampled_from([64, 256, 1 << 20]),
)
def test_appending_in_pieces_makes_the_shards_that_storing_at_once_makes(
    store, table, data, form, chunk_size
):
    cuts = sorted(data.draw(st.lists(st.integers(1, len(table)), max_size=4)))
    whole = stored(store, table, format=form, chunk_size=chunk_size)
    grown = stored(store, table.slice(0, (cuts or [len(table)])[0]), format=form, chunk_size=chunk_size)
    for start, end in pairwise([*cuts, len(table)]):
        if end > start:
            parent = grown
            grown = append(parent, table.slice(start, end - start))
            assert grown.parent == parent.cid
            assert grown.provenance == {"operation": "append", "rows": {"train": end - start}}
    assert grown.splits["train"] == whole.splits["train"]
    assert (grown.format, grown.chunk_size) == (whole.format, chunk_size)


def test_appending_to_many_shards_keeps_all_but_the_last(store):
    parent = stored(store, numbered(3000), chunk_size=128)
    child = append(parent, numbered(100, 3000))
    assert len(cids(parent)) > 8
    assert cids(child)[: len(cids(parent)) - 1] == cids(parent)[:-1]
    assert cids(child) == cids(stored(store, numbered(3100), chunk_size=128))
    assert child.to_arrow().equals(numbered(3100).cast(child.schema))


def test_appending_reads_no_shard_but_the_last(tmp_path, blocks, start_node):
    def make(there):
        return stored(there, {"train": numbered(5000), "test": numbered(500)}, chunk_size=256)

    with fetched(tmp_path, blocks, start_node, make) as (parent, asked):
        child = append(parent, numbered(10, 5000), split="train")
        others = {*cids(parent)[:-1], *cids(parent, "test")}
        assert len(others) > 5
        assert not others & set(asked)
        assert cids(child, "test") == cids(parent, "test")
        assert child.rows_in("train") == 5010


def test_rows_go_to_the_split_that_is_meant(store):
    parent = store_dataset(store, {"train": numbered(5), "test": numbered(2)})
    both = append(parent, {"train": numbered(1, 5), "test": numbered(3, 2)})
    assert {split: both.rows_in(split) for split in both.splits} == {"train": 6, "test": 5}
    assert both.provenance["rows"] == {"train": 1, "test": 3}
    new = append(parent, {"validation": numbered(3)})
    assert {split: new.rows_in(split) for split in new.splits} == {"train": 5, "test": 2, "validation": 3}
    only = store_dataset(store, {"all": numbered(5)})
    assert append(only, numbered(1)).rows_in("all") == 6, "there is only one split that can be meant"
    with pytest.raises(InvalidInput, match="leave out split='test'"):
        append(parent, {"train": numbered(1), "test": numbered(1)}, split="test")


def test_rows_of_other_kinds_fit_where_no_value_is_lost(store):
    parent = stored(store, pa.table({"n": pa.array([1], pa.int16()), "x": pa.array([0.5], pa.float32())}))
    child = append(parent, [{"n": 2, "x": 1.5}, {"n": 3, "x": None}])
    assert child.schema.equals(parent.schema)
    assert child.to_arrow().to_pylist()[1:] == [{"n": 2, "x": 1.5}, {"n": 3, "x": None}]
    with pytest.raises(
        InvalidInput, match=r"for split 'train', row 1 .*column 'n': 70000 is int64 and can't be int16"
    ):
        append(parent, [{"n": 2, "x": 1.0}, {"n": 70_000, "x": 1.0}])
    with pytest.raises(InvalidInput, match="'x'"):
        append(parent, [{"n": 1}])
    with pytest.raises(InvalidInput, match="'y'"):
        append(parent, [{"n": 1, "x": 1.0, "y": 2}])
    with pytest.raises(InvalidInput):
        append(parent, pa.table({"n": pa.array([], pa.int16()), "x": pa.array([], pa.float32())}))


MOMENT = pa.array([1], pa.timestamp("us"))


@pytest.mark.parametrize(
    ("kind", "fits", "lost"),
    [
        (pa.float32(), [1.5, float("nan"), float("inf"), 3], [0.1, 1e300, 2**24 + 1, "1", True]),
        (pa.float16(), [0.5, float("nan")], [0.1, 1e6]),
        (pa.float64(), [7, 2**53], [2**53 + 1, "1"]),
        (pa.int64(), [4.0, pa.scalar(5, pa.int8())], [4.5, "4", True, float("nan"), MOMENT[0]]),
        (pa.int8(), [100], [200, -0.5]),
        (pa.string(), ["a", pa.scalar("b", pa.large_string())], [5, b"a", DAY]),
        (pa.binary(), [b"a"], ["a"]),
        (pa.binary(2), [b"ab"], [b"abc"]),
        (pa.bool_(), [False], [1, "true"]),
        (pa.timestamp("s"), [DAY], [DAY.replace(microsecond=1), DAY.replace(tzinfo=dt.UTC), DAY.date(), 1]),
        (pa.timestamp("us", "UTC"), [DAY.replace(tzinfo=dt.UTC)], [DAY]),
        (pa.timestamp("ns"), [DAY], [DAY.replace(year=3000)]),
        (pa.date32(), [DAY.date()], [DAY]),
        (pa.decimal128(5, 2), [Decimal("1.5")], [Decimal("1.555"), Decimal(1000), 1.5]),
        (pa.list_(pa.int32()), [[1, None], []], [[1.5], ["1"], 1]),
        (pa.list_(pa.int32(), 2), [[1, 2]], [[1, 2, 3]]),
        (pa.struct([("a", pa.int8()), ("b", pa.string())]), [{"a": 1}], [{"a": 1.5}, {"a": 1, "c": 2}]),
    ],
    ids=str,
)
def test_a_value_is_appended_if_the_column_can_hold_just_that(store, kind, fits, lost):
    parent = stored(store, pa.table({"n": [0], "v": pa.nulls(1, kind)}))
    for value in fits:
        values = pa.array([value, None])
        (_, found, missing) = append(parent, pa.table({"n": [1, 2], "v": values})).to_arrow()["v"]
        wanted = values[0].as_py()
        found = found.as_py()
        assert found == ({"b": None, **wanted} if isinstance(wanted, dict) else wanted) or found != found  # noqa: PLR0124 -- NaN
        assert not missing.is_valid
    for value in lost:
        with pytest.raises(InvalidInput, match=r"for split 'train', row 1 .*column 'v': "):
            append(parent, pa.table({"n": [1, 2], "v": pa.array([None, value])}))


def test_a_file_is_appended_like_rows(store, tmp_path):
    parent = stored(store, pa.table({"n": [1, 2]}))
    path = tmp_path / "more.csv"
    path.write_text("n\n3\n4\n")
    assert append(parent, path=path).to_arrow()["n"].to_pylist() == [1, 2, 3, 4]


def test_progress_and_metadata_of_a_version(store):
    parent = stored(store, numbered(10), metadata={"by": "me", "year": 2025})
    told: list[int] = []
    child = append(parent, numbered(7), metadata={"year": 2026}, progress=told.append)
    assert sum(told) == 7
    assert child.metadata == {"by": "me", "year": 2026}


# ------------------------------------------------------------------------------------------------- filter


@RELAXED
@given(
    table=TABLE,
    where=st.sampled_from(
        [
            "i > 0",
            "f < 1",
            "s == 'a' or b",
            "not (i == 1)",
            "f != 0",
            "i is None",
            "i is not None",
            "u > 1 and i < 3",
        ]
    ),
    format=st.sampled_from(FORMATS),
)
def test_a_filtered_version_is_what_storing_the_wanted_rows_makes(store, table, where, format):  # noqa: A002
    from holdfast.storage.datasets.conditions import Condition

    parent = stored(store, table, format=format, chunk_size=64)
    wanted = table.filter(Condition.parse(where, table.schema).expression)
    if not wanted.num_rows:
        with pytest.raises(InvalidInput, match="without rows"):
            filter_rows(parent, where)
        return
    child = filter_rows(parent, where)
    assert child.splits["train"] == stored(store, wanted, format=format, chunk_size=64).splits["train"]
    assert child.parent == parent.cid
    assert child.provenance == {"operation": "filter", "where": where}


def test_a_filter_reads_only_shards_that_have_both_kinds_of_rows(tmp_path, blocks, start_node):
    with fetched(
        tmp_path, blocks, start_node, lambda there: stored(there, numbered(8000), chunk_size=512)
    ) as (
        parent,
        asked,
    ):
        shards = parent.shards("train")
        child = filter_rows(parent, "n >= 4000")
        border = [s for s in shards if span(s, "n")[0] < 4000 <= span(s, "n")[1]]
        untouched = {str(shard.cid) for shard in shards if shard not in border}
        below = {str(s.cid) for s in shards if span(s, "n")[1] < 4000}
        assert len(below) > 3
        assert not below & set(asked), "they can't have a wanted row"
        assert len(untouched & set(asked)) <= 3, "until the shards line up again, and the last one"
        assert len(set(cids(child)) & set(cids(parent))) > 3
        assert child.rows == 4000


def test_filtering_one_split_leaves_the_others_alone(store):
    parent = stored(store, {"train": numbered(300), "test": numbered(300)})
    child = filter_rows(parent, [("n", "<", 10)], split="train")
    assert (child.rows_in("train"), child.rows_in("test")) == (10, 300)
    assert cids(child, "test") == cids(parent, "test")
    assert child.provenance == {"operation": "filter", "where": [[["n", "<", 10]]], "split": "train"}
    with pytest.raises(NotFound, match="no split 'dev'"):
        filter_rows(parent, "n < 10", split="dev")
    emptied = filter_rows(parent, "n > 1000", split="test")
    assert emptied.rows_in("test") == 0


def test_an_expression_is_recorded_as_text(store):
    child = filter_rows(stored(store, numbered(300)), pc.field("n") < 10)
    assert child.provenance == {"operation": "filter", "where": "(n < 10)"}


# --------------------------------------------------------------------------------------------------- edit


def doubled(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.set_column(0, "n", pc.multiply(batch["n"], 2))


def twice(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch]).take([row for row in range(batch.num_rows) for _ in range(2)])


def evens(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.filter(pc.equal(pc.bit_wise_and(batch["n"], 1), 0))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("change", [doubled, twice, evens])
def test_an_edited_version_is_what_storing_the_edited_rows_makes(store, change, format):  # noqa: A002
    table = numbered(2000)
    child = edit(stored(store, table, format=format), change)
    wanted = change(table.combine_chunks().to_batches()[0])
    wanted = wanted if isinstance(wanted, pa.Table) else pa.Table.from_batches([wanted])
    assert child.splits["train"] == stored(store, wanted, format=format).splits["train"]
    assert child.provenance == {"operation": "edit", "change": {"function": f"{__name__}:{change.__name__}"}}


def test_an_edit_of_one_row_keeps_the_shards_of_all_others(store):
    table = numbered(5000)
    parent = stored(store, table, chunk_size=256)
    child = edit(parent, {"s": lambda s: pc.if_else(pc.equal(s, "row 2500"), "new", s)})
    assert len(set(cids(parent)) - set(cids(child))) <= 2
    assert len(cids(child)) > 8
    assert child.to_arrow()["s"].to_pylist()[2499:2502] == ["row 2499", "new", "row 2501"]


def test_single_columns_become_constants_values_or_something_new(store):
    parent = stored(store, pa.table({"n": pa.array([1, 2, 3], pa.int16()), "s": ["a", "b", None]}))
    child = edit(
        parent,
        {
            "s": "same",
            "n": lambda n: [value.as_py() + 1 for value in n],
            "sum": lambda batch: pc.add(batch["n"], 10),
            "image": lambda batch: np.zeros((batch.num_rows, 2, 2), np.uint8),
        },
    )
    assert child.schema.field("n").type == pa.int16()
    assert child.schema.field("image").type == pa.fixed_shape_tensor(pa.uint8(), [2, 2])
    assert child.to_arrow().select(["n", "s", "sum"]).to_pylist() == [
        {"n": n + 1, "s": "same", "sum": n + 10} for n in (1, 2, 3)
    ]
    assert child.provenance["change"]["columns"]["s"] == {"value": "same"}
    assert "lambda" in child.provenance["change"]["columns"]["n"]["function"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: 7, "not int"),
        (lambda batch: batch.to_pylist(), "not list"),
        ({"n": lambda n: n[:1]}, "gave 1 values for"),
        ({"n": "x"}, "'n' are no values of type int64"),
        ({"n": lambda n: ["x"] * len(n)}, "'n' are no values of type int64"),
        ({"n": 7.5}, r"'n' are no values of type int64: 7.5 is of the kind float"),
        ({"n": lambda n: [1.5] * len(n)}, r"'n' are no values of type int64: 1.5 is of the kind float"),
        ({"n": lambda n: np.full(len(n), 1.5)}, r"'n' are no values of type int64: 1.5 is double"),
        ({"n": pa.scalar(1.5)}, r"'n' are no values of type int64: 1.5 is double"),
        ({"new": lambda batch: [1, "x"] * (batch.num_rows // 2)}, "'new' are no values of one type: 'x'"),
        ({}, "at least one column"),
        (lambda batch: batch if batch["n"][0].as_py() == 0 else batch.select(["n"]), "'s'"),
        (lambda batch: batch.slice(0, 0), "without rows"),
    ],
)
def test_an_edit_that_can_not_be_says_why(store, change, words):
    parent = stored(store, numbered(500))
    with pytest.raises(InvalidInput, match=words):
        edit(parent, change)


def test_edits_give_values_of_every_kind(store):
    parent = stored(store, pa.table({"n": [1, 2], "x": pa.array([0.5, 1.5], pa.float32())}))
    child = edit(
        parent,
        {
            "n": lambda n: np.array([4.0] * len(n)),
            "x": 0.25,
            "t": pd.Timestamp("2020-01-01 00:00:00.000000001"),
            "v": lambda batch: np.zeros((batch.num_rows, 2)),
            "s": lambda batch: pd.Series(["a"] * batch.num_rows),
            "f": np.float32(1),
            "none": None,
        },
    )
    assert {field.name: str(field.type) for field in child.schema if field.name != "v"} == {
        "n": "int64",
        "x": "float",
        "t": "timestamp[ns]",
        "s": "string",
        "f": "float",
        "none": "null",
    }
    assert child.schema.field("v").type == pa.fixed_shape_tensor(pa.float64(), [2])
    assert child.to_arrow()["n"].to_pylist() == [4, 4]
    assert child.to_arrow()["t"][1].as_py().nanosecond == 1
    assert (
        edit(parent, {"x": lambda x: pc.multiply(x.cast(pa.float64()), 2)}).schema.field("x").type == "double"
    )
    scaled = edit(child, {"v": lambda v: v.to_numpy_ndarray().astype(np.float32)})
    assert scaled.schema.field("v").type == pa.fixed_shape_tensor(pa.float32(), [2])


def test_editing_one_split_can_not_change_the_columns_of_the_others(store):
    parent = stored(store, {"train": numbered(300), "test": numbered(300)})
    child = edit(parent, doubled, split="train")
    assert cids(child, "test") == cids(parent, "test")
    assert child.to_arrow("train")["n"].to_pylist()[:3] == [0, 2, 4]
    assert child.provenance["split"] == "train"
    with pytest.raises(InvalidInput, match="edit them all"):
        edit(parent, {"new": 1}, split="train")
    assert edit(parent, {"new": 1}).schema.names == ["n", "s", "new"]
    with pytest.raises(NotFound, match="no split 'dev'"):
        edit(parent, doubled, split="dev")


def test_an_error_inside_an_edit_comes_out_as_it_is(store):
    def fails(_batch):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        edit(stored(store, numbered(10)), fails)


def test_the_chain_of_parents_leads_back_to_the_first_version(store):
    first = stored(store, numbered(100))
    last = edit(filter_rows(append(first, numbered(50, 100)), "n > 20"), {"s": "x"})
    chain = [last]
    while chain[-1].parent is not None:
        chain.append(open_dataset(store, chain[-1].parent))
    assert [each.provenance.get("operation") for each in chain] == ["edit", "filter", "append", None]
    assert chain[-1].cid == first.cid


@RELAXED
@given(table=TABLE)
def test_an_edit_that_changes_nothing_keeps_every_shard(store, table):
    parent = stored(store, table, chunk_size=64)
    child = edit(parent, lambda batch: batch)
    assert child.splits["train"] == parent.splits["train"]
    assert comparable(child.to_arrow().to_pylist()) == comparable(table.to_pylist())


def test_rows_whose_labels_mean_other_classes_are_not_appended(store, tmp_path):
    PIL = pytest.importorskip("PIL.Image")  # noqa: N806
    for folder, classes in (("first", ["cat", "dog"]), ("same", ["cat", "dog"]), ("other", ["dog", "emu"])):
        for number, name in enumerate(classes):
            (tmp_path / folder / name).mkdir(parents=True)
            PIL.new("RGB", (2, 2), (number, 0, 0)).save(tmp_path / folder / name / "a.png")
    parent = store_dataset(store, path=tmp_path / "first")
    child = append(parent, path=tmp_path / "same")
    assert child.metadata == parent.metadata
    assert child.rows == 4
    with pytest.raises(InvalidInput, match=r"have other classes than dataset"):
        append(parent, path=tmp_path / "other")
