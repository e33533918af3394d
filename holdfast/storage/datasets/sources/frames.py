"""pandas frames, a slice at a time. The index is no column."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.sources.rows import row_error
from holdfast.storage.datasets.sources.source import BatchSource, rows_a_batch
from holdfast.storage.datasets.sources.values import Misfit, convert, infer_field

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["is_frame", "is_series", "open_frame", "series_array"]

_WHAT = "the pandas frame"


def is_frame(data: Any) -> bool:
    """Whether it is a pandas frame; pandas is not imported to find out."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(data, pandas.DataFrame)


def is_series(data: Any) -> bool:
    """Whether it is a pandas series."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(data, pandas.Series)


def open_frame(frame: Any) -> BatchSource:
    """A pandas frame as a source. Missing values of every kind (None, NaN, NaT, NA) are nulls, as in pandas.

    Raises:
        InvalidInput: A column has no name that is text or a number, or holds values that don't go together; the
            row is counted from 0, whatever the index says.
    """
    names = [_name(name) for name in frame.columns]
    fields = [_field(name, frame.iloc[:, at]) for at, name in enumerate(names)]
    schema = pa.schema(fields)
    rows = len(frame)
    size_bytes = int(frame.memory_usage(index=False, deep=False).sum())
    step = rows_a_batch(
        rows, max(size_bytes, rows * 100 * sum(_is_object(frame.iloc[:, i]) for i in range(len(names))))
    )

    def read() -> Iterator[pa.RecordBatch]:
        for start in range(0, rows, step):
            part = frame.iloc[start : start + step]
            arrays = [_array(part.iloc[:, at], field, start) for at, field in enumerate(fields)]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    return BatchSource(schema=schema, read=read, what=_WHAT, rows=rows, size_bytes=size_bytes)


def _name(name: Any) -> str:
    if isinstance(name, str):
        return name
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    raise InvalidInput(f"{_WHAT} has the column {name!r}: a column's name is text; rename it")


def _is_object(series: Any) -> bool:
    return bool(series.dtype == object)


def _field(name: str, series: Any) -> pa.Field:
    try:
        if _is_object(series):
            return infer_field(name, _values(series))
        return pa.field(name, pa.array(series.iloc[:0], from_pandas=True).type)
    except Misfit as error:
        raise row_error(_WHAT, error.index, name, error.value, error.reason) from error
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InvalidInput(
            f"{_WHAT}, column {name!r}: Arrow has no type for {series.dtype}: {error}"
        ) from error


def _values(series: Any) -> list[Any]:
    """The values of an object column, with None for whatever pandas takes for missing."""
    return [None if missing else value for value, missing in zip(series, series.isna(), strict=True)]


def _array(series: Any, field: pa.Field, first_row: int) -> pa.Array:
    try:
        if _is_object(series):
            return convert(_values(series), field)
        array = pa.array(series, type=field.type, from_pandas=True)
    except Misfit as error:
        raise row_error(_WHAT, first_row + error.index, field.name, error.value, error.reason) from error
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InvalidInput(
            f"{_WHAT}, column {field.name!r}, rows {first_row} to {first_row + len(series) - 1}: {error}"
        ) from error
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def series_array(name: str, series: Any) -> pa.Array:
    """A pandas series as one Arrow array.

    Raises:
        InvalidInput: Its values don't go together.
    """
    return _array(series, _field(name, series), 0)
