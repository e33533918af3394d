"""What people write to say which rows they want, as an Arrow expression that knows its columns."""

from __future__ import annotations

import ast
import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from holdfast.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["Condition", "Where", "checked_columns"]

Where: TypeAlias = (
    "pc.Expression | str | Sequence[tuple[str, str, Any]] | Sequence[Sequence[tuple[str, str, Any]]]"
)
"""An Arrow expression; text such as ``a > 3 and name in ["x", "y"]``; or tuples as pyarrow's ``filters``: all of a list
must hold, and one of a list of lists."""

_OPERATORS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_CALLED = re.compile(r"(\w+)\(")
_HARMLESS_CALLS = {"is_in", "is_null"}


@dataclass(frozen=True, slots=True)
class Condition:
    """Which rows are wanted."""

    expression: pc.Expression
    columns: tuple[str, ...]
    """Those that it speaks of."""
    plain: Any
    """As text, or as lists of plain values: what provenance records."""

    @classmethod
    def parse(cls, where: Where, schema: pa.Schema) -> Condition:
        """The condition that ``where`` means for rows of a schema.

        Raises:
            InvalidInput: It is none, speaks of a column that is not there, or compares what can't be compared.
        """
        expression, plain = _expression_of(where, schema)
        if "FieldPath(" in str(expression):
            raise InvalidInput(f"the condition {expression} must name its columns, not number them")
        _check(expression, schema)
        columns = [
            name
            for name in schema.names
            if name in str(expression) and not _is_bound(expression, schema, without=name)
        ]
        if not columns:
            raise InvalidInput(
                f"the condition {expression} speaks of no column; there is {', '.join(schema.names)}"
            )
        return cls(expression, tuple(columns), plain)

    @property
    def holds_never_for_nan(self) -> bool:
        """Whether a row can only be wanted with NaN somewhere if it were wanted with a number there, too.

        Statistics leave NaN out. So of columns that may have it they may only be used for such conditions: comparisons joined
        by and / or, with no ``not`` and no ``!=``.
        """
        text = _QUOTED.sub('""', str(self.expression)).replace("nan_is_null=false", "")
        compound = re.search(r"\) (==|<|<=|>|>=) |(==|<|<=|>|>=) \(", text)
        return (
            set(_CALLED.findall(text)) <= _HARMLESS_CALLS
            and " != " not in text
            and "nan" not in text.lower()  # such as one that others are looked for in
            and not compound
        )


def checked_columns(columns: Iterable[str] | None, schema: pa.Schema) -> list[str]:
    """The columns that are asked for; None is all of them.

    Raises:
        InvalidInput: One is not there, or is asked for twice.
    """
    if columns is None:
        return list(schema.names)
    if isinstance(columns, str):
        raise InvalidInput(f"columns is a list of names: [{columns!r}]")
    asked = list(columns)
    for name in asked:
        if name not in schema.names:
            raise InvalidInput(f"there is no column {name!r}; there is {', '.join(schema.names)}")
        if asked.count(name) > 1:
            raise InvalidInput(f"the column {name!r} is asked for twice")
    return asked


def _expression_of(where: Where, schema: pa.Schema) -> tuple[pc.Expression, Any]:
    if isinstance(where, pc.Expression):
        return where, str(where)
    if isinstance(where, str):
        return _Text(where, schema).expression(), where
    try:
        groups = [where] if where and isinstance(where[0], tuple) else list(where)
        tuples = [[(str(name), op, value) for name, op, value in group] for group in groups]
        typed = [[(name, op, _typed(value, name, schema)) for name, op, value in group] for group in tuples]
        expression = pq.filters_to_expression(typed)
    except (ValueError, TypeError, KeyError, IndexError, pa.ArrowException) as error:
        raise InvalidInput(
            f"{where!r:.200} is no condition: an Arrow expression, text such as 'a > 3', or tuples such as "
            f'[("a", ">", 3)]: {error}'
        ) from error
    return expression, [[[name, op, _plain(value)] for name, op, value in group] for group in tuples]


def _typed(value: Any, column: str, schema: pa.Schema) -> Any:
    """A value in the type of the column that it is compared with, where Arrow does not see to that itself.

    Text becomes a date or a time, and a number that is compared with a ``uint64`` an unsigned one.
    """
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_typed(item, column, schema) for item in value]
    index = schema.get_field_index(column)
    kind = schema.field(index).type if index >= 0 else None
    if isinstance(value, str) and kind is not None and pa.types.is_temporal(kind):
        return pa.scalar(value).cast(kind)
    if type(value) is int and kind == pa.uint64() and 0 <= value < 1 << 64:
        return pa.scalar(value, kind)
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [_plain(item) for item in value]
        return sorted(items, key=repr) if isinstance(value, (set, frozenset)) else items
    return value if value is None or isinstance(value, (bool, int, float, str, bytes)) else str(value)


def _check(expression: pc.Expression, schema: pa.Schema) -> None:
    try:
        schema.empty_table().filter(expression)
    except (pa.ArrowException, TypeError) as error:
        text = str(error).splitlines()[0]
        missing = re.match(r"No match for FieldRef\.Name\((.*)\) in", text)
        if missing:
            raise InvalidInput(
                f"there is no column {missing[1]!r}; there is {', '.join(schema.names)}"
            ) from error
        raise InvalidInput(f"the condition {expression} can't be used on these columns: {text}") from error


def _is_bound(expression: pc.Expression, schema: pa.Schema, *, without: str) -> bool:
    try:
        pa.schema([field for field in schema if field.name != without]).empty_table().filter(expression)
    except (pa.ArrowException, TypeError):
        return False
    return True


class _Text:
    """A condition as text: comparisons, ``in``, ``is None``, ``and``, ``or``, ``not``, in Python's words."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self._text = text
        self._schema = schema

    def expression(self) -> pc.Expression:
        try:
            tree = ast.parse(self._text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._wrong(str(error)) from error
        return self._of(tree)

    def _wrong(self, why: str) -> InvalidInput:
        return InvalidInput(
            f"{self._text!r:.200} is no condition: {why}. Write comparisons such as a > 3, name == 'x', "
            "kind in [1, 2], b is None, joined by and, or, not; for columns whose names are no words of Python, use tuples"
        )

    def _of(self, node: ast.expr) -> pc.Expression:
        if isinstance(node, ast.BoolOp):
            parts = [self._of(value) for value in node.values]
            whole = parts[0]
            for part in parts[1:]:
                whole = whole & part if isinstance(node.op, ast.And) else whole | part
            return whole
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self._of(node.operand)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            parts = [
                self._compared(left, op, right)
                for left, op, right in zip(sides, node.ops, sides[1:], strict=False)
            ]
            whole = parts[0]
            for part in parts[1:]:
                whole = whole & part
            return whole
        if isinstance(node, ast.Name):
            return self._operand(node)
        raise self._wrong(f"{ast.unparse(node)!r:.60} is not a comparison")

    def _compared(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pc.Expression:
        if isinstance(op, (ast.Is, ast.IsNot)):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise self._wrong("only 'is None' and 'is not None' are known")
            null = self._operand(left).is_null()
            return ~null if isinstance(op, ast.IsNot) else null
        if isinstance(op, (ast.In, ast.NotIn)):
            within = self._operand(left).isin(self._literals(left, right))
            return ~within if isinstance(op, ast.NotIn) else within
        first, second = self._operand(left, right), self._operand(right, left)
        compared: pc.Expression = _OPERATORS[type(op)](first, second)
        return compared

    def _operand(self, node: ast.expr, other: ast.expr | None = None) -> pc.Expression:
        if isinstance(node, ast.Name):
            return pc.field(node.id)
        return pc.scalar(self._value(node, other))

    def _value(self, node: ast.expr, column: ast.expr | None) -> Any:
        value = self._literal(node)
        try:
            return _typed(value, column.id, self._schema) if isinstance(column, ast.Name) else value
        except pa.ArrowException as error:
            raise self._wrong(f"{value!r:.60} can't be compared with that column") from error

    def _literal(self, node: ast.expr) -> Any:
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, RecursionError) as error:
            raise self._wrong(f"{ast.unparse(node)!r:.60} is neither a column nor a value") from error

    def _literals(self, column: ast.expr, node: ast.expr) -> pa.Array:
        values = self._value(node, column)
        if not isinstance(values, (list, tuple, set)):
            raise self._wrong("what stands behind 'in' is a list of values")
        try:
            return pa.array(list(values))
        except pa.ArrowException as error:
            raise self._wrong(f"{ast.unparse(node)!r:.60} has values of several types") from error
