"""Five rows of every type that a dataset can hold, with missing values."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

ROWS = 5


def tensors(values: np.ndarray[Any, Any], missing: list[bool] | None = None) -> pa.Array:
    """Arrays with rows first as a column of tensors."""
    flat = pa.array(values.reshape(-1))
    mask = None if missing is None else pa.array(missing)
    storage = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])), mask=mask)
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(flat.type, values.shape[1:]), storage)


def _decimals(kind: pa.DataType) -> pa.Array:
    return pa.array([Decimal("1.20"), None, Decimal("-3.00"), Decimal("0.01"), Decimal("99999.99")], kind)


_NUMBERS = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(
        pa.float32(),
        pa.float64(),
        pa.date32(),
        pa.time32("s"),
        pa.time32("ms"),
        pa.time64("us"),
        pa.time64("ns"),
    ),
    *(
        pa.timestamp("s"),
        pa.timestamp("ms"),
        pa.timestamp("us"),
        pa.timestamp("ns"),
        pa.timestamp("s", "UTC"),
    ),
    *(pa.timestamp("us", "Europe/Paris"), pa.timestamp("ns", "+02:00")),
    *(pa.duration("s"), pa.duration("ms"), pa.duration("us"), pa.duration("ns")),
]
_ONES = np.arange(ROWS * 6)

COLUMNS: dict[str, pa.Array] = {
    **{str(kind): pa.array([1, None, 3, 0, 5], kind) for kind in _NUMBERS},
    "null": pa.nulls(ROWS),
    "bool": pa.array([True, None, False, True, True]),
    "largest uint64": pa.array([(1 << 64) - 1, 0, None, 1, 2], pa.uint64()),
    "date64": pa.array([86_400_000, None, 0, 0, 5 * 86_400_000], pa.int64()).cast(pa.date64()),
    "float16": pa.array(np.array([1, 2, np.nan, -0.0, np.inf], np.float16)),
    "float64 specials": pa.array([float("nan"), None, -0.0, float("inf"), 1.0]),
    "decimal128": _decimals(pa.decimal128(20, 2)),
    "small decimal256": _decimals(pa.decimal256(20, 2)),
    "decimal256": _decimals(pa.decimal256(60, 2)),
    "string": pa.array(["", None, "ä", "longer than eight bytes", "x"]),
    "binary": pa.array([b"", None, b"\0", b"longer than eight bytes", b"x"]),
    "fixed_size_binary": pa.array([b"abc", None, b"\0\0\0", b"xyz", b"123"], pa.binary(3)),
    "list": pa.array([[1, 2], None, [], [None], [3]]),
    "list of text": pa.array([["a", ""], None, [], [None], ["long long long"]]),
    "list of lists": pa.array([[[1], [], None], None, [], [[1, 2, 3]], [[]]]),
    "list of bool": pa.array([[True, False], None, [], [None], [True]]),
    "list of zoned seconds": pa.array(
        [[1, 2], None, [], [None], [3]], pa.list_(pa.timestamp("s", "Asia/Tokyo"))
    ),
    "fixed_size_list": pa.array([[1, 2], None, [3, None], [4, 5], [6, 7]], pa.list_(pa.int16(), 2)),
    "dense fixed_size_list": pa.array([[1, 2], [3, 3], [3, 1], [4, 5], [6, 7]], pa.list_(pa.float32(), 2)),
    "fixed_size_list of bool": pa.array(
        [[True, False], None, [True, None], [False, False], [True, True]], pa.list_(pa.bool_(), 2)
    ),
    "fixed_size_list of text": pa.array(
        [["a", "b"], None, ["c", None], ["", ""], ["d", "e"]], pa.list_(pa.string(), 2)
    ),
    "struct": pa.array(
        [{"a": 1, "b": "x"}, None, {"a": None, "b": None}, {"a": 4, "b": "y"}, {"a": 5, "b": ""}]
    ),
    "list of structs": pa.array(
        [[{"a": 1, "b": ["x"]}], None, [], [{"a": None, "b": None}, None], [{"a": 5, "b": []}]]
    ),
    "map": pa.array(
        [[("a", 1)], None, [], [("b", None)], [("c", 3), ("d", 4)]], pa.map_(pa.string(), pa.int64())
    ),
    "map of durations": pa.array(
        [[("a", 1)], None, [], [("b", None)], [("c", 3), ("d", 4)]], pa.map_(pa.string(), pa.duration("s"))
    ),
    "tensor of uint8": tensors(_ONES.astype(np.uint8).reshape(ROWS, 2, 3)),
    "tensor of float32": tensors(
        _ONES.astype(np.float32).reshape(ROWS, 3, 2), [False, True, False, False, False]
    ),
    "tensor of bool": tensors((_ONES % 3 == 0).reshape(ROWS, 6)),
    "tensor of bool with nulls": tensors(
        (_ONES % 3 == 0).reshape(ROWS, 2, 3), [False, True, False, False, False]
    ),
}
