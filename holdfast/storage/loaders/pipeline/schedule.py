"""What a pass reads in which order, in which steps it makes batches, and how much memory that takes; nothing is read here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from holdfast.errors import InvalidInput

if TYPE_CHECKING:
    from holdfast.storage.loaders.pipeline.order import EpochOrder, Integers, Shares

__all__ = ["Groups", "Limits", "Schedule"]

_CHUNK_BYTES = 4 << 20
"""About what is gathered at once: much more than one call for each column costs."""
_SPARE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Groups:
    """The row groups of a split, as columns with one entry for each."""

    shard: Integers
    index: Integers
    """Within its shard."""
    rows: Integers
    memory_bytes: Integers
    """Of the columns that are read, once they are decoded; an estimate where values differ in length."""
    row_bytes: int
    """Of one row of the columns that are read, on average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a pass may use."""

    memory_bytes: int
    disk_bytes: int
    prefetch: int
    threads: int


class Schedule:
    """One worker's pass.

    An *entry* is the worker's part of a piece (see :mod:`~holdfast.storage.loaders.pipeline.order`). A *load* reads a row group, and keeps the
    rows of one entry, or of several where that saves reading the row group again and memory allows. A *chunk* is
    some whole batches, cut so that batches in the midst of a row group need no copy.

    Args:
        order: Of the epoch.
        shares: The worker's.
        groups: What there is to read.
        batch_size: Rows of a batch.
        limits: What may be used.
        by_batch: Make chunks of one batch, for work that is done batch by batch.

    Raises:
        InvalidInput: The memory is too small; the message says what is needed.
    """

    def __init__(
        self,
        order: EpochOrder,
        shares: Shares,
        groups: Groups,
        *,
        batch_size: int,
        limits: Limits,
        by_batch: bool = False,
    ) -> None:
        self.order = order
        self.shares = shares
        self.groups = groups
        self.batch_size = batch_size
        self.in_place = shares.stride == 1
        """Whether the rows of an entry follow each other, so that batches are parts of it."""
        self.views = not order.shuffled and shares.step == 1
        """Whether entries are neighbouring rows of their row groups, which need no copy."""
        self.entry_group: Integers = order.piece_group[shares.piece]
        density = groups.memory_bytes / np.maximum(groups.rows, 1)
        self.entry_bytes: Integers = np.ceil(density[self.entry_group] * shares.count).astype(np.int64)
        self._last = shares.last
        batch_bytes = groups.row_bytes * min(batch_size, shares.rows)
        most = 1 if by_batch or self.in_place else max(1, _CHUNK_BYTES // max(1, batch_bytes))
        needs: list[int] = []
        for batches, ahead in ((most, max(1, -(-limits.prefetch // most))), (1, 1)):
            self.edges: Integers = self._edges(batches, by_batch=by_batch)
            self.ahead = ahead
            """How many chunks are made before they are asked for."""
            # Those, the one in use, and what gathering needs beside them.
            self.chunks_bytes = (ahead + 1 + (not self.in_place)) * batch_bytes * batches
            """What chunks take together."""
            needs.append(self._need())
            if needs[-1] <= limits.memory_bytes:
                break
        self.need_bytes: int = needs[-1]
        """What this pass holds at least."""
        if self.need_bytes > limits.memory_bytes:
            raise InvalidInput(
                f"the rows of {self._most_entries} row groups at once, the largest of which has "
                f"{int(groups.memory_bytes.max())} bytes, and batches of {batch_size} rows need memory_bytes of at least "
                f"{self.need_bytes}, not {limits.memory_bytes}: allow more, read fewer columns, take smaller batches, or share "
                "the work among more workers"
            )
        spare_bytes = limits.memory_bytes - self.need_bytes
        self.spare_bytes = min(_SPARE_BYTES, spare_bytes // 4)
        """How much memory may be kept to be used again."""
        self._plan_loads(spare_bytes // 2)

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return len(self.edges) - 1

    def _edges(self, batches: int, *, by_batch: bool) -> Integers:
        rows, size = self.shares.rows, self.batch_size
        if by_batch:
            inner = np.arange(0, rows, size)
        elif self.in_place:
            borders = np.append(self.shares.first, rows)
            inner = np.union1d(borders // size * size, -(-borders // size) * size)
        else:  # the first chunk is one batch, so that it is there soon
            inner = np.append(0, np.arange(size, rows, size * batches))
        return np.append(inner[inner < rows], rows) if rows else np.zeros(1, np.int64)

    def _need(self) -> int:
        """The most bytes that are in use at once, if nothing is read earlier than it must be."""
        if not len(self.entry_bytes):
            return 0
        first = np.searchsorted(self.edges, self.shares.first, "right") - 1
        last = np.searchsorted(self.edges, self._last, "right") - 1
        changes = np.zeros((2, len(self.edges) + 1), np.int64)
        for row, amounts in enumerate((self.entry_bytes, np.ones_like(self.entry_bytes))):
            np.add.at(changes[row], first, amounts)
            np.subtract.at(changes[row], last + 1, amounts)
        entries, count = np.cumsum(changes, axis=1).max(axis=1)
        self._most_entries = int(count)
        return int(entries) + int(self.groups.memory_bytes.max()) + self.chunks_bytes

    def _plan_loads(self, spare_bytes: int) -> None:
        """Let a row group that is needed twice be read once, as far as the memory allows."""
        entries = len(self.entry_group)
        owner = np.arange(entries)
        by_group = np.lexsort((self.shares.first, self.entry_group))
        again = np.flatnonzero(np.diff(self.entry_group[by_group]) == 0) + 1
        # What is needed again soonest is held for the shortest time.
        waits = self.shares.first[by_group[again]] - self.shares.first[by_group[again - 1]]
        held = np.zeros(entries, bool)
        total = 0
        for at in again[np.argsort(waits, kind="stable")].tolist():
            size = int(self.entry_bytes[by_group[at]])
            if total + size <= spare_bytes:
                total += size
                held[at] = True
        for at in again.tolist():  # in the order of need, so that runs share their first one's load
            if held[at]:
                owner[by_group[at]] = owner[by_group[at - 1]]
        leaders, of_leader = np.unique(owner, return_inverse=True)
        by_load = np.argsort(of_leader, kind="stable")
        self._load_entries = by_load
        self._load_ends = np.cumsum(np.bincount(of_leader, minlength=len(leaders)))
        self.load_first: Integers = self.shares.first[leaders]
        """The first row that each load is needed for."""
        self._loads_for: Integers = np.searchsorted(self.load_first, self.edges[1:], "left")
        self.load_group: Integers = self.entry_group[leaders]

    @property
    def loads(self) -> int:
        """How many loads there are."""
        return len(self.load_first)

    def entries_of(self, load: int) -> list[int]:
        """The entries that a load gives."""
        begin = int(self._load_ends[load - 1]) if load else 0
        entries: list[int] = self._load_entries[begin : int(self._load_ends[load])].tolist()
        return entries

    def loads_for(self, chunk: int) -> int:
        """How many loads, from the first one, must be done before a chunk can be made."""
        return int(self._loads_for.item(chunk))

    def last_row(self, entry: int) -> int:
        """The number of the last row of an entry."""
        return int(self._last[entry])

    def selection(self, entry: int) -> Integers | slice:
        """Which rows of its row group an entry has, in its order."""
        shares, piece = self.shares, int(self.shares.piece[entry])
        begin, count = int(shares.offset[entry]), int(shares.count[entry])
        permutation = self.order.permutation(piece)
        if permutation is not None:
            rows: Integers = permutation[begin : begin + (count - 1) * shares.step + 1 : shares.step]
            return rows
        begin += int(self.order.piece_row[piece])
        return slice(begin, begin + (count - 1) * shares.step + 1, shares.step)
