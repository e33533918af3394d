"""Garbage collection: what nothing keeps goes, and its bytes go back to the file system.

Reads and adds go on meanwhile; ``docs/design/002-storage.md`` says why that is safe.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from holdfast.errors import Corrupt, NotFound
from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.cid import RAW, Cid
from holdfast.storage.formats.dag import links_of, reachable
from holdfast.storage.local.sources import SourceCache
from holdfast.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from holdfast.storage.local.local_store import LocalStore
    from holdfast.storage.local.pins import Pins, Root

__all__ = ["Collector", "Plan", "Swept"]

log = get_logger(__name__)

WORTHWHILE_GARBAGE = 0.05
"""A segment with a larger share of garbage is rewritten."""
ROOM_SHARE = 0.1
"""So much of its quota a full store frees beyond what is needed now: making room is work, and should be rare."""
ROOM_GRACE_S = 60.0
"""A full store does not let go of what was written so lately: it may be about to get a name."""
ROOM_WAIT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a collection would do now."""

    roots: int
    kept_blocks: int
    kept_bytes: int
    young_blocks: int
    """Kept by nothing but the grace period."""
    young_bytes: int
    dead_blocks: int
    dead_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a collection did."""

    blocks: int
    bytes: int
    freed_bytes: int
    """Given back to the file system; the rest of ``bytes`` follows when its segments are worth rewriting."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """Multihashes: of DAGs that are kept as a whole, and of blocks that are kept alone."""

    whole: set[bytes] = field(default_factory=set)
    single: set[bytes] = field(default_factory=set)

    def __contains__(self, multihash: bytes) -> bool:
        return multihash in self.whole or multihash in self.single


class Collector:
    """Collects the garbage of one local store.

    Args:
        local: The store.
        pins: Everything that it keeps.
        grace_s: What was written so lately is left alone.
    """

    def __init__(self, local: LocalStore, pins: Pins, *, grace_s: float = 3600.0) -> None:
        self._local = local
        self._pins = pins
        self._grace_s = grace_s
        # Nodes are hashed before their links are followed: rotten ones would condemn what they should keep.
        self._get = VerifyingStore(local, source=f"the disk under {local.folder}").get

    def plan(self, *, progress: Callable[[int], object] | None = None) -> Plan:
        """What :meth:`collect` would do, without doing it.

        Raises:
            Corrupt: A kept block is damaged, so that what is below it is not known.
        """
        roots = self._pins.roots()
        kept = self._mark(_Kept(), progress)
        cutoff_s = self._cutoff(self._grace_s)
        counts = {kind: [0, 0] for kind in ("kept", "young", "dead")}
        for multihash, _, _, length, time_s in self._entries():
            kind = "kept" if multihash in kept else "young" if time_s >= cutoff_s else "dead"
            counts[kind][0] += 1
            counts[kind][1] += length
        return Plan(
            roots=len(roots),
            kept_blocks=counts["kept"][0],
            kept_bytes=counts["kept"][1],
            young_blocks=counts["young"][0],
            young_bytes=counts["young"][1],
            dead_blocks=counts["dead"][0],
            dead_bytes=counts["dead"][1],
        )

    def collect(self, *, progress: Callable[[int], object] | None = None) -> Swept:
        """Remove what nothing keeps, except for what was written within the grace period.

        Args:
            progress: Told how many more blocks were looked at.

        Raises:
            Corrupt: A kept block is damaged, so that what is below it is not known; nothing was removed.
            Conflict: Another process collects already.
        """
        self._local.drop_stale(self._grace_s)
        with self._local.epoch(self._cutoff(self._grace_s)) as cutoff_s:
            SourceCache(self._local).clear()
            kept = self._mark(_Kept(), progress)
            dead = {
                multihash
                for multihash, _, _, _, time_s in self._entries()
                if time_s < cutoff_s and multihash not in kept
            }
            self._mark(kept)  # somebody may have named something meanwhile
            dead -= kept.whole | kept.single
            removed = self._local.remove(dead, cutoff_s=cutoff_s, min_garbage=WORTHWHILE_GARBAGE)
            self._forget_uses()
        return Swept(blocks=removed.blocks, bytes=removed.bytes, freed_bytes=removed.freed_bytes)

    def why(self, cid: Cid) -> list[str]:
        """What keeps a block: one line for each root that reaches it, with the way from there.

        Raises:
            NotFound: It is not here.
        """
        if not self._local.has(cid):
            raise NotFound(f"{cid} is not in this store")
        return [
            f"{root.why}: {' → '.join(way)}" for root in self._pins.roots() if (way := self._way(root, cid))
        ]

    def make_room(self, wanted_bytes: int) -> None:
        """Let go of the least recently used content that nothing keeps, so that a full store can take more.

        A block's time is when it was written, or when a root above it was used last.

        Raises:
            Conflict: Another process does it already.
            Unavailable: Adds that began before do not end.
        """
        quota = self._local.max_bytes
        if not quota:
            return
        wanted_bytes += int(quota * ROOM_SHARE)
        grace_s = min(self._grace_s, ROOM_GRACE_S)
        with self._local.epoch(self._cutoff(grace_s), timeout_s=ROOM_WAIT_S) as cutoff_s:
            SourceCache(self._local).clear()
            kept = self._mark(_Kept())
            used = self._used_times()
            oldest_first = sorted(
                (max(time_s, used.get(multihash, 0)), segment, offset, length, multihash)
                for multihash, segment, offset, length, time_s in self._entries()
                if time_s < cutoff_s and multihash not in kept
            )
            blocks = freed_bytes = 0
            oldest = iter(oldest_first)
            # Space comes back by whole segments, and a full store has no room to copy what is left of one: where too
            # little comes back, more has to go.
            while freed_bytes < wanted_bytes:
                doomed: set[bytes] = set()
                doomed_bytes = 0
                for _, _, _, length, multihash in oldest:
                    doomed.add(multihash)
                    doomed_bytes += length
                    if doomed_bytes >= wanted_bytes - freed_bytes:
                        break
                if not doomed:
                    break
                removed = self._local.remove(doomed, cutoff_s=cutoff_s, min_garbage=0.0)
                blocks += removed.blocks
                freed_bytes += removed.freed_bytes
            self._forget_uses()
        log.info("the store is full: let go of %d blocks, which gave back %d bytes", blocks, freed_bytes)

    def _cutoff(self, grace_s: float) -> int:
        return int(time.time() - grace_s) + 1

    def _entries(self) -> Iterator[tuple[bytes, int, int, int, int]]:
        for batch in self._local.entries():
            yield from batch

    def _mark(self, kept: _Kept, progress: Callable[[int], object] | None = None) -> _Kept:
        """Add what the roots keep; what is marked already is not visited again."""
        for root in self._pins.roots():
            if not root.recursive:
                kept.single.add(root.cid.multihash)
                continue
            try:
                for _ in reachable(self._get, root.cid, seen=kept.whole):
                    if progress is not None:
                        progress(1)
            except Corrupt as error:
                raise Corrupt(
                    f"{root.why} keeps {root.cid}, but what it is made of can't be told: {error}; run 'holdfast fsck'"
                ) from error
        return kept

    def _used_times(self) -> dict[bytes, int]:
        """When content that is no longer kept was used last, for each of its blocks."""
        times: dict[bytes, int] = {}
        seen: set[bytes] = set()
        for cid, when in sorted(self._pins.last_uses().items(), key=lambda item: -item[1]):
            for below in reachable(self._get, cid, seen=seen):
                times[below.multihash] = when
        return times

    def _forget_uses(self) -> None:
        self._pins.forget_uses([cid for cid in self._pins.last_uses() if not self._local.has(cid)])

    def _way(self, root: Root, wanted: Cid) -> list[str]:
        """The shortest way from a root to a block, or nothing."""
        came_from: dict[bytes, Cid | None] = {root.cid.multihash: None}
        pending = deque([root.cid])
        while pending:
            cid = pending.popleft()
            if cid.multihash == wanted.multihash:
                way = [str(cid)]
                while (before := came_from[cid.multihash]) is not None:
                    way.append(str(before))
                    cid = before
                return way[::-1]
            if cid.codec == RAW or not root.recursive or not self._local.has(cid):
                continue
            for link in links_of(cid, self._get(cid)):
                if link.multihash not in came_from:
                    came_from[link.multihash] = cid
                    pending.append(link)
        return []
