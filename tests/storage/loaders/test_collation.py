"""Columns as arrays: the right values, shapes and types, and no copy where none is needed."""

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import InvalidInput, Unsupported
from holdfast.storage.loaders.collation import column_to_numpy, is_fixed, row_bytes, table_to_numpy

NUMBERS = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
    *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64()),
]


def address(values):
    return values.__array_interface__["data"][0]


@pytest.mark.parametrize("kind", NUMBERS, ids=str)
def test_numbers_are_arrays_of_their_type_in_arrows_own_memory(kind):
    array = pa.array(np.arange(20).astype(kind.to_pandas_dtype()), kind)
    values = column_to_numpy("a", array.slice(3, 10))
    assert values.dtype == kind.to_pandas_dtype()
    assert values.tolist() == list(range(3, 13))
    assert address(values) == array.buffers()[1].address + 3 * values.itemsize
    assert is_fixed(kind)
    assert row_bytes(kind) == values.itemsize


def test_booleans_are_booleans():
    values = column_to_numpy("a", pa.array([True, False, True]).slice(1))
    assert values.dtype == bool
    assert values.tolist() == [False, True]


@pytest.mark.parametrize(
    "kind", [pa.int32(), pa.float32(), pa.bool_(), pa.list_(pa.int8()), pa.list_(pa.int8(), 2)], ids=str
)
def test_missing_numbers_are_counted_and_not_made_up(kind):
    value = [1, 2] if pa.types.is_nested(kind) else True if pa.types.is_boolean(kind) else 1
    array = pa.array([value, None, None], kind)
    with pytest.raises(InvalidInput, match=r"column 'a' .* has 2 missing \w+ among 3"):
        column_to_numpy("a", array)


def test_missing_parts_of_lists_and_tensors_are_refused_too():
    lists = pa.array([[1, None], [3, 4]], pa.list_(pa.int8(), 2))
    for array in (
        lists,
        lists.cast(pa.list_(pa.int8())),
        pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.int8(), (2,)), lists),
    ):
        with pytest.raises(InvalidInput, match="1 missing"):
            column_to_numpy("a", array)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 6), st.integers(0, 3))
def test_tensors_keep_their_shape(shape, rows, skipped):
    values = np.arange((rows + skipped) * int(np.prod(shape)), dtype=np.float32).reshape(-1, *shape)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), int(np.prod(shape)))
    kind = pa.fixed_shape_tensor(pa.float32(), shape)
    array = pa.ExtensionArray.from_storage(kind, storage).slice(skipped)
    np.testing.assert_array_equal(column_to_numpy("a", array), values[skipped:])
    assert row_bytes(kind) == 4 * int(np.prod(shape))
    if rows:
        assert address(column_to_numpy("a", array)) == address(
            storage.values.to_numpy()[skipped * int(np.prod(shape)) :]
        )


def test_a_tensor_that_is_stored_in_another_order_comes_in_its_logical_one():
    physical = np.arange(2 * 3 * 4, dtype=np.int32).reshape(1, 2, 3, 4)
    kind = pa.fixed_shape_tensor(pa.int32(), (2, 3, 4), permutation=[2, 0, 1])
    storage = pa.FixedSizeListArray.from_arrays(pa.array(physical.reshape(-1)), 24)
    values = column_to_numpy("a", pa.ExtensionArray.from_storage(kind, storage))
    np.testing.assert_array_equal(values, physical.transpose(0, 3, 1, 2))


def test_lists_of_equal_length_are_one_array_and_others_an_array_of_arrays():
    equal = column_to_numpy("a", pa.array([[9], [1, 2], [3, 4]]).slice(1))
    assert equal.dtype == np.int64
    assert equal.tolist() == [[1, 2], [3, 4]]
    ragged = column_to_numpy("a", pa.array([[9, 9], [1, 2], [], [3]]).slice(1))
    assert ragged.dtype == object
    assert [each.tolist() for each in ragged] == [[1, 2], [], [3]]
    assert {each.dtype for each in ragged} == {np.dtype(np.int64)}
    assert column_to_numpy("a", pa.array([[[1, 2]], [[3, 4]]])).shape == (2, 1, 2)
    assert column_to_numpy("a", pa.array([], pa.list_(pa.int8()))).shape == (0,)
    fixed = pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.float32(), 2))
    assert column_to_numpy("a", fixed.slice(1)).tolist() == [[3, 4], [5, 6]]
    nested = pa.array([[[1, 2], [3, 4]]] * 3, pa.list_(pa.list_(pa.int16(), 2), 2))
    assert column_to_numpy("a", nested).shape == (3, 2, 2)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array(["a", None, "c"]), ["a", None, "c"]),
        (pa.array([b"a", None]), [b"a", None]),
        (pa.array([b"ab", b"cd"], pa.binary(2)), [b"ab", b"cd"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array([{"x": 1}, None]), [{"x": 1}, None]),
        (pa.array([Decimal("1.5"), None]), [Decimal("1.5"), None]),
        (pa.array([None, None]), [None, None]),
        (pa.array([dt.time(1, 2)], pa.time32("s")), [dt.time(1, 2)]),
    ],
    ids=lambda each: str(each.type) if isinstance(each, pa.Array) else "",
)
def test_everything_else_are_objects(array, expected):
    values = column_to_numpy("a", array)
    assert values.dtype == object
    assert values.tolist() == expected
    assert not is_fixed(array.type)


LARGE = 2**53 + 1
PAIR = pa.struct([("x", pa.int64())])


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        (PAIR, [{"x": LARGE}, {"x": None}, None, {"x": -LARGE}]),
        (pa.map_(pa.string(), pa.int64()), [[("a", LARGE), ("b", None)], None, []]),
        (pa.struct([("l", pa.list_(pa.int64()))]), [{"l": [LARGE, None]}, {"l": None}, {"l": []}]),
        (pa.list_(PAIR), [[{"x": LARGE}, None], None, [{"x": None}, {"x": 1}]]),
        (pa.list_(PAIR, 2), [[{"x": LARGE}, None], None, [{"x": None}, {"x": 1}]]),
    ],
    ids=str,
)
def test_integers_within_values_stay_whole_whatever_is_missing_beside_them(kind: Any, rows: list[Any]):
    array = pa.array(rows, kind)
    assert column_to_numpy("a", array).tolist() == rows
    for at, row in enumerate(rows):
        alone = column_to_numpy("a", array.slice(at, 1))
        assert alone.shape == (1,)
        assert repr(alone[0]) == repr(row), "and not as a float that is equal to it"
    if pa.types.is_list(kind):
        (within,) = column_to_numpy("a", pa.array([rows[::2]], pa.list_(kind)))
        assert within.tolist() == rows[::2]


def test_times_are_times_and_missing_ones_are_not_a_time():
    stamps = column_to_numpy("a", pa.array([0, None], pa.timestamp("us")))
    assert stamps.dtype == np.dtype("datetime64[us]")
    assert stamps[0] == np.datetime64(0, "us")
    assert np.isnat(stamps[1])
    days = column_to_numpy("a", pa.array([dt.date(2020, 2, 29)]))
    assert days[0] == np.datetime64("2020-02-29")
    waits = column_to_numpy("a", pa.array([5], pa.duration("ms")))
    assert waits[0] == np.timedelta64(5, "ms")
    for kind, values in ((pa.timestamp("us"), stamps), (pa.date32(), days), (pa.duration("ms"), waits)):
        assert is_fixed(kind)
        assert row_bytes(kind) == values.itemsize


def test_a_column_in_chunks_is_one_array():
    table = pa.table({"a": pa.chunked_array([[1, 2], [3]]), "b": pa.chunked_array([["x"], [None, "z"]])})
    arrays = table_to_numpy(table)
    assert {name: values.tolist() for name, values in arrays.items()} == {
        "a": [1, 2, 3],
        "b": ["x", None, "z"],
    }
    assert column_to_numpy("b", pa.chunked_array([], pa.int8())).dtype == np.int8


def test_a_type_without_an_array_form_is_named():
    union = pa.UnionArray.from_dense(
        pa.array([0, 1], pa.int8()), pa.array([0, 0], pa.int32()), [pa.array([1]), pa.array(["x"])]
    )
    with pytest.raises(Unsupported, match="'a' of type dense_union"):
        column_to_numpy("a", union)
