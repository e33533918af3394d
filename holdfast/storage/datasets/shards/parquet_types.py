"""How logical types lie in Parquet, so that every value comes back as it was, and whole tensors are read at once.

Tensors are fixed-size binary: as lists, each of their bytes would take four and two levels. Fixed-size lists are lists.
Types that Parquet lacks (durations, ``date64``, times and timestamps in seconds) are integers of the same width; the
manifest says what they mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from holdfast.storage.datasets.shards.arrays import (
    bytes_to_tensor,
    is_tensor,
    tensor_row_bytes,
    tensor_to_bytes,
    valid_mask,
    with_children,
)

__all__ = ["from_parquet", "leaf_count", "parquet_schema", "to_parquet"]


def parquet_schema(schema: pa.Schema) -> pa.Schema:
    """What is written to Parquet for a logical schema."""
    return pa.schema([pa.field(field.name, _parquet_type(field.type)) for field in schema])


def leaf_count(kind: pa.DataType) -> int:
    """How many columns of a Parquet file a logical column is."""
    if is_tensor(kind):
        return 1
    if pa.types.is_struct(kind):
        return sum(leaf_count(kind.field(index).type) for index in range(kind.num_fields))
    if pa.types.is_map(kind):
        return leaf_count(kind.key_type) + leaf_count(kind.item_type)
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return leaf_count(kind.value_type)
    return 1


def _parquet_type(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if is_tensor(kind):
        return pa.binary(tensor_row_bytes(kind))
    if types.is_map(kind):
        return pa.map_(_parquet_type(kind.key_type), _parquet_type(kind.item_type))
    if types.is_list(kind) or types.is_fixed_size_list(kind):
        return pa.list_(_parquet_type(kind.value_type))
    if types.is_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        return pa.struct([(field.name, _parquet_type(field.type)) for field in fields])
    if types.is_duration(kind) or types.is_date64(kind) or (types.is_timestamp(kind) and kind.unit == "s"):
        return pa.int64()
    if types.is_time32(kind) and kind.unit == "s":
        return pa.int32()
    if types.is_timestamp(kind) and kind.tz is not None:
        return pa.timestamp(kind.unit, "UTC")
    return kind


def to_parquet(array: pa.Array, stored: pa.DataType) -> pa.Array:
    """Logical values as ``stored``, the type that :func:`parquet_schema` gives for theirs."""
    kind = array.type
    if is_tensor(kind):
        return tensor_to_bytes(array)
    if kind == stored:
        return array
    if pa.types.is_fixed_size_list(kind):
        return _list_of(array, stored)
    if pa.types.is_nested(kind):
        return with_children(array, stored, to_parquet)
    return array.view(stored)


def _list_of(array: pa.Array, stored: pa.DataType) -> pa.Array:
    """A fixed-size list as a list; those that are missing have no items."""
    size, items = len(array), array.type.list_size
    mask = valid_mask(array)
    values = array.values.slice(array.offset * items, size * items)
    lengths = np.full(size, items, np.int32)
    if mask is not None:
        values = values.filter(pa.array(np.repeat(mask, items)))
        lengths[~mask] = 0
    offsets = np.concatenate((np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)))
    missing = pa.array(~mask) if mask is not None else None
    return pa.ListArray.from_arrays(
        pa.array(offsets), to_parquet(values, stored.value_type), type=stored, mask=missing
    )


def from_parquet(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """What Parquet gave, as the logical type; without a copy, except for bool tensors and fixed-size lists with nulls.

    Raises:
        ValueError: It is something else.
    """
    found, types = array.type, pa.types
    if is_tensor(kind):
        if found != pa.binary(tensor_row_bytes(kind)):
            raise ValueError(f"{found} can't be {kind}")
        return bytes_to_tensor(array, kind)
    if found == kind:
        return array
    if types.is_fixed_size_list(kind) and types.is_list(found):
        return _fixed_size_list_of(array, kind)
    if types.is_nested(kind):
        if found.id != kind.id or found.num_fields != kind.num_fields:
            raise ValueError(f"{found} can't be {kind}")
        return with_children(array, kind, from_parquet)
    if types.is_decimal(kind) and types.is_decimal(found):
        return array.cast(kind)
    if found != _parquet_type(kind):
        raise ValueError(f"{found} can't be {kind}")
    return array.view(kind)


def _fixed_size_list_of(array: pa.Array, kind: pa.DataType) -> pa.Array:
    size, items = len(array), kind.list_size
    mask = valid_mask(array)
    counts = array.value_lengths().fill_null(items).to_numpy(zero_copy_only=False)
    if np.any(counts != items):
        raise ValueError(f"a list does not have {items} items")
    values = array.flatten()
    missing = None
    if mask is not None:
        shown = np.repeat(mask, items)
        places = np.cumsum(shown, dtype=np.int64) - 1
        values = values.take(pa.array(np.where(shown, places, 0), mask=~shown))
        missing = pa.array(~mask)
    child: Any = from_parquet(values, kind.value_type)
    if not size:
        return pa.array([], kind)
    return pa.FixedSizeListArray.from_arrays(child, type=kind, mask=missing)
