"""Python values, one column at a time, as Arrow arrays: which type they have together, and what does not fit it.

Arrow alone is too kind for data that is to be trusted: it takes bytes for text, leaves out unknown keys of nested mappings
and rounds to narrower floats. What is refused here is refused with its index.
"""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from holdfast.storage.datasets.sources.images import encoded
from holdfast.storage.datasets.sources.source import IMAGE, MEDIA

__all__ = ["Misfit", "convert", "infer_field", "is_image", "tensors"]

_ARROW_ERRORS = (pa.ArrowException, TypeError, ValueError, OverflowError)
_FAMILIES: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("truth value", (bool, np.bool_)),
    ("integer", (int, np.integer)),
    ("float", (float, np.floating)),
    ("text", (str,)),
    ("bytes", (bytes, bytearray, memoryview)),
    ("time stamp", (dt.datetime, np.datetime64)),  # before date: a datetime is one
    ("date", (dt.date,)),
    ("time of day", (dt.time,)),
    ("duration", (dt.timedelta, np.timedelta64)),
    ("decimal", (Decimal,)),
    ("mapping", (Mapping,)),
    ("array", (np.ndarray,)),
    ("list", (list, tuple)),
)


_PLAIN = frozenset({type(None), bool, int, float, str, bytes, list, tuple, dict})


class Misfit(Exception):  # noqa: N818 -- no error of its own: the reader adds file and row and raises InvalidInput
    """The value at ``index`` is not of the column's type."""

    def __init__(self, index: int, value: Any, reason: str) -> None:
        super().__init__(reason)
        self.index = index
        self.value = value
        self.reason = reason


def is_image(field: pa.Field) -> bool:
    """Whether the field is marked as holding encoded images."""
    return (field.metadata or {}).get(MEDIA) == IMAGE


def infer_field(name: str, values: Sequence[Any]) -> pa.Field:
    """The field that all the values fit; of type null where all are None.

    Integers among floats make floats. NumPy and torch arrays of one shape make tensors, one-dimensional ones of several
    lengths lists. Pillow images make bytes that are marked as images.

    Raises:
        Misfit: A value has no type in common with those before it.
    """
    values = _simple(values)
    kinds = {_family(type(value)) for value in values if value is not None}
    if not kinds:
        return pa.field(name, pa.null())
    if kinds == {"image"}:
        return pa.field(name, pa.binary(), metadata={MEDIA: IMAGE})
    if len(kinds) > 1 and kinds != {"integer", "float"}:
        raise _first_of_another_kind(values)
    if kinds == {"array"}:
        return pa.field(name, _array_type(values))
    try:
        return pa.field(name, pa.infer_type(values))
    except _ARROW_ERRORS as error:
        index = _first_failure(values, pa.infer_type)
        raise Misfit(index, values[index], f"does not go with the values before it: {error}") from error


def convert(values: Sequence[Any], field: pa.Field) -> pa.Array:
    """The values as an array of the field's type.

    Raises:
        Misfit: A value does not fit the type.
    """
    values = _simple(values)
    image, kind = is_image(field), field.type
    for found in set(map(type, values)) - {type(None)}:
        if not (_family(found) == "image" if image else _accepts(kind, found)):
            index = next(i for i, value in enumerate(values) if type(value) is found)
            raise Misfit(index, values[index], _not_of(field, found))
    if image:
        return pa.array([_png(index, value) for index, value in enumerate(values)], kind)
    if isinstance(kind, pa.FixedShapeTensorType):
        return _tensor_column(values, kind)
    if pt.is_nested(kind):
        values = _checked_nested(values, kind)
    try:
        return pa.array(values, kind)
    except _ARROW_ERRORS as error:
        index = _first_failure(values, lambda prefix: pa.array(prefix, kind))
        raise Misfit(index, values[index], f"does not fit the column's type {kind}: {error}") from error


def tensors(values: np.ndarray[Any, Any], *, mask: np.ndarray[Any, Any] | None = None) -> pa.Array:
    """An array of two dimensions or more as a tensor column: rows first, no copy where it is contiguous.

    Args:
        values: Of a type that Arrow has, too.
        mask: True where a row is missing.
    """
    # Built from the storage, because pyarrow's own conversion records the strides of the given array.
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    size = int(np.prod(values.shape[1:]))
    missing = None if mask is None else pa.array(mask)
    storage = pa.FixedSizeListArray.from_arrays(flat, size, mask=missing)
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(flat.type, values.shape[1:]), storage)


def _family(kind: type) -> str:
    for name, kinds in _FAMILIES:
        if issubclass(kind, kinds):
            return name
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and issubclass(kind, pillow.Image):
        return "image"
    return kind.__name__


def _simple(values: Sequence[Any]) -> Sequence[Any]:
    if _PLAIN.issuperset(map(type, values)):
        return values
    return [_plain(index, value) for index, value in enumerate(values)]


def _plain(index: int, value: Any) -> Any:
    """Torch tensors as NumPy arrays, arrays without dimensions as scalars, everything else as it is."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Mapping) and not isinstance(value, dict):
        return dict(value)  # all that Arrow takes
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        try:
            value = value.detach().cpu().numpy()
        except (TypeError, RuntimeError) as error:
            raise Misfit(
                index, value, f"of {value.dtype} has no NumPy form ({error}): convert it first"
            ) from error
    if isinstance(value, np.ndarray):
        if value.ndim == 0:
            return value[()]
        if value.dtype.hasobject or value.dtype.kind in "USV" or 0 in value.shape[1:]:
            return value.tolist()
        return value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))
    return value


def _first_of_another_kind(values: Sequence[Any]) -> Misfit:
    first: str | None = None
    for index, value in enumerate(values):
        if value is None:
            continue
        family = _family(type(value))
        number = family in {"integer", "float"}
        if first is None or (number and first in {"integer", "float"}):
            first = first if first == "float" else family
        elif family != first:
            return Misfit(
                index,
                value,
                f"is of the kind {family}, the values before it of the kind {first}: a column has one kind",
            )
    raise AssertionError("values of several kinds have a first one of another kind")


def _array_type(values: Sequence[Any]) -> pa.DataType:
    arrays = [(index, value) for index, value in enumerate(values) if value is not None]
    first: np.ndarray[Any, Any] = arrays[0][1]
    try:
        item = pa.from_numpy_dtype(first.dtype)
    except pa.ArrowException as error:
        raise Misfit(
            arrays[0][0], first, f"is an array of {first.dtype}, which Arrow does not have"
        ) from error
    for index, value in arrays:
        if value.dtype != first.dtype:
            raise Misfit(index, value, f"is an array of {value.dtype}, those before it of {first.dtype}")
        if value.ndim != first.ndim or (value.ndim > 1 and value.shape != first.shape):
            raise Misfit(index, value, f"has the shape {value.shape}, those before it {first.shape}")
    lengths = {len(value) for _, value in arrays}
    if first.ndim == 1 and (len(lengths) > 1 or 0 in lengths):
        return pa.list_(item)
    return pa.fixed_shape_tensor(item, first.shape)


def _tensor_column(values: Sequence[Any], kind: pa.FixedShapeTensorType) -> pa.Array:
    shape, dtype = tuple(kind.shape), np.dtype(kind.value_type.to_pandas_dtype())
    if pt.is_temporal(kind.value_type):
        dtype = pa.array([], kind.value_type).to_numpy().dtype
    stacked = np.zeros((len(values), *shape), dtype)
    for index, value in enumerate(values):
        if value is None:
            continue
        if value.shape != shape or value.dtype != dtype:
            raise Misfit(
                index,
                value,
                f"has the shape {value.shape} and type {value.dtype}; the column has {shape} and {dtype}",
            )
        stacked[index] = value
    missing = np.array([value is None for value in values], np.bool_)
    return tensors(stacked, mask=missing if missing.any() else None)


def _accepts(kind: pa.DataType, found: type) -> bool:  # noqa: C901, PLR0912 -- one line for each family of types
    family = _family(found)
    if pt.is_null(kind):
        return False
    if isinstance(kind, pa.FixedShapeTensorType):
        return family == "array"
    if pt.is_boolean(kind):
        return family == "truth value"
    if pt.is_integer(kind):
        return family == "integer"
    if pt.is_float64(kind):
        return family in {"integer", "float"}
    if pt.is_floating(kind):  # a Python float has 64 bits: it would be rounded
        return issubclass(found, np.floating) and np.dtype(found).itemsize * 8 <= kind.bit_width
    if pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind):
        return family == "text"
    if pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_binary_view(kind):
        return family == "bytes"
    if pt.is_struct(kind):
        return family == "mapping"
    if pt.is_list(kind) or pt.is_large_list(kind):
        return family in {"list", "array"}
    if pt.is_timestamp(kind):
        return family == "time stamp"
    if pt.is_date(kind):
        return family == "date"
    if pt.is_decimal(kind):
        return family == "decimal"
    return True  # the rest is rare: Arrow decides


def _not_of(field: pa.Field, found: type) -> str:
    if pt.is_null(field.type):
        return "comes after a start in which the column had no value at all, so that its type is not known"
    wanted = "image" if is_image(field) else str(field.type)
    return f"is of the kind {_family(found)} ({found.__name__}); the column's type is {wanted}"


def _png(index: int, value: Any) -> bytes | None:
    if value is None:
        return None
    try:
        return encoded(value)
    except (OSError, ValueError) as error:
        raise Misfit(index, value, f"can't become a PNG: {error}") from error


def _checked_nested(values: Sequence[Any], kind: pa.DataType) -> list[Any]:
    """The values, after a look at what Arrow would leave out or round without a word."""
    checked = []
    for index, value in enumerate(values):
        try:
            checked.append(_nested(value, kind))
        except ValueError as error:
            raise Misfit(index, value, str(error)) from error
    return checked


def _nested(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pt.is_struct(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"is a {type(value).__name__} where a mapping is due")
        fields = {field.name: field.type for field in kind}
        if unknown := [key for key in value if key not in fields]:
            raise ValueError(f"has the keys {unknown}, which the values before it don't have")
        return {name: _nested(value.get(name), inner) for name, inner in fields.items()}
    if pt.is_list(kind) or pt.is_large_list(kind):
        if isinstance(value, np.ndarray):
            dtype = pa.from_numpy_dtype(value.dtype) if value.ndim == 1 else None
            if dtype != kind.value_type:
                raise ValueError(
                    f"is an array of {value.dtype} and shape {value.shape}, not one row of {kind}"
                )
            return value
        if pt.is_nested(kind.value_type):
            return [_nested(item, kind.value_type) for item in value]
    return value


def _first_failure(values: Sequence[Any], attempt: Callable[[Sequence[Any]], Any]) -> int:
    """The index of the first value with which ``attempt`` fails; it fails with all of them."""
    good, bad = 0, len(values)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            attempt(values[:middle])
        except _ARROW_ERRORS:
            bad = middle
        else:
            good = middle
    return bad - 1
