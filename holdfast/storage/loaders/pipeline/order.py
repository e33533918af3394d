"""The order of an epoch: which row of a dataset stands at which position, and who reads what when.

An order depends on the row groups' sizes, the seed and the epoch; not on how many workers share it. Position ``i`` is the next
row of *lane* ``i mod lanes``: so neighbours come from different places, and yet only one row group a lane is in use at a time.
What a lane and a row group have in common is a *piece*, and its rows are permuted. Not shuffled, there is one lane.

Which rows a lane can have is decided in two steps. By the seed alone, the row groups come in a drawn sequence, shard after
shard, which is cut into *strands* of one or three lanes: so in every epoch 2, 4 or 8 workers each read the same part of the
dataset. Then each epoch draws a sequence of what is in a strand, and cuts that into the strand's lanes. These begin in one row
group, which they share, since the more row groups an epoch begins in, the longer its first batch takes.

All draws are SplitMix64 of a counter, and what is sorted has no two equal values, so an order is the same with every version of
NumPy and on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from holdfast.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LANES", "EpochOrder", "Integers", "Shares"]

Integers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

LANES = (24, 12, 8, 6, 4, 3, 2, 1)
"""How many lanes there may be: the most that do not exceed the row groups. Their divisors are the numbers of workers that
share no row group."""

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1
_SHARDS, _GROUPS, _ROWS = 1, 2, 3  # what a key is for


@dataclass(frozen=True, slots=True)
class Shares:
    """What one worker reads, as columns with one entry for each piece that it has rows of, by when it needs them.

    A worker's rows are numbered from 0 in the order in which it gets them. Row ``k`` of entry ``e`` is its row
    ``first[e] + k * stride``, and is row ``offset[e] + k * step`` of the permuted piece.
    """

    piece: Integers
    first: Integers
    count: Integers
    offset: Integers
    step: int
    stride: int
    rows: int
    """Of the worker, over all entries."""

    @property
    def last(self) -> Integers:
        """The number of the last row of each entry."""
        return self.first + (self.count - 1) * self.stride


class EpochOrder:
    """The order of one epoch.

    Args:
        shards: For each shard, how many rows each of its row groups has.
        seed: Decides the order, together with the epoch; below ``2**64``.
        epoch: Number of the pass.
        shuffle: Whether there is anything to decide.

    Raises:
        InvalidInput: The seed or the epoch is negative or too large.
    """

    def __init__(self, shards: Sequence[Sequence[int]], *, seed: int, epoch: int, shuffle: bool) -> None:
        for name, value in (("seed", seed), ("epoch", epoch)):
            if not 0 <= value <= _WORD:
                raise InvalidInput(f"{name} must be at least 0 and below 2**64, not {value}")
        self._key = _keyed(seed, epoch)
        self.shuffled = shuffle
        group_rows = np.array([rows for shard in shards for rows in shard], np.int64)
        shard_of = np.repeat(np.arange(len(shards)), [len(shard) for shard in shards])
        self.rows = int(group_rows.sum())
        """Of the split; positions are below it."""
        self._group_starts = _starts(group_rows)
        group = np.flatnonzero(group_rows)
        if shuffle:
            group = group[_drawn(shard_of[group], _keyed(seed))]
        self.lanes = next((n for n in LANES if n <= len(group)), 1) if shuffle else 1
        self.strands = self.lanes // gcd(self.lanes, 3)
        """How many parts the rows are in that are the same in all epochs; lane ``i`` is of part ``i mod strands``."""
        share, more = divmod(self.rows, self.lanes)
        # A row for each strand, in the order in which they lie in the sequence.
        lanes = np.arange(self.lanes).reshape(-1, self.strands).T[np.argsort(_segments(self.strands))]
        lane_rows = share + (lanes < more)
        columns = [group, np.zeros_like(group), group_rows[group]]
        if shuffle and self.rows:
            borders = _starts(lane_rows.sum(axis=1))
            columns = _cut(columns, borders)
            of = np.searchsorted(_starts(columns[2]), borders)
            strands = []
            for strand in range(self.strands):
                mine = [column[of[strand] : of[strand + 1]] for column in columns]
                drawn = _drawn(shard_of[mine[0]], _keyed(self._key, strand))
                strands.append(_in_lanes([column[drawn] for column in mine], lane_rows[strand]))
            columns = [np.concatenate(each) for each in zip(*strands, strict=True)]
        self.piece_group: Integers = columns[0]
        """The row group of each piece, as its number over all shards."""
        self.piece_row: Integers = columns[1]
        """Where each piece begins in its row group."""
        self.piece_rows: Integers = columns[2]
        """How many rows each piece has."""
        self._piece_starts = _starts(self.piece_rows)
        self._lane_starts: Integers = np.empty(self.lanes, np.int64)
        self._lane_starts[lanes.ravel()] = _starts(lane_rows.ravel())[:-1]

    def permutation(self, piece: int) -> Integers | None:
        """For each place in the piece, the row of its row group that stands there; None where rows keep their order."""
        if not self.shuffled:
            return None
        return _permutation(_keyed(self._key, _ROWS, piece), int(self.piece_rows[piece])) + int(
            self.piece_row[piece]
        )

    def lookup(self, positions: Integers) -> tuple[Integers, Integers]:
        """The piece, and the row of its row group, at each position.

        Raises:
            InvalidInput: There is no such position.
        """
        positions = np.asarray(positions, np.int64)
        if positions.size and not 0 <= positions.min() <= positions.max() < self.rows:
            raise InvalidInput(
                f"positions from {positions.min()} to {positions.max()} of an order of {self.rows} rows"
            )
        in_sequence = self._lane_starts[positions % self.lanes] + positions // self.lanes
        piece = np.searchsorted(self._piece_starts, in_sequence, "right") - 1
        row = in_sequence - self._piece_starts[piece] + self.piece_row[piece]
        if self.shuffled:
            for each in np.unique(piece):
                here = piece == each
                order = self.permutation(int(each))
                if order is not None:
                    row[here] = order[row[here] - self.piece_row[each]]
        return piece, row

    def rows_at(self, positions: Integers) -> Integers:
        """The number, in the split as it is stored, of the row at each position."""
        piece, row = self.lookup(positions)
        numbers: Integers = self._group_starts[self.piece_group[piece]] + row
        return numbers

    def shares(self, rank: int, world_size: int, start: int = 0, stop: int | None = None) -> Shares:
        """What worker ``rank`` of ``world_size`` reads of the positions from ``start`` to ``stop`` (exclusive).

        Positions behind the last row are the epoch's first ones again.
        """
        stop = self.rows if stop is None else stop
        common = np.gcd(self.lanes, world_size)
        stride, step = int(self.lanes // common), int(world_size // common)
        parts: list[tuple[Integers, Integers, Integers, Integers]] = []
        rows = 0
        if self.rows:
            for wrapped in range(start - start % self.rows, stop, self.rows):
                begin = max(start - wrapped, 0)
                end = min(stop - wrapped, self.rows)
                begin += (rank - wrapped - begin) % world_size  # the worker's first position from there
                count = max(0, -((begin - end) // world_size))
                for turn in range(min(stride, count)):
                    piece, first, many, offset = self._lane(
                        begin + turn * world_size, -((turn - count) // stride), step
                    )
                    parts.append((piece, rows + turn + first * stride, many, offset))
                rows += count
        columns = [np.concatenate(each) for each in zip(*parts, strict=True)] or [np.empty(0, np.int64)] * 4
        by_need = np.argsort(columns[1], kind="stable")
        piece, first, many, offset = (column[by_need] for column in columns)
        return Shares(piece, first, many, offset, step, stride, rows)

    def _lane(self, position: int, count: int, step: int) -> tuple[Integers, Integers, Integers, Integers]:
        """The pieces under every ``step``-th row of a lane, ``count`` rows from a position on; which they are, and from where."""
        begin = int(self._lane_starts[position % self.lanes]) + position // self.lanes
        low = int(np.searchsorted(self._piece_starts, begin, "right")) - 1
        high = int(np.searchsorted(self._piece_starts, begin + (count - 1) * step, "right"))
        edges = np.clip(-((begin - self._piece_starts[low : high + 1]) // step), 0, count)
        many = np.diff(edges)
        offset = begin + edges[:-1] * step - self._piece_starts[low:high]
        used = many > 0  # a long step passes over small pieces
        return np.arange(low, high)[used], edges[:-1][used], many[used], offset[used]


def _drawn(shards: Integers, key: int) -> Integers:
    """The indices of what belongs to these shards in a drawn sequence: shard after shard, and what is of one of them mixed."""
    names, shard = np.unique(shards, return_inverse=True)
    turn = _permutation(_keyed(key, _SHARDS), len(names))[shard]
    drawn: Integers = np.lexsort((_permutation(_keyed(key, _GROUPS), len(shards)), turn))
    return drawn


def _cut(stretches: Sequence[Integers], edges: Integers) -> list[Integers]:
    """Stretches of rows, given by their row groups, first rows and sizes, with those cut that lie across an edge."""
    group, row, rows = stretches
    starts = _starts(rows)
    cuts = np.union1d(starts, edges)
    of = np.searchsorted(starts, cuts[:-1], "right") - 1
    return [group[of], row[of] + cuts[:-1] - starts[of], np.diff(cuts)]


def _in_lanes(stretches: Sequence[Integers], lane_rows: Integers) -> list[Integers]:
    """The pieces of a strand's lanes, lane after lane; all of them begin in the first stretch that is not a small one."""
    rows = stretches[2]
    head = int(np.argmax(rows >= np.median(rows)))
    order = np.r_[head, np.delete(np.arange(len(rows)), head)]
    of_head = (rows[head] + np.arange(len(lane_rows))[::-1]) // len(lane_rows)
    edges = np.cumsum(np.concatenate((of_head, lane_rows - of_head)))
    pieces = _cut([column[order] for column in stretches], edges)
    part = np.searchsorted(edges, np.cumsum(pieces[2]))
    lane = np.argsort(part % len(lane_rows), kind="stable")
    return [column[lane] for column in pieces]


def _segments(strands: int) -> Integers:
    """Which part of the sequence each strand is: the strands of one of 2, 4 or 8 workers are neighbours.

    So two workers share a row group only where the parts of one end and those of the other begin.
    """
    segments, rest, size = np.zeros(strands, np.int64), np.arange(strands), strands
    while size > 1:
        size //= 2
        segments += rest % 2 * size
        rest = rest // 2
    return segments


def _starts(sizes: Sequence[int] | Integers) -> Integers:
    """Where each of some neighbours begins, and where the last one ends."""
    return np.concatenate(([0], np.cumsum(np.asarray(sizes, np.int64)))).astype(np.int64)


def _keyed(*numbers: int) -> int:
    """One 64-bit number from several."""
    key = 0
    for number in numbers:
        key = _mixed(key ^ _mixed((number + _GOLDEN) & _WORD))
        key = (key + _GOLDEN) & _WORD
    return key


def _mixed(word: int) -> int:
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


def _permutation(key: int, size: int) -> Integers:
    """The numbers below ``size`` in the order of their draws; each draw carries its number in its lowest bits."""
    numbers = np.arange(size, dtype=np.uint64)
    words = (numbers + np.uint64(1)) * np.uint64(_GOLDEN) + np.uint64(key)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    mask = np.uint64((1 << max(1, size - 1).bit_length()) - 1)
    words = (words & ~mask) | numbers
    words.sort()
    return (words & mask).astype(np.int64)
