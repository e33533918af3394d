"""What people write to say which rows they want, as an Arrow expression that knows its columns."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.literals import OPERATORS, column_compared

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Condition", "Where", "checked_columns"]

Where: TypeAlias = (
    "pc.Expression | str | Sequence[tuple[str, str, Any]] | Sequence[Sequence[tuple[str, str, Any]]]"
)
"""An Arrow expression; text such as ``a > 3 and name in ["x", "y"]``; or tuples as pyarrow's ``filters``: all of a list
must hold, and one of a list of lists. In text and tuples a value counts as it is, whatever the type of the column, and ``== None``
asks for missing ones."""

_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "in",
    ast.NotIn: "not in",
}
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_CALLED = re.compile(r"(\w+)\(")
_HARMLESS_CALLS = {"is_in", "is_null"}
_COMPARED_TRUTH = re.compile(r"\) (==|<|<=|>|>=) |(==|<|<=|>|>=) \(|is_in\(\(|is_in\(\w+\(")
"""Where it matters whether a comparison is false: compared itself, or looked for among values."""


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
    def speaks_of_nan(self) -> bool:
        """Whether something is compared with NaN. What Arrow concludes from statistics is wrong then."""
        return re.search(r"\bnan\b", self._unquoted) is not None

    @property
    def holds_never_for_nan(self) -> bool:
        """Whether a row can only be wanted with NaN somewhere if it were wanted with a number there, too.

        Statistics leave NaN out. So of columns that may have it they may only be used for such conditions: comparisons joined
        by and / or, with no ``not`` and no ``!=``.
        """
        text = self._unquoted
        return (
            set(_CALLED.findall(text)) <= _HARMLESS_CALLS
            and " != " not in text
            and "nan_is_null=true" not in text
            and "..." not in text  # of many values only some are shown, and one that is not may be NaN
            and not self.speaks_of_nan
            and not _COMPARED_TRUTH.search(text)
            and not any('"' in name for name in self.columns)
        )

    @property
    def _unquoted(self) -> str:
        return _QUOTED.sub('""', str(self.expression))


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
        tuples: list[list[tuple[str, Any, Any]]] = [
            [(str(name), op, value) for name, op, value in group] for group in groups
        ]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise _no_condition(where, str(error)) from error
    if not tuples or not all(tuples):
        raise _no_condition(where, "it says nothing")
    for group in tuples:
        for _, op, _ in group:
            if op not in (*OPERATORS, "in", "not in"):
                raise _no_condition(where, f"{op!r} is no comparison")
    parts = [[column_compared(*each, schema) for each in group] for group in tuples]
    expression = reduce(or_, [reduce(and_, group) for group in parts])
    return expression, [[[name, op, _plain(value)] for name, op, value in group] for group in tuples]


def _no_condition(where: Any, why: str) -> InvalidInput:
    return InvalidInput(
        f"{where!r:.200} is no condition: an Arrow expression, text such as 'a > 3', or tuples such as "
        f'[("a", ">", 3)]: {why}'
    )


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
            return pc.field(node.id)
        raise self._wrong(f"{ast.unparse(node)!r:.60} is not a comparison")

    def _compared(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pc.Expression:
        if isinstance(op, (ast.Is, ast.IsNot)):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise self._wrong("only 'is None' and 'is not None' are known")
            null = pc.field(self._name_of(left)).is_null()
            return ~null if isinstance(op, ast.IsNot) else null
        name = _COMPARISONS[type(op)]
        if isinstance(right, ast.Name) and name in OPERATORS:
            if isinstance(left, ast.Name):
                compared: pc.Expression = OPERATORS[name](pc.field(left.id), pc.field(right.id))
                return compared
            left, right, name = right, left, _MIRRORED.get(name, name)
        value = self._literal(right)
        if name not in OPERATORS and not isinstance(value, (list, tuple, set)):
            raise self._wrong("what stands behind 'in' is a list of values")
        return column_compared(self._name_of(left), name, value, self._schema)

    def _name_of(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return node.id
        self._literal(node)  # says so if it is not even a value
        raise self._wrong(f"{ast.unparse(node)!r:.60} is no column")

    def _literal(self, node: ast.expr) -> Any:
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, RecursionError) as error:
            raise self._wrong(f"{ast.unparse(node)!r:.60} is neither a column nor a value") from error
