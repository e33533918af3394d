"""Column statistics of a shard, gathered group by group."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from holdfast.storage.datasets.shards.shard import ColumnStatistics

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "MAX_STATISTICS_COLUMNS",
    "StatisticsCollector",
    "is_comparable",
    "short",
    "statistics_from_plain",
    "statistics_to_plain",
]

MAX_STATISTICS_COLUMNS = 1000
"""Datasets with more columns have no statistics: with them, shard lists would outgrow a block."""
MAX_TEXT_CHARS = 64


class StatisticsCollector:
    """Gathers the statistics of one shard's columns.

    Args:
        schema: Logical.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._columns = (
            [_Column(_comparable(field.type)) for field in schema]
            if len(schema) <= MAX_STATISTICS_COLUMNS
            else []
        )

    def add(self, batch: pa.RecordBatch) -> None:
        """Take the next rows into account."""
        for column, array in zip(self._columns, batch.columns, strict=False):
            column.add(array)

    def result(self) -> list[ColumnStatistics]:
        """One for each column of the schema, in its order; none at all for very many columns."""
        return [column.result() for column in self._columns]


def is_comparable(kind: pa.DataType) -> bool:
    """Whether values of this type have a minimum and a maximum here."""
    return _comparable(kind) is not None


def _comparable(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """What turns values into ones that have a plain minimum; None where there is none."""
    types = pa.types
    if types.is_float16(kind):
        return lambda array: array.cast(pa.float32())
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_string(kind):
        return lambda array: array
    if types.is_temporal(kind) and not types.is_interval(kind):
        plain = pa.int32() if kind.bit_width == 32 else pa.int64()
        return lambda array: array.view(plain)
    return None


class _Column:
    def __init__(self, comparable: Callable[[Any], Any] | None) -> None:
        self._comparable = comparable
        self._nulls = 0
        self._minimum: Any = None
        self._maximum: Any = None

    def add(self, array: pa.Array) -> None:
        self._nulls += array.null_count
        if self._comparable is None or array.null_count == len(array):
            return
        bounds = pc.min_max(self._comparable(array))
        low, high = bounds["min"].as_py(), bounds["max"].as_py()
        if low is None or low != low or high != high:  # noqa: PLR0124 -- NaN only
            return
        self._minimum = low if self._minimum is None else min(low, self._minimum)
        self._maximum = high if self._maximum is None else max(high, self._maximum)

    def result(self) -> ColumnStatistics:
        return ColumnStatistics(self._nulls, short(self._minimum), short(self._maximum))


def short(value: Any) -> Any:
    """A bound, or None if it is not finite or too long to keep."""
    if isinstance(value, float):
        return value + 0.0 if math.isfinite(value) else None  # so that -0.0 is 0.0
    if isinstance(value, str) and len(value) > MAX_TEXT_CHARS:
        return None
    return value


def statistics_to_plain(statistics: ColumnStatistics) -> list[Any]:
    """As a manifest has them."""
    return [statistics.nulls, statistics.minimum, statistics.maximum]


def statistics_from_plain(value: Any) -> ColumnStatistics:
    """The inverse of :func:`statistics_to_plain`.

    Raises:
        ValueError: The value is not of that form.
    """
    if not isinstance(value, list) or len(value) != 3 or type(value[0]) is not int or value[0] < 0:
        raise ValueError(f"column statistics {str(value)[:80]} are not nulls, minimum and maximum")
    for bound in value[1:]:
        if bound is not None and not isinstance(bound, (int, float, str)):
            raise ValueError(f"column statistics {str(value)[:80]} have bounds of another kind")
    return ColumnStatistics(*value)
