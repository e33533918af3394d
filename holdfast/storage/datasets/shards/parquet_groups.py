"""The row groups of a Parquet shard: where their columns lie, what their statistics say, and how they are decoded."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from holdfast.storage.datasets.shards.arrays import is_tensor, no_columns
from holdfast.storage.datasets.shards.parquet_types import from_parquet, leaf_count
from holdfast.storage.datasets.shards.shard import ColumnStatistics
from holdfast.storage.datasets.shards.shard_format import CREATED_BY
from holdfast.storage.datasets.shards.statistics import is_comparable, short

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.storage.datasets.shards.shard import Shard
    from holdfast.storage.stored_file import LoadedParts, StoredFile

__all__ = ["ParquetGroups"]

_MAX_FOOTER_BYTES = 64 << 20


class ParquetGroups:
    """The footer is read, and checked against the manifest, when this is made.

    Raises:
        ValueError: It is not what the manifest states.
    """

    def __init__(self, file: StoredFile, shard: Shard, schema: pa.Schema) -> None:
        self.file = file
        self._schema = schema
        last = shard.groups[-1]
        self._metadata = _read_metadata(file, last.offset + last.size_bytes)
        if self._metadata.created_by != CREATED_BY:
            raise ValueError(f"it was written by {self._metadata.created_by!r}, not as {CREATED_BY!r}")
        found = self._metadata.schema.to_arrow_schema()
        if found.names != schema.names:
            raise ValueError(f"it has the columns {str(found.names)[:200]}")
        self._leaves: list[range] = []
        first = 0
        for field in schema:
            self._leaves.append(range(first, first + leaf_count(field.type)))
            first = self._leaves[-1].stop
        if self._metadata.num_columns != first or self._metadata.num_row_groups != len(shard.groups):
            raise ValueError(
                f"it has {self._metadata.num_columns} columns in {self._metadata.num_row_groups} row groups"
            )
        self._shard = shard
        self._known_ranges: dict[int, list[tuple[int, int]]] = {}
        self._plans: dict[tuple[int, ...], _Plan] = {}
        self._mapped = threading.local()

    def _leaf_ranges(self, index: int) -> list[tuple[int, int]]:
        """Where each Parquet column of a group lies."""
        ranges = self._known_ranges.get(index)
        if ranges is None:
            ranges = self._known_ranges[index] = self._checked_ranges(index)
        return ranges

    def _checked_ranges(self, index: int) -> list[tuple[int, int]]:
        group, stated = self._metadata.row_group(index), self._shard.groups[index]
        ranges = []
        for leaf in range(group.num_columns):
            column = group.column(leaf)
            start, size = column.data_page_offset, column.total_compressed_size
            if column.has_dictionary_page or column.compression != "UNCOMPRESSED":
                raise ValueError("it has dictionaries or is compressed")
            if not stated.offset <= start <= start + size <= stated.offset + stated.size_bytes:
                raise ValueError(f"a column of row group {index} lies elsewhere")
            ranges.append((start, start + size))
        if group.num_rows != stated.rows:
            raise ValueError(f"row group {index} has {group.num_rows} rows")
        return ranges

    def read(self, index: int, columns: Sequence[int]) -> pa.RecordBatch:
        """These columns of a group, decoded."""
        plan = self._plan(columns)
        loaded = self.file.load(self.ranges(index, columns))
        memory = loaded.file_memory
        reader = (
            self._reader(_Source(loaded, self.file.size)) if memory is None else self._kept_reader(memory)
        )
        table = reader.read_row_group(index, column_indices=plan.leaves, use_threads=False)
        if not columns:
            return no_columns(self._metadata.row_group(index).num_rows)
        batches = table.to_batches()
        found = batches[0].columns if len(batches) == 1 else [_whole(column) for column in table.columns]
        arrays = [
            found[at] if as_it_is else from_parquet(found[at], kind) for at, kind, as_it_is in plan.columns
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=plan.schema)

    def _plan(self, columns: Sequence[int]) -> _Plan:
        """Made when these columns are asked for first, and kept."""
        plan = self._plans.get(tuple(columns))
        if plan is None:
            plan = self._plans[tuple(columns)] = self._new_plan(columns)
        return plan

    def _new_plan(self, columns: Sequence[int]) -> _Plan:
        fields = [self._schema.field(column) for column in columns]
        stored = self._metadata.schema.to_arrow_schema()
        place = {column: at for at, column in enumerate(sorted(set(columns)))}
        return _Plan(
            self._leaves_of(columns),
            [
                (
                    place[column],
                    field.type,
                    not is_tensor(field.type) and stored.field(column).type == field.type,
                )
                for column, field in zip(columns, fields, strict=True)
            ],
            pa.schema(fields),
        )

    def _reader(self, source: _Source | pa.BufferReader) -> Any:
        opened = pa.PythonFile(source, "r") if isinstance(source, _Source) else source
        return pq.ParquetFile(opened, metadata=self._metadata, pre_buffer=False).reader

    def _kept_reader(self, memory: memoryview) -> Any:
        """This thread's reader of the file where it lies: no reading then waits for other threads' Python."""
        kept: tuple[memoryview, Any] | None = getattr(self._mapped, "reader", None)
        if kept is None or kept[0] is not memory:
            kept = self._mapped.reader = memory, self._reader(pa.BufferReader(memory))
        return kept[1]

    def ranges(self, index: int, columns: Sequence[int]) -> list[tuple[int, int]]:
        """Where these columns of a group lie in the file."""
        ranges = self._leaf_ranges(index)
        return [ranges[leaf] for leaf in self._plan(columns).leaves]

    def statistics(self, index: int, columns: Sequence[int]) -> dict[str, ColumnStatistics]:
        """What the footer says of these columns of a group; only of those whose values have an order."""
        group = self._metadata.row_group(index)
        found = {}
        for column in columns:
            field = self._schema.field(column)
            if is_comparable(field.type):
                known = _statistics(group.column(self._leaves[column].start).statistics, field.type)
                if known is not None:
                    found[field.name] = known
        return found

    def _leaves_of(self, columns: Sequence[int]) -> list[int]:
        return sorted({leaf for column in columns for leaf in self._leaves[column]})


class _Plan(NamedTuple):
    """How some columns are read."""

    leaves: list[int]
    """Parquet's columns."""
    columns: list[tuple[int, pa.DataType, bool]]
    """For each, where it stands among those read, its logical type, and whether it has it as it is read."""
    schema: pa.Schema


class _Source:
    """Loaded parts of a file as pyarrow reads files: a column chunk at a time, each a part of the store's own memory."""

    closed = False

    def __init__(self, parts: LoadedParts, size: int) -> None:
        self._parts = parts
        self._size = size
        self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (self._size if whence == os.SEEK_END else 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def read_buffer(self, size: int) -> pa.Buffer:
        return pa.py_buffer(self.read(size))

    def read(self, size: int) -> memoryview:
        begin, self._at = self._at, self._at + size
        return self._parts.view(begin, begin + size)

    def close(self) -> None:
        """Nothing is open."""


def _read_metadata(file: StoredFile, start: int) -> Any:
    """The footer, which should begin at ``start``: then it is fetched at once, with nothing else."""
    file.near([(min(start, file.size), file.size)])
    tail = bytes(file.view(max(0, file.size - 8), file.size))
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length > min(file.size - 12, _MAX_FOOTER_BYTES):
        raise ValueError("it is not a Parquet file")
    footer = b"PAR1" + file.view(file.size - 8 - length, file.size)
    return pq.read_metadata(pa.BufferReader(footer))


def _statistics(stored: Any, kind: pa.DataType) -> ColumnStatistics | None:
    if stored is None or not stored.has_null_count:
        return None
    if not stored.has_min_max or pa.types.is_floating(kind):
        return ColumnStatistics(stored.null_count, None, None)
    low, high = stored.min_raw, stored.max_raw
    if isinstance(low, bytes):
        low, high = low.decode(), high.decode()
    elif pa.types.is_unsigned_integer(kind):
        low, high = (value & ((1 << kind.bit_width) - 1) for value in (low, high))
    return ColumnStatistics(stored.null_count, short(low), short(high))


def _whole(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
