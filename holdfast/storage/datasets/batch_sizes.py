"""How large Arrow batches are, and how they are made smaller."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["bounded", "size_of"]


def bounded(batch: pa.RecordBatch, limit: int) -> Iterator[pa.RecordBatch]:
    """The batch in slices of at most ``limit`` bytes or one row; no bytes are copied, and empty ones are left out."""
    if not batch.num_rows:
        return
    try:
        fits = batch.num_rows == 1 or batch.nbytes <= limit
    except pa.ArrowTypeError:  # see size_of: a part of these rows would seem to have as much as all of them
        rows = max(1, batch.num_rows * limit // max(1, size_of(batch)))
        yield from (batch.slice(at, rows) for at in range(0, batch.num_rows, rows))
        return
    if fits:
        yield batch
        return
    half = batch.num_rows // 2
    yield from bounded(batch.slice(0, half), limit)
    yield from bounded(batch.slice(half), limit)


def size_of(data: pa.RecordBatch | pa.Table) -> int:
    """How many bytes the rows have, about."""
    try:
        return int(data.nbytes)
    except pa.ArrowTypeError:  # pyarrow 22 can't tell of views how much is theirs
        return int(data.get_total_buffer_size())
