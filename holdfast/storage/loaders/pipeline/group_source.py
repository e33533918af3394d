"""The row groups of a dataset's split, as an engine reads them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from holdfast.errors import InvalidInput
from holdfast.storage.block_store import SupportsPrefetch, bring_near
from holdfast.storage.loaders.collation import is_fixed, row_bytes
from holdfast.storage.loaders.pipeline.schedule import Groups

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.storage.cid import Cid
    from holdfast.storage.datasets.dataset import Dataset
    from holdfast.storage.datasets.shards.shard_reader import ShardReader

__all__ = ["DatasetGroups"]

_OPEN_SHARDS = 64
_OFFSET_BYTES = 8
"""What an array keeps for each value that has a length of its own, at most."""


class DatasetGroups:
    """Some columns of one split.

    Args:
        dataset: What to read.
        split: Which part of it; None for its only split, or ``train``.
        columns: Which ones, in this order; None for all.

    Raises:
        NotFound: The dataset has no such split.
        InvalidInput: There is no such column; or none is chosen, or one twice.
    """

    def __init__(self, dataset: Dataset, split: str | None, columns: Sequence[str] | None) -> None:
        self.dataset = dataset
        self.split = split if split is not None else dataset.default_split()
        self._shards = dataset.shards(self.split)
        self.schema = _chosen(dataset, columns)
        self.columns: Sequence[str] | None = columns
        self.fetches = isinstance(dataset.store.blocks, SupportsPrefetch)
        self.shards: list[list[int]] = [[group.rows for group in shard.groups] for shard in self._shards]
        """For each shard, the rows of its row groups."""
        self.groups = self._table()
        self._lock = threading.Lock()
        self._readers: OrderedDict[int, _Opened] = OrderedDict()

    def check_complete(self) -> None:
        """See that no column that becomes an array of numbers has missing values, as far as the manifest tells.

        Raises:
            InvalidInput: One has; the message says how many.
        """
        for field in self.schema:
            if not is_fixed(field.type) or pa.types.is_temporal(field.type):
                continue
            known = [shard.statistics[field.name] for shard in self._shards if field.name in shard.statistics]
            missing = sum(each.nulls for each in known)
            if missing:
                raise InvalidInput(
                    f"column {field.name!r} of type {field.type} has {missing} missing values in split {self.split!r} of "
                    f"dataset {self.dataset.cid}: fill or drop them first, or leave the column out"
                )

    def reader(self, shard: int) -> ShardReader:
        """What reads a shard; opened once, and kept while it is in use."""
        with self._lock:
            opened = self._readers.setdefault(shard, _Opened())
            self._readers.move_to_end(shard)
            while len(self._readers) > _OPEN_SHARDS:
                self._readers.popitem(last=False)
        with opened.lock:
            if opened.reader is None:
                opened.reader = self.dataset.open_shard(self._shards[shard])
            return opened.reader

    def is_here(self, shard: int) -> bool:
        """Whether a shard is known to be on this node; it was opened, then."""
        opened = self._readers.get(shard)
        return opened is not None and opened.reader is not None and opened.reader.is_here

    def near(self, places: Sequence[tuple[int, int]]) -> list[int]:
        """Fetch what is not here of some row groups, all at once; how many bytes each got."""
        asked: dict[Cid, int] = {}  # in the order of need
        came = []
        for shard, index in places:
            missing = self.reader(shard).missing(index, self.columns)
            came.append(sum(size for cid, size in missing.items() if cid not in asked))
            asked.update(missing)
        bring_near(self.dataset.store.blocks, list(asked), self.dataset.cid)
        return came

    def name(self, shard: int, index: int) -> str:
        """A row group, for messages."""
        return f"row group {index} of shard {self._shards[shard].cid} (split {self.split!r} of dataset {self.dataset.cid})"

    def _table(self) -> Groups:
        places = [
            (number, index, group.rows, group.size_bytes)
            for number, shard in enumerate(self._shards)
            for index, group in enumerate(shard.groups)
        ]
        shard, index, rows, size = np.array(places, np.int64).reshape(-1, 4).T
        fixed = sum(row_bytes(field.type) for field in self.schema if is_fixed(field.type))
        varying = [field for field in self.schema if not is_fixed(field.type)]
        memory = rows * (fixed + _OFFSET_BYTES * len(varying))
        if varying:  # at most what the columns of fixed width leave over
            others = sum(row_bytes(field.type) for field in self.dataset.schema if _stored_wide(field.type))
            memory = memory + np.maximum(size - rows * others, 0)
        total = max(1, int(rows.sum()))
        return Groups(shard, index, rows, memory, -(-int(memory.sum()) // total))


class _Opened:
    """A reader, or a place for it that others wait at while it is opened."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reader: ShardReader | None = None


def _chosen(dataset: Dataset, columns: Sequence[str] | None) -> pa.Schema:
    if columns is None:
        return dataset.schema
    if isinstance(columns, str) or not columns or len(set(columns)) < len(columns):
        raise InvalidInput(f"columns is a list of different names, or None for all, not {columns!r}")
    names = dataset.schema.names
    missing = [name for name in columns if name not in names]
    if missing:
        raise InvalidInput(
            f"dataset {dataset.cid} has no column {', '.join(map(repr, missing))}; it has {', '.join(names)}"
        )
    return pa.schema([dataset.schema.field(name) for name in columns])


def _stored_wide(kind: pa.DataType) -> bool:
    """Whether a file spends as many bytes on a value as an array does."""
    return is_fixed(kind) and not pa.types.is_boolean(kind) and not pa.types.is_date(kind)
