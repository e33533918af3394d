"""Which Python values a column's type takes as they are, nested ones to their last leaf.

Arrow alone is too kind for data that is to be trusted: it takes bytes for text and numbers for times, leaves out unknown
keys of nested mappings, cuts the fractions of nested numbers and the nanoseconds and zones of times.
"""

from __future__ import annotations

import datetime as dt
import math
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from operator import is_
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

__all__ = ["NANOSECONDS", "Unfit", "checker", "family", "is_missing", "kind_of", "unit_of"]

NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
"""What the units of times that Arrow has are made of, the coarsest first."""
_FAMILIES: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("truth value", (bool, np.bool_)),
    ("duration", (dt.timedelta, np.timedelta64)),  # before integer: NumPy's are integers
    ("integer", (int, np.integer)),
    ("float", (float, np.floating)),
    ("text", (str,)),
    ("bytes", (bytes, bytearray, memoryview)),
    ("time stamp", (dt.datetime, np.datetime64)),  # before date: a datetime is one
    ("date", (dt.date,)),
    ("time of day", (dt.time,)),
    ("decimal", (Decimal,)),
    ("mapping", (Mapping,)),
    ("array", (np.ndarray,)),
    ("list", (list, tuple)),
)

_Checker: TypeAlias = Callable[[Sequence[Any]], Sequence[Any]]


class Unfit(ValueError):  # noqa: N818 -- like Misfit, no error of its own
    """A value is not of a type; the message says why, after the value's own text."""


def family(kind: type) -> str:
    """What values of a Python type are, in a word or two."""
    for name, kinds in _FAMILIES:
        if issubclass(kind, kinds):
            return name
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and issubclass(kind, pillow.Image):
        return "image"
    return kind.__name__


def kind_of(value: Any) -> str:
    """The family of a value: time stamps with and without a zone are two."""
    found = family(type(value))
    if found == "time stamp" and getattr(value, "tzinfo", None) is not None:
        return "time stamp with a zone"
    return found


def is_missing(value: Any) -> bool:
    """Whether it is what pandas and NumPy have in place of a value; NaN is a float."""
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return bool(np.isnat(value))
    pandas = sys.modules.get("pandas")
    return pandas is not None and (value is pandas.NA or value is pandas.NaT)


def unit_of(value: Any) -> str:
    """The unit that a time stamp or a duration needs.

    Raises:
        Unfit: It is one of NumPy's that Arrow does not have, such as hours.
    """
    if not isinstance(value, (np.datetime64, np.timedelta64)):
        pandas_only = getattr(value, "nanosecond", 0) or getattr(value, "nanoseconds", 0)
        return "ns" if pandas_only else "us"
    unit, count = np.datetime_data(value.dtype)
    if unit not in NANOSECONDS or count != 1:
        raise Unfit(f"is of {value.dtype}: convert it to s, ms, us or ns")
    return unit


def checker(kind: pa.DataType, *, nested: bool = False) -> _Checker:
    """What takes values and gives them as Arrow is to have them, which then changes nothing in them.

    It raises :class:`Unfit` for a value that is not of the type. What needs no change comes back as the same object.

    Args:
        kind: The type.
        nested: It is the type of what other values hold.
    """
    inside = _inside(kind)
    seen = {type(None)}

    def check(values: Sequence[Any]) -> Sequence[Any]:
        if not seen.issuperset(map(type, values)):
            for found in dict.fromkeys(map(type, values)):
                if not _accepts(kind, found):
                    raise Unfit(_not_of(kind, found, nested=nested))
                seen.add(found)
        return values if inside is None else inside(values)

    return check


def _accepts(kind: pa.DataType, found: type) -> bool:  # noqa: C901, PLR0912 -- one line for each family of types
    name = family(found)
    if found is type(None):
        return True
    if pt.is_null(kind):
        return False
    if isinstance(kind, pa.FixedShapeTensorType):
        return name == "array"
    if pt.is_boolean(kind):
        return name == "truth value"
    if pt.is_integer(kind):
        return name == "integer"
    if pt.is_floating(kind):
        return name in {"integer", "float"} and not issubclass(found, np.longdouble)
    if pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind):
        return name == "text"
    if (
        pt.is_binary(kind)
        or pt.is_large_binary(kind)
        or pt.is_binary_view(kind)
        or pt.is_fixed_size_binary(kind)
    ):
        return name == "bytes"
    if pt.is_struct(kind):
        return name == "mapping"
    if pt.is_map(kind):
        return name in {"mapping", "list"}
    if _is_list(kind):
        return name in {"list", "array"}
    if pt.is_timestamp(kind):
        return name == "time stamp"
    if pt.is_date(kind):
        return name == "date" or issubclass(found, np.datetime64)
    if pt.is_time(kind):
        return name == "time of day"
    if pt.is_duration(kind):
        return name == "duration"
    if pt.is_decimal(kind):
        return name in {"decimal", "integer"}
    return True  # the rest is rare: Arrow decides


def _is_list(kind: pa.DataType) -> bool:
    return bool(pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind))


def _not_of(kind: pa.DataType, found: type, *, nested: bool) -> str:
    if pt.is_null(kind):
        return "comes after a start in which the column had no value at all, so that its type is not known"
    if nested:
        return f"has a {family(found)} in it ({found.__name__}), where the column's type has {kind}"
    return f"is of the kind {family(found)} ({found.__name__}); the column's type is {kind}"


def _inside(kind: pa.DataType) -> _Checker | None:
    """What looks into values that are of the type as far as their own class tells; None where that says all."""
    if pt.is_struct(kind):
        return _structs(kind)
    if pt.is_map(kind):
        return _maps(kind)
    if _is_list(kind):
        return _lists(kind)
    exact: Callable[[Any], Any]
    if pt.is_floating(kind) and not pt.is_float64(kind):
        exact = _narrow_float(kind)
    elif pt.is_timestamp(kind) or pt.is_time(kind) or pt.is_duration(kind):
        exact = _time(kind)
    elif pt.is_date(kind):
        exact = _date
    else:
        return None
    return partial(_each, exact)


def _each(check: Callable[[Any], Any], values: Sequence[Any]) -> Sequence[Any]:
    checked = [None if value is None else check(value) for value in values]
    return values if all(map(is_, checked, values)) else checked


def _structs(kind: pa.DataType) -> _Checker:
    checks = {field.name: checker(field.type, nested=True) for field in kind}

    def check(values: Sequence[Any]) -> Sequence[Any]:
        for value in values:
            if value is not None and not checks.keys() >= value.keys():
                unknown = [key for key in value if key not in checks]
                raise Unfit(f"has the keys {unknown}, which the column's type does not have")
        columns, same = [], {dict, type(None)}.issuperset(map(type, values))
        for name, inner in checks.items():
            column = [None if value is None else value.get(name) for value in values]
            columns.append(inner(column))
            same = same and columns[-1] is column
        if same:
            return values
        rows = zip(*columns, strict=True) if columns else ([()] * len(values))
        return [
            None if value is None else dict(zip(checks, row, strict=True))
            for value, row in zip(values, rows, strict=True)
        ]

    return check


def _lists(kind: pa.DataType) -> _Checker:
    inner = checker(kind.value_type, nested=True)

    def check(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return inner(value)
        if np.ma.is_masked(value):
            raise Unfit("has masked items: fill them first, or give a list with None in it")
        if value.ndim != 1 or pa.from_numpy_dtype(value.dtype) != kind.value_type:
            raise Unfit(f"is an array of {value.dtype} and shape {value.shape}, not one row of {kind}")
        return value

    return partial(_each, check)


def _maps(kind: pa.DataType) -> _Checker:
    keys, items = (checker(inner, nested=True) for inner in (kind.key_type, kind.item_type))

    def check(value: Any) -> Any:
        pairs = list(value.items() if isinstance(value, Mapping) else value)
        if any(not isinstance(pair, tuple) or len(pair) != 2 for pair in pairs):
            raise Unfit("is no mapping, and no list of pairs of key and value")
        return list(zip(keys([key for key, _ in pairs]), items([item for _, item in pairs]), strict=True))

    return partial(_each, check)


def _narrow_float(kind: pa.DataType) -> Callable[[Any], Any]:
    """Python's own floats have 64 bits: those go in that lose none of them."""
    code = "<e" if pt.is_float16(kind) else "<f"

    def exact(value: Any) -> Any:
        if isinstance(value, np.generic):
            if isinstance(value, np.floating) and value.itemsize * 8 <= kind.bit_width:
                return value
            value = value.item()
        try:
            kept = struct.unpack(code, struct.pack(code, value))[0]
        except OverflowError:
            kept = None
        if kept is None or not (kept == value or math.isnan(kept)):
            name = kind.to_pandas_dtype().__name__
            raise Unfit(f"is no float of {kind.bit_width} bits: np.{name} rounds it")
        return kept

    return exact


def _time(kind: pa.DataType) -> Callable[[Any], Any]:
    step = NANOSECONDS[kind.unit]
    zone = kind.tz if pt.is_timestamp(kind) else None

    def exact(value: Any) -> Any:
        if (
            step <= NANOSECONDS["us"]
            and type(value) is dt.datetime
            and (value.tzinfo is None) == (zone is None)
        ):
            return value  # by far the most are
        if is_missing(value):
            return None
        zoned = getattr(value, "tzinfo", None) is not None
        if zoned != (zone is not None):
            has, lacks = ("a", "none") if zoned else ("no", "one")
            raise Unfit(f"has {has} time zone, the column's type {kind} has {lacks}")
        if isinstance(value, (np.datetime64, np.timedelta64)):
            nanoseconds = int(value.astype(np.int64)) * NANOSECONDS[unit_of(value)]
            value, rest = divmod(nanoseconds, step)  # Arrow takes counts of its unit
        else:
            micro = value.microseconds if isinstance(value, dt.timedelta) else value.microsecond
            nano = getattr(value, "nanosecond", 0) or getattr(value, "nanoseconds", 0)
            rest = (micro * 1000 + nano) % step
        if rest:
            raise Unfit(f"is finer than the column's type {kind}, which counts {kind.unit}")
        return value

    return exact


def _date(value: Any) -> Any:
    if type(value) is dt.date or not isinstance(value, np.datetime64):
        return value
    if is_missing(value):
        return None
    if np.datetime_data(value.dtype)[0] != "D":
        raise Unfit("is a time stamp, and the column has dates")
    return value.item()
