"""A column compared with plain values: exactly, whatever numbers the one and the other are made of.

Arrow first brings both sides to one type, and fails where a value that is there has no place in it. Here it is the literal
that comes to the column: ``n > 1.5`` is ``n >= 2`` for integers, and ``price == 0.10`` means ten cents for decimals.
"""

from __future__ import annotations

import math
import operator
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.schema import type_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["OPERATORS", "column_compared"]

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_MOST_DIGITS = 400
"""Before or behind the point, of a number as text: more than any column has."""


def column_compared(column: str, op: str, value: Any, schema: pa.Schema) -> pc.Expression:
    """The rows of which a column compares like this with a value; with None, ``==`` and ``!=`` ask for missing ones.

    Args:
        column: Its name. One that is not in the schema is nobody's concern here.
        op: One of :data:`OPERATORS`, ``in`` or ``not in``.
        value: Plain, or of Arrow, NumPy or pandas; for the last two operators several of them.
        schema: Says of what type the column is.

    Raises:
        InvalidInput: The value can't be compared with the column.
    """
    index = schema.get_field_index(column)
    kind = schema.field(index).type if index >= 0 else None
    field = pc.field(column)
    try:
        if op in ("in", "not in"):
            within = field.isin(_several(value, kind))
            return ~within if op == "not in" else within
        value = _plain_number(value)
        if value is None:
            return _missing(field, op)
        if _is_stepped(kind) and _is_number(value, kind):
            return _Steps(kind).compared(field, op, value)
        compared: pc.Expression = OPERATORS[op](field, pc.scalar(_typed(value, kind)))
    except (pa.ArrowException, ArithmeticError, TypeError, ValueError) as error:
        of = f" of type {type_text(kind)}" if kind is not None else ""
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise InvalidInput(f"column {column!r}{of} can't be compared with {value!r:.80}: {why}") from error
    return compared


def _missing(field: pc.Expression, op: str) -> pc.Expression:
    if OPERATORS[op] not in (operator.eq, operator.ne):
        raise InvalidInput("a value can be missing or not, but not more or less than that")
    return field.is_null() if OPERATORS[op] is operator.eq else ~field.is_null()


def _several(values: Any, kind: pa.DataType | None) -> pa.Array:
    """The values in an array: of the column's type, if they are numbers."""
    if isinstance(values, (str, bytes)):
        raise InvalidInput("what stands behind 'in' is a list of values")
    found = [_plain_number(value) for value in values]
    if _is_stepped(kind) and all(value is None or _is_number(value, kind) for value in found):
        return _Steps(kind).array(found)
    return pa.array([_typed(value, kind) for value in found])


def _plain_number(value: Any) -> Any:
    """Numbers of NumPy and Arrow as Python's own; everything else as it is."""
    if isinstance(value, np.number):
        return value.item() if value.dtype.kind in "iuf" else value
    if isinstance(value, pa.Scalar):
        number = _is_stepped(value.type) or pa.types.is_floating(value.type)
        return value.as_py() if number or not value.is_valid else value
    return value


def _typed(value: Any, kind: pa.DataType | None) -> Any:
    """A value in the type of the column that it is compared with, where Arrow does not see to that itself."""
    if kind is None:
        return value
    if pa.types.is_floating(kind) and type(value) is int:
        return float(value)
    if not pa.types.is_temporal(kind):
        return value
    if isinstance(value, str):
        return pa.scalar(value).cast(kind)
    typed = value if isinstance(value, pa.Scalar) else pa.scalar(value)
    times = pa.types.is_timestamp(kind) and pa.types.is_timestamp(typed.type)
    if times and (typed.type.tz is None) != (kind.tz is None):
        raise InvalidInput("only one of the two has a time zone")
    return typed


def _is_stepped(kind: pa.DataType | None) -> bool:
    """Whether the values of a type lie in equal steps."""
    return kind is not None and bool(pa.types.is_integer(kind) or pa.types.is_decimal(kind))


def _is_number(value: Any, kind: pa.DataType) -> bool:
    if isinstance(value, str):
        return bool(pa.types.is_decimal(kind))
    return isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)


class _Steps:
    """The values of an integer or decimal type, counted in its steps: 1, or the last digit of its scale."""

    def __init__(self, kind: pa.DataType) -> None:
        self._kind = kind
        if pa.types.is_decimal(kind):
            self._scale: int | None = kind.scale
            self._high = 10**kind.precision - 1
            self._low = -self._high
        else:
            self._scale = None
            signed = pa.types.is_signed_integer(kind)
            self._high = (1 << (kind.bit_width - 1 if signed else kind.bit_width)) - 1
            self._low = -self._high - 1 if signed else 0

    def compared(self, field: pc.Expression, op: str, value: Any) -> pc.Expression:
        """A condition with a literal that the type has, for the same rows."""
        count = self._count(value)
        always, never = field >= self._literal(self._low), field < self._literal(self._low)
        if op in ("==", "=", "!="):
            step = self._step(count)
            if step is None:
                return always if op == "!=" else never
        elif count > self._high:
            return always if op in ("<", "<=") else never
        elif count < self._low:
            return always if op in (">", ">=") else never
        elif math.isnan(count):
            return never
        else:
            step = math.ceil(count) if op in ("<", ">=") else math.floor(count)
        compared: pc.Expression = OPERATORS[op](field, self._literal(step))
        return compared

    def array(self, values: Sequence[Any]) -> pa.Array:
        """Those of the values that the type has, and None."""
        steps = [None if value is None else self._step(self._count(value)) for value in values]
        found = [step for value, step in zip(values, steps, strict=True) if value is None or step is not None]
        return pa.array([self._literal(step) for step in found], self._kind)

    def _step(self, count: Fraction | float) -> int | None:
        """The number if the type has it."""
        whole = isinstance(count, Fraction) and count.denominator == 1 and self._low <= count <= self._high
        return int(count) if whole else None

    def _count(self, value: Any) -> Fraction | float:
        """How many steps a number is; a float if it is infinite, or none."""
        if isinstance(value, float) and self._scale is not None:
            value = repr(value)  # 0.1 means a tenth, and not the sum of powers of two that is nearest to it
        if isinstance(value, str):
            try:
                value = Decimal(value)
            except InvalidOperation as error:
                raise InvalidInput("it is no number") from error
        if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) > _MOST_DIGITS:
            raise InvalidInput("it has too many digits")
        if not isinstance(value, int) and not math.isfinite(value):
            return float(value)
        return Fraction(value) * Fraction(10) ** (self._scale or 0)

    def _literal(self, step: int | None) -> pa.Scalar[Any]:
        if step is None or self._scale is None:
            return pa.scalar(step, self._kind)
        digits = tuple(int(digit) for digit in str(abs(step)))
        return pa.scalar(Decimal((int(step < 0), digits, -self._scale)), self._kind)
