"""Hashes of whole rows, by which rows are compared that can't all be in memory at once.

The hash is multilinear over 32-bit words, in four lanes, with a secret key drawn anew for each use. So two different rows
have the same 128 bits with a chance of 2**-128 for each level of nesting, whatever the rows are and whoever made them.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from holdfast.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterable

    Words: TypeAlias = np.ndarray[Any, np.dtype[np.uint64]]

__all__ = ["RowHasher"]

_LANES = 4
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_AT_ONCE_WORDS = 1 << 18
"""How much of a wide column is widened to 64 bits at once: what fits the processor's cache."""


class RowHasher:
    """Hashes rows by what they mean: NaN is NaN, 0.0 is -0.0, and null is null, whatever lies beneath it.

    Hashes of one hasher can be compared with each other, and with nobody else's. Safe to use from several threads.

    Args:
        secret: The key; default: a new one.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = secret or secrets.token_bytes(32)
        self._keys: dict[str, Words] = {}

    def hashes(self, batch: pa.RecordBatch | pa.Table, columns: Iterable[str]) -> Words:
        """One row of two 64-bit words for each row of ``batch``, made of these columns; their order does not matter.

        Raises:
            Unsupported: A column is a union or run-end encoded.
        """
        lanes = np.zeros((_LANES, batch.num_rows), np.uint64)
        for name in columns:
            column = batch.column(name)
            if isinstance(column, pa.ChunkedArray):
                column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
            self._add(lanes, column, name)
        lanes >>= _HALF
        return np.stack((lanes[0] << _HALF | lanes[1], lanes[2] << _HALF | lanes[3]), axis=1)

    def _key(self, label: str, words: int) -> Words:
        """Key material for the first ``words`` words of something: one row a lane."""
        key = self._keys.get(label)
        if key is None or key.shape[1] < words:
            count = max(16, 1 << (words - 1).bit_length())
            # The words of one position lie together, so that a longer key begins with the shorter one.
            stream = hashlib.shake_128(self._secret + label.encode()).digest(8 * _LANES * count)
            key = np.ascontiguousarray(np.frombuffer(stream, "<u8").reshape(count, _LANES).T)
            self._keys[label] = key
        return key[:, :words]

    def _add(self, lanes: Words, array: pa.Array, label: str) -> None:  # noqa: C901, PLR0912 -- one branch for each kind
        """Add what ``array`` says of each row to the sums of the rows."""
        if not len(array):
            return
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        kind = array.type
        if pa.types.is_dictionary(kind):
            array = array.dictionary_decode()
            kind = array.type
        if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
            array = array.cast(pa.large_binary())
            kind = array.type
        if array.null_count:
            nulls = np.asarray(array.is_null(), bool)
            lanes[:, nulls] += self._key(f"{label}\0null", 1)
        if pa.types.is_null(kind):
            return
        if pa.types.is_struct(kind):
            for field, child in zip(kind, array.flatten(), strict=True):
                self._add(lanes, child, f"{label}\0.{field.name}")
        elif _width_of(kind):
            words = _as_words(_fixed_bytes(array))
            self._add_fixed(lanes, words, label)
        elif _is_text(kind):
            self._add_ranges(lanes, _buffer(array, 2), _runs_of_text(array), label)
        elif pa.types.is_fixed_size_list(kind):
            size = kind.list_size
            runs = _Runs(np.arange(len(array), dtype=np.int64) * size, np.full(len(array), size, np.int64))
            values = array.values.slice(array.offset * size, len(array) * size)
            add = self._add_tensors if _width_of(values.type) else self._add_lists
            add(lanes, array, values, runs, label)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
            offsets = np.asarray(array.offsets, np.int64)
            values = array.values
            if pa.types.is_map(kind):
                values = pa.StructArray.from_arrays([array.keys, array.items], names=["key", "value"])
            self._add_lists(lanes, array, values, _Runs(offsets[:-1], np.diff(offsets)), label)
        else:
            raise Unsupported(f"rows can't be compared by a column of type {kind}")

    def _add_fixed(self, lanes: Words, words: np.ndarray[Any, np.dtype[np.uint32]], label: str) -> None:
        rows, width = words.shape
        key = self._key(label, width)
        if width <= 4:
            for at in range(width):
                column = words[:, at].astype(np.uint64)
                for lane in range(_LANES):
                    lanes[lane] += column * key[lane, at]
            return
        step = max(1, _AT_ONCE_WORDS // width)
        for first in range(0, rows, step):
            wide = words[first : first + step].astype(np.uint64)
            lanes[:, first : first + step] += (wide @ key.T).T

    def _add_tensors(self, lanes: Words, array: pa.Array, values: pa.Array, runs: _Runs, label: str) -> None:
        """Lists of one length, whose elements have one width."""
        data = _fixed_bytes(values).reshape(len(array), array.type.list_size * _width_of(values.type))
        if array.null_count:
            null = np.asarray(array.is_null(), bool)
            data = np.where(null[:, None], np.uint8(0), data)
            runs = _Runs(runs.starts, np.where(null, 0, runs.lengths))
        if values.null_count:
            self._add_null_elements(lanes, values, runs, label)
        self._add_fixed(lanes, _as_words(data), label)

    def _add_lists(self, lanes: Words, array: pa.Array, values: pa.Array, runs: _Runs, label: str) -> None:
        """Lists as runs of their elements."""
        starts, lengths = runs.starts, runs.lengths
        if array.null_count:
            lengths = np.where(np.asarray(array.is_null(), bool), 0, lengths)
        some = lengths > 0
        first, last = (int(starts[some].min()), int((starts + lengths)[some].max())) if some.any() else (0, 0)
        values, starts = values.slice(first, last - first), starts - first
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        width = _width_of(values.type)
        if width:
            if values.null_count:
                self._add_null_elements(lanes, values, _Runs(starts, lengths), label)
            data = _fixed_bytes(values).reshape(-1)
            self._add_ranges(lanes, data, _Runs(starts * width, lengths * width), label)
            return
        below = np.zeros((_LANES, len(values)), np.uint64)
        self._add(below, values, f"{label}\0[]")
        inner = np.ascontiguousarray((below >> _HALF).astype("<u4").T).view(np.uint8).reshape(-1)
        self._add_ranges(lanes, inner, _Runs(starts * 4 * _LANES, lengths * 4 * _LANES), label)

    def _add_null_elements(self, lanes: Words, values: pa.Array, runs: _Runs, label: str) -> None:
        if not runs.lengths.sum():
            return
        rows, within = runs.positions(0, len(runs.lengths))
        null = np.asarray(values.is_null(), bool)[runs.starts[rows] + within]
        key = self._key(f"{label}\0[]null", int(runs.lengths.max()))
        for lane in range(_LANES):
            np.add.at(lanes[lane], rows[null], key[lane][within[null]])

    def _add_ranges(self, lanes: Words, data: np.ndarray[Any, Any], runs: _Runs, label: str) -> None:
        """Bytes of varying length, eight at a time."""
        length_key = self._key(f"{label}\0length", 1)
        for lane in range(_LANES):
            lanes[lane] += runs.lengths.astype(np.uint64) * length_key[lane, 0]
        words = _Runs(runs.starts, (runs.lengths + 7) // 8)
        ends = np.cumsum(words.lengths)
        if not len(ends) or not ends[-1]:
            return
        padded = np.zeros(data.size + 8, np.uint8)
        padded[: data.size] = data
        anywhere: Words = np.ndarray((data.size + 1,), "<u8", buffer=padded, strides=(1,))
        key = self._key(label, 2 * int(words.lengths.max()))
        first = 0
        while first < len(ends):
            before = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + _AT_ONCE_WORDS, "right")))
            rows, within = words.positions(first, last)
            at = 8 * within
            text = anywhere[runs.starts[rows] + at]
            left = np.minimum(runs.lengths[rows] - at, 8).astype(np.uint64)
            text &= _ALL >> (np.uint64(64) - left * np.uint64(8))
            low, high, sums = text & _LOW, text >> _HALF, np.zeros(len(text) + 1, np.uint64)
            for lane in range(_LANES):
                np.cumsum(low * key[lane][2 * within] + high * key[lane][2 * within + 1], out=sums[1:])
                bounds = sums[np.concatenate(([0], ends[first:last] - before))]
                lanes[lane, first:last] += np.diff(bounds)
            first = last


@dataclass(frozen=True, slots=True)
class _Runs:
    """Where the items of each row lie among the items of all rows."""

    starts: np.ndarray[Any, Any]
    lengths: np.ndarray[Any, Any]

    def positions(self, first: int, last: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Of each item of some rows: its row, and its number in it."""
        own = self.lengths[first:last]
        rows = np.repeat(np.arange(first, last), own)
        within = np.arange(len(rows)) - (np.cumsum(own) - own)[rows - first]
        return rows, within


def _is_text(kind: pa.DataType) -> bool:
    return kind in {pa.string(), pa.large_string(), pa.binary(), pa.large_binary()}


def _width_of(kind: pa.DataType) -> int:
    """Bytes of a value of a type whose values all have the same; 0 for the others."""
    if pa.types.is_boolean(kind):
        return 1
    if pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_fixed_size_binary(kind):
        return int(kind.bit_width) // 8
    return 16 if pa.types.is_interval(kind) else 0


def _buffer(array: pa.Array, number: int) -> np.ndarray[Any, Any]:
    buffer = array.buffers()[number]
    return np.frombuffer(buffer, np.uint8) if buffer is not None and buffer.size else np.zeros(0, np.uint8)


def _fixed_bytes(array: pa.Array) -> np.ndarray[Any, Any]:
    """The values as bytes, one row each: zeros for nulls, one NaN for all, and 0.0 for -0.0."""
    kind = array.type
    if pa.types.is_boolean(kind):
        array = pc.cast(array, pa.uint8())
        kind = array.type
    width = _width_of(kind)
    if not width or not len(array):
        return np.zeros((len(array), width), np.uint8)
    values = _buffer(array, 1)[array.offset * width : (array.offset + len(array)) * width].reshape(-1, width)
    if pa.types.is_floating(kind):
        numbers = np.ascontiguousarray(values).view(f"<f{width}") + np.dtype(f"<f{width}").type(0)
        numbers[np.isnan(numbers)] = np.nan
        values = numbers.view(np.uint8).reshape(-1, width)
    if array.null_count:
        values = np.where(np.asarray(array.is_null(), bool)[:, None], np.uint8(0), values)
    return values


def _as_words(data: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    rows, width = data.shape
    if width in {1, 2}:
        return np.ascontiguousarray(data).view(f"<u{width}").astype(np.uint32).reshape(rows, 1)
    if width % 4:
        data = np.concatenate((data, np.zeros((rows, -width % 4), np.uint8)), axis=1)
    return np.ascontiguousarray(data).view("<u4").reshape(rows, (width + 3) // 4)


def _runs_of_text(array: pa.Array) -> _Runs:
    large = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    offsets = _buffer(array, 1).view("<i8" if large else "<i4")[array.offset : array.offset + len(array) + 1]
    if not len(offsets):
        offsets = np.zeros(1, np.int64)
    starts, lengths = offsets[:-1].astype(np.int64), np.diff(offsets).astype(np.int64)
    if array.null_count:
        lengths[np.asarray(array.is_null(), bool)] = 0
    return _Runs(starts, lengths)
