"""Where row groups and shards end: decided by the rows themselves, so that equal rows are cut alike in any batches.

A group ends behind a row whose key is small enough, once it has half of the target size, and at twice the target at the
latest. So a row more or less moves the ends next to it only. Keys are hashes of a sample of the row: up to eight words of
a fixed-width value, the length and up to four words of text, the length and the first and last item of a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.shards.arrays import fixed_width, rows_as_bytes, valid_mask

if TYPE_CHECKING:
    from collections.abc import Iterator

    Numbers: TypeAlias = np.ndarray[Any, Any]

__all__ = [
    "DEFAULT_CHUNK_BYTES",
    "MAX_CHUNK_BYTES",
    "MIN_CHUNK_BYTES",
    "Cut",
    "GroupCutter",
    "checked_chunk_size",
    "row_keys",
    "row_sizes",
]

DEFAULT_CHUNK_BYTES = 4 << 20
MIN_CHUNK_BYTES, MAX_CHUNK_BYTES = 64, 32 << 20
MIN_GROUPS, MAX_GROUPS, SHARD_END_ONE_IN = 8, 32, 8
_MAX_WORDS, _TEXT_WORDS = 8, 4
_AT_ONCE_ROWS = 64 << 10  # whose keys fit the processor's cache
_MULTIPLIER, _FINAL_1, _FINAL_2 = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
)
_NULL = np.uint64(0x6E756C6C)


def checked_chunk_size(chunk_size: int | None) -> int:
    """The target size of a row group in bytes; None gives the default.

    Raises:
        InvalidInput: It is too small or too large.
    """
    if chunk_size is None:
        return DEFAULT_CHUNK_BYTES
    if type(chunk_size) is not int or not MIN_CHUNK_BYTES <= chunk_size <= MAX_CHUNK_BYTES:
        raise InvalidInput(
            f"chunk_size is the target size of a row group, {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES} bytes, "
            f"not {chunk_size!r}"
        )
    return chunk_size


# -------------------------------------------------------------------------------------------------- sizes


def row_sizes(batch: pa.RecordBatch) -> Numbers:
    """Bytes of each row, as int64, by a rule that knows nothing of how they are stored; at least 1."""
    constants = [_constant_size(column.type) for column in batch.columns]
    total = np.full(batch.num_rows, sum(constant or 0 for constant in constants), np.int64)
    for column, constant in zip(batch.columns, constants, strict=True):
        if constant is None:
            total += _sizes(column)
    return np.maximum(total, 1, out=total)


def _sizes(array: pa.Array) -> Numbers:
    kind, size = array.type, len(array)
    if isinstance(kind, pa.BaseExtensionType):
        return _sizes(array.storage)
    constant = _constant_size(kind)
    if constant is not None:
        return np.full(size, constant, np.int64)
    if pa.types.is_struct(kind):
        total = np.zeros(size, np.int64)
        for index in range(kind.num_fields):
            total += _sizes(array.field(index))
    elif pa.types.is_fixed_size_list(kind):
        items = array.values.slice(array.offset * kind.list_size, size * kind.list_size)
        total = _sizes(items).reshape(size, kind.list_size).sum(axis=1)
    else:
        starts, lengths = _spans(array)
        if pa.types.is_list(kind) or pa.types.is_map(kind):
            total = _item_sizes(array, starts, lengths)
        else:
            total = lengths.astype(np.int64)
        total += 4
    mask = valid_mask(array)
    return total if mask is None else np.where(mask, total, 1)


def _constant_size(kind: pa.DataType) -> int | None:
    """The size of every value of a type, missing or not, if all have the same."""
    if pa.types.is_null(kind):
        return 0
    if pa.types.is_boolean(kind):
        return 1
    if pa.types.is_fixed_size_list(kind):
        item = _constant_size(kind.value_type)
        return None if item is None else item * int(kind.list_size)
    if isinstance(kind, pa.BaseExtensionType):
        return _constant_size(kind.storage_type)
    return fixed_width(kind)


def _spans(array: pa.Array) -> tuple[Numbers, Numbers]:
    """Where each text or list begins, and how long it is; nothing is as long as what is missing."""
    if not len(array):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset :][: len(array) + 1].astype(np.int64)
    lengths = np.diff(offsets)
    mask = valid_mask(array)
    return offsets[:-1], lengths if mask is None else np.where(mask, lengths, 0)


def _item_sizes(array: pa.Array, starts: Numbers, lengths: Numbers) -> Numbers:
    constant = _constant_size(array.values.type)
    if constant is not None:
        return lengths * constant
    if not len(starts):
        return np.zeros(0, np.int64)
    first, last = int(starts[0]), int((starts + lengths).max(initial=int(starts[0])))
    sums = np.zeros(last - first + 1, np.int64)
    np.cumsum(_sizes(array.values.slice(first, last - first)), out=sums[1:])
    begin = np.minimum(starts, last) - first
    return np.asarray(sums[begin + lengths] - sums[begin])


# --------------------------------------------------------------------------------------------------- keys


def row_keys(batch: pa.RecordBatch) -> Numbers:
    """A 64-bit hash of a sample of each row."""
    keys = np.empty(batch.num_rows, np.uint64)
    for at in range(0, batch.num_rows, _AT_ONCE_ROWS):
        keys[at : at + _AT_ONCE_ROWS] = _row_keys(batch.slice(at, _AT_ONCE_ROWS))
    return keys


def _row_keys(batch: pa.RecordBatch) -> Numbers:
    keys: Numbers = np.zeros(batch.num_rows, np.uint64)
    for column in batch.columns:
        keys = _mix(keys, _keys(column))
    keys ^= keys >> np.uint64(30)
    keys *= _FINAL_1
    keys ^= keys >> np.uint64(27)
    keys *= _FINAL_2
    keys ^= keys >> np.uint64(31)
    return keys


def _mix(keys: Numbers, words: Numbers) -> Numbers:
    mixed: Numbers = keys ^ words
    mixed *= _MULTIPLIER
    mixed ^= mixed >> np.uint64(29)
    return mixed


def _keys(array: pa.Array) -> Numbers:
    kind, size = array.type, len(array)
    if isinstance(kind, pa.BaseExtensionType):
        return _keys(array.storage)
    if pa.types.is_null(kind):
        return np.full(size, _NULL)
    if pa.types.is_boolean(kind) or fixed_width(kind):
        keys = _keys_of_bytes(rows_as_bytes(array))
    elif pa.types.is_struct(kind):
        keys = np.zeros(size, np.uint64)
        for index in range(kind.num_fields):
            keys = _mix(keys, _keys(array.field(index)))
    elif pa.types.is_fixed_size_list(kind):
        keys = _keys_of_fixed_lists(array)
    elif pa.types.is_list(kind) or pa.types.is_map(kind):
        keys = _keys_of_items(array.values, *_spans(array))
    else:
        keys = _keys_of_text(array)
    mask = valid_mask(array)
    return keys if mask is None else np.where(mask, keys, _NULL)


def _keys_of_bytes(rows: Numbers) -> Numbers:
    """Of the rows of a matrix of bytes: all of up to 64 bytes, eight words of longer ones."""
    size, width = rows.shape
    if width in (1, 2, 4):
        return rows.view(f"<u{width}").reshape(size).astype(np.uint64)
    if width < 8:
        padded = np.zeros((size, 8), np.uint8)
        padded[:, :width] = rows
        return padded.view("<u8").reshape(size).astype(np.uint64)
    words = min(_MAX_WORDS, -(-width // 8))
    keys = np.zeros(size, np.uint64)
    for number in range(words):
        at = number * (width - 8) // max(1, words - 1)
        keys = _mix(keys, np.ascontiguousarray(rows[:, at : at + 8]).view("<u8").reshape(size))
    return keys


def _keys_of_fixed_lists(array: pa.Array) -> Numbers:
    size, items = len(array), int(array.type.list_size)
    values = array.values.slice(array.offset * items, size * items)
    if pa.types.is_boolean(values.type) or fixed_width(values.type):
        rows, mask = rows_as_bytes(values), valid_mask(values)
        shown = rows if mask is None else np.where(mask[:, None], rows, np.uint8(0))
        return _keys_of_bytes(shown.reshape(size, items * rows.shape[1]))
    starts = np.arange(size, dtype=np.int64) * items
    return _keys_of_items(values, starts, np.full(size, items, np.int64))


def _keys_of_items(values: pa.Array, starts: Numbers, lengths: Numbers) -> Numbers:
    """Of lists: their lengths, and the first and the last item."""
    keys = lengths.astype(np.uint64)
    some = np.flatnonzero(lengths)
    if len(some):
        for at in (starts[some], starts[some] + lengths[some] - 1):
            keys[some] = _mix(keys[some], _keys(values.take(pa.array(at))))
    return keys


def _keys_of_text(array: pa.Array) -> Numbers:
    starts, lengths = _spans(array)
    keys = lengths.astype(np.uint64)
    data = np.frombuffer(array.buffers()[2] or b"", np.uint8)
    long = np.flatnonzero(lengths >= 8)
    if len(long):
        words = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))  # one from each byte on
        begin, span = starts[long], lengths[long] - 8
        mixed = keys[long]
        for number in range(_TEXT_WORDS):
            mixed = _mix(mixed, words[begin + number * span // (_TEXT_WORDS - 1)])
        keys[long] = mixed
    short = np.flatnonzero((lengths > 0) & (lengths < 8))
    if len(short):
        begin, length = starts[short], lengths[short]
        word = np.zeros(len(short), np.uint64)
        for at in range(7):
            here = at < length
            byte = data[np.where(here, begin + at, begin)].astype(np.uint64)
            word |= np.where(here, byte << np.uint64(8 * at), np.uint64(0))
        keys[short] = _mix(keys[short], word)
    return keys


# --------------------------------------------------------------------------------------------------- cuts


@dataclass(frozen=True, slots=True)
class Cut:
    """A row group ends before ``row`` of the batch; with it, perhaps, its shard."""

    row: int
    ends_shard: bool


class GroupCutter:
    """Cuts the rows of one split, batch by batch.

    Args:
        chunk_size: Target bytes of a group.
    """

    def __init__(self, chunk_size: int) -> None:
        self._least = max(1, chunk_size // 2)
        self._most = 2 * chunk_size
        self._shard_most = MAX_GROUPS * self._most
        self.begin_shard()

    def begin_shard(self) -> None:
        """Forget what came before: a new shard begins."""
        self._group_bytes = self._shard_bytes = self._groups = 0

    def cuts(self, batch: pa.RecordBatch) -> Iterator[Cut]:
        """Yield the ends of groups in the next batch; rows behind the last belong to a group that goes on."""
        keys, sizes = row_keys(batch), row_sizes(batch)
        # Both sides have 32 bits: a row of ``least`` bytes or more always may end a group.
        limit = sizes * (1 << 32) // self._least
        may_end = np.flatnonzero((keys >> np.uint64(32)).astype(np.int64) < limit)
        sums = np.cumsum(sizes)
        before = -self._group_bytes  # what the sums count before the group begins
        while True:
            enough = int(np.searchsorted(sums, before + self._least))
            at = int(np.searchsorted(may_end, enough))
            last = int(np.searchsorted(sums, before + self._most))
            if at < len(may_end):
                last = min(last, int(may_end[at]))
            if last >= len(sums):
                break
            self._shard_bytes += int(sums[last]) - before
            self._groups += 1
            before = int(sums[last])
            ends_shard = self._shard_ends(int(keys[last]))
            if ends_shard:
                self._shard_bytes = self._groups = 0
            yield Cut(last + 1, ends_shard)
        self._group_bytes = (int(sums[-1]) if len(sums) else 0) - before

    def _shard_ends(self, key: int) -> bool:
        return (
            (self._groups >= MIN_GROUPS and key % SHARD_END_ONE_IN == 0)
            or self._groups >= MAX_GROUPS
            or self._shard_bytes >= self._shard_most
        )
