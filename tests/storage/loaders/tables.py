"""Datasets in memory, with row groups of any sizes: the simplest thing that a loader can read."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from holdfast.storage.cid import Cid
from holdfast.storage.datasets.shards.shard import RowGroup, Shard

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class TableShard:
    """The row groups of one shard."""

    def __init__(self, dataset: TableDataset, groups: list[pa.RecordBatch]) -> None:
        self._dataset = dataset
        self._groups = groups

    def read_group(self, index: int, columns: Sequence[str] | None = None) -> pa.RecordBatch:
        group = self._groups[index]
        with self._dataset.lock:
            self._dataset.reads.append(group.num_rows)
        self._dataset.on_read(group)
        return group if columns is None else group.select(list(columns))

    def near(self, index: int, columns: Sequence[str] | None = None) -> int:  # noqa: ARG002 -- everything is here
        return 0


class TableDataset:
    """A table in shards of row groups, as a dataset.

    Args:
        table: The rows.
        shards: For each shard, the rows of its groups.
        on_read: Called with each row group that is read.
    """

    def __init__(
        self,
        table: pa.Table,
        shards: Sequence[Sequence[int]],
        on_read: Callable[[pa.RecordBatch], object] = lambda _: None,
    ) -> None:
        self.schema = table.schema
        self.store = SimpleNamespace(blocks=None)
        self.on_read = on_read
        self.lock = threading.Lock()
        self.reads: list[int] = []
        """The rows of each row group, as they are read."""
        self._readers: dict[Cid, TableShard] = {}
        made = []
        at = 0
        for number, rows_of in enumerate(shards):
            batches, groups = [], []
            for rows in rows_of:
                part = table.slice(at, rows).combine_chunks().to_batches()
                batches.append(part[0] if part else _empty(table.schema))
                groups.append(RowGroup(rows, 0, batches[-1].nbytes))
                at += rows
            shard = Shard(
                Cid.of(b"shard %d" % number), sum(rows_of), sum(g.size_bytes for g in groups), tuple(groups)
            )
            self._readers[shard.cid] = TableShard(self, batches)
            made.append(shard)
        assert at == table.num_rows
        self.splits = {"train": tuple(made)}
        self.cid = Cid.of(repr((at, [list(each) for each in shards])).encode())

    def default_split(self) -> str:
        return "train"

    def shards(self, split: str) -> tuple[Shard, ...]:
        return self.splits[split]

    def open_shard(self, shard: Shard) -> TableShard:
        return self._readers[shard.cid]


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    arrays = [
        pa.ExtensionArray.from_storage(f.type, pa.array([], f.type.storage_type))
        if isinstance(f.type, pa.BaseExtensionType)
        else pa.array([], f.type)
        for f in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def in_groups(table: pa.Table, shards: Sequence[Sequence[int]], **options: Any) -> Any:
    """A :class:`TableDataset`, for what takes any dataset."""
    return TableDataset(table, shards, **options)


def numbered(shards: Sequence[Sequence[int]], **options: Any) -> Any:
    """A dataset whose column ``id`` numbers the rows, with a tensor and a text beside it that say the same."""
    rows = sum(map(sum, shards))
    ids = np.arange(rows)
    pairs = pa.FixedSizeListArray.from_arrays(np.stack([ids, -ids], axis=1).astype(np.float32).reshape(-1), 2)
    tensors = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), (2,)), pairs)
    return TableDataset(
        pa.table(
            {
                "id": ids,
                "pair": tensors,
                "word": pa.array([f"w{i}" for i in ids], pa.string()),
            }
        ),
        shards,
        **options,
    )
