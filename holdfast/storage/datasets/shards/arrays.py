"""Arrow arrays taken apart and put together again: children replaced, tensors as bytes, values under nulls cleared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "bytes_to_tensor",
    "cleared",
    "fixed_width",
    "is_tensor",
    "no_columns",
    "rows_as_bytes",
    "tensor_row_bytes",
    "tensor_to_bytes",
    "valid_mask",
    "with_children",
]


def is_tensor(kind: pa.DataType) -> bool:
    """Whether this is Arrow's ``fixed_shape_tensor``."""
    return isinstance(kind, pa.FixedShapeTensorType)


def no_columns(rows: int) -> pa.RecordBatch:
    """A batch of so many rows that has no columns."""
    empty = pa.StructArray.from_arrays([], fields=[], mask=pa.array(np.zeros(rows, bool)))
    return pa.RecordBatch.from_struct_array(empty)


def fixed_width(kind: pa.DataType) -> int | None:
    """Bytes of one value, for types that are one buffer of whole bytes (so not for bool); else None."""
    if pa.types.is_fixed_size_binary(kind):
        return int(kind.byte_width)
    if pa.types.is_primitive(kind) or pa.types.is_decimal(kind):
        return None if pa.types.is_boolean(kind) else int(kind.bit_width) // 8
    return None


def valid_mask(array: pa.Array) -> np.ndarray[Any, Any] | None:
    """True for each value that is there; None if all are."""
    if array.null_count == 0:
        return None
    mask: np.ndarray[Any, Any] = array.is_valid().to_numpy(zero_copy_only=False)
    return mask


def rows_as_bytes(array: pa.Array) -> np.ndarray[Any, Any]:
    """The values of a fixed-width array as a matrix of bytes, one row a value, without a copy (bool: one byte each)."""
    size = len(array)
    if pa.types.is_boolean(array.type):
        bits = np.frombuffer(array.buffers()[1] or b"", np.uint8)
        first, last = array.offset // 8, (array.offset + size + 7) // 8
        unpacked = np.unpackbits(bits[first:last], bitorder="little")
        return unpacked[array.offset % 8 :][:size].reshape(size, 1)
    width = fixed_width(array.type)
    assert width  # noqa: S101 -- callers ask fixed_width first
    values = np.frombuffer(array.buffers()[1] or b"", np.uint8)
    return values[array.offset * width : (array.offset + size) * width].reshape(size, width)


def tensor_row_bytes(kind: pa.DataType) -> int:
    """Bytes of one tensor in a shard; a bool takes one."""
    items = int(kind.storage_type.list_size)
    return items * (fixed_width(kind.value_type) or 1)


def tensor_to_bytes(array: pa.Array) -> pa.Array:
    """Tensors as fixed-size binary, without a copy except for bool."""
    storage = array.storage
    width = tensor_row_bytes(array.type)
    items = storage.type.list_size
    values = storage.values.slice(storage.offset * items, len(array) * items)
    flat = pa.py_buffer(np.ascontiguousarray(rows_as_bytes(values)).reshape(-1))
    return pa.Array.from_buffers(pa.binary(width), len(array), [_validity(array), flat])


def bytes_to_tensor(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """The inverse of :func:`tensor_to_bytes`, without a copy except for bool."""
    items = kind.storage_type.list_size
    flat = rows_as_bytes(array).reshape(-1)
    if pa.types.is_boolean(kind.value_type):
        values = pa.array(flat.view(np.bool_))
    else:
        values = pa.Array.from_buffers(kind.value_type, len(array) * items, [None, pa.py_buffer(flat)])
    storage = pa.Array.from_buffers(kind.storage_type, len(array), [_validity(array)], children=[values])
    return pa.ExtensionArray.from_storage(kind, storage)


def with_children(array: pa.Array, kind: pa.DataType, convert: Callable[[Any, Any], Any]) -> pa.Array:
    """A struct, list, map or fixed-size list as ``kind``, its children converted by ``convert(child, type)``."""
    if pa.types.is_struct(kind):
        children = [convert(array.field(index), kind.field(index).type) for index in range(kind.num_fields)]
        return pa.Array.from_buffers(
            kind, len(array), [_validity(array)], array.null_count, children=children
        )
    if pa.types.is_fixed_size_list(kind):
        values = array.values.slice(array.offset * kind.list_size, len(array) * kind.list_size)
        child = convert(values, kind.value_type)
        return pa.Array.from_buffers(kind, len(array), [_validity(array)], children=[child])
    offsets = np.frombuffer(array.buffers()[1] or b"\0\0\0\0", np.int32)[array.offset :][: len(array) + 1]
    first, last = (int(offsets[0]), int(offsets[-1])) if len(array) else (0, 0)
    if not len(array):
        offsets = np.zeros(1, np.int32)
    child_type = pa.struct([kind.key_field, kind.item_field]) if pa.types.is_map(kind) else kind.value_type
    child = convert(array.values.slice(first, last - first), child_type)
    rebased = pa.py_buffer(np.ascontiguousarray(offsets - np.int32(first)))
    return pa.Array.from_buffers(kind, len(array), [_validity(array), rebased], children=[child])


def _validity(array: pa.Array) -> pa.Buffer | None:
    """The validity bits, from bit 0 on and with zeros behind the last; None if nothing is missing."""
    mask = valid_mask(array)
    return None if mask is None else pa.py_buffer(np.packbits(mask, bitorder="little"))


def cleared(array: pa.Array) -> pa.Array:
    """An equal array whose buffers depend on its values only: no offset, zeros where a value is missing."""
    kind, size = array.type, len(array)
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, cleared(array.storage))
    if pa.types.is_null(kind):
        return pa.nulls(size)
    mask = valid_mask(array)
    validity = _validity(array)
    if pa.types.is_boolean(kind):
        values = rows_as_bytes(array).reshape(-1)
        if mask is not None:
            values = values * mask
        packed = pa.py_buffer(np.packbits(values, bitorder="little"))
        return pa.Array.from_buffers(kind, size, [validity, packed])
    if fixed_width(kind):
        rows = rows_as_bytes(array)
        if mask is not None:
            rows = np.where(mask[:, None], rows, np.uint8(0))
        return pa.Array.from_buffers(kind, size, [validity, pa.py_buffer(rows.reshape(-1))])
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return _cleared_text(array, mask, validity)
    return _cleared_nested(array, mask)


def _cleared_nested(array: pa.Array, mask: np.ndarray[Any, Any] | None) -> pa.Array:
    kind = array.type
    if mask is None:
        return with_children(array, kind, lambda child, _: cleared(child))
    if pa.types.is_struct(kind):
        return with_children(array, kind, lambda child, _: cleared(_masked(child, mask)))
    if pa.types.is_fixed_size_list(kind):
        shown = np.repeat(mask, kind.list_size)
        return with_children(array, kind, lambda child, _: _cleared_items(child, shown))
    # Nothing may stay of what lists hold that are missing.
    array = array.take(pa.array(np.arange(len(array)), mask=~mask))
    return with_children(array, kind, lambda child, _: cleared(child))


def _cleared_text(array: pa.Array, mask: np.ndarray[Any, Any] | None, validity: pa.Buffer | None) -> pa.Array:
    size = len(array)
    if not size:
        return pa.array([], array.type)
    offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset :][: size + 1]
    if mask is not None and np.any(np.diff(offsets)[~mask]):
        array = array.take(pa.array(np.arange(size), mask=~mask))
        offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset :][: size + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    data = (array.buffers()[2] or pa.py_buffer(b"")).slice(first, last - first)
    rebased = pa.py_buffer(np.ascontiguousarray(offsets - np.int32(first)))
    return pa.Array.from_buffers(array.type, size, [validity, rebased, data])


def _cleared_items(items: pa.Array, shown: np.ndarray[Any, Any]) -> pa.Array:
    """The items of fixed-size lists, where those of missing lists are zeros, or null if zero is no plain value."""
    if not (fixed_width(items.type) or pa.types.is_boolean(items.type)):
        return cleared(_masked(items, shown))
    own = valid_mask(items)
    missing = shown & ~own if own is not None else np.zeros(len(items), bool)
    values = cleared(_masked(items, shown)).buffers()[1]
    validity = pa.py_buffer(np.packbits(~missing, bitorder="little")) if missing.any() else None
    return pa.Array.from_buffers(items.type, len(items), [validity, values])


def _masked(array: pa.Array, shown: np.ndarray[Any, Any]) -> pa.Array:
    """The array with nulls where ``shown`` is false."""
    own = valid_mask(array)
    return array.take(pa.array(np.arange(len(array)), mask=~(shown if own is None else shown & own)))
