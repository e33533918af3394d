"""From decoded row groups to the columns of batches, with as few calls and copies as can be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from holdfast.storage.loaders.collation import column_to_numpy, is_fixed
from holdfast.storage.loaders.pipeline.buffers import Buffers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.storage.loaders.pipeline.order import Integers

    Array: TypeAlias = np.ndarray[Any, Any]
    Column: TypeAlias = Any
    """A NumPy array; or an Arrow array that becomes Python objects, or a part of a record batch, batch by batch."""

__all__ = ["Chunk", "Columns", "Entry"]

_WIDE_BYTES = 64
"""From this size on, values are written to their places one by one; smaller ones would waste most of each cache line."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The rows of one row group that a worker gets, in its order; row ``k`` is the worker's row ``first + k * stride``."""

    columns: tuple[Column, ...]
    blocks: tuple[Array, ...]
    """Where rows are copies: the columns of the same type and shape, one behind the other in one array."""
    first: int
    stride: int
    count: int
    size_bytes: int

    def part(self, begin: int, end: int) -> tuple[int, int]:
        """From which to which ``k`` (exclusive) the entry's rows are the worker's rows from ``begin`` to ``end``."""
        low = -((self.first - begin) // self.stride)
        high = -((self.first - end) // self.stride)
        return min(max(low, 0), self.count), min(max(high, 0), self.count)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some batches in one piece: the worker's rows from ``begin`` to ``end``."""

    columns: tuple[Column, ...]
    begin: int
    end: int
    size_bytes: int
    """Of copies; 0 where it is a part of an entry."""


class _Part:
    """What a chunk takes of an entry: its rows from ``low`` to ``high``, the first of which is the worker's row ``row``."""

    __slots__ = ("entry", "high", "low", "row")

    def __init__(self, entry: Entry, begin: int, end: int) -> None:
        self.entry = entry
        self.low, self.high = entry.part(begin, end)
        self.row = entry.first + self.low * entry.stride


class Columns:
    """How the columns that are read are kept and cut.

    Args:
        schema: The columns, with their logical types.
        as_arrow: Keep all of them as Arrow arrays.
        spare_bytes: How much memory may be kept to be used again.
    """

    def __init__(self, schema: pa.Schema, *, as_arrow: bool, spare_bytes: int) -> None:
        self.schema = schema
        self.names: list[str] = schema.names
        self._entries = Buffers(spare_bytes // 2)
        self._chunks = Buffers(spare_bytes // 2)
        self._lanes = np.empty(0, np.uint8)
        self._early = [not as_arrow and is_fixed(field.type) for field in schema]
        self._late = [at for at, early in enumerate(self._early) if not early]
        self._plain = [
            early and (pa.types.is_integer(field.type) or pa.types.is_floating(field.type))
            for early, field in zip(self._early, schema, strict=True)
        ]

    def entry(
        self, group: pa.RecordBatch, selection: Integers | slice, *, first: int, stride: int, count: int
    ) -> Entry:
        """The selected rows of a decoded row group; no copy where they are neighbours.

        Raises:
            InvalidInput: A numeric column has missing values.
        """
        columns: list[Column] = [
            column.to_numpy()
            if plain and not column.null_count
            else column_to_numpy(name, column)
            if early
            else _storage(column)
            for name, column, early, plain in zip(
                self.names, group.columns, self._early, self._plain, strict=True
            )
        ]
        blocks: list[Array] = []
        if isinstance(selection, slice) and selection.step == 1:
            if count < group.num_rows:
                end = selection.start + count
                columns = [
                    column[selection.start : end] if early else column.slice(selection.start, count)
                    for column, early in zip(columns, self._early, strict=True)
                ]
        else:
            blocks = self._pick(columns, selection, group.num_rows, count)
        return Entry(tuple(columns), tuple(blocks), first, stride, count, _nbytes(columns))

    def _pick(self, columns: list[Column], selection: Integers | slice, rows: int, count: int) -> list[Array]:
        """Put copies of the selected rows in the place of columns, and give the blocks in which they lie."""
        alike = self._alike(columns)
        wanted = [
            ((len(group), count, *columns[group[0]].shape[1:]), columns[group[0]].dtype) for group in alike
        ]
        blocks = self._entries.arrays(wanted)
        for group, block in zip(alike, blocks, strict=True):
            for at, copy in zip(group, block, strict=True):
                if isinstance(selection, slice):
                    copy[...] = columns[at][selection]
                else:  # in range by its making: "clip" spares a second copy, and hides no mistake
                    columns[at].take(selection, axis=0, out=copy, mode="clip")
                columns[at] = copy
        if self._late:
            indices = pa.array(np.arange(rows)[selection] if isinstance(selection, slice) else selection)
            for at in self._late:
                columns[at] = columns[at].take(indices)
        return blocks

    def _alike(self, columns: Sequence[Column]) -> list[list[int]]:
        """The early columns, those of the same type and shape together."""
        groups: dict[Any, list[int]] = {}
        for at, (column, early) in enumerate(zip(columns, self._early, strict=True)):
            if early:
                groups.setdefault((column.dtype, column.shape[1:]), []).append(at)
        return list(groups.values())

    def chunk(self, entries: Sequence[Entry], begin: int, end: int) -> Chunk:
        """The worker's rows from ``begin`` to ``end`` out of the entries that have them; a copy unless one has them all."""
        parts = [_Part(entry, begin, end) for entry in entries]
        parts = [part for part in parts if part.high > part.low]
        if len(parts) == 1:
            (part,) = parts
            views = tuple(
                column[part.low : part.high] if early else column.slice(part.low, part.high - part.low)
                for column, early in zip(part.entry.columns, self._early, strict=True)
            )
            return Chunk(views, begin, end, 0)
        columns: list[Column] = [None] * len(self.names)
        if parts[0].entry.stride == 1:
            self._join(columns, parts, end - begin)
        else:
            self._interleave(columns, parts, begin, end)
        indices: pa.Array | None = None
        for at in self._late:
            joined = pa.concat_arrays(
                [part.entry.columns[at].slice(part.low, part.high - part.low) for part in parts]
            )
            if parts[0].entry.stride > 1:
                if indices is None:
                    indices = _interleaving(parts, begin, end)
                joined = joined.take(indices)
            columns[at] = joined
        return Chunk(tuple(columns), begin, end, _nbytes(columns))

    def _join(self, columns: list[Column], parts: Sequence[_Part], rows: int) -> None:
        """Parts of entries that follow each other, one behind the other."""
        cuts = [(part.entry.columns, part.low, part.high) for part in parts]
        like = cuts[0][0]
        early = [at for at, each in enumerate(self._early) if each]
        copies = self._chunks.arrays([((rows, *like[at].shape[1:]), like[at].dtype) for at in early])
        for at, copy in zip(early, copies, strict=True):
            np.concatenate([column[at][low:high] for column, low, high in cuts], out=copy)
            columns[at] = copy

    def _interleave(self, columns: list[Column], parts: Sequence[_Part], begin: int, end: int) -> None:
        """Rows of the lanes in turn, all columns of the same type at once.

        Whole rounds of all lanes are laid out, though the chunk may begin and end within one. Narrow values are first laid out
        with the lanes one below the other, and then turned around: to read in many places and write in one is fastest.
        """
        stride = parts[0].entry.stride
        first_round = begin // stride
        rounds = -(-end // stride) - first_round
        skipped = begin - first_round * stride
        alike = self._alike(parts[0].entry.columns)
        blocks = parts[0].entry.blocks
        wholes = self._chunks.arrays(
            [((len(block), rounds * stride, *block.shape[2:]), block.dtype) for block in blocks]
        )
        for number, (group, whole) in enumerate(zip(alike, wholes, strict=True)):
            turned = whole.reshape(len(group), rounds, stride, *whole.shape[2:]).swapaxes(1, 2)
            wide = whole[0, :1].nbytes >= _WIDE_BYTES
            lanes = turned if wide else self._scratch(turned.shape, whole.dtype)
            for part in parts:
                turn, lane = divmod(part.row, stride)
                turn -= first_round
                size = part.high - part.low
                lanes[:, lane, turn : turn + size] = part.entry.blocks[number][:, part.low : part.high]
            if not wide:
                turned[...] = lanes
            for at, column in zip(group, whole, strict=True):
                columns[at] = column[skipped : skipped + end - begin]

    def _scratch(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        size = math.prod(shape) * dtype.itemsize
        if self._lanes.nbytes < size:  # one for all, since one chunk is made at a time
            self._lanes = np.empty(size, np.uint8)
        return np.ndarray(shape, dtype, self._lanes)

    def batch(self, chunk: Chunk, begin: int, end: int) -> dict[str, np.ndarray[Any, Any]]:
        """One batch of a chunk: the worker's rows from ``begin`` to ``end``, as NumPy arrays by column.

        Raises:
            InvalidInput: As :func:`~holdfast.storage.loaders.collation.column_to_numpy` does.
            Unsupported: As above.
        """
        low, high = begin - chunk.begin, end - chunk.begin
        if not self._late:
            return {name: column[low:high] for name, column in zip(self.names, chunk.columns, strict=True)}
        return {
            name: column[low:high] if early else column_to_numpy(name, column.slice(low, high - low))
            for name, column, early in zip(self.names, chunk.columns, self._early, strict=True)
        }

    def record_batch(self, chunk: Chunk, begin: int, end: int) -> pa.RecordBatch:
        """The same as an Arrow record batch."""
        arrays = []
        for field, column in zip(self.schema, chunk.columns, strict=True):
            part = column.slice(begin - chunk.begin, end - begin)
            extension = isinstance(field.type, pa.BaseExtensionType)
            arrays.append(pa.ExtensionArray.from_storage(field.type, part) if extension else part)
        return pa.record_batch(arrays, schema=self.schema)


def _storage(column: pa.Array) -> pa.Array:
    return column.storage if isinstance(column.type, pa.BaseExtensionType) else column


def _nbytes(columns: Sequence[Column]) -> int:
    return sum(int(column.nbytes) for column in columns)


def _interleaving(parts: Sequence[_Part], begin: int, end: int) -> pa.Array:
    """For each row of the chunk, where it stands in the entries' parts one behind the other."""
    indices = np.empty(end - begin, np.int64)
    at = 0
    for part in parts:
        count = part.high - part.low
        start, stride = part.row - begin, part.entry.stride
        indices[start : start + (count - 1) * stride + 1 : stride] = np.arange(at, at + count)
        at += count
    return pa.array(indices)
