"""Columns as NumPy arrays with rows first: no Python for each row of numbers, and no copy where Arrow's memory will do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from holdfast.errors import InvalidInput, Unsupported

if TYPE_CHECKING:
    Array: TypeAlias = np.ndarray[Any, Any]

__all__ = ["column_to_numpy", "is_fixed", "row_bytes", "table_to_numpy"]


def table_to_numpy(table: pa.Table | pa.RecordBatch) -> dict[str, Array]:
    """Each column as one array with rows first.

    Raises:
        InvalidInput: A numeric column has missing values.
        Unsupported: A type has no array form.
    """
    return {name: column_to_numpy(name, table.column(name)) for name in table.schema.names}


def column_to_numpy(name: str, column: pa.Array | pa.ChunkedArray) -> Array:
    """A column as an array with rows first.

    Numbers, booleans, times and tensors are arrays of their own type and shape. Lists of numbers become one array where they are
    equally long, else an array of arrays. Texts, bytes and everything else are arrays of Python objects, with None where
    a value is missing: a struct is a dict, a map a list of pairs, a list of structs a list of dicts. A missing time is NaT.

    Args:
        name: For messages.
        column: What to convert.

    Raises:
        InvalidInput: A number, or a part of a tensor, is missing; the message says how many.
        Unsupported: The type has no array form.
    """
    array = _one_chunk(column)
    if isinstance(array.type, pa.FixedShapeTensorType):
        return _tensors(name, array)
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if _is_number(kind):
        return _numbers(name, array)
    if pa.types.is_fixed_size_list(kind) and is_fixed(kind):
        return _fixed_lists(name, array)
    if _is_list(kind) and (_is_number(kind.value_type) or _is_list(kind.value_type)):
        return _lists(name, array)
    try:
        if _has_fields(kind):
            # Arrow's own objects would have rounded floats for integers where one beside them is missing.
            return np.fromiter(array.to_pylist(), object, len(array))
        values: Array = array.to_numpy(zero_copy_only=False)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise Unsupported(f"column {name!r} of type {array.type} has no NumPy form: {error}") from error
    if values.dtype == object or values.dtype.kind in "mM":
        return values
    return values.astype(object)


def is_fixed(kind: pa.DataType) -> bool:
    """Whether every value of the type has the same number of bytes and becomes part of one array, not a Python object."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return True
    if pa.types.is_fixed_size_list(kind):
        return is_fixed(kind.value_type)
    return _is_number(kind) or _is_time(kind)


def row_bytes(kind: pa.DataType) -> int:
    """How many bytes one value of a fixed type has as part of an array."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return int(np.prod(kind.shape, dtype=np.int64)) * row_bytes(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * row_bytes(kind.value_type)
    if pa.types.is_boolean(kind):
        return 1
    return 8 if _is_time(kind) else int(kind.bit_width) // 8


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    array = column.combine_chunks()
    return (
        pa.array([], column.type) if isinstance(array, pa.ChunkedArray) else array
    )  # where there was no chunk


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_duration(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or isinstance(kind, pa.ListViewType | pa.LargeListViewType)
    )


def _has_fields(kind: pa.DataType) -> bool:
    """Whether there is a struct or a map in it."""
    if pa.types.is_struct(kind) or pa.types.is_map(kind):
        return True
    return _is_list(kind) and _has_fields(kind.value_type)


def _complete(name: str, array: pa.Array, what: str = "missing values") -> None:
    if array.null_count:
        raise InvalidInput(
            f"column {name!r} of type {array.type} has {array.null_count} {what} among {len(array)}: fill or drop them "
            "first, for an array of numbers has no place for them"
        )


def _numbers(name: str, array: pa.Array) -> Array:
    _complete(name, array)
    values: Array = array.to_numpy(zero_copy_only=False)
    return values


def _tensors(name: str, array: pa.Array) -> Array:
    kind = array.type
    _complete(name, array, "missing tensors")
    flat = _numbers(name, array.storage.flatten())
    if kind.permutation is None:
        return flat.reshape(len(array), *kind.shape)
    stored = flat.reshape(len(array), *kind.shape)
    return stored.transpose(0, *(axis + 1 for axis in kind.permutation))


def _fixed_lists(name: str, array: pa.Array) -> Array:
    _complete(name, array, "missing lists")
    values = array.flatten()
    inner = (
        _fixed_lists(name, values)
        if pa.types.is_fixed_size_list(values.type)
        else column_to_numpy(name, values)
    )
    return inner.reshape(len(array), array.type.list_size, *inner.shape[1:])


def _lists(name: str, array: pa.Array) -> Array:
    """Equally long lists as one array with an axis more, others as an array of arrays."""
    import pyarrow.compute as pc

    _complete(name, array, "missing lists")
    inner = column_to_numpy(name, array.flatten())
    lengths: Array = pc.list_value_length(array).to_numpy(zero_copy_only=False)
    if len(array) and (lengths == lengths[0]).all():
        return inner.reshape(len(array), int(lengths[0]), *inner.shape[1:])
    ends = np.cumsum(lengths)
    ragged = np.empty(len(array), object)
    for row, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True)):
        ragged[row] = inner[end - length : end]
    return ragged
