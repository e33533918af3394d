"""What a dataset knows of a shard without reading it."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from holdfast.storage.cid import Cid

__all__ = ["ColumnStatistics", "RowGroup", "Shard"]


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A run of rows that is read at once, and the bytes of the shard's file that hold it."""

    rows: int
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ColumnStatistics:
    """What is known of the values of one column in one shard.

    ``minimum`` and ``maximum`` are int, float, str or bool; of dates, times, timestamps and durations the integer that Arrow
    stores. Missing values and NaN are left out of both. None where there is nothing to compare, for types that have no order,
    for infinity, and for text of more than 64 characters.
    """

    nulls: int
    minimum: Any | None
    maximum: Any | None


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a split: its rows lie in groups, which are read one by one."""

    cid: Cid
    rows: int
    size_bytes: int
    groups: tuple[RowGroup, ...]
    statistics: Mapping[str, ColumnStatistics] = field(
        default_factory=lambda: MappingProxyType({}), compare=False
    )
    """By column; empty for datasets of more than a thousand columns."""
