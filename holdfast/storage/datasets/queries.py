"""Some rows and columns of a dataset: what can't be wanted is neither fetched nor read.

Shards are ruled out by the manifest, row groups by what their shard says of them, and of the groups that are left only the
wanted columns are read: those of the condition first, the others only where a row meets it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.conditions import Condition, checked_columns
from holdfast.storage.datasets.pruning import possible
from holdfast.storage.datasets.read_ahead import in_order
from holdfast.storage.datasets.row_groups import GroupPlace, Readers, chosen_split, places_of
from holdfast.storage.datasets.shards.arrays import no_columns
from holdfast.whole_numbers import whole_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd

    from holdfast.storage.datasets.conditions import Where
    from holdfast.storage.datasets.dataset import Dataset

__all__ = ["ColumnSummary", "Query", "QueryCounts", "preview", "query", "statistics"]

MAX_PREVIEW_COLUMNS = 20
_ALIGNMENT = 8


@dataclass(slots=True)
class QueryCounts:
    """What a query read, and what it did not have to."""

    shards_read: int = 0
    shards_skipped: int = 0
    groups_read: int = 0
    groups_skipped: int = 0
    bytes_read: int = 0
    """Of the columns that were read, as they are stored."""
    bytes_skipped: int = 0
    """Of the shards and row groups that were ruled out."""
    rows_read: int = 0
    rows_given: int = 0

    def add(self, found: FoundRows) -> None:
        """Note that a row group was read."""
        self.groups_read += 1
        self.rows_read += found.place.rows
        self.bytes_read += found.bytes_read

    def to_json(self) -> dict[str, int]:
        """Plain values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(slots=True)
class Query:
    """Rows that are read as they are asked for. Each iteration reads them anew.

    Attributes:
        schema: Of the batches.
        counts: What the newest iteration read and skipped, so far.
    """

    schema: pa.Schema
    counts: QueryCounts = field(init=False, default_factory=QueryCounts)
    _dataset: Dataset
    _split: str
    _condition: Condition | None
    _limit: int | None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        self.counts = counts = QueryCounts()
        if self._limit == 0:
            return
        readers = Readers(self._dataset)
        calls = (
            self._reading(readers, place)
            for place in wanted_groups(self._dataset, readers, self._split, self._condition, counts)
        )
        # With a limit the next group may be one too many.
        for found in in_order(calls, ahead=2 if self._limit is None else 1):
            counts.add(found)
            if found.batch is None:
                continue
            left = found.batch.num_rows if self._limit is None else self._limit - counts.rows_given
            given = found.batch.slice(0, left)
            counts.rows_given += given.num_rows
            yield given
            if counts.rows_given == self._limit:
                return

    def to_arrow(self) -> pa.Table:
        """All of the rows as one table."""
        return pa.Table.from_batches(list(self), self.schema)

    def to_pandas(self) -> pd.DataFrame:
        """All of the rows as a pandas frame."""
        return self.to_arrow().to_pandas()

    def _reading(self, readers: Readers, place: GroupPlace) -> Callable[[], FoundRows]:
        return lambda: read_wanted(readers, place, self.schema, self._condition)


@dataclass(frozen=True, slots=True)
class FoundRows:
    """What was found in one row group."""

    place: GroupPlace
    batch: pa.RecordBatch | None
    """The wanted rows; None if there are none."""
    rows: np.ndarray[Any, Any] | None
    """Their numbers in the group; None if all are wanted."""
    bytes_read: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSummary:
    """What the manifest says of a column of a split."""

    type: str
    rows: int
    nulls: int | None
    """Missing values; None if the manifest does not tell."""
    minimum: Any
    """The smallest value, without NaN; None where the manifest does not tell, or there is none."""
    maximum: Any

    def to_json(self) -> dict[str, Any]:
        """Plain values; dates and times as ISO 8601 text."""
        values = {"type": self.type, "rows": self.rows, "nulls": self.nulls}
        for name, value in (("min", self.minimum), ("max", self.maximum)):
            plain = value is None or isinstance(value, (bool, int, float, str))
            values[name] = (
                value if plain else value.isoformat() if hasattr(value, "isoformat") else str(value)
            )
        return values


def query(
    dataset: Dataset,
    *,
    columns: Sequence[str] | None = None,
    where: Where | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> Query:
    """The rows of a split that meet a condition, in order, as record batches; in constant memory.

    Args:
        dataset: What to read.
        columns: Which columns, in this order; None for all. With none of them, rows are counted.
        where: An Arrow expression, text such as ``a > 3 and kind in ["x", "y"]``, or tuples as pyarrow's ``filters``; None for
            all rows.
        split: Which split; default: the only one, else ``train``.
        limit: Stop after so many rows.

    Raises:
        InvalidInput: No such column, a condition that can't be used on the columns, or no such number of rows.
        NotFound: No such split.

    Example:
        >>> import pyarrow as pa
        >>> from holdfast.storage import open_store
        >>> from holdfast.storage.datasets.dataset import store_dataset
        >>> from holdfast.storage.datasets.queries import query
        >>> with open_store(getfixture("tmp_path")) as store:
        ...     numbers = store_dataset(store, pa.table({"n": range(10), "even": [True, False] * 5}))
        ...     query(numbers, columns=["n"], where="n > 5 and even == True").to_arrow()["n"].to_pylist()
        [6, 8]
    """
    asked = checked_columns(columns, dataset.schema)
    return Query(
        schema=pa.schema([dataset.schema.field(name) for name in asked]),
        _dataset=dataset,
        _split=chosen_split(dataset, split),
        _condition=None if where is None else Condition.parse(where, dataset.schema),
        _limit=None if limit is None else whole_number("limit", limit, least=0),
    )


def preview(
    dataset: Dataset, *, split: str | None = None, rows: int = 10, columns: Sequence[str] | None = None
) -> pa.Table:
    """The first rows of a split. Only as many row groups are read as hold them: as a rule, one.

    Args:
        dataset: What to look at.
        split: Which split; default: the only one, else ``train``.
        rows: How many at most.
        columns: Which columns; default: the first 20.
    """
    names = dataset.schema.names[:MAX_PREVIEW_COLUMNS] if columns is None else columns
    return query(dataset, columns=names, split=split, limit=rows).to_arrow()


def statistics(dataset: Dataset) -> dict[str, dict[str, ColumnSummary]]:
    """What the manifest says of each column of each split; no shard is read or fetched."""
    return {
        split: {column.name: _summary(dataset, split, column) for column in dataset.schema}
        for split in dataset.splits
    }


def _summary(dataset: Dataset, split: str, column: pa.Field) -> ColumnSummary:
    nulls: int | None = 0
    smallest: list[Any] = []
    largest: list[Any] = []
    for shard in dataset.shards(split):
        known = shard.statistics.get(column.name)
        nulls = None if nulls is None or known is None else nulls + known.nulls
        if known is None or known.nulls < shard.rows:
            smallest.append(known.minimum if known else None)
            largest.append(known.maximum if known else None)
    return ColumnSummary(
        type=dataset.columns[column.name],
        rows=dataset.rows_in(split),
        nulls=nulls,
        minimum=_extreme(min, smallest, column.type),
        maximum=_extreme(max, largest, column.type),
    )


def _extreme(which: Callable[[list[Any]], Any], values: list[Any], kind: pa.DataType) -> Any:
    if not values or None in values:
        return None
    value = which(values)
    return pa.scalar(value, kind).as_py() if pa.types.is_temporal(kind) else value


# ------------------------------------------------------------------------------- shared with searching


def wanted_groups(
    dataset: Dataset, readers: Readers, split: str, condition: Condition | None, counts: QueryCounts
) -> Iterator[GroupPlace]:
    """The row groups that may hold a wanted row, in order; shards are opened as they come."""
    shards = dataset.shards(split)
    wanted = set(range(len(shards)))
    if condition is not None:
        wanted = set(
            possible(condition, dataset.schema, [(shard.rows, shard.statistics) for shard in shards])
        )
    counts.shards_skipped = len(shards) - len(wanted)
    places = iter(places_of(dataset, split))
    for number, shard in enumerate(shards):
        own = list(islice(places, len(shard.groups)))
        left: list[GroupPlace] = []
        if number in wanted:
            counts.shards_read += 1
            left = own if condition is None else _possible_groups(dataset, readers, own, condition)
        counts.groups_skipped += len(own) - len(left)
        counts.bytes_skipped += sum(place.size_bytes for place in own) - sum(
            place.size_bytes for place in left
        )
        yield from left


def _possible_groups(
    dataset: Dataset, readers: Readers, places: list[GroupPlace], condition: Condition
) -> list[GroupPlace]:
    reader = readers.of(places[0].shard)
    known = [(place.rows, reader.statistics(place.index, condition.columns)) for place in places]
    return [places[number] for number in possible(condition, dataset.schema, known)]


def read_wanted(
    readers: Readers, place: GroupPlace, schema: pa.Schema, condition: Condition | None
) -> FoundRows:
    """The wanted rows of a group with the columns of ``schema``: those of the condition are read first."""
    reader = readers.of(place.shard)
    if condition is None:
        batch = reader.read_group(place.index, schema.names)
        return FoundRows(place, batch, None, reader.size_bytes(place.index, schema.names))
    tested = reader.read_group(place.index, condition.columns)
    size = reader.size_bytes(place.index, condition.columns)
    rows = rows_that_meet(condition, tested)
    if not len(rows):
        return FoundRows(place, None, rows, size)
    others = [name for name in schema.names if name not in condition.columns]
    sides = dict.fromkeys(condition.columns, tested)
    if others:
        rest = reader.read_group(place.index, others)
        sides |= dict.fromkeys(others, rest)
        size += reader.size_bytes(place.index, others)
    if not schema.names:
        return FoundRows(place, no_columns(len(rows)), rows, size)
    batch = pa.RecordBatch.from_arrays([sides[name].column(name) for name in schema.names], schema=schema)
    if len(rows) < batch.num_rows:
        batch = batch.take(pa.array(rows))
    return FoundRows(place, batch, rows, size)


def rows_that_meet(condition: Condition, tested: pa.RecordBatch) -> np.ndarray[Any, Any]:
    """The numbers of the rows of a batch that meet a condition."""
    number = "row"
    while number in tested.schema.names:
        number += "_"
    names = [*condition.columns, number]
    columns = [_aligned(tested.column(name)) for name in condition.columns]
    table = pa.table([*columns, pa.array(np.arange(tested.num_rows))], names=names)
    try:
        rows: np.ndarray[Any, Any] = table.filter(condition.expression).column(number).to_numpy()
    except pa.ArrowException as error:
        raise InvalidInput(
            f"the condition {condition.expression} can't be used on the values that are there: {error}"
        ) from error
    return rows


def _aligned(column: pa.Array) -> pa.Array:
    """The column in memory at addresses that Arrow's engine takes; it complains of those of a file's map."""
    if all(buffer is None or buffer.address % _ALIGNMENT == 0 for buffer in column.buffers()):
        return column
    return pa.concat_arrays([column, column.slice(0, 0)])
