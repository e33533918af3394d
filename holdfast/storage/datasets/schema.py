"""The types that a dataset knows: how given ones become them, and how a manifest writes them down.

What differs between libraries but not in meaning is made equal: ``large_string`` and views become plain text and lists,
dictionaries their values, every column may have missing values, and metadata is dropped, except the mark
``holdfast.media`` of a column, which says what its bytes are (such as ``image``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.batch_sizes import bounded
from holdfast.storage.datasets.shards.arrays import fixed_width, is_tensor, with_children

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "MEDIA_KEY",
    "logical_array",
    "logical_batch",
    "logical_schema",
    "media_of",
    "schema_from_plain",
    "schema_to_plain",
    "type_text",
]

MEDIA_KEY = b"holdfast.media"
"""Metadata of a column that says what is in its bytes: ``image``, for instance."""
_MAX_MEDIA_CHARS = 64
_MAX_TYPE_DEPTH = 24
_CAST_BYTES = 1 << 30  # text of a batch has 2 GiB at most, so larger ones are cut before

_PLAIN: dict[str, pa.DataType] = {
    "null": pa.null(),
    "bool": pa.bool_(),
    **{
        f"{sign}int{bits}": getattr(pa, f"{sign}int{bits}")()
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
    "float16": pa.float16(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "date32": pa.date32(),
    "date64": pa.date64(),
    "string": pa.string(),
    "binary": pa.binary(),
}
_PLAIN_NAMES = {kind: name for name, kind in _PLAIN.items()}
_UNITS = {"time32": ("s", "ms"), "time64": ("us", "ns"), "duration": ("s", "ms", "us", "ns")}
_TIMESTAMP_UNITS = ("s", "ms", "us", "ns")


def media_of(field: pa.Field) -> str | None:
    """The mark of a column that says what is in its bytes, if it has one."""
    value = (field.metadata or {}).get(MEDIA_KEY)
    return None if value is None else value.decode("utf-8", "replace")[:_MAX_MEDIA_CHARS]


def type_text(kind: pa.DataType) -> str:
    """A type as people read it: ``int64``, ``tensor<uint8>[2, 3]``."""
    if is_tensor(kind):
        return f"tensor<{kind.value_type}>{list(kind.shape)}"
    return str(kind)


# ------------------------------------------------------------------------------------------ normalisation


def logical_schema(schema: pa.Schema) -> pa.Schema:
    """The schema as datasets have it.

    Raises:
        InvalidInput: Two columns have the same name, there is none at all, or a type can't be stored; the message names
            the columns.
    """
    if not len(schema):
        raise InvalidInput("a dataset without columns can't be stored")
    _refuse_duplicates(schema.names)
    return pa.schema([_logical_field(field) for field in schema])


def _refuse_duplicates(names: Iterable[str], inside: str = "") -> None:
    seen: set[str] = set()
    twice = sorted({name for name in names if name in seen or seen.add(name)})  # type: ignore[func-returns-value]
    if twice:
        where = f"the struct {inside!r} has fields" if inside else "there are columns"
        raise InvalidInput(f"{where} of the same name: {', '.join(map(repr, twice))}; rename them first")


def _logical_field(field: pa.Field) -> pa.Field:
    try:
        field.name.encode()
    except UnicodeError as error:
        raise InvalidInput(f"the column name {field.name!r} is not valid Unicode") from error
    media = media_of(field)
    return pa.field(
        field.name,
        _logical_type(field.type, field.name, 0),
        metadata=None if media is None else {MEDIA_KEY: media.encode()},
    )


def _logical_type(kind: pa.DataType, path: str, depth: int) -> pa.DataType:  # noqa: C901, PLR0912 -- one branch for each kind
    if depth > _MAX_TYPE_DEPTH:
        raise InvalidInput(f"the column {path[:80]!r} is nested deeper than {_MAX_TYPE_DEPTH}")
    types = pa.types
    if kind in _PLAIN_NAMES:
        return kind
    if is_tensor(kind):
        return _logical_tensor(kind, path)
    if isinstance(kind, pa.BaseExtensionType):
        return _logical_type(kind.storage_type, path, depth + 1)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _logical_type(kind.value_type, path, depth + 1)
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_large_binary(kind) or types.is_binary_view(kind):
        return pa.binary()
    if types.is_decimal(kind):
        return kind if kind.bit_width >= 128 else pa.decimal128(kind.precision, kind.scale)
    if types.is_time(kind) or types.is_timestamp(kind) or types.is_duration(kind):
        return kind
    if types.is_fixed_size_binary(kind) and kind.byte_width > 0:
        return kind
    if types.is_map(kind):
        return pa.map_(
            _logical_type(kind.key_type, f"{path}.key", depth + 1),
            _logical_type(kind.item_type, f"{path}.value", depth + 1),
        )
    if types.is_fixed_size_list(kind) and kind.list_size > 0:
        return pa.list_(_logical_type(kind.value_type, f"{path}[]", depth + 1), kind.list_size)
    if (
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    ):
        return pa.list_(_logical_type(kind.value_type, f"{path}[]", depth + 1))
    if types.is_struct(kind) and kind.num_fields:
        fields = [kind.field(index) for index in range(kind.num_fields)]
        _refuse_duplicates((field.name for field in fields), path)
        return pa.struct(
            [(field.name, _logical_type(field.type, f"{path}.{field.name}", depth + 1)) for field in fields]
        )
    raise InvalidInput(
        f"the column {path!r} has the type {kind}, which a dataset can't store: convert it first"
    )


def _logical_tensor(kind: pa.DataType, path: str) -> pa.DataType:
    value, shape = kind.value_type, list(kind.shape)
    if not (fixed_width(value) or pa.types.is_boolean(value)) or pa.types.is_fixed_size_binary(value):
        raise InvalidInput(f"the column {path!r} has tensors of {value}; tensors hold numbers")
    if kind.permutation is not None:
        shape = [shape[axis] for axis in kind.permutation]
    if not all(shape):
        raise InvalidInput(f"the column {path!r} has tensors of the shape {shape}, which hold nothing")
    return pa.fixed_shape_tensor(value, shape)


def logical_batch(batch: pa.RecordBatch | pa.Table, schema: pa.Schema) -> list[pa.RecordBatch]:
    """The rows with the types of ``schema``, a result of :func:`logical_schema`; columns may come in another order.

    Raises:
        InvalidInput: The columns or types are others; the message names them.
    """
    _same_columns(batch.schema, schema)
    if isinstance(batch, pa.Table):
        return [done for piece in batch.to_batches() for done in logical_batch(piece, schema)]
    return [
        pa.RecordBatch.from_arrays(
            [_converted(piece.column(field.name), field) for field in schema], schema=schema
        )
        for piece in (bounded(batch, _CAST_BYTES) if batch.num_rows else (batch,))
    ]


def _same_columns(given: pa.Schema, schema: pa.Schema) -> None:
    _refuse_duplicates(given.names)
    if set(given.names) != set(schema.names):
        missing = [name for name in schema.names if name not in set(given.names)]
        unknown = [name for name in given.names if name not in set(schema.names)]
        told = [
            f"{names} {what}"
            for names, what in ((missing, "are missing"), (unknown, "are too many"))
            if names
        ]
        raise InvalidInput(f"the rows have other columns than the dataset: {', '.join(told)}")


def _converted(array: pa.Array, field: pa.Field) -> pa.Array:
    if array.type == field.type and not isinstance(array.type, pa.BaseExtensionType):
        return array
    found = _logical_type(array.type, field.name, 0)
    if not found.equals(field.type) and not pa.types.is_null(found):
        raise InvalidInput(
            f"the column {field.name!r} has the type {type_text(found)} where the dataset has {type_text(field.type)}"
        )
    try:
        return logical_array(array, field.type)
    except pa.ArrowException as error:
        raise InvalidInput(
            f"the column {field.name!r} can't become {type_text(field.type)}: {error}"
        ) from error


def logical_array(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """The values as the logical type ``kind`` of their own type."""
    own, types = array.type, pa.types
    if types.is_null(own):
        return pa.nulls(len(array), kind)
    if is_tensor(own):
        return _logical_tensors(array, kind)
    if isinstance(own, pa.BaseExtensionType):
        return logical_array(array.storage, kind)
    if types.is_dictionary(own):
        return logical_array(array.dictionary_decode(), kind)
    if types.is_run_end_encoded(own):
        return logical_array(pc.run_end_decode(array), kind)
    if own == kind:
        return array
    if not types.is_nested(own):
        return array.cast(kind)
    if not (types.is_struct(own) or types.is_map(own) or types.is_fixed_size_list(own) or types.is_list(own)):
        array = array.cast(pa.list_(own.value_field))  # a large list or a view
    return with_children(array, kind, logical_array)


def _logical_tensors(array: pa.Array, kind: pa.DataType) -> pa.Array:
    own, storage = array.type, array.storage
    if own.permutation is not None and list(own.permutation) != sorted(own.permutation):
        items = own.storage_type.list_size
        values = storage.values.slice(storage.offset * items, len(storage) * items)
        if values.null_count:
            values = values.fill_null(0)
        stored = values.to_numpy(zero_copy_only=False).reshape(len(array), *own.shape)
        turned = stored.transpose(0, *(axis + 1 for axis in own.permutation)).reshape(-1)
        mask = storage.is_null() if storage.null_count else None
        storage = pa.FixedSizeListArray.from_arrays(
            pa.array(turned, own.value_type), type=kind.storage_type, mask=mask
        )
    elif storage.type != kind.storage_type:
        storage = with_children(storage, kind.storage_type, logical_array)
    _refuse_missing_items(storage)
    return pa.ExtensionArray.from_storage(kind, storage)


def _refuse_missing_items(storage: pa.Array) -> None:
    if storage.flatten().null_count:  # items of missing tensors are left out
        raise pa.ArrowInvalid("a tensor has missing values in it; fill them first")


# --------------------------------------------------------------------------------- schema <-> plain values


def schema_to_plain(schema: pa.Schema) -> list[dict[str, Any]]:
    """The columns of a logical schema as plain values for a manifest."""
    columns = []
    for field in schema:
        column: dict[str, Any] = {"name": field.name, "type": _type_to_plain(field.type)}
        media = media_of(field)
        if media is not None:
            column["media"] = media
        columns.append(column)
    return columns


def _type_to_plain(kind: pa.DataType) -> str | dict[str, Any]:
    types = pa.types
    if kind in _PLAIN_NAMES:
        return _PLAIN_NAMES[kind]
    if is_tensor(kind):
        return {"kind": "tensor", "value": _type_to_plain(kind.value_type), "shape": list(kind.shape)}
    if types.is_decimal(kind):
        return {"kind": f"decimal{kind.bit_width}", "precision": kind.precision, "scale": kind.scale}
    if types.is_timestamp(kind):
        return {"kind": "timestamp", "unit": kind.unit, "zone": kind.tz}
    if types.is_fixed_size_binary(kind):
        return {"kind": "fixed_size_binary", "bytes": kind.byte_width}
    if types.is_map(kind):
        return {"kind": "map", "key": _type_to_plain(kind.key_type), "value": _type_to_plain(kind.item_type)}
    if types.is_fixed_size_list(kind):
        return {"kind": "fixed_size_list", "item": _type_to_plain(kind.value_type), "size": kind.list_size}
    if types.is_list(kind):
        return {"kind": "list", "item": _type_to_plain(kind.value_type)}
    if types.is_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        return {
            "kind": "struct",
            "fields": [{"name": f.name, "type": _type_to_plain(f.type)} for f in fields],
        }
    name = "duration" if types.is_duration(kind) else f"time{kind.bit_width}"
    return {"kind": name, "unit": kind.unit}


def schema_from_plain(columns: Any) -> pa.Schema:
    """The inverse of :func:`schema_to_plain`.

    Raises:
        ValueError: The values describe no schema; the message says where.
    """
    if not isinstance(columns, list) or not columns:
        raise ValueError("columns is not a list of columns")
    fields = []
    for column in columns:
        name, media = _get(column, "name", str), column.get("media")
        if media is not None and not isinstance(media, str):
            raise ValueError(f"the media of column {name[:80]!r} is no text")
        metadata = None if media is None else {MEDIA_KEY: media.encode()}
        try:
            fields.append(pa.field(name, _type_from_plain(column.get("type"), 0), metadata=metadata))
        except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
            raise ValueError(f"column {name[:80]!r}: {error}") from error
    schema = pa.schema(fields)
    if not logical_schema(schema).equals(schema, check_metadata=True):
        raise ValueError("the columns have types that no dataset has")
    return schema


def _get(value: Any, key: str, kind: type) -> Any:
    found = value.get(key) if isinstance(value, dict) else None
    if type(found) is not kind:
        raise ValueError(f"{key!r} of {str(value)[:80]!r} is no {kind.__name__}")
    return found


def _type_from_plain(value: Any, depth: int) -> pa.DataType:
    if depth > _MAX_TYPE_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_TYPE_DEPTH}")
    if isinstance(value, str):
        if value not in _PLAIN:
            raise ValueError(f"there is no type {value[:80]!r}")
        return _PLAIN[value]
    kind = _get(value, "kind", str)
    if kind in ("decimal128", "decimal256"):
        return getattr(pa, kind)(_get(value, "precision", int), _get(value, "scale", int))
    if kind in _UNITS and _get(value, "unit", str) in _UNITS[kind]:
        return getattr(pa, kind)(value["unit"])
    if kind == "timestamp" and _get(value, "unit", str) in _TIMESTAMP_UNITS:
        zone = value.get("zone")
        return pa.timestamp(value["unit"], None if zone is None else _get(value, "zone", str))
    if kind == "fixed_size_binary":
        return pa.binary(_size(value, "bytes"))
    return _nested_from_plain(kind, value, depth)


def _nested_from_plain(kind: str, value: Any, depth: int) -> pa.DataType:
    def inner(key: str) -> pa.DataType:
        return _type_from_plain(value.get(key), depth + 1)

    if kind == "map":
        return pa.map_(inner("key"), inner("value"))
    if kind == "fixed_size_list":
        return pa.list_(inner("item"), _size(value, "size"))
    if kind == "list":
        return pa.list_(inner("item"))
    if kind == "struct":
        fields = _get(value, "fields", list)
        return pa.struct([(_get(f, "name", str), _type_from_plain(f.get("type"), depth + 1)) for f in fields])
    if kind == "tensor":
        shape = _get(value, "shape", list)
        if not shape or not all(type(size) is int and 0 < size < 1 << 31 for size in shape):
            raise ValueError(f"{str(shape)[:80]} is no shape")
        return pa.fixed_shape_tensor(inner("value"), shape)
    raise ValueError(f"there is no type {str(value)[:80]!r}")


def _size(value: Any, key: str) -> int:
    size: int = _get(value, key, int)
    if not 0 < size < 1 << 31:
        raise ValueError(f"{key} {size} is no size")
    return size
