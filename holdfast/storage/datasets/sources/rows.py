"""Rows that come one by one, as mappings: from lists, generators and whatever else can be iterated over."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.sources.source import BATCH_BYTES, BatchSource, in_words
from holdfast.storage.datasets.sources.values import Misfit, convert, infer_field

__all__ = ["WINDOW_ROWS", "RowBatcher", "columns_of", "open_rows", "row_error", "size_of", "window"]

WINDOW_ROWS = 1000
"""The columns and their types are those of so many rows."""
WINDOW_BYTES = 64 << 20
"""Or of fewer, where they hold so much."""
_ROW_BYTES = 100
_VALUE_BYTES = 50
"""About what Python needs for a row and a value besides what they hold."""
_FIXED = frozenset({type(None), bool, int, float})


def open_rows(
    start: Callable[[], Iterator[Mapping[str, Any]]],
    *,
    what: str,
    rows: int | None = None,
    once: bool = False,
) -> BatchSource:
    """Rows as mappings from column to value.

    The columns are those of the first ``WINDOW_ROWS`` rows, and of as many more, up to a batch's size, as it takes until
    every column has had a value (and of fewer rows where those hold ``WINDOW_BYTES``). A missing key is a null.

    Args:
        start: Begins anew and gives the rows. It is called once here; what was looked at is not lost.
        what: Names the rows in errors.
        rows: How many there are, where that is known.
        once: There is no beginning anew.

    Raises:
        InvalidInput: There are no rows, one is no mapping, or values of one column don't go together.
    """
    iterator = _checked(start(), what=what)
    seen = window(iterator)
    if not seen:
        raise InvalidInput(f"{what} has no rows: without one its columns are not known")
    schema = columns_of(seen, locate=lambda index: (what, index))
    first: list[Iterator[Mapping[str, Any]]] = [itertools.chain(seen, iterator)]

    def read() -> Iterator[pa.RecordBatch]:
        begun = first.pop() if first else _checked(start(), what=what)
        return _batches(begun, schema, what=what)

    del seen
    return BatchSource(schema=schema, read=read, what=what, rows=rows, once=once)


def size_of(value: Any) -> int:
    """About how many bytes a value holds, at the cost of a look at it and not at everything in it."""
    if isinstance(value, (dict, Mapping)):
        total = _ROW_BYTES
        for inner in value.values():
            kind = type(inner)
            if kind in _FIXED:
                total += _VALUE_BYTES
            elif kind is str or kind is bytes:
                total += _VALUE_BYTES + len(inner)
            else:
                total += size_of(inner)
        return total
    if isinstance(value, (str, bytes, bytearray)):
        return _VALUE_BYTES + len(value)
    if isinstance(value, (list, tuple)):
        return _VALUE_BYTES + len(value) * (size_of(value[0]) if value else 0)
    nbytes = getattr(value, "nbytes", None)  # NumPy's and torch's
    if isinstance(nbytes, int):
        return _VALUE_BYTES + nbytes
    if hasattr(value, "getbands"):  # Pillow's images
        values: int = value.width * value.height * len(value.getbands())
        return _VALUE_BYTES + values
    return _VALUE_BYTES


class RowBatcher:
    """Turns lists of rows into batches of one schema."""

    def __init__(self, schema: pa.Schema, *, what: str) -> None:
        self._schema = schema
        self._names = set(schema.names)
        self._what = what

    def batch(self, rows: Sequence[Mapping[str, Any]], first_row: int) -> pa.RecordBatch:
        """The rows as a batch; ``first_row`` is the number of the first of them.

        Raises:
            InvalidInput: A row has an unknown column, or a value that does not fit; the first such row is named.
        """
        arrays, problems = [], []
        for index, row in enumerate(rows):
            if not self._names.issuperset(row):
                unknown = next(name for name in row if name not in self._names)
                problems.append((index, unknown, row[unknown], "is in a column that no row before it has"))
                rows = rows[:index]
                break
        for field in self._schema:
            try:
                arrays.append(convert([row.get(field.name) for row in rows], field))
            except Misfit as error:
                problems.append((error.index, field.name, error.value, error.reason))
        if problems:
            index, name, value, reason = min(problems, key=lambda problem: problem[0])
            raise row_error(self._what, first_row + index, name, value, reason)
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)


def window(rows: Iterator[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first rows, as many as the columns are told from: see :func:`open_rows`."""
    seen: list[Mapping[str, Any]] = []
    known: set[str] = set()
    without_value: set[str] = set()
    held = 0
    for row in rows:
        seen.append(row)
        held += size_of(row)
        for name, value in row.items():
            if value is not None:
                known.add(name)
                without_value.discard(name)
            elif name not in known:
                without_value.add(name)
        if len(seen) >= WINDOW_ROWS and (held >= BATCH_BYTES or not without_value):
            break
        if held >= WINDOW_BYTES:
            break
    return seen


def columns_of(rows: list[Mapping[str, Any]], *, locate: Callable[[int], tuple[str, int]]) -> pa.Schema:
    """The schema that all the rows fit, with the columns in the order in which they appear.

    Args:
        rows: The rows.
        locate: What the row at an index is part of, and its number there, for errors.

    Raises:
        InvalidInput: Values of one column don't go together.
    """
    fields = []
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            fields.append(infer_field(name, [row.get(name) for row in rows]))
        except Misfit as error:
            what, number = locate(error.index)
            raise row_error(what, number, name, error.value, error.reason) from error
    return pa.schema(fields)


def row_error(what: str, row: int, column: str, value: Any, reason: str) -> InvalidInput:
    """The error for one value, with all that it takes to find it."""
    return InvalidInput(f"{what}, row {row} (the first is 0), column {column!r}: {in_words(value)} {reason}")


def _checked(rows: Iterable[Any], *, what: str) -> Iterator[Mapping[str, Any]]:
    known: set[str] = set()
    for number, row in enumerate(rows):
        if type(row) is not dict and not isinstance(row, Mapping):
            raise InvalidInput(
                f"{what}, row {number} (the first is 0) is {in_words(row)}: a row is a mapping from column to value"
            )
        if not known.issuperset(row):
            for name in row:
                if not isinstance(name, str):
                    raise InvalidInput(
                        f"{what}, row {number} (the first is 0) has the column {name!r}: a column's name is text"
                    )
            known.update(row)
        yield row


def _batches(rows: Iterator[Mapping[str, Any]], schema: pa.Schema, *, what: str) -> Iterator[pa.RecordBatch]:
    columns = RowBatcher(schema, what=what)
    held: list[Mapping[str, Any]] = []
    size_bytes = done = 0
    for row in rows:
        held.append(row)
        size_bytes += size_of(row)
        if size_bytes >= BATCH_BYTES:
            yield columns.batch(held, done)
            done += len(held)
            held, size_bytes = [], 0
    if held:
        yield columns.batch(held, done)
