"""A column compared with a number is what Python's exact numbers say, whatever the types, and nothing overflows."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.literals import OPERATORS, column_compared
from holdfast.storage.datasets.queries import query
from tests.storage.datasets.stored import stored

INTEGERS = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
    *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
]
DECIMALS = [
    pa.decimal128(4, 2),
    pa.decimal128(38, 0),
    pa.decimal128(38, 37),
    pa.decimal256(76, 3),
    pa.decimal128(5, -2),
]
EDGES = [
    sign * (2**bits + more)
    for bits in (7, 8, 24, 31, 53, 63, 64, 70)
    for more in (-1, 0, 1)
    for sign in (1, -1)
]
NUMBERS = st.one_of(
    st.integers(-200, 200),
    st.sampled_from(EDGES),
    st.sampled_from([0.5, -0.5, 1e9, 1e3, 127.5, -128.5, 1e300, 2.0**63, math.inf, -math.inf, math.nan]),
    st.floats(width=32),
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-1000, max_value=1000),
    st.sampled_from(
        [Decimal("1e-30"), Decimal("123456789012345678901234567890.5"), Decimal("NaN"), Decimal("-Infinity")]
    ),
)


@st.composite
def columns(draw):
    """A type, and values that it has, the smallest and the largest among them."""
    kind = draw(st.sampled_from([*INTEGERS, *DECIMALS]))
    if pa.types.is_decimal(kind):
        high = 10**kind.precision - 1
        steps = st.integers(-high, high) | st.integers(-min(high, 300), min(high, 300))
        counts = [*draw(st.lists(steps, max_size=6)), high, -high, 0]
        values: list[Decimal | int] = [
            Decimal((int(n < 0), tuple(map(int, str(abs(n)))), -kind.scale)) for n in counts
        ]
    else:
        info = np.iinfo(kind.to_pandas_dtype())
        low, high = int(info.min), int(info.max)
        values = [*draw(st.lists(st.integers(low, high) | st.integers(0, 100), max_size=6)), low, high]
    return pa.array([*values, None], kind)


def exact(value, kind):
    """What is meant, as a number that compares exactly; a float for a decimal is what it is written as."""
    if isinstance(value, float) and math.isfinite(value) and pa.types.is_decimal(kind):
        value = Decimal(repr(value))
    return float(value) if isinstance(value, Decimal) and not value.is_finite() else value


def wanted(array, op, value):
    """The places of the rows that Python's own numbers want."""
    number = exact(value, array.type)
    return [
        at
        for at, own in enumerate(array.to_pylist())
        if own is not None and OPERATORS[op](Fraction(own), number if number != number else _fraction(number))  # noqa: PLR0124
    ]


def _fraction(number):
    return number if isinstance(number, float) and math.isinf(number) else Fraction(number)


def places(array, op, value):
    table = pa.table({"n": array, "at": range(len(array))})
    return table.filter(column_compared("n", op, value, table.schema))["at"].to_pylist()


@settings(max_examples=300, deadline=None)
@given(array=columns(), op=st.sampled_from(sorted(OPERATORS)), value=NUMBERS)
@example(array=pa.array([20_000_001, 5]), op=">", value=1000.0)
@example(array=pa.array([2**64 - 1], pa.uint64()), op=">", value=-1)
@example(array=pa.array([2**64 - 1], pa.uint64()), op="==", value=-1)
@example(array=pa.array([1]), op="<", value=99999999999999999999)
def test_numbers_compare_exactly(array, op, value):
    assert places(array, op, value) == wanted(array, op, value)


@settings(max_examples=100, deadline=None)
@given(array=columns(), values=st.lists(NUMBERS, max_size=4))
def test_numbers_are_found_among_others_exactly(array, values):
    own = [at for value in values for at in wanted(array, "==", value)]
    assert places(array, "in", values) == sorted(set(own))
    missing = len(array) - 1
    assert places(array, "in", [*values, None]) == sorted({*own, missing})
    assert places(array, "not in", values) == [at for at in range(len(array)) if at not in own]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from([*INTEGERS, pa.decimal128(21, 2)]),
    op=st.sampled_from(sorted(OPERATORS)),
    value=NUMBERS,
    negated=st.booleans(),
)
def test_statistics_rule_out_no_row_that_compares(store, kind, op, value, negated):
    low = 0 if kind in INTEGERS[4:] else -100
    array = pa.array([*range(low, low + 120), None, None, *range(low, low + 60, 2)]).cast(kind)
    table = pa.table({"n": array, "at": range(len(array))})
    condition = column_compared("n", op, value, table.schema)
    condition = ~condition if negated else condition
    found = query(stored(store, table), where=condition)
    assert found.to_arrow()["at"].to_pylist() == table.filter(condition)["at"].to_pylist()


def test_numbers_of_other_libraries_are_numbers(store):
    dataset = stored(
        store,
        pa.table({"n": [1, 2, 3], "d": pa.array([1, 2, 3]).cast(pa.decimal128(21, 2)), "f": [1.0, 2.0, 3.0]}),
    )
    for column in ("n", "d", "f"):
        for value in (np.int64(2), np.uint64(2), np.float32(2), np.float64(2), pa.scalar(2), pa.scalar(2.0)):
            assert query(dataset, where=[(column, ">", value)]).to_arrow()["n"].to_pylist() == [3], (
                column,
                value,
            )
        assert query(dataset, where=[(column, "in", np.array([2, 9]))]).to_arrow()["n"].to_pylist() == [2]
        assert query(dataset, where=[(column, "in", pa.array([2.0, 2.5]))]).to_arrow()["n"].to_pylist() == [2]
    assert query(dataset, where="d == '2.00' or d in ['3', 0.5]").to_arrow()["n"].to_pylist() == [2, 3]
    large = stored(store, pa.table({"n": [1_700_000_001, 5]}))
    assert query(large, where=[("n", ">", pa.scalar(1e9))]).to_arrow().num_rows == 1
    assert query(dataset, where="f < 99999999999999999999").to_arrow().num_rows == 3


def test_to_equal_none_is_to_be_missing(store):
    dataset = stored(store, pa.table({"n": [1, None, 3], "s": ["a", "b", None], "at": [0, 1, 2]}))
    for where, found in (
        ("n == None", [1]),
        ("None != n", [0, 2]),
        ("n == None or s == None", [1, 2]),
        ([("s", "==", None)], [2]),
        ([("s", "!=", None), ("n", "=", pa.scalar(None, pa.int64()))], [1]),
    ):
        assert query(dataset, where=where).to_arrow()["at"].to_pylist() == found, where


ZONED = pa.timestamp("us", "UTC")


@pytest.mark.parametrize(
    ("kind", "op", "value", "words"),
    [
        (
            pa.int64(),
            ">",
            None,
            r"column 'n' of type int64 can't be compared with None: a value can be missing or not",
        ),
        (ZONED, ">", dt.datetime(2020, 1, 5), "only one of the two has a time zone"),  # noqa: DTZ001
        (ZONED, ">", pd.Timestamp("2020-01-05"), "only one of the two has a time zone"),
        (
            pa.timestamp("ms"),
            ">",
            pd.Timestamp("2020-01-05", tz="UTC"),
            "only one of the two has a time zone",
        ),
        (ZONED, "in", [pd.Timestamp("2020-01-05")], "only one of the two has a time zone"),
        (ZONED, ">", "2020-01-05", "expected a zone offset"),
        (pa.date32(), "==", "May", "column 'n' of type date32.* can't be compared with 'May'"),
        (pa.decimal128(4, 2), ">", "much", "can't be compared with 'much': it is no number"),
        (pa.decimal128(4, 2), ">", "1e999999999", "too many digits"),
        (pa.float64(), ">", 10**400, "can't be compared with 1000"),
        (pa.string(), ">", 2**70, "column 'n' of type string can't be compared with 1180591620717411303424"),
        (pa.int64(), ">", object(), "can't be compared with <object"),
        (pa.int64(), "in", 3, "can't be compared with 3"),
        (pa.string(), "in", "abc", "what stands behind 'in' is a list"),
        (pa.string(), "in", [3, "a"], r"can't be compared with \[3, 'a'\]"),
    ],
)
def test_what_can_not_be_compared_is_said_with_its_column(kind, op, value, words):
    with pytest.raises(InvalidInput, match=words):
        column_compared("n", op, value, pa.schema([("n", kind)]))


def test_times_of_one_kind_compare():
    schema = pa.schema([("n", ZONED)])
    noon = dt.datetime(2020, 1, 5, 12, tzinfo=dt.UTC)
    table = pa.table({"n": pa.array([noon, None], ZONED)})
    for value in (
        noon,
        pd.Timestamp(noon),
        "2020-01-05T12:00:00Z",
        "2020-01-05T13:00:00+01:00",
        pa.scalar(noon),
    ):
        assert table.filter(column_compared("n", "==", value, schema)).num_rows == 1
        assert table.filter(column_compared("n", "in", [value], schema)).num_rows == 1
