"""What differs between datasets, against multisets of plain Python rows; and where a row is, against a plain search."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.errors import InvalidInput, NotFound, Unsupported
from holdfast.storage.datasets.comparing import row_matching
from holdfast.storage.datasets.comparing.comparison import diff
from holdfast.storage.datasets.comparing.finding import RowPlace, contains, find
from holdfast.storage.datasets.comparing.row_hashes import RowHasher
from holdfast.storage.datasets.versions import edit
from tests.storage.datasets.stored import FORMATS, ROW, SCHEMA, TABLE, comparable, fetched, span, stored

RELAXED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def numbered(rows: int) -> pa.Table:
    return pa.table({"n": np.arange(rows), "s": [f"row {n}" for n in range(rows)], "x": np.arange(rows) / 7})


def bag(table) -> Counter[str]:
    return Counter(comparable(table.to_pylist()))


def counts(found):
    return found.added, found.removed, found.changed


# ---------------------------------------------------------------------------------------------------- diff


@RELAXED
@given(
    rows=st.lists(ROW, min_size=1, max_size=50),
    data=st.data(),
    format=st.sampled_from(FORMATS),
    chunk_size=st.sampled_from([64, 1 << 16]),
)
def test_rows_are_compared_as_multisets_whatever_their_order(store, rows, data, format, chunk_size):  # noqa: A002
    others = data.draw(st.lists(ROW | st.sampled_from(rows), min_size=1, max_size=50) | st.permutations(rows))
    a, b = (pa.Table.from_pylist(each, SCHEMA) for each in (rows, others))
    found = diff(*(stored(store, each, format=format, chunk_size=chunk_size) for each in (a, b)))
    split = found.splits["train"]
    assert bag(split.added.to_arrow()) == bag(b) - bag(a)
    assert bag(split.removed.to_arrow()) == bag(a) - bag(b)
    assert len(split.added) == sum((bag(b) - bag(a)).values())
    assert split.unchanged == sum((bag(a) & bag(b)).values())
    assert found.changed == 0
    assert found.same == (bag(a) == bag(b))


@RELAXED
@given(
    before=st.lists(st.tuples(st.integers(0, 8) | st.none(), st.integers(0, 2)), min_size=1, max_size=40),
    after=st.lists(st.tuples(st.integers(0, 8) | st.none(), st.integers(0, 2)), min_size=1, max_size=40),
)
def test_with_a_key_each_row_is_added_removed_changed_or_the_same(store, before, after):
    schema = pa.schema([("id", pa.int32()), ("value", pa.int32())])
    tables = [
        pa.Table.from_pylist([{"id": key, "value": value} for key, value in rows], schema)
        for rows in (before, after)
    ]
    found = diff(*(stored(store, table, chunk_size=64) for table in tables), key="id")
    added = removed = changed = unchanged = 0
    for key in {key for key, _ in before + after}:
        old, new = (Counter(value for k, value in rows if k == key) for rows in (before, after))
        unchanged += sum((old & new).values())
        gone, come = sum((old - new).values()), sum((new - old).values())
        changed += min(gone, come)
        removed += gone - min(gone, come)
        added += come - min(gone, come)
    assert counts(found) == (added, removed, changed)
    assert found.splits["train"].unchanged == unchanged
    pairs = found.splits["train"].changed.to_arrow().to_pylist()
    assert len(pairs) == changed
    for pair in pairs:
        assert (pair["id"], pair["before"]["value"]) in before
        assert (pair["id"], pair["after"]["value"]) in after
        assert pair["before"] != pair["after"]


@RELAXED
@given(table=TABLE, data=st.data())
def test_an_edit_is_found_as_what_it_was(store, table, data):
    """The difference to an edited version is what a plain multiset of rows says."""
    which = data.draw(st.sets(st.integers(0, len(table) - 1)))
    at = 0

    def change(batch):
        nonlocal at
        numbers, at = range(at, at + batch.num_rows), at + batch.num_rows
        mask = pa.array([number in which for number in numbers])
        return batch.set_column(0, "i", pc.if_else(mask, pa.scalar(99, pa.int32()), batch["i"]))

    parent = stored(store, table, chunk_size=64)
    child = edit(parent, change)
    edited = child.to_arrow()
    found = diff(parent, child)
    assert bag(found.splits["train"].added.to_arrow()) == bag(edited) - bag(table)
    assert bag(found.splits["train"].removed.to_arrow()) == bag(table) - bag(edited)
    assert found.added == len(which)


def test_what_does_not_fit_in_memory_is_compared_in_parts(store, monkeypatch):
    monkeypatch.setattr(row_matching, "ROWS_AT_ONCE", 100)
    monkeypatch.setattr(row_matching, "_IN_MEMORY_BYTES", 64)
    table = numbered(2000)
    other = pa.concat_tables([table.slice(1500), table.slice(0, 1400), numbered(2005).slice(2000)])
    parent, child = stored(store, table), stored(store, other)
    found = diff(parent, child)
    assert counts(found) == (5, 100, 0)
    assert found.splits["train"].removed.to_arrow()["n"].to_pylist() == list(range(1400, 1500))
    keyed = diff(parent, edit(child, {"x": lambda x: pc.add(x, 1)}), key=["n", "s"])
    assert counts(keyed) == (5, 100, 1900)
    rows = keyed.splits["train"].changed.to_arrow()
    assert rows["n"].to_pylist() == [*range(1400), *range(1500, 2000)]
    assert all(pair["after"]["x"] == pair["before"]["x"] + 1 for pair in rows.to_pylist())


def test_equal_shards_are_never_fetched_to_be_compared(tmp_path, blocks, start_node):
    children = []

    def make(there):
        parent = stored(there, numbered(6000))
        children.append(edit(parent, {"s": lambda s: pc.if_else(pc.equal(s, "row 3000"), "new", s)}).cid)
        return parent

    from holdfast.storage.datasets.dataset import open_dataset

    with fetched(tmp_path, blocks, start_node, make) as (parent, asked):
        child = open_dataset(parent.store, children[0])
        found = diff(parent, child)
        assert counts(found) == (1, 1, 0)
        both = {str(shard.cid) for shard in parent.shards("train")} & {
            str(s.cid) for s in child.shards("train")
        }
        assert len(both) > 5
        assert not both & set(asked)
        assert found.splits["train"].rows_read < 2000
        assert found.splits["train"].added.to_arrow()["s"].to_pylist() == ["new"]
        assert diff(parent, parent).splits["train"].rows_read == 0


def test_equal_row_groups_of_unequal_shards_are_not_read(store):
    data = np.arange(40_000, dtype=np.int64)
    table = pa.table(
        {"n": data, "wide": pa.FixedShapeTensorArray.from_numpy_ndarray(np.repeat(data, 16).reshape(-1, 16))}
    )
    for format in FORMATS:  # noqa: A001
        chunk = 256 << 10
        parent = stored(store, table, chunk_size=chunk, format=format)
        child = edit(parent, {"n": lambda n: pc.if_else(pc.equal(n, 20_000), -1, n)})
        found = diff(parent, child)
        assert counts(found) == (1, 1, 0)
        shard = next(s for s in parent.shards("train") if s not in child.shards("train"))
        assert len(shard.groups) > 5
        assert found.splits["train"].rows_read < shard.rows, format


def test_a_changed_chunk_size_or_format_is_no_change_of_rows(store):
    table = numbered(500)
    parent = stored(store, table)
    for options in ({"chunk_size": 4096}, {"format": "arrow"}):
        found = diff(parent, stored(store, table, **options))
        assert found.same
        assert found.a != found.b


def test_schema_differences_are_told_and_common_columns_compared(store):
    a = stored(
        store, pa.table({"n": pa.array([1, 2, 3], pa.int32()), "old": ["x"] * 3, "w": ["1", "2", "3"]})
    )
    b = stored(store, pa.table({"new": [0.5] * 3, "w": [1, 2, 3], "n": pa.array([3, 4, 1], pa.int64())}))
    found = diff(a, b)
    assert dict(found.schema.added) == {"new": "double"}
    assert dict(found.schema.removed) == {"old": "string"}
    assert dict(found.schema.retyped) == {"n": ("int32", "int64"), "w": ("string", "int64")}
    assert found.columns == ("n",), "text and numbers have no type in common"
    assert counts(found) == (1, 1, 0)
    assert found.splits["train"].added.to_arrow().to_pylist() == [{"new": 0.5, "w": 2, "n": 4}]
    assert not found.same
    assert not diff(b, edit(b, {"more": 1})).same
    with pytest.raises(InvalidInput, match="no column in common"):
        diff(a, stored(store, pa.table({"other": [1]})))
    with pytest.raises(InvalidInput, match="'w' is not a column that both datasets have; they have n"):
        diff(a, b, key="w")


def test_the_order_of_columns_is_no_difference(store):
    a = stored(store, pa.table({"x": [1, 2], "y": ["a", "b"]}))
    b = stored(store, pa.table({"y": ["a", "b"], "x": [1, 2]}))
    assert diff(a, b).same


def test_splits_are_compared_each_with_its_own(store):
    a = stored(store, {"train": numbered(10), "old": numbered(3)})
    b = stored(store, {"train": numbered(12), "new": numbered(4)})
    found = diff(a, b)
    assert {name: split.to_json() for name, split in found.splits.items()} == {
        "train": {"added": 2, "removed": 0, "changed": 0, "unchanged": 10, "rows_read": 22},
        "old": {"added": 0, "removed": 3, "changed": 0, "unchanged": 0, "rows_read": 3},
        "new": {"added": 4, "removed": 0, "changed": 0, "unchanged": 0, "rows_read": 4},
    }
    assert counts(diff(a, b, split="train")) == (2, 0, 0)
    assert list(diff(a, b, split="old").splits) == ["old"]
    with pytest.raises(NotFound, match="has a split 'dev'"):
        diff(a, b, split="dev")


def test_no_change_still_has_a_table_of_changes(store):
    a = stored(store, numbered(5))
    found = diff(a, a, key="n").splits["train"].changed
    assert len(found) == 0
    assert found.to_arrow().schema.names == ["n", "before", "after"]
    assert found.to_arrow().num_rows == 0


def test_tensors_are_compared_and_shown(store):
    images = np.arange(400, dtype=np.uint8).reshape(100, 2, 2)
    other = images.copy()
    other[50, 1, 1] += 1
    a, b = (
        stored(store, pa.table({"n": range(100), "image": pa.FixedShapeTensorArray.from_numpy_ndarray(each)}))
        for each in (images, other)
    )
    found = diff(a, b, key="n")
    assert counts(found) == (0, 0, 1)
    (pair,) = found.splits["train"].changed.to_arrow().to_pylist()
    assert pair["n"] == 50
    assert np.array_equal(pair["before"]["image"], images[50].reshape(-1))
    assert np.array_equal(pair["after"]["image"], other[50].reshape(-1))


def test_progress_counts_the_rows_that_are_read(store):
    told: list[int] = []
    found = diff(stored(store, numbered(700)), stored(store, numbered(900)), progress=told.append)
    assert sum(told) == found.splits["train"].rows_read


# -------------------------------------------------------------------------------------------------- hashes

EVERY_KIND = [
    {
        "bool": True,
        "text": "a longer text than eight bytes",
        "bytes": b"\0",
        "day": dt.date(2026, 1, 1),
        "price": Decimal("1.20"),
        "list": [1, None, 3],
        "texts": [["a"], None, []],
        "struct": {"p": 1.5, "q": None},
        "map": [("k", 1)],
        "pair": [1.0, 2.0],
        "pairs": [[b"x"], None],
        "fixed": b"abc",
        "half": np.float16(1.5),
    },
    dict.fromkeys(
        [
            "bool",
            "text",
            "bytes",
            "day",
            "price",
            "list",
            "texts",
            "struct",
            "map",
            "pair",
            "pairs",
            "fixed",
            "half",
        ]
    ),
    {
        "bool": False,
        "text": "",
        "bytes": b"",
        "day": dt.date(1969, 12, 31),
        "price": Decimal("-1.21"),
        "list": [],
        "texts": [],
        "struct": {"p": float("nan"), "q": 2},
        "map": [],
        "pair": [None, 2.0],
        "pairs": [[], []],
        "fixed": b"\0\0\0",
        "half": np.float16(0),
    },
    {
        "bool": True,
        "text": "a longer text than eight bytez",
        "bytes": b"\0\0",
        "day": dt.date(2026, 1, 2),
        "price": Decimal("1.21"),
        "list": [1, 0, 3],
        "texts": [["a"], [], []],
        "struct": {"p": 1.5, "q": 0},
        "map": [("k", None)],
        "pair": [0.0, 2.0],
        "pairs": [[b"x"], []],
        "fixed": b"abd",
        "half": np.float16(-1.5),
    },
]
KINDS = pa.schema(
    [
        ("bool", pa.bool_()),
        ("text", pa.string()),
        ("bytes", pa.binary()),
        ("day", pa.date32()),
        ("price", pa.decimal128(5, 2)),
        ("list", pa.list_(pa.int16())),
        ("texts", pa.list_(pa.list_(pa.string()))),
        ("struct", pa.struct([("p", pa.float32()), ("q", pa.int8())])),
        ("map", pa.map_(pa.string(), pa.int32())),
        ("pair", pa.list_(pa.float64(), 2)),
        ("pairs", pa.list_(pa.list_(pa.binary()), 2)),
        ("fixed", pa.binary(3)),
        ("half", pa.float16()),
    ]
)


@pytest.mark.parametrize("name", KINDS.names)
def test_different_values_of_every_type_differ_and_equal_ones_do_not_wherever_they_lie(name):
    table = pa.Table.from_pylist(EVERY_KIND * 3, KINDS).select([name])
    hasher = RowHasher()
    hashes = hasher.hashes(table, [name])
    different = 3 if name == "bool" else 4
    assert len({tuple(row) for row in hashes.tolist()}) == different
    assert (hashes[:4] == hashes[4:8]).all()
    assert (hashes[:4] == hashes[8:]).all()
    for row in range(len(table)):
        alone = hasher.hashes(table.slice(row, 1), [name])
        assert (alone[0] == hashes[row]).all(), "nulls elsewhere in the batch must not count"
    assert hasher.hashes(table.slice(0, 0), [name]).shape == (0, 2)


def test_a_type_that_can_not_be_hashed_is_refused():
    union = pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])
    with pytest.raises(Unsupported, match="sparse_union"):
        RowHasher().hashes(pa.RecordBatch.from_arrays([union], names=["u"]), ["u"])


def test_hashes_of_long_values_depend_on_every_part(store):
    long = ["x" * 5000 + letter + "y" * 5000 for letter in "abc"]
    a = stored(store, pa.table({"s": long, "n": [1, 2, 3]}))
    b = stored(store, pa.table({"s": [*long[:2], long[2][::-1]], "n": [1, 2, 3]}))
    assert counts(diff(a, b)) == (1, 1, 0)


# --------------------------------------------------------------------------------------------------- find


@pytest.mark.parametrize(
    ("before", "after", "held"),
    [
        (pa.array([2**53 + 1]), pa.array([2.0**53]), "double.*int64"),
        (pa.array([2**64 - 1], pa.uint64()), pa.array([1]), "int64.*uint64"),
        (pa.array([Decimal("1.00")]), pa.array([10**18]), "decimal.*int64"),
        (
            pa.array([dt.date(3000, 1, 1)]).cast(pa.timestamp("us")),
            pa.array([1], pa.timestamp("ns")),
            "ns.*us",
        ),
    ],
)
def test_values_that_the_common_type_does_not_hold_are_not_compared(store, before, after, held):
    a, b = stored(store, pa.table({"x": before})), stored(store, pa.table({"x": after}))
    with pytest.raises(InvalidInput, match=f"column 'x' is of two types, .*{held}"):
        diff(a, b)


@RELAXED
@given(
    table=TABLE,
    row=ROW,
    own=st.booleans(),
    columns=st.lists(st.sampled_from(SCHEMA.names), min_size=1, unique=True),
    format=st.sampled_from(FORMATS),
)
def test_a_row_is_found_where_it_is_and_nowhere_else(store, table, row, own, columns, format):  # noqa: A002, PLR0917
    rows = table.to_pylist()
    wanted = {name: (rows[-1] if own else row)[name] for name in columns}
    dataset = stored(store, {"train": table, "test": table.slice(0, 1)}, format=format, chunk_size=64)
    (text,) = comparable([wanted])
    same = [
        number
        for number, each in enumerate(comparable([{name: r[name] for name in columns} for r in rows]))
        if each == text
    ]
    expected = [
        *(RowPlace("test", 0) for number in same if number == 0),
        *(RowPlace("train", n) for n in same),
    ]
    assert sorted(find(dataset, wanted), key=lambda p: (p.split, p.row)) == expected
    assert contains(dataset, wanted) == bool(expected)
    assert list(find(dataset, wanted, "train")) == [place for place in expected if place.split == "train"]


def test_a_search_reads_only_groups_and_columns_that_can_have_the_row(tmp_path, blocks, start_node):
    data = numbered(30_000)
    with fetched(tmp_path, blocks, start_node, lambda there: stored(there, data, chunk_size=100_000)) as (
        here,
        asked,
    ):
        assert contains(here, {"n": 12_345, "s": "row 12345", "x": 12_345 / 7})
        first_last = {str(shard.cid): span(shard, "n") for shard in here.shards("train")}
        with_row = {cid for cid, (first, last) in first_last.items() if first <= 12_345 <= last}
        others = {str(s.cid) for s in here.shards("train")} - with_row
        assert len(with_row) == 1
        assert not others & set(asked)
        before = len(asked)
        assert not contains(here, {"n": 99_999, "s": "row 1"})
        assert len(asked) == before, "statistics say that it can't be there"


def test_images_are_found_by_their_values(store):
    images = np.arange(4000, dtype=np.uint8).reshape(1000, 2, 2)
    images[700:] = 255
    table = pa.table(
        {"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images), "label": [n % 10 for n in range(1000)]}
    )
    dataset = stored(store, table)
    assert [p.row for p in find(dataset, {"image": images[3], "label": 3})] == [3, 323, 643]
    assert contains(dataset, {"image": images[3].reshape(-1).tolist()})
    assert not contains(dataset, {"image": images[3] + 100, "label": 3})
    assert len(list(find(dataset, {"image": np.full((2, 2), 255), "label": 5}))) == 30
    with pytest.raises(InvalidInput, match=r"shape \(2, 3\), not \(2, 2\)"):
        contains(dataset, {"image": np.zeros((2, 3))})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"m": 1}, "no column 'm'; there is n, s, x"),
        ({}, "the columns are n, s, x"),
        ({"n": "one"}, "'one' can't be a value of 'n', which is int64"),
        ({"n": 2**70}, "can't be a value of 'n'"),
        ({"s": 5}, "5 can't be a value of 's'"),
        ({"n": 1.5}, r"1\.5 can't be a value of 'n'"),
        ({"n": True}, "True can't be a value of 'n'"),
        (None, "is a mapping from column to value, not a NoneType"),
    ],
)
def test_a_row_that_can_not_be_in_the_dataset_is_refused_in_words(store, row, words):
    with pytest.raises(InvalidInput, match=words):
        contains(stored(store, numbered(5)), row)
    with pytest.raises(NotFound, match="no split 'dev'"):
        contains(stored(store, numbered(5)), {"n": 1}, "dev")


DAY = dt.datetime(2020, 1, 1)  # noqa: DTZ001 -- the column has no zone
HELD = pa.table(
    {
        "us": pa.array([DAY, None], pa.timestamp("us")),
        "utc": pa.array([DAY, None], pa.timestamp("ns", "UTC")),
        "day": pa.array([DAY.date(), None]),
        "f16": pa.array([0.1, None], pa.float16()),
        "f32": pa.array([0.1, None], pa.float32()),
        "floats": pa.array([[0.1], None], pa.list_(pa.float32())),
        "list": [[1, 2], None],
        "struct": [{"a": 1, "b": None}, None],
        "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int8())),
        "i": [1, None],
        "text": ["a", None],
    }
)
TENSORS = {"tensor": np.array([[[1, 2]], [[3, 4]]]), "weights": np.array([[0.1, 2], [3, 4]], np.float32)}
for name, values in TENSORS.items():
    HELD = HELD.append_column(name, pa.FixedShapeTensorArray.from_numpy_ndarray(values))


@pytest.mark.parametrize(
    ("column", "same", "never"),
    [
        (
            "us",
            [DAY, pd.Timestamp(DAY), np.datetime64("2020-01-01", "ns")],
            [pd.Timestamp("2020-01-01 00:00:00.000000999"), DAY.replace(tzinfo=dt.UTC), DAY.date(), 0],
        ),
        ("utc", [DAY.replace(tzinfo=dt.UTC), pd.Timestamp("2020-01-01 01:00", tz="Europe/Berlin")], [DAY]),
        ("day", [DAY.date(), np.datetime64("2020-01-01")], [DAY.replace(hour=5), DAY, 18262]),
        ("f16", [np.float16(0.1), float(np.float16(0.1)), 0.1], [np.float32(0.1), 1e6]),
        ("f32", [np.float32(0.1), float(np.float32(0.1)), 0.1], [np.float64(0.1), 1e300]),
        ("floats", [[0.1], np.array([0.1], np.float32)], [[np.float64(0.1)], [1e300]]),
        ("weights", [[0.1, 2], np.array([0.1, 2], np.float32)], [np.array([0.1, 2]), [1e300, 2]]),
        ("list", [[1, 2], (1, 2), np.array([1, 2], np.int8), np.array([1.0, 2.0])], [[1.7, 2], ["1"]]),
        ("struct", [{"a": 1, "b": None}, {"a": 1.0}], [{"a": 1, "zz": 2}, {"a": 1.5}]),
        ("map", [{"a": 1}, [("a", 1)]], [{"a": 1.5}, [1]]),
        ("i", [1, 1.0, np.uint8(1), pa.scalar(1)], [1.5, float("inf"), "1"]),
        ("tensor", [[[1, 2]], [1, 2], np.array([[1.0, 2.0]])], [[[1.9, 2.9]], [[1, None]], [["1", "2"]]]),
    ],
)
@pytest.mark.parametrize("format", FORMATS)
def test_a_value_is_found_as_what_it_is_or_refused(store, format, column, same, never):  # noqa: A002
    dataset = stored(store, HELD, format=format)
    for value in same:
        assert [place.row for place in find(dataset, {column: value})] == [0]
    for value in never:
        with pytest.raises(InvalidInput, match=f"'{column}'"):
            contains(dataset, {column: value})


@pytest.mark.parametrize("format", FORMATS)
def test_rows_of_pandas_are_found_with_what_it_has_for_missing_values(store, format):  # noqa: A002
    table = HELD.drop_columns(["map", "f16", "f32", *TENSORS])  # NaN of floats is NaN
    dataset = stored(store, table, format=format)
    for number, row in enumerate(table.to_pandas().to_dict("records")):
        assert [place.row for place in find(dataset, row)] == [number]
    for missing in (pd.NaT, pd.NA, float("nan"), np.datetime64("NaT")):
        assert [place.row for place in find(dataset, {"us": missing})] == [1]


def test_hashes_that_agree_in_their_first_half_are_not_taken_for_equal():
    words = np.array([[7, 2], [7, 1], [7, 2], [3, 1]], np.uint64)
    with row_matching.RowMatcher(4, 3, keyed=False) as matcher:
        matcher.add(0, words, None)
        matcher.add(1, words[[1, 3, 1]], None)
        found = matcher.match()
    assert found.only_a.tolist() == [0, 2]
    assert found.only_b.tolist() == [2]
