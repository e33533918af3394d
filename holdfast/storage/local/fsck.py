"""Hash everything that a store holds, and mend from peers what is wrong."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from holdfast.errors import Corrupt, HoldfastError, NotFound
from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.cid import Cid, as_raw
from holdfast.storage.formats.dag import reachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from holdfast.storage.cid import Buffer
    from holdfast.storage.local.local_store import LocalStore
    from holdfast.storage.local.pins import Pins

__all__ = ["Finding", "Report", "check"]

_HASHERS = min(4, os.cpu_count() or 1)
_AT_ONCE = 256


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
    """Every block in the order in which they lie on the disk, with its length."""
    entries = [
        (segment, offset, length, multihash)
        for batch in local.entries()
        for multihash, segment, offset, length, _ in batch
    ]
    entries.sort()
    for _, _, length, multihash in entries:
        yield multihash, length


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
