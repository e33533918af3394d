"""Python values, one column at a time, as Arrow arrays: which type they have together, and what does not fit it.

What is refused is refused with its index; :mod:`~holdfast.storage.datasets.sources.kinds` says which values a type takes.
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
from holdfast.storage.datasets.sources.kinds import (
    NANOSECONDS,
    Unfit,
    checker,
    family,
    is_missing,
    kind_of,
    unit_of,
)
from holdfast.storage.datasets.sources.source import IMAGE, MEDIA

__all__ = ["Misfit", "convert", "first_failure", "infer_field", "is_image", "tensors"]

_ARROW_ERRORS = (pa.ArrowException, TypeError, ValueError, OverflowError)
_PLAIN = frozenset(
    {type(None), bool, int, float, str, bytes, list, tuple, dict}
    | {dt.datetime, dt.date, dt.time, dt.timedelta, Decimal}
)


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
    kinds = {family(kind) for kind in set(map(type, values)) - {type(None)}}
    if "time stamp" in kinds:
        kinds = {kind_of(value) for value in values if value is not None}
    if not kinds:
        return pa.field(name, pa.null())
    if kinds == {"image"}:
        return pa.field(name, pa.binary(), metadata={MEDIA: IMAGE})
    if len(kinds) > 1 and kinds != {"integer", "float"}:
        raise _first_of_another_kind(values)
    if kinds == {"array"}:
        return pa.field(name, _array_type(values))
    if kinds <= {"time stamp", "time stamp with a zone", "duration"}:
        return pa.field(name, _time_type(values))
    try:
        return pa.field(name, pa.infer_type(values))
    except _ARROW_ERRORS as error:
        index = first_failure(values, pa.infer_type)
        raise Misfit(index, values[index], f"does not go with the values before it: {error}") from error


def convert(values: Sequence[Any], field: pa.Field) -> pa.Array:
    """The values as an array of the field's type.

    Raises:
        Misfit: A value does not fit the type.
    """
    values = _simple(values)
    if is_image(field):
        return pa.array([_png(index, value) for index, value in enumerate(values)], field.type)
    kind, check = field.type, checker(field.type)

    def build(some: Sequence[Any]) -> pa.Array:
        if isinstance(kind, pa.FixedShapeTensorType):
            return _tensor_column(check(some), kind)
        return pa.array(check(some), kind)

    try:
        return build(values)
    except _ARROW_ERRORS as error:
        index = first_failure(values, build)
        raise Misfit(index, values[index], _reason(build, values[index], error, kind)) from error


def _reason(build: Callable[[Sequence[Any]], Any], value: Any, error: Exception, kind: pa.DataType) -> str:
    """What is wrong with a value by itself; ``error`` was about one of many."""
    try:
        build([value])
    except Unfit as own:
        return str(own)
    except _ARROW_ERRORS as own:
        error = own
    return f"does not fit the column's type {kind}: {error}"


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


def _simple(values: Sequence[Any]) -> Sequence[Any]:
    if _PLAIN.issuperset(map(type, values)):
        return values
    return [_plain(index, value) for index, value in enumerate(values)]


def _plain(index: int, value: Any) -> Any:
    """Torch tensors as NumPy arrays, arrays without dimensions as scalars, what stands for no value as None."""
    if type(value) in _PLAIN:
        return value
    if is_missing(value) or value is np.ma.masked:
        return None
    if isinstance(value, np.datetime64) and np.datetime_data(value.dtype)[0] == "D":
        return value.item()
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
    return _plain_array(index, value) if isinstance(value, np.ndarray) else value


def _plain_array(index: int, value: np.ndarray[Any, Any]) -> Any:
    if np.ma.is_masked(value):
        raise Misfit(index, value, "has masked items: fill them first, such as by .filled(0)")
    if value.ndim == 0:
        return value[()]
    if value.dtype.hasobject or value.dtype.kind in "USV" or 0 in value.shape[1:]:
        return value.tolist()
    return value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))


def _first_of_another_kind(values: Sequence[Any]) -> Misfit:
    first: str | None = None
    for index, value in enumerate(values):
        if value is None:
            continue
        found = kind_of(value)
        number = found in {"integer", "float"}
        if first is None or (number and first in {"integer", "float"}):
            first = first if first == "float" else found
        elif found != first:
            return Misfit(
                index,
                value,
                f"is of the kind {found}, the values before it of the kind {first}: a column has one kind",
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


def _time_type(values: Sequence[Any]) -> pa.DataType:
    """The type of time stamps, or durations, in the finest unit that one of them needs, and the first one's zone."""
    units = set()
    for index, value in enumerate(values):
        if value is not None:
            try:
                units.add(unit_of(value))
            except Unfit as error:
                raise Misfit(index, value, str(error)) from error
    unit = min(units, key=NANOSECONDS.__getitem__)
    first = next(value for value in values if value is not None)
    if family(type(first)) == "duration":
        return pa.duration(unit)
    zoned = getattr(first, "tzinfo", None) is not None
    return pa.timestamp(unit, pa.infer_type([first]).tz if zoned else None)


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


def _png(index: int, value: Any) -> bytes | None:
    if value is None:
        return None
    if family(type(value)) != "image":
        raise Misfit(index, value, f"is a {type(value).__name__}, and the column has images")
    try:
        return encoded(value)
    except (OSError, ValueError) as error:
        raise Misfit(index, value, f"can't become a PNG: {error}") from error


def first_failure(values: Sequence[Any], attempt: Callable[[Sequence[Any]], Any]) -> int:
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
