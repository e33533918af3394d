"""Where the columns of a record batch lie in its IPC message, so that some of them can be read without the others.

Sources: https://arrow.apache.org/docs/format/Columnar.html and the FlatBuffers that it names.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MessageLayout", "buffer_count", "read_layout"]

_RECORD_BATCH = 3


class MessageLayout:
    """Offsets in the encapsulated message of a record batch.

    Args:
        metadata_end: Where its body begins.
        buffers: Offset in the body and length of each buffer.
    """

    def __init__(self, metadata_end: int, buffers: list[tuple[int, int]]) -> None:
        self.metadata_end = metadata_end
        self._buffers = buffers

    def ranges(self, schema: pa.Schema, columns: Sequence[int]) -> list[tuple[int, int]]:
        """The bytes of the message that hold some columns, with the metadata in front.

        Raises:
            ValueError: The message has other buffers than the schema.
        """
        counts = [buffer_count(field.type) for field in schema]
        if sum(counts) != len(self._buffers):
            raise ValueError(f"a record batch has {len(self._buffers)} buffers, not {sum(counts)}")
        found = [(0, self.metadata_end)]
        wanted = set(columns)
        at = 0
        for index, count in enumerate(counts):
            if index in wanted:
                found += [
                    (self.metadata_end + offset, self.metadata_end + offset + length)
                    for offset, length in self._buffers[at : at + count]
                    if length
                ]
            at += count
        return found


def buffer_count(kind: pa.DataType) -> int:
    """How many buffers a column of this type has in a message, those of its children included."""
    if isinstance(kind, pa.BaseExtensionType):
        return buffer_count(kind.storage_type)
    types = pa.types
    if types.is_null(kind):
        return 0
    if types.is_struct(kind):
        return 1 + sum(buffer_count(kind.field(index).type) for index in range(kind.num_fields))
    if types.is_map(kind):
        return 3 + buffer_count(kind.key_type) + buffer_count(kind.item_type)
    if types.is_fixed_size_list(kind):
        return 1 + buffer_count(kind.value_type)
    if types.is_list(kind):
        return 2 + buffer_count(kind.value_type)
    return 3 if types.is_string(kind) or types.is_binary(kind) else 2


def metadata_end(prefix: bytes | memoryview, message_bytes: int) -> int:
    """Where the body of the message begins whose first eight bytes these are.

    Raises:
        ValueError: There is no message.
    """
    mark, length = struct.unpack("<Ii", prefix)
    if mark != 0xFFFFFFFF or not 8 <= length <= message_bytes - 8:
        raise ValueError("there is no Arrow message where a row group begins")
    return 8 + int(length)


def read_layout(head: memoryview, message_bytes: int) -> MessageLayout:
    """The layout of a message of so many bytes, whose prefix and metadata, at least, are in ``head``.

    Raises:
        ValueError: It is no record batch without compression.
    """
    end = metadata_end(head[:8], message_bytes)
    table = _Table(head[8:end])
    if table.byte(1) != _RECORD_BATCH:
        raise ValueError("there is no record batch where a row group begins")
    batch = table.table(2)
    if batch.has(3):
        raise ValueError("the record batch is compressed")
    body = message_bytes - end
    buffers = batch.pairs(2)
    for offset, length in buffers:
        if not 0 <= offset <= offset + length <= body:
            raise ValueError("a buffer of the record batch lies outside of it")
    return MessageLayout(end, buffers)


class _Table:
    """A FlatBuffers table."""

    def __init__(self, data: memoryview, at: int | None = None) -> None:
        self._data = data
        self._at = self._number(0, 4) if at is None else at
        self._fields = self._at - self._number(self._at, 4, signed=True)
        self._count = (self._number(self._fields, 2) - 4) // 2

    def has(self, index: int) -> bool:
        """Whether the field is there."""
        return bool(self._offset(index))

    def byte(self, index: int) -> int:
        """A field of one byte, 0 if it is not there."""
        offset = self._offset(index)
        return self._number(self._at + offset, 1) if offset else 0

    def table(self, index: int) -> _Table:
        """A field that is a table."""
        offset = self._offset(index)
        if not offset:
            raise ValueError("the metadata of an Arrow message lacks a field")
        at = self._at + offset
        return _Table(self._data, at + self._number(at, 4))

    def pairs(self, index: int) -> list[tuple[int, int]]:
        """A field that is a vector of pairs of 64-bit numbers."""
        offset = self._offset(index)
        if not offset:
            return []
        at = self._at + offset
        at += self._number(at, 4)
        size = self._number(at, 4)
        data = self._data[at + 4 : at + 4 + 16 * size]
        if len(data) != 16 * size:
            raise ValueError("the metadata of an Arrow message is cut off")
        return list(struct.iter_unpack("<qq", data))

    def _offset(self, index: int) -> int:
        return self._number(self._fields + 4 + 2 * index, 2) if index < self._count else 0

    def _number(self, at: int, size: int, *, signed: bool = False) -> int:
        if not 0 <= at <= len(self._data) - size:
            raise ValueError("the metadata of an Arrow message is cut off")
        return int.from_bytes(self._data[at : at + size], "little", signed=signed)
