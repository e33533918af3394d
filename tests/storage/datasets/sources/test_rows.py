"""Rows as mappings: their types, what is widened, and what is refused with its row, column and value."""

from __future__ import annotations

import datetime as dt
import decimal
import threading
import types

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.sources import open_sources

DAY = dt.datetime(2020, 1, 1)  # noqa: DTZ001 -- the column has no zone
INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = [
    st.booleans(),
    INT64,
    st.floats(allow_nan=False),
    TEXT,
    st.binary(max_size=20),
    st.datetimes(dt.datetime.fromisoformat("1700-01-01"), dt.datetime.fromisoformat("2200-01-01")),
    st.dates(),
    st.decimals(-1000, 1000, places=2, allow_nan=False),
    st.lists(INT64, max_size=4),
    st.lists(TEXT, max_size=4),
    st.fixed_dictionaries({"a": INT64, "b": TEXT}),
    st.lists(st.fixed_dictionaries({"a": st.none() | INT64}), max_size=3),
]


@st.composite
def tables(draw):
    """Columns of one kind each, with nulls; every key in the first row, where pyarrow looks for the columns."""
    columns = {f"c{i}": draw(st.sampled_from(VALUES)) for i in range(draw(st.integers(1, 4)))}
    count = draw(st.integers(1, 30))
    return [{name: draw(st.none() | values) for name, values in columns.items()} for _ in range(count)]


@settings(max_examples=200, deadline=None)
@given(tables())
def test_rows_are_the_table_that_arrow_makes_of_them(rows):
    source = open_sources(iter(rows))["train"]
    found = pa.Table.from_batches(source.batches(), source.schema)
    assert found.equals(pa.Table.from_pylist(rows))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.none() | INT64), min_size=1, max_size=30))
def test_a_missing_key_is_a_null_wherever_it_is_missing(rows):
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        with pytest.raises(InvalidInput, match="no columns"):
            open_sources(rows)
        return
    source = open_sources(rows)["train"]
    found = pa.Table.from_batches(source.batches(), source.schema)
    assert found.to_pylist() == [{name: row.get(name) for name in names} for row in rows]


def test_types_are_widened_within_the_first_rows_and_no_row_is_lost(read):
    rows: list[dict[str, object]] = [{"x": 0.5 if i == 999 else i, "late": None} for i in range(1000)]
    rows.extend({"x": i, "late": "at last" if i == 1500 else None} for i in range(1000, 2000))
    table = read(row for row in rows)
    assert table.schema == pa.schema([("x", pa.float64()), ("late", pa.string())])
    assert table.to_pylist() == rows


def test_a_column_that_is_null_for_longer_than_is_looked_at_says_so():
    rows = ({"pad": "x" * 10_000, "late": None if i < 1500 else 7} for i in range(2000))
    source = open_sources(rows)["train"]
    assert source.schema.field("late").type == pa.null()
    with pytest.raises(InvalidInput, match=r"row 1500 .*column 'late': 7 .*no value at all"):
        list(source.batches())


class Opaque:
    def __repr__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize("at", [3, 1700])
@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (1, "seven"),
        (1, True),
        (True, 1),
        ("a", b"a"),
        (b"a", "a"),
        ("a", float("nan")),
        (1, 2**63),
        (0.5, 2**53 + 1),
        ("a", "\ud800"),
        (dt.date(2020, 1, 1), dt.datetime.fromisoformat("2020-01-01")),
        ([1, 2], [1, "two"]),
        ([1, 2], 3),
        ({"a": 1}, {"a": "one"}),
        ({"a": 1}, [1]),
        (1, Opaque()),
        (np.zeros(3), np.zeros(3, np.float32)),
        (np.zeros((3, 2)), np.zeros((2, 3))),
        (np.zeros((3, 2)), [[0.0, 0.0]]),
        (torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16)),
        (decimal.Decimal("1.5"), 1.5),
        (1, 1j),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_does_not_fit_is_named_with_row_and_column(good, bad, at):
    def rows():
        for i in range(2000):
            yield {"other": i, "x": bad if i == at else good}

    with pytest.raises(InvalidInput, match=rf"the generator, row {at} \(the first is 0\), column 'x'"):
        list(open_sources(rows())["train"].batches())


@pytest.mark.parametrize(
    ("good", "bad", "why"),
    [
        (1, 2.0, "float"),
        (np.float32(1), 0.1, "float"),
        ({"a": 1}, {"a": 1, "b": 2}, "'b'"),
        ([{"a": 1}], [{"a": 1, "b": 2}], "'b'"),
        (np.zeros(3), np.zeros(2), "shape"),
        (np.int32(1), 2**31, "int32"),
        ([1, 2], [1.9, 2.9], "has a float in it"),
        ([[1]], [[2.5]], "has a float in it"),
        ({"a": 1}, {"a": 2.5}, "has a float in it"),
        ([{"a": [1]}], [{"a": [2.5]}], "has a float in it"),
        ([0.5], [2**53 + 1], "9007199254740993"),
        ([np.float32(1)], [0.1], "no float of 32 bits"),
        (["a"], [b"a"], "has a bytes in it"),
        ([b"a"], ["a"], "has a text in it"),
        ([DAY.date()], [DAY], "has a time stamp in it"),
        (DAY, DAY.replace(tzinfo=dt.UTC), "has a time zone"),
        (DAY.replace(tzinfo=dt.UTC), DAY, "has no time zone"),
        ([DAY], [DAY.replace(tzinfo=dt.UTC)], "has a time zone"),
        (DAY, pd.Timestamp(1, unit="ns"), "finer"),
        (np.datetime64("2020-01-01", "s"), DAY.replace(microsecond=5), "finer"),
        (np.datetime64("2020-01-01", "s"), np.datetime64(1, "ms"), "finer"),
        (DAY.date(), np.datetime64("2020-01-01T05", "s"), "time stamp"),
        (dt.timedelta(1), pd.Timedelta(1, unit="ns"), "finer"),
        (dt.timedelta(1), 5, "integer"),
        (1, np.timedelta64(5, "s"), "duration"),
        (dt.time(1), 5, "integer"),
        (dt.time(1), dt.time(1, tzinfo=dt.UTC), "time zone"),
    ],
    ids=repr,
)
def test_nothing_is_rounded_or_left_out_after_the_first_rows(good, bad, why):
    def rows():
        for i in range(2000):
            yield {"x": bad if i == 1234 else good}

    with pytest.raises(InvalidInput, match=rf"row 1234 .*column 'x'.*{why}"):
        list(open_sources(rows())["train"].batches())


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([DAY, pd.Timestamp("2020-01-01 00:00:00.123456789")], pa.timestamp("ns")),
        ([pd.Timestamp("2020-01-01 00:00:00.123456")], pa.timestamp("us")),
        ([DAY.replace(tzinfo=dt.UTC), pd.Timestamp(5, tz="Europe/Paris")], pa.timestamp("ns", "UTC")),
        ([np.datetime64(1, "s"), DAY.replace(microsecond=5), np.datetime64("NaT")], pa.timestamp("us")),
        ([np.datetime64(1, "s"), np.datetime64(5, "ms")], pa.timestamp("ms")),
        ([np.datetime64("2020-01-01"), DAY.date()], pa.date32()),
        ([[np.datetime64("2020-01-01")]], pa.list_(pa.date32())),
        ([np.timedelta64(1, "s"), pd.Timedelta(5, unit="ns")], pa.duration("ns")),
        ([pd.NaT, DAY, pd.NA], pa.timestamp("us")),
    ],
    ids=repr,
)
def test_times_keep_their_nanoseconds_and_their_zones(read, values, kind):
    column = read([{"t": value} for value in values])["t"]
    assert column.type == kind
    for found, value in zip(column, values, strict=True):
        if pd.api.types.is_scalar(value) and pd.isna(value):
            assert not found.is_valid
        elif pa.types.is_nested(kind):
            assert found.as_py() == [item.item() for item in value]
        elif pa.types.is_date(kind):
            assert pd.Timestamp(found.as_py()) == pd.Timestamp(value)
        else:
            made = pd.Timedelta if pa.types.is_duration(kind) else pd.Timestamp
            assert made(found.as_py()) == made(value)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([DAY, DAY.replace(tzinfo=dt.UTC)], r"row 1 .*with a zone, the values before it .* time stamp:"),
        ([np.datetime64(1, "h")], r"row 0 .*datetime64\[h\]: convert it"),
        ([DAY.replace(year=3000), pd.Timestamp(1, unit="ns")], r"row 0 .*nanosecond"),
        ([{"a": b"x"}, {"a": "x"}], r"row 1 .*has a text in it"),
        ([np.ma.array([1, 2], mask=[False, True])], r"row 0 .*masked items"),
        ([np.longdouble(1), 0.5], r"row 0 .*longdouble"),
    ],
    ids=repr,
)
def test_values_of_the_first_rows_that_no_type_holds_are_named(values, why):
    with pytest.raises(InvalidInput, match=why):
        list(open_sources([{"t": value} for value in values])["train"].batches())


def test_the_first_of_several_bad_rows_is_named():
    rows = [{"a": 1, "b": "x"} for _ in range(1200)]
    rows[1100] = {"a": 1, "b": 2}
    rows[1050] = {"a": 1, "b": "x", "c": 3}
    rows[1150] = {"a": "1", "b": "x"}
    source = open_sources(rows)["train"]
    with pytest.raises(
        InvalidInput, match=r"row 1050 .*column 'c': 3 is in a column that no row before it has"
    ):
        list(source.batches())
    rows[1050] = {"a": 1}
    with pytest.raises(InvalidInput, match=r"row 1100 .*column 'b': 2"):
        list(open_sources(rows)["train"].batches())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the list has no rows"),
        (iter(()), "the tuple_iterator has no rows"),
        ([1, 2], r"row 0 .* is 1: a row is a mapping"),
        ([{"a": 1}, None], r"row 1 .* is None: a row is a mapping"),
        ([{1: 2}], "a column's name is text"),
        ([{}], "no columns"),
        ("", "the path is empty"),
        (b"bytes", "nothing that holds rows"),
        (7, "nothing that holds rows"),
        ({}, "the mapping is empty"),
        (pa.array([1]), "no name for its column"),
    ],
)
def test_what_holds_no_rows_is_refused(rows, message):
    with pytest.raises(InvalidInput, match=message):
        open_sources(rows)


def test_data_and_path_are_not_guessed_between(tmp_path):
    for arguments in ({}, {"data": [{"a": 1}], "path": tmp_path}):
        with pytest.raises(InvalidInput, match="either data or a path"):
            open_sources(**arguments)
    with pytest.raises(InvalidInput, match="format='csv' says what files are"):
        open_sources([{"a": 1}], format="csv")
    with pytest.raises(InvalidInput, match="verify_images"):
        open_sources([{"a": 1}], verify_images="yes")  # type: ignore[arg-type]


def test_an_error_of_the_callers_own_generator_is_not_reworded():
    def rows():
        yield from ({"a": i} for i in range(5000))
        raise ZeroDivisionError("the caller's")

    source = open_sources(rows())["train"]
    with pytest.raises(ZeroDivisionError, match="the caller's"):
        list(source.batches())


def test_looking_at_the_columns_takes_no_more_than_it_needs():
    taken = []

    def rows():
        for i in range(100_000):
            taken.append(i)
            yield {"a": i}

    source = open_sources(rows())["train"]
    assert len(taken) == 1000
    assert next(source.batches()).column("a")[0].as_py() == 0


def test_other_mappings_and_large_rows_are_rows_too(read):
    rows = [types.MappingProxyType({"n": i, "data": bytes([i]) * (3 << 20)}) for i in range(10)]
    source = open_sources(iter(rows))["train"]
    batches = list(source.batches())
    assert max(batch.num_rows for batch in batches) <= 3
    assert [n for batch in batches for n in batch["n"].to_pylist()] == list(range(10))
    assert read([{"inner": types.MappingProxyType({"a": 1})}])["inner"].to_pylist() == [{"a": 1}]


def test_arrays_in_rows_are_tensors_of_one_shape_or_lists_of_several_lengths(read):
    table = read(
        {"t": np.full((2, 3), i, np.float32), "v": torch.arange(i), "o": np.arange(2) if i % 2 else None}
        for i in range(1, 1500)
    )
    assert table.schema.field("t").type == pa.fixed_shape_tensor(pa.float32(), [2, 3])
    assert table.schema.field("v").type == pa.list_(pa.int64())
    assert table.schema.field("o").type == pa.fixed_shape_tensor(pa.int64(), [2])
    assert table["t"].combine_chunks().to_numpy_ndarray()[7].tolist() == [[8.0] * 3] * 2
    assert table["v"][4].as_py() == [0, 1, 2, 3, 4]


def test_a_missing_tensor_is_a_null(read):
    table = read([{"t": None}, {"t": np.ones((2, 2), np.int8)}, {"t": None}])
    assert table["t"].null_count == 2
    assert table["t"].is_valid().to_pylist() == [False, True, False]


def test_two_threads_read_two_sources_of_one_list(rows, table):
    found: list[bool] = []

    def read() -> None:
        source = open_sources(rows)["train"]
        found.append(pa.Table.from_batches(source.batches(), source.schema).equals(table))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4
