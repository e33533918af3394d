"""Rows of two sides matched by their hashes, in parts that fit in memory."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from holdfast.storage.datasets.comparing.row_hashes import Words

__all__ = ["MatchedRows", "RowMatcher"]

ROWS_AT_ONCE = 1 << 21
"""Of both sides together; a row takes up to 40 bytes, and as much again while it is sorted."""
_IN_MEMORY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class MatchedRows:
    """Numbers of rows that have no equal on the other side; ascending, and none twice."""

    only_a: np.ndarray[Any, Any]
    only_b: np.ndarray[Any, Any]
    pairs: np.ndarray[Any, Any]
    """Rows of the same key: number in a, number in b; ascending by the first."""


class RowMatcher:
    """Takes the rows of both sides as hashes, in their order; then tells which are equal.

    What does not fit in memory waits in temporary files.

    Args:
        rows_a: How many rows there will be at most.
        rows_b: On the other side.
        keyed: Whether keys say which row is which.
    """

    def __init__(self, rows_a: int, rows_b: int, *, keyed: bool) -> None:
        self._keyed = keyed
        self._record = np.dtype([("row", "<u8", 2), ("at", "<u8"), *([("key", "<u8", 2)] if keyed else [])])
        parts = -(-(rows_a + rows_b) // ROWS_AT_ONCE) or 1
        limit = ROWS_AT_ONCE * self._record.itemsize if parts == 1 else _IN_MEMORY_BYTES
        self._parts = [
            [tempfile.SpooledTemporaryFile(limit) for _ in range(parts)]  # noqa: SIM115 -- closed together
            for _ in range(2)
        ]
        self._counts = [0, 0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for side in self._parts:
            for file in side:
                file.close()

    def add(self, side: int, rows: Words, keys: Words | None) -> None:
        """Note the next rows of side 0 or 1."""
        records = np.empty(len(rows), self._record)
        records["row"] = rows
        records["at"] = np.arange(self._counts[side], self._counts[side] + len(rows))
        self._counts[side] += len(rows)
        if keys is not None:
            records["key"] = keys
        parts = self._parts[side]
        if len(parts) == 1:
            parts[0].write(records.tobytes())
            return
        number = (rows if keys is None else keys)[:, 0] % np.uint64(len(parts))
        for part, file in enumerate(parts):
            file.write(records[number == part].tobytes())

    def match(self) -> MatchedRows:
        """Which rows have an equal on the other side, each at most one; the first ones of several are taken."""
        only_a, only_b, pairs = [], [], []
        for files in zip(*self._parts, strict=True):
            a, b = (self._loaded(file) for file in files)
            single_a, single_b, _ = _paired(a["row"], b["row"])
            a, b = a[single_a], b[single_b]
            if self._keyed:
                single_a, single_b, same = _paired(a["key"], b["key"])
                pairs.append(np.stack((a["at"][same[:, 0]], b["at"][same[:, 1]]), axis=1))
                a, b = a[single_a], b[single_b]
            only_a.append(a["at"])
            only_b.append(b["at"])
        both = np.concatenate(pairs) if pairs else np.zeros((0, 2), np.uint64)
        return MatchedRows(
            np.sort(np.concatenate(only_a)).astype(np.int64),
            np.sort(np.concatenate(only_b)).astype(np.int64),
            both[np.argsort(both[:, 0], kind="stable")].astype(np.int64),
        )

    def _loaded(self, file: tempfile.SpooledTemporaryFile[bytes]) -> np.ndarray[Any, Any]:
        file.seek(0)
        return np.frombuffer(file.read(), self._record)


def _paired(a: Words, b: Words) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Pairs of equal hashes, the first with the first and so on.

    Returns:
        Masks of what has no partner in ``a`` and in ``b``, and the numbers of the pairs, one pair a row.
    """
    both = np.concatenate((a, b))
    if not len(both):
        return np.zeros(0, bool), np.zeros(0, bool), np.zeros((0, 2), np.int64)
    # Stable: in each run those of a come first, in their order.
    order = np.argsort(both[:, 0], kind="stable")
    new = _changes(both[order])
    if (new[1:] & (np.diff(both[order, 0]) == 0)).any():  # the first words alone leave two runs mixed
        order = np.lexsort((both[:, 1], both[:, 0]))
        new = _changes(both[order])
    run = np.cumsum(new) - 1
    start = np.flatnonzero(new)
    from_a = order < len(a)
    in_a = np.bincount(run, from_a, minlength=len(start)).astype(np.int64)
    in_b = np.bincount(run, ~from_a, minlength=len(start)).astype(np.int64)
    partners = np.minimum(in_a, in_b)
    rank = np.arange(len(order)) - start[run] - np.where(from_a, 0, in_a[run])
    paired = rank < partners[run]
    first = np.flatnonzero(paired & from_a)
    second = start[run[first]] + in_a[run[first]] + rank[first]
    single_a, single_b = np.ones(len(a), bool), np.ones(len(b), bool)
    single_a[order[first]] = False
    single_b[order[second] - len(a)] = False
    return single_a, single_b, np.stack((order[first], order[second] - len(a)), axis=1)


def _changes(rows: Words) -> np.ndarray[Any, Any]:
    """Where another hash begins than that of the row before."""
    new = np.ones(len(rows), bool)
    new[1:] = (rows[1:, 0] != rows[:-1, 0]) | (rows[1:, 1] != rows[:-1, 1])
    return new
