"""A dataset as a source of Ray Data: its row groups, read by many tasks on many nodes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from holdfast.storage.datasets.read_ahead import in_order
from holdfast.storage.loaders.batch_steps import BatchSteps
from holdfast.storage.loaders.place import DatasetPlace

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    import ray.data

    from holdfast.storage.datasets.dataset import Dataset
    from holdfast.storage.loaders.feed import FeedOptions

__all__ = ["RowGroupSource", "read_dataset", "read_with_steps"]


def read_dataset(
    dataset: Dataset,
    columns: Sequence[str] | None = None,
    *,
    split: str | None = None,
    home: str | os.PathLike[str] | None = None,
) -> ray.data.Dataset:
    """A split as a ``ray.data.Dataset``, read when it is used and verified where it is read.

    Blocks are row groups. Their order is the dataset's where Ray is told to keep it
    (``DataContext.get_current().execution_options.preserve_order = True``).

    Args:
        dataset: What to read.
        columns: Which ones, in this order; None for all. Of others nothing is read.
        split: Which part; None for the only one, or ``train``.
        home: Folder of the home that the tasks open; default: the one that the dataset was opened from. Variables
            in it count where the task runs: ``"$HOLDFAST_HOME"`` is each node's own home.

    Raises:
        NotFound: The dataset has no such split.
        InvalidInput: The dataset has no such column, or other processes can't open the dataset's store, and ``home`` is not given.
    """
    import ray.data

    rows: ray.data.Dataset = ray.data.read_datasource(
        RowGroupSource(dataset, columns, split=split, home=home)
    )
    return rows


def read_with_steps(dataset: Dataset, options: FeedOptions, *, home: str | None = None) -> ray.data.Dataset:
    """The same with a loader's columns and steps, which are done in batches of its size.

    Args:
        dataset: What to read.
        options: The loader's.
        home: As above.
    """
    rows = read_dataset(dataset, options.columns, split=options.split, home=home)
    steps = BatchSteps(options.steps, dataset, options.columns, threads=1)
    if not steps:
        return rows
    call = _Steps(DatasetPlace(dataset, home), options)
    mapped: ray.data.Dataset = rows.map_batches(call, batch_size=options.batch_size, batch_format="numpy")
    return mapped


@dataclass(frozen=True, slots=True)
class _Steps:
    """The steps of a loader in one of Ray's tasks."""

    place: DatasetPlace
    options: FeedOptions

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        steps = BatchSteps(self.options.steps, self.place.opened(), self.options.columns, threads=1)
        return steps(batch, "row {} of a batch of Ray's".format)


@dataclass(frozen=True, slots=True)
class _Group:
    """One row group of a split, and how large it is."""

    shard: int
    index: int
    rows: int
    size_bytes: int


class RowGroupSource(Datasource):
    """What ``ray.data.read_datasource`` takes; the arguments are those of :func:`read_dataset`."""

    def __init__(
        self,
        dataset: Dataset,
        columns: Sequence[str] | None = None,
        *,
        split: str | None = None,
        home: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._place = DatasetPlace(dataset, home)
        if self._place.home is None:
            self._place.__getstate__()  # says what is missing, before any task does
        self._split = dataset.default_split() if split is None else split
        self._columns = None if columns is None else tuple(columns)
        part = dataset.schema_of(self._columns)
        self._groups = [
            _Group(shard, index, group.rows, group.size_bytes)
            for shard, each in enumerate(dataset.shards(self._split))
            for index, group in enumerate(each.groups)
        ]
        self._share = _share_of_bytes(dataset.schema, self._columns)
        self._schema = _as_ray(pa.Table.from_batches([], schema=part)).schema

    def get_name(self) -> str:
        """What Ray's progress and statistics call it."""
        return "Holdfast"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of the columns that are read; an estimate where columns differ in width."""
        return int(self._share * sum(group.size_bytes for group in self._groups))

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: Any = None,  # noqa: ARG002 -- Ray's signature
    ) -> list[ReadTask]:
        """At most ``parallelism`` tasks, each of neighbouring row groups with about the same bytes."""
        tasks = []
        for groups in _parts(self._groups, max(1, parallelism)):
            metadata = BlockMetadata(
                num_rows=sum(group.rows for group in groups),
                size_bytes=int(self._share * sum(group.size_bytes for group in groups)),
                input_files=None,
                exec_stats=None,
            )
            read = _Read(self._place, self._split, self._columns, tuple(groups))
            tasks.append(ReadTask(read, metadata, self._schema, per_task_row_limit))
        return tasks


@dataclass(frozen=True, slots=True)
class _Read:
    """What one task does; sent to it by pickle."""

    place: DatasetPlace
    split: str
    columns: tuple[str, ...] | None
    groups: tuple[_Group, ...]

    def __call__(self) -> Iterator[pa.Table]:
        """Yield the row groups, the next one being read meanwhile."""
        dataset = self.place.opened()
        shards = dataset.shards(self.split)
        readers = {
            shard: dataset.open_shard(shards[shard]) for shard in {group.shard for group in self.groups}
        }

        def read(group: _Group) -> pa.Table:
            return _as_ray(
                pa.Table.from_batches([readers[group.shard].read_group(group.index, self.columns)])
            )

        yield from in_order(partial(read, group) for group in self.groups)


def _as_ray(table: pa.Table) -> pa.Table:
    """Tensors as Ray's own tensor columns, which all its formats of batches know; no copy."""
    from ray.data.extensions import ArrowTensorArray

    from holdfast.storage.loaders.collation import column_to_numpy

    for at, field in enumerate(table.schema):
        if isinstance(field.type, pa.FixedShapeTensorType):
            tensors = ArrowTensorArray.from_numpy(column_to_numpy(field.name, table.column(at)))
            table = table.set_column(at, field.name, tensors)
    return table


def _share_of_bytes(schema: pa.Schema, columns: tuple[str, ...] | None) -> float:
    """About how much of a row group some columns are; those without a fixed width count as 32 bytes."""
    widths = {field.name: _width(field.type) for field in schema}
    chosen = widths if columns is None else {name: widths[name] for name in columns}
    return sum(chosen.values()) / sum(widths.values())


def _width(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_fixed_size_list(kind):
        return max(1, int(kind.list_size) * _width(kind.value_type))
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:
        return 32


def _parts(groups: list[_Group], count: int) -> list[list[_Group]]:
    """The groups in at most ``count`` runs of about equal bytes, none of them empty."""
    total = sum(group.size_bytes for group in groups)
    parts: list[list[_Group]] = []
    before = 0
    for group in groups:
        if not parts or before * count >= len(parts) * total:
            parts.append([])
        parts[-1].append(group)
        before += group.size_bytes
    return parts
