"""Taking blocks out, and giving their space back.

Bytes of a segment never change, so space comes back by whole segments: what is still in use is copied, in the order in which
it lies, to another segment; the index moves over in one change; the file is removed. Maps that are open keep the old bytes.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from holdfast.errors import Corrupt, Unavailable, disk_errors
from holdfast.storage.local.index_rows import ENTRY, PLACE, SegmentUse
from holdfast.storage.local.quota import NoRoom
from holdfast.storage.local.segments import SegmentWriter, lock_file
from holdfast.storage.local.writing import HARD_LIMIT, WritingContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Removed", "compact", "remove"]

_KEYS_AT_ONCE = 5_000  # in one change, so that adds never wait long
_BLOCKS_AT_ONCE = 200_000  # whose places are held in memory while their segments are rewritten
_SEGMENTS_AT_ONCE = 100  # each is locked meanwhile, and takes a file descriptor


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What was taken out."""

    blocks: int
    bytes: int
    """Of these blocks: own copies and references."""
    freed_bytes: int
    """Given back to the file system, less what was written anew for it."""


@dataclass(slots=True)
class _Victim:
    """A segment on its way out, locked."""

    number: int
    handle: int
    use: SegmentUse
    survivors: list[tuple[int, int, bytes]]
    """Offset, length and multihash of what is still in use."""


def remove(
    context: WritingContext,
    doomed: Collection[bytes] | Callable[[bytes], bool],
    *,
    cutoff_s: int,
    min_garbage: float,
) -> Removed:
    """Take out those of the blocks that are older than the cut-off, then compact; see :meth:`LocalStore.remove`."""
    blocks = size = 0
    for keys in _batches(context, doomed, cutoff_s):
        with context.index.changing() as change:
            for key in sorted(keys):
                length = change.remove(key, cutoff_s=cutoff_s)
                if length is not None:
                    blocks += 1
                    size += length
    return Removed(blocks=blocks, bytes=size, freed_bytes=compact(context, min_garbage=min_garbage))


def _batches(
    context: WritingContext, doomed: Collection[bytes] | Callable[[bytes], bool], cutoff_s: int
) -> Iterator[list[bytes]]:
    if isinstance(doomed, Collection):
        keys = iter(doomed)
        while batch := list(islice(keys, _KEYS_AT_ONCE)):
            yield batch
        return
    for entries in context.index.entries(batch_blocks=_KEYS_AT_ONCE):
        batch = [key for key, entry in entries if ENTRY.unpack(entry)[3] < cutoff_s and doomed(key)]
        if batch:
            yield batch


def compact(context: WritingContext, *, min_garbage: float) -> int:
    """Rewrite segments of which more than this share is garbage, those with the least to copy first.

    Segments that somebody writes, or where something is staged, are left for another time; so is what finds no room.

    Returns:
        The bytes that the file system got back.
    """
    rows = [
        (row.live_bytes, number, row)
        for number, row in context.index.segments().items()
        if not row.staged_bytes
        and (row.blocks == 0 or row.garbage_bytes > min_garbage * row.end)
        and (row.blocks == 0 or row.garbage_bytes > 0)
    ]
    rows.sort(key=lambda row: row[:2])
    freed = 0
    while rows:
        group: list[tuple[int, int, SegmentUse]] = []
        blocks = 0
        while rows and len(group) < _SEGMENTS_AT_ONCE and (not group or blocks < _BLOCKS_AT_ONCE):
            group.append(rows.pop(0))
            blocks += group[-1][2].blocks
        freed += _compact_group(context, [number for _, number, _ in group])
    return freed


def _compact_group(context: WritingContext, numbers: Iterable[int]) -> int:
    victims: dict[int, _Victim] = {}
    try:
        for number in numbers:
            path = context.segments.path(number)
            row = context.index.segment(number)
            # Where nothing is in use, a file that is missing may as well be made, to be locked like any other.
            handle = lock_file(path, create=row is not None and row.blocks == 0)
            if handle is None:
                continue
            row = context.index.segment(
                number
            )  # it may have been written to before the lock; now it can't be
            if row is not None and not row.staged_bytes:
                victims[number] = _Victim(number, handle, row, [])
                continue
            if row is None:
                path.unlink(missing_ok=True)
            os.close(handle)
        if any(victim.use.blocks for victim in victims.values()):
            _find_survivors(context, victims)
        freed = 0
        for victim in victims.values():
            # No room for the copy, or bytes are missing that fsck will tell of: then it stays as it is.
            with suppress(NoRoom, Unavailable, Corrupt), disk_errors(context.index.folder):
                freed += _compact_segment(context, victim)
        return freed
    finally:
        for victim in victims.values():
            os.close(victim.handle)


def _find_survivors(context: WritingContext, victims: dict[int, _Victim]) -> None:
    packed = {number.to_bytes(4, "little"): victim.survivors for number, victim in victims.items()}
    for entries in context.index.entries(batch_blocks=10_000):
        for key, entry in entries:
            survivors = packed.get(entry[:4])
            if survivors is not None:
                _, offset, length, _ = ENTRY.unpack(entry)
                survivors.append((offset, length, key))


def _compact_segment(context: WritingContext, victim: _Victim) -> int:
    """Move what is in use, then remove the file; the bytes that this gave back."""
    size = os.fstat(victim.handle).st_size
    writers: list[SegmentWriter] = []
    try:
        places = _copy(context, victim, writers)
        for writer in writers:
            writer.sync()
        quota = context.quota
        with quota.moving(victim.number, writers, blocks=len(places)) if quota is not None else nullcontext():
            emptied = _move(context, victim, writers, places)
            if emptied:
                context.segments.path(victim.number).unlink(missing_ok=True)
        written = sum(writer.end - writer.start for writer in writers)
        return size - written if emptied else -written
    finally:
        for writer in writers:
            row = context.index.segment(writer.number)
            writer.cut(row.end if row is not None else 0)
            writer.close()


def _copy(
    context: WritingContext, victim: _Victim, writers: list[SegmentWriter]
) -> list[tuple[bytes, bytes, bytes]]:
    """Copy what is in use, in its order; each multihash with its old and its new place."""
    victim.survivors.sort()
    places: list[tuple[bytes, bytes, bytes]] = []
    limit = context.segments.size_bytes
    run_start = run_end = -1

    def write_run() -> None:
        if run_end > run_start:
            writers[-1].copy(victim.handle, run_start, run_end - run_start)

    for offset, length, key in victim.survivors:
        end = writers[-1].end + max(0, run_end - run_start) if writers else 0
        begins = offset != run_end
        if not writers or (end >= limit and begins) or end + length > HARD_LIMIT * limit:
            write_run()
            writers.append(context.segments.claim())
            begins, run_end = True, run_start
        if begins:
            write_run()
            run_start = run_end = offset
        writer = writers[-1]
        at = writer.end + run_end - run_start
        if context.quota is not None and at + length > writer.reserved_end:
            context.quota.reserve(writer, at + length - writer.end, blocks=len(places) + 1, spare_bytes=0)
        old = PLACE.pack(victim.number, offset, length)
        places.append((key, old, PLACE.pack(writer.number, at, length)))
        run_end = offset + length
    write_run()
    places.sort()
    return places


def _move(
    context: WritingContext,
    victim: _Victim,
    writers: list[SegmentWriter],
    places: list[tuple[bytes, bytes, bytes]],
) -> bool:
    """Point the index to the new places; whether nothing is left in the segment."""
    with context.index.changing() as change:
        for writer in writers:
            change.set_end(writer.number, writer.end)
        for key, old, new in places:
            change.move(key, old, new)
        emptied = change.segment(victim.number).blocks == 0
        if emptied:
            change.drop_segment(victim.number)
    return emptied
