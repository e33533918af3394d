"""Where the blocks of a shard end.

A row group shares no block with another, so that those that two versions have in common are stored once (Arrow's share one
if they have less than 16 KiB). Within a row group, blocks have about half a MiB: small enough to read some columns without the
others, large enough that to hash, look up and fetch them costs little besides the bytes. What a shard begins with belongs to
its first block: it is the same in many shards, so the store would keep it once, and no shard but the first would lie
in one piece.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from holdfast.errors import InvalidInput
from holdfast.storage.formats.chunkers import FastCdcChunker, FixedChunker, read_fully
from holdfast.storage.formats.format_chunkers import FormatChunker

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ArrowShardChunker", "ParquetShardChunker"]

_BLOCK_BYTES = 512 << 10
_HEAD_BYTES = 64 << 10
_PIECES = FastCdcChunker(_BLOCK_BYTES // 2, _BLOCK_BYTES, 2 * _BLOCK_BYTES)
_MESSAGES = FormatChunker("arrow", FixedChunker(1 << 20))


@dataclass(frozen=True, slots=True)
class ParquetShardChunker:
    """Joins neighbouring column chunks of a row group up to 512 KiB, and cuts larger ones with FastCDC."""

    inner: FastCdcChunker = _PIECES

    @property
    def name(self) -> str:
        """With the parameters."""
        return f"parquet-shard-{self.inner.name}"

    @property
    def max_chunk_bytes(self) -> int:
        """FastCDC's."""
        return self.inner.max_bytes

    def chunks(self, stream: BinaryIO) -> Iterator[bytes]:
        """Yield the pieces; see :class:`~holdfast.storage.formats.chunkers.Chunker`."""
        base = stream.tell()
        try:
            metadata = pq.read_metadata(stream)
        except (pa.ArrowException, OSError) as error:
            raise InvalidInput(f"this is no shard of a dataset: {error}") from error
        stream.seek(base)
        at = base
        for end in _block_ends(metadata):
            piece = read_fully(stream, max(0, base + end - at))
            at += len(piece)
            if len(piece) > _BLOCK_BYTES:
                yield from self.inner.chunks(io.BytesIO(piece))
            elif piece:
                yield piece
        yield from FixedChunker(2 * _BLOCK_BYTES).chunks(stream)  # the footer


def _block_ends(metadata: Any) -> Iterator[int]:
    """Where column chunks end that no other one is joined to."""
    start = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        columns = [group.column(leaf) for leaf in range(group.num_columns)]
        ends = sorted(column.data_page_offset + column.total_compressed_size for column in columns)
        for before, end in pairwise([start, *ends]):
            if before > start and end - start > _BLOCK_BYTES:
                yield before
                start = before
        yield ends[-1]
        start = ends[-1]


@dataclass(frozen=True, slots=True)
class ArrowShardChunker:
    """Cuts each record batch every MiB from its own beginning on."""

    inner: FormatChunker = _MESSAGES

    @property
    def name(self) -> str:
        """With the parameters."""
        return f"arrow-shard-{self.inner.name}"

    @property
    def max_chunk_bytes(self) -> int:
        """Of a first block with its head."""
        return self.inner.max_chunk_bytes + _HEAD_BYTES

    def chunks(self, stream: BinaryIO) -> Iterator[bytes]:
        """Yield the pieces; see :class:`~holdfast.storage.formats.chunkers.Chunker`."""
        pieces = iter(self.inner.chunks(stream))
        head = next(pieces, b"")
        if len(head) < _HEAD_BYTES:
            head = b"".join((head, next(pieces, b"")))
        if head:
            yield head
        yield from pieces
