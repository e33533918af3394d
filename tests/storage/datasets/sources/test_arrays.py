"""pandas, NumPy and torch: types and shapes are kept, and what has no Arrow form says so."""

from __future__ import annotations

import datetime as dt
import warnings
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.sources import open_sources

NUMBERS = (
    hnp.boolean_dtypes()
    | hnp.integer_dtypes(endianness="?")
    | hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64))
)


def table_of(data=None, **options):
    source = open_sources(data, **options)["train"]
    return pa.Table.from_batches(source.batches(), source.schema)


def array_of(column):
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    if isinstance(array, pa.FixedShapeTensorArray):
        values = array.storage.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(array), *array.type.shape)
    return array.to_numpy(zero_copy_only=False)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(NUMBERS, hnp.array_shapes(min_dims=1, max_dims=4, max_side=5)), st.booleans())
def test_an_array_of_numbers_comes_back_bit_by_bit(values, fortran):
    given = np.asfortranarray(values) if fortran else values
    found = array_of(table_of(given)["data"])
    assert found.dtype == values.dtype.newbyteorder("=")
    assert found.tobytes() == np.ascontiguousarray(values, values.dtype.newbyteorder("=")).tobytes()


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(NUMBERS, hnp.array_shapes(min_dims=1, max_dims=3, max_side=5)), st.booleans(), st.booleans()
)
def test_files_of_numpy_come_back_bit_by_bit(tmp_path_factory, values, fortran, compressed):
    folder = tmp_path_factory.mktemp("numpy")
    given = np.asfortranarray(values) if fortran else values
    np.save(folder / "a.npy", given)
    (np.savez_compressed if compressed else np.savez)(
        folder / "a.npz", data=given, other=np.arange(len(given))
    )
    for name in ("a.npy", "a.npz"):
        found = array_of(table_of(path=folder / name)["data"])
        assert found.shape == values.shape
        assert found.tobytes() == np.ascontiguousarray(values, values.dtype.newbyteorder("=")).tobytes()


def test_arrays_of_many_batches_keep_their_rows_in_order(tmp_path):
    values = np.arange(6_000_000, dtype=np.float32).reshape(3000, 40, 50)
    np.savez(tmp_path / "c.npz", x=values, i=np.arange(3000))
    np.savez(tmp_path / "f.npz", x=np.asfortranarray(values), i=np.arange(3000))
    np.save(tmp_path / "c.npy", values)
    for name in ("c.npz", "f.npz", "c.npy"):
        source = open_sources(path=tmp_path / name)["train"]
        batches = list(source.batches())
        assert max(batch.nbytes for batch in batches) <= 8 << 20
        assert len(batches) >= 3
        column = pa.chunked_array([batch.column(0) for batch in batches])
        assert np.array_equal(array_of(column), values)


def test_rows_without_any_are_known_to_have_none(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((0, 3), np.int8))
    np.savez(tmp_path / "a.npz", a=np.zeros(0))
    for data in (
        {"data": np.zeros((0, 3), np.int8)},
        tmp_path / "a.npy",
        tmp_path / "a.npz",
        pd.DataFrame({"a": []}),
        pa.table({"a": [1]})[:0],
    ):
        source = open_sources(data)["train"]
        assert list(source.batches()) == []
        assert source.rows == 0
        assert len(source.schema) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros(3, complex), "Arrow has no type for complex128"),
        (np.zeros((3, 2), "U3"), "no tensors of"),
        (np.zeros((3, 0)), "hold nothing"),
        (np.float64(3), "nothing that holds rows"),
        (np.array(3.0), "is a single number"),
        ({"a": np.array([1, "x", None], object)}, r"row 1 .*column 'a': 'x'"),
        (np.zeros(2, [("a", "i4"), ("b", "c8")]), "column 'b'.*complex64"),
        (torch.zeros(3, dtype=torch.bfloat16), "bfloat16.*convert it"),
        ({1: np.arange(3)}, "a column's name is text"),
        (np.ma.masked_equal(np.arange(6).reshape(3, 2), 3), r"row 1 .*masked items"),
    ],
)
def test_what_arrow_does_not_have_says_so(data, message):
    with pytest.raises(InvalidInput, match=message):
        table_of(data)


def test_masked_values_are_missing():
    table = table_of(
        {
            "i": np.ma.array([1, 2, 3], mask=[False, True, False], dtype=">i4"),
            "s": np.ma.array(["a", "b", "c"], mask=[True, False, False]),
            "o": np.ma.array(["a", 2, "c"], mask=[False, True, False], dtype=object),
            "t": np.ma.array(np.arange(6).reshape(3, 2)),
        }
    )
    assert table.select(["i", "s", "o"]).to_pylist() == [
        {"i": 1, "s": None, "o": "a"},
        {"i": None, "s": "b", "o": None},
        {"i": 3, "s": "c", "o": "c"},
    ]
    fields: Any = np.ma.array([(1, 2.0), (3, 4.0)], dtype=[("a", "i4"), ("b", "f8")])
    fields["b"][0] = np.ma.masked
    assert table_of(fields).to_pylist() == [{"a": 1, "b": None}, {"a": 3, "b": 4.0}]


@pytest.mark.parametrize("values", [np.array(["a\0b", "é", ""]), np.array([b"a\0b", b"c", b"\0\0d"])])
def test_texts_are_not_cut_at_a_nul(values):
    assert table_of({"x": values})["x"].to_pylist() == values.tolist()


def test_python_objects_in_numpy_files_are_refused_and_never_unpickled(tmp_path):
    class Run:
        def __reduce__(self):
            return (pytest.fail, ("it was unpickled",))

    np.save(tmp_path / "a.npy", np.array([Run()], object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=np.array([Run()], object))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(InvalidInput, match="Python objects"):
            open_sources(path=tmp_path / name)


# --------------------------------------------------------------------------------------------------- pandas


def test_types_of_pandas_are_kept_and_its_missing_values_are_nulls():
    frame = pd.DataFrame(
        {
            "f": [1.5, np.nan, 2.5],
            "i": pd.array([1, None, 3], "Int32"),
            "c": pd.Categorical(["a", None, "b"]),
            "t": pd.to_datetime(["2024-01-01", None, "2024-01-03"]).tz_localize("UTC"),
            "s": ["x", None, "y"],
            "o": pd.Series(["x", np.nan, None], dtype=object),
            "d": pd.Series([dt.date(2024, 1, 1), pd.NaT, None], dtype=object),
            "a": pd.Series([np.zeros((2, 2))] * 3, dtype=object),
            "m": pd.Series([1, 2.5, pd.NA], dtype=object),
        }
    ).set_index(pd.Index(["p", "q", "r"]))
    table = table_of(frame)
    assert table.column_names == list(frame.columns)
    assert [table[name].null_count for name in "fictsodam"] == [1, 1, 1, 1, 1, 2, 2, 0, 1]
    assert table.schema.field("i").type == pa.int32()
    assert pa.types.is_dictionary(table.schema.field("c").type)
    assert table["c"].to_pylist() == ["a", None, "b"]
    assert table.schema.field("d").type == pa.date32()
    assert table.schema.field("a").type == pa.fixed_shape_tensor(pa.float64(), [2, 2])
    assert table["m"].to_pylist() == [1.0, 2.5, None]


@pytest.mark.parametrize("bad", ["text", b"bytes", True, [1]])
@pytest.mark.parametrize("at", [1, 150_000])
def test_objects_of_several_kinds_are_named_by_row_whatever_the_index_says(bad, at):
    values = [7] * 200_000
    values[at] = bad
    frame = pd.DataFrame({"ok": 1.0, "x": pd.Series(values, dtype=object)}, index=None)
    frame.index = pd.RangeIndex(5, 200_005)
    with pytest.raises(InvalidInput, match=rf"the pandas frame, row {at} \(the first is 0\), column 'x'"):
        table_of(frame)


def test_columns_of_one_name_are_named():
    with pytest.raises(InvalidInput, match="same name: 'a'"):
        open_sources(pd.DataFrame([[1, 2]], columns=["a", "a"]))
    with pytest.raises(InvalidInput, match="same name: 'a'"):
        open_sources(pa.table([[1], [2]], names=["a", "a"]))
    with pytest.raises(InvalidInput, match="same name: '1'"):
        open_sources(pd.DataFrame([[1, 2]], columns=["1", 1]))
    with pytest.raises(InvalidInput, match=r"column \('a', 'b'\): a column's name is text"):
        open_sources(pd.DataFrame([[1]], columns=pd.MultiIndex.from_tuples([("a", "b")])))


def test_a_frame_is_not_changed_by_being_read():
    frame = pd.DataFrame({"a": pd.Series([1, 2], dtype=object), "b": ["x", "y"]}, index=[3, 4])
    before = frame.copy(deep=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table_of(frame)
    pd.testing.assert_frame_equal(frame, before)


# ---------------------------------------------------------------------------------------------------- torch


class Pair(NamedTuple):
    image: torch.Tensor
    label: int


class Samples(torch.utils.data.Dataset[object]):
    def __init__(self, make, rows=5):
        self.make, self.rows = make, rows

    def __len__(self):
        return self.rows

    def __getitem__(self, index):
        assert 0 <= index < self.rows
        return self.make(index)


def test_tensors_are_columns_without_a_copy():
    x, y = torch.arange(12.0).reshape(3, 4), torch.tensor([1, 2, 3])
    table = table_of(torch.utils.data.TensorDataset(x, y))
    assert table.schema == pa.schema([("0", pa.fixed_shape_tensor(pa.float32(), [4])), ("1", pa.int64())])
    assert table["0"].chunk(0).storage.flatten().buffers()[1].address == x.data_ptr()
    assert table_of({"x": x, "y": y}).rename_columns(["0", "1"]).equals(table)
    assert array_of(table_of(x.requires_grad_())["data"]).tolist() == x.tolist()


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda i: (torch.full((2, 2), i), i), ["0", "1"]),
        (lambda i: [torch.full((2, 2), i), i], ["0", "1"]),
        (lambda i: {"x": torch.full((2, 2), i), "y": torch.tensor(i)}, ["x", "y"]),
        (lambda i: Pair(torch.full((2, 2), i), i), ["image", "label"]),
        (lambda i: torch.full((2, 2), i), ["0"]),
    ],
)
def test_samples_of_every_shape_are_rows(make, names):
    table = table_of(Samples(make))
    assert table.column_names == names
    assert array_of(table[names[0]]).tolist() == [[[i, i], [i, i]] for i in range(5)]
    if len(names) == 2:
        assert table[names[1]].to_pylist() == list(range(5))


def test_subsets_of_torch_datasets_are_taken_whole():
    data = torch.utils.data.Subset(Samples(lambda i: (i, i * i)), [4, 1])
    assert table_of(data).to_pylist() == [{"0": 4, "1": 16}, {"0": 1, "1": 1}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.utils.data.DataLoader(Samples(lambda i: i)), "give the dataset behind it"),
        (Samples(lambda i: i, 0), "has no rows"),
        (Samples(lambda i: (i, "x" if i == 3 else i)), r"the dataset Samples, row 3 .*column '1': 'x'"),
        (Samples(lambda i: torch.zeros(2 + (i == 4), 2)), r"row 4 .*shape \(3, 2\)"),
        (Samples(lambda _: ()), r"row 0 .*has no values"),
        (torch.utils.data.TensorDataset(torch.zeros(2, dtype=torch.bfloat16)), "'0' of torch.bfloat16"),
    ],
)
def test_samples_that_make_no_table_are_named(data, message):
    with pytest.raises(InvalidInput, match=message):
        table_of(data)
