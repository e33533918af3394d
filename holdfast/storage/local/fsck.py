"""Hash everything that a store holds, and mend from peers what is wrong."""

from __future__ import annotations

import os
import struct
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from holdfast.errors import Corrupt, HoldfastError, NotFound
from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.cid import Cid, as_raw
from holdfast.storage.formats.dag import reachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from holdfast.storage.cid import Buffer
    from holdfast.storage.local.local_store import LocalStore
    from holdfast.storage.local.pins import Pins

__all__ = ["Finding", "Report", "check"]

_HASHERS = min(4, os.cpu_count() or 1)
_AT_ONCE = 256
_HELD_BLOCKS = 500_000
_PLACE = struct.Struct(">IQI")  # segment, offset, length: bytes that sort as they lie


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    cid: Cid
    """Of a block; its codec is not known here, so it is given as raw."""
    problem: str
    mended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a check found."""

    blocks: int
    bytes: int
    findings: tuple[Finding, ...]

    @property
    def bad(self) -> int:
        """How many findings remain."""
        return sum(not finding.mended for finding in self.findings)


def check(
    local: LocalStore,
    pins: Pins,
    *,
    fetch: Callable[[Sequence[Cid]], Sequence[Buffer]] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Report:
    """Hash every block, in the order of the disk, and look whether everything that is pinned is whole.

    Args:
        local: The store.
        pins: Its pins.
        fetch: Gets verified blocks from peers, to put in the place of bad or missing ones; None only looks.
        progress: Told how many more bytes were hashed.
    """
    found: dict[bytes, str] = {}
    blocks = size_bytes = 0
    with ThreadPoolExecutor(_HASHERS, thread_name_prefix="holdfast-fsck") as pool:
        places = _places(local)
        while batch := list(islice(places, _AT_ONCE)):
            problems = pool.map(lambda place: _problem(local, place[0]), batch)
            found |= {
                place[0]: problem
                for place, problem in zip(batch, problems, strict=True)
                if problem is not None
            }
            blocks += len(batch)
            done = sum(length for _, length in batch)
            size_bytes += done
            if progress is not None:
                progress(done)
    findings = [_mended(local, as_raw(multihash), problem, fetch) for multihash, problem in found.items()]
    findings += _missing(local, pins, fetch)
    return Report(blocks=blocks, bytes=size_bytes, findings=tuple(findings))


def _places(local: LocalStore) -> Iterator[tuple[bytes, int]]:
    """Every block in the order in which they lie on the disk, with its length.

    The index has them in another order. So that a large one need not be held in memory, it is gone through once for
    each group of files that together have about :data:`_HELD_BLOCKS`. What a collector moves between two of these turns may be passed over.
    """
    counts: Counter[int] = Counter()
    for batch in local.entries():
        counts.update(segment for _, segment, _, _, _ in batch)
    groups = list(_groups(counts))
    for group in groups:
        # As bytes they take a third of the memory that numbers in a tuple do.
        places = [
            _PLACE.pack(segment, offset, length) + multihash
            for batch in local.entries()
            for multihash, segment, offset, length, _ in batch
            if segment in group or (segment not in counts and group is groups[-1])
        ]
        places.sort()
        for place in places:
            yield place[_PLACE.size :], _PLACE.unpack_from(place)[2]


def _groups(counts: Mapping[int, int]) -> Iterator[set[int]]:
    group: set[int] = set()
    blocks = 0
    for segment in sorted(counts):
        if group and blocks + counts[segment] > _HELD_BLOCKS:
            yield group
            group, blocks = set(), 0
        group.add(segment)
        blocks += counts[segment]
    if group:
        yield group


def _problem(local: LocalStore, multihash: bytes) -> str | None:
    cid = as_raw(multihash)
    try:
        cid.check(local.get(cid), source="the disk")
    except Corrupt as error:
        return str(error)
    except NotFound as error:
        # Collected meanwhile, or the user's own file that it lay in is gone.
        return str(error) if local.has(cid) else None
    return None


def _missing(
    local: LocalStore, pins: Pins, fetch: Callable[[Sequence[Cid]], Sequence[Buffer]] | None
) -> Iterator[Finding]:
    get = VerifyingStore(local, source="the disk").get
    for pin in pins.pins():
        try:
            for cid in reachable(get, pin.cid, recursive=pin.recursive):
                if not local.has(cid):
                    yield _mended(local, cid, f"{cid} is missing, which the pin of {pin.cid} needs", fetch)
        except HoldfastError as error:
            yield Finding(cid=pin.cid, problem=f"the pin of {pin.cid} can't be followed: {error}")


def _mended(
    local: LocalStore,
    cid: Cid,
    problem: str,
    fetch: Callable[[Sequence[Cid]], Sequence[Buffer]] | None,
) -> Finding:
    """The finding, after peers were asked for the right bytes."""
    if fetch is None:
        return Finding(cid=cid, problem=problem)
    try:
        local.replace_many([(cid, fetch([cid])[0])])
    except HoldfastError as error:
        return Finding(cid=cid, problem=f"{problem}; not mended: {error}")
    return Finding(cid=cid, problem=problem, mended=True)
