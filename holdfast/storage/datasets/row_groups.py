"""Row groups of a dataset by their place, and single rows of them, read when they are wanted."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from holdfast.storage.datasets.read_ahead import in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from holdfast.storage.cid import Cid
    from holdfast.storage.datasets.dataset import Dataset
    from holdfast.storage.datasets.shards.shard import Shard
    from holdfast.storage.datasets.shards.shard_reader import ShardReader

__all__ = ["GroupPlace", "Readers", "Rows", "chosen_split", "places_of"]

_OPEN_SHARDS = 8


@dataclass(frozen=True, slots=True)
class GroupPlace:
    """Where a row group is."""

    shard: Shard
    index: int
    """Of the group in its shard."""
    first_row: int
    """Number of its first row in the split."""

    @property
    def rows(self) -> int:
        """How many it has."""
        return self.shard.groups[self.index].rows

    @property
    def size_bytes(self) -> int:
        """Of all of its columns."""
        return self.shard.groups[self.index].size_bytes


class Readers:
    """Opens the shards of a dataset, and keeps the newest ones open. Safe to use from several threads."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._lock = threading.Lock()
        self._open: OrderedDict[Cid, ShardReader] = OrderedDict()

    def of(self, shard: Shard) -> ShardReader:
        """What reads a shard."""
        with self._lock:
            reader = self._open.get(shard.cid)
            if reader is None:
                reader = self._open[shard.cid] = self._dataset.open_shard(shard)
            self._open.move_to_end(shard.cid)
            while len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
            return reader

    def read(self, place: GroupPlace, columns: Sequence[str] | None = None) -> pa.RecordBatch:
        """A row group, or only these columns of it; fetched if need be."""
        return self.of(place.shard).read_group(place.index, columns)


def chosen_split(dataset: Dataset, split: str | None) -> str:
    """The split that is meant: the one that is named, else the only one, else ``train``.

    Raises:
        NotFound: There is no such split.
    """
    chosen = dataset.default_split() if split is None else split
    dataset.rows_in(chosen)
    return chosen


def places_of(dataset: Dataset, split: str) -> list[GroupPlace]:
    """The row groups of a split, in order."""
    places = []
    at = 0
    for shard in dataset.shards(split):
        for index, group in enumerate(shard.groups):
            places.append(GroupPlace(shard, index, at))
            at += group.rows
    return places


class Rows:
    """Some rows of a dataset, known by their numbers and read when asked for.

    Args:
        dataset: Whose rows.
        places: Row groups; row numbers count through them.
        numbers: Which rows, ascending.
    """

    def __init__(self, dataset: Dataset, places: Sequence[GroupPlace], numbers: np.ndarray[Any, Any]) -> None:
        self._dataset = dataset
        self._readers = Readers(dataset)
        self._places = places
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def schema(self) -> pa.Schema:
        """Of the dataset."""
        schema: pa.Schema = self._dataset.schema
        return schema

    @cached_property
    def _starts(self) -> np.ndarray[Any, Any]:
        return np.cumsum([0, *(place.rows for place in self._places)])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in order, one batch for each row group that has any; one group is in memory at a time."""
        yield from in_order(self._reads(self._numbers))

    def to_arrow(self) -> pa.Table:
        """All of them as one table."""
        return pa.Table.from_batches(list(self.batches()), self.schema)

    def take(self, numbers: np.ndarray[Any, Any]) -> pa.RecordBatch:
        """Rows by any numbers, in that order; each row group that has one is read once."""
        order = np.argsort(numbers, kind="stable")
        found = pa.Table.from_batches(list(in_order(self._reads(numbers[order]))), self.schema)
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        table = found.take(pa.array(back)).combine_chunks()
        return pa.RecordBatch.from_arrays(
            [_one_chunk(table.column(name)) for name in table.column_names], schema=table.schema
        )

    def _reads(self, numbers: np.ndarray[Any, Any]) -> Iterator[Callable[[], pa.RecordBatch]]:
        groups = np.searchsorted(self._starts, numbers, "right") - 1
        bounds = np.flatnonzero(np.diff(groups)) + 1
        for own in np.split(numbers, bounds) if len(numbers) else ():
            group = int(np.searchsorted(self._starts, own[0], "right")) - 1
            yield _Read(self._readers, self._places[group], own - self._starts[group])


@dataclass(frozen=True, slots=True)
class _Read:
    """Some rows of one group."""

    readers: Readers
    place: GroupPlace
    rows: np.ndarray[Any, Any]

    def __call__(self) -> pa.RecordBatch:
        batch = self.readers.read(self.place)
        return batch if len(self.rows) == batch.num_rows else batch.take(pa.array(self.rows))


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
