"""The row groups of an Arrow shard: each is one message, of which the wanted columns are read, with no copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from holdfast.storage.datasets.shards.arrays import no_columns
from holdfast.storage.datasets.shards.arrow_messages import MessageLayout, metadata_end, read_layout
from holdfast.storage.datasets.shards.shard_format import ipc_schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.storage.datasets.shards.shard import ColumnStatistics, Shard
    from holdfast.storage.stored_file import StoredFile

__all__ = ["ArrowGroups"]


class ArrowGroups:
    """Nothing is read when this is made: all that is needed stands in the manifest."""

    def __init__(self, file: StoredFile, shard: Shard, schema: pa.Schema) -> None:
        self.file = file
        self._shard = shard
        self._schema = schema
        self._stored = ipc_schema(schema)
        self._layouts: dict[int, MessageLayout] = {}

    def read(self, index: int, columns: Sequence[int]) -> pa.RecordBatch:
        """These columns of a group, as views of the store."""
        group = self._shard.groups[index]
        end = group.offset + group.size_bytes
        if len(set(columns)) == len(self._schema):
            data = self.file.view(group.offset, end)
            self._layout(index, data)
        else:
            data = self._holding(self._layout_ranges(index, columns), group.offset, end)
        message = pa.ipc.read_message(pa.py_buffer(data))
        whole = pa.ipc.read_record_batch(message, self._stored)
        if not columns:
            return no_columns(whole.num_rows)
        fields = [self._schema.field(column) for column in columns]
        return pa.RecordBatch.from_arrays(
            [whole.column(column) for column in columns], schema=pa.schema(fields)
        )

    def _holding(self, ranges: Sequence[tuple[int, int]], start: int, end: int) -> memoryview:
        """Memory of a part of the file, of which only these ranges are verified, and may be read."""
        loaded = self.file.load(ranges)
        whole = self.file.unverified(start, end)
        if whole is not None:
            return whole
        copy = np.empty(end - start, np.uint8).data  # the kernel gives pages to what is written only
        for first, last in ranges:
            copy[first - start : last - start] = loaded.view(first, last)
        return copy.toreadonly()

    def ranges(self, index: int, columns: Sequence[int]) -> list[tuple[int, int]]:
        """Where these columns of a group lie in the file."""
        if len(set(columns)) == len(self._schema):
            group = self._shard.groups[index]
            return [(group.offset, group.offset + group.size_bytes)]
        return self._layout_ranges(index, columns)

    def statistics(self, index: int, columns: Sequence[int]) -> dict[str, ColumnStatistics]:  # noqa: ARG002 -- as Parquet has them
        """Nothing: an Arrow file has no statistics."""
        return {}

    def _layout_ranges(self, index: int, columns: Sequence[int]) -> list[tuple[int, int]]:
        group = self._shard.groups[index]
        layout = self._layouts.get(index)
        if layout is None:
            at = group.offset
            end = metadata_end(self.file.view(at, at + min(8, group.size_bytes)), group.size_bytes)
            layout = self._layout(index, self.file.view(at, at + end))
        return [
            (group.offset + start, group.offset + end) for start, end in layout.ranges(self._stored, columns)
        ]

    def _layout(self, index: int, head: memoryview) -> MessageLayout:
        """Where the buffers of a group lie; kept, and checked against the schema, when it is asked for first."""
        layout = self._layouts.get(index)
        if layout is None:
            layout = read_layout(head, self._shard.groups[index].size_bytes)
            layout.ranges(self._stored, ())
            self._layouts[index] = layout
        return layout
