"""NumPy arrays: a column each, rows first. More dimensions make tensors; fields of structured arrays make columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.sources.rows import row_error
from holdfast.storage.datasets.sources.source import BatchSource, check_columns, rows_a_batch
from holdfast.storage.datasets.sources.values import Misfit, convert, infer_field, tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Array = np.ndarray[Any, Any]

__all__ = ["PLAIN", "column_array", "column_field", "columns_of_array", "open_arrays"]

PLAIN = "data"
"""The column's name where an array has none."""


def open_arrays(columns: Mapping[str, Array], *, what: str = "the NumPy columns") -> BatchSource:
    """Arrays as the columns of one source; nothing but strided and byte-swapped ones is copied.

    Raises:
        InvalidInput: The arrays differ in length, have no rows' dimension, or a type that Arrow does not have.
    """
    check_columns(columns, what=what)
    for name, values in columns.items():
        if not isinstance(name, str):
            raise InvalidInput(f"{what} have the column {name!r}: a column's name is text")
        if values.ndim == 0:
            raise InvalidInput(f"{what}: {name!r} is a single number: a column has rows")
    if len({len(values) for values in columns.values()}) > 1:
        sizes = ", ".join(f"{name} {len(values)}" for name, values in columns.items())
        raise InvalidInput(f"{what} differ in their number of rows: {sizes}")
    schema = pa.schema([column_field(name, values, what=what) for name, values in columns.items()])
    rows = len(next(iter(columns.values())))
    size_bytes = sum(values.nbytes for values in columns.values())
    step = rows_a_batch(rows, size_bytes)

    def read() -> Iterator[pa.RecordBatch]:
        for start in range(0, rows, step):
            arrays = [
                column_array(columns[field.name][start : start + step], field, start, what=what)
                for field in schema
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    return BatchSource(schema=schema, read=read, what=what, rows=rows, size_bytes=size_bytes)


def columns_of_array(values: Array) -> dict[str, Array]:
    """The columns that one array makes: its fields, or itself as ``data``."""
    if values.dtype.names is not None:
        return {name: values[name] for name in values.dtype.names}
    return {PLAIN: values}


def column_field(name: str, values: Array, *, what: str) -> pa.Field:
    """The field that a column of an array becomes.

    Raises:
        InvalidInput: Arrow has no such type, or objects in it don't go together.
    """
    try:
        if values.dtype.hasobject:
            return infer_field(name, list(values))
        return pa.field(name, column_array(values[:0], None, 0, what=what).type)
    except Misfit as error:
        raise row_error(what, error.index, name, error.value, error.reason) from error
    except (pa.ArrowException, TypeError, ValueError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(
            f"{what}, column {name!r}: Arrow has no type for {values.dtype}: {error}"
        ) from error


def column_array(values: Array, field: pa.Field | None, first_row: int, *, what: str) -> pa.Array:
    """Rows of a column as an Arrow array; ``field`` is needed for objects only."""
    if values.dtype.hasobject and field is not None:
        try:
            return convert(list(values), field)
        except Misfit as error:
            raise row_error(what, first_row + error.index, field.name, error.value, error.reason) from error
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    if values.ndim == 1 and values.dtype.kind in "SU":  # Arrow would cut each at its first NUL
        return pa.array(values.tolist(), pa.binary() if values.dtype.kind == "S" else pa.string())
    if values.ndim == 1:
        return pa.array(np.asarray(values), mask=_mask(values))
    if (mask := _mask(values)) is not None:
        row = first_row + int(mask.reshape(len(mask), -1).any(axis=1).argmax())
        raise InvalidInput(
            f"{what}, row {row} (the first is 0): the array has masked items, and tensors have no missing ones; fill them, "
            "such as by .filled(0)"
        )
    if values.dtype.kind in "USV":
        raise InvalidInput(f"{what}: Arrow has no tensors of {values.dtype}; make each part a column")
    if 0 in values.shape[1:]:
        raise InvalidInput(f"{what}: rows of the shape {values.shape[1:]} hold nothing")
    return tensors(values)


def _mask(values: Array) -> Array | None:
    return np.ma.getmaskarray(values) if np.ma.is_masked(values) else None
