"""Every block below some roots, hashed again on all processors, straight from where the store has it."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from holdfast.errors import Corrupt, HoldfastError
from holdfast.registry.proof.lineage_node import Fault
from holdfast.storage.block_store import SupportsMap, bring_near
from holdfast.storage.cid import DAG_PB, RAW, Cid
from holdfast.storage.formats.dag import decode_record, links_of, links_with_paths
from holdfast.storage.formats.dag_pb import decode_node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import TypeAlias

    from holdfast.storage.block_store import Mapped
    from holdfast.storage.content import ContentStore

    _Path: TypeAlias = tuple[str, ...]
    _Place: TypeAlias = tuple[Mapped, int, int]
    """A piece of memory, and where in it a block begins and ends."""
    _Result: TypeAlias = int | str
    """The bytes of a block that is right, or what is wrong with it."""

__all__ = ["MOST_FAULTS", "BlockHasher", "Hashed", "named_links"]

HASHERS = min(8, os.cpu_count() or 1)
_LEAVES_AT_ONCE = 4
_MOST_STEPS = 64
"""Steps of a path that are told; a chain of records may be as long as somebody likes."""
MOST_FAULTS = 1000
"""Faults that are kept of one call; what is rotten throughout is known to be so long before."""


@dataclass(slots=True)
class Hashed:
    """What one call of :meth:`BlockHasher.hash_below` found."""

    blocks: int = 0
    size_bytes: int = 0
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Inner:
    """A block with links, and the way to it."""

    path: _Path
    cid: Cid
    data: bytes
    links: Sequence[Cid]
    sizes: Sequence[int | None]
    """Of everything below each link, as the block states it; of a leaf, its own, if that is true."""

    def path_to(self, index: int) -> _Path:
        """The way to one of its links, with names where it gives any."""
        path = self.path if len(self.path) < _MOST_STEPS else (*self.path[: _MOST_STEPS - 1], "...")
        return (*path, _link_names(self)[index])


def named_links(value: object) -> Iterator[tuple[str, Cid]]:
    """Every link in a record's value with the fields on the way to it, such as ``outputs.files``, in order."""
    return ((".".join(map(str, path)), link) for path, link in links_with_paths(value))


def _stated_sizes(cid: Cid, data: bytes, count: int) -> list[int | None]:
    if cid.codec == DAG_PB:
        with suppress(Corrupt):
            return [link.tsize for link in decode_node(data).links]
    return [None] * count


def _link_names(node: _Inner) -> list[str]:
    if node.cid.codec == DAG_PB:
        with suppress(Corrupt):
            return [link.name or str(at) for at, link in enumerate(decode_node(node.data).links)]
        return [str(at) for at in range(len(node.links))]
    return [name for name, _ in named_links(decode_record(node.cid, node.data))]


class BlockHasher:
    """Hashes each block once, however often it is asked for; a context manager, which ends its threads.

    Args:
        store: Gives the blocks; missing ones are fetched, several at a time.
        progress: Told, in the calling thread, how many more bytes were hashed.
    """

    def __init__(self, store: ContentStore, *, progress: Callable[[int], object] | None = None) -> None:
        self._blocks = store.blocks
        self._maps = store.blocks if isinstance(store.blocks, SupportsMap) else None
        self._progress = progress
        self._known: dict[Cid, str | None] = {}
        """Each block that was hashed, with what is wrong with it."""
        self._any_wrong = False
        self._pool = ThreadPoolExecutor(HASHERS, thread_name_prefix="holdfast-verify")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def hash_below(self, roots: Iterable[tuple[_Path, Cid]]) -> Hashed:
        """Hash some roots and all below them; nothing stops it early.

        Args:
            roots: Each with the words that shall lead to it in a :class:`Fault`.

        Returns:
            The blocks that were hashed in this call, and every fault below the roots, also those that an earlier call met.
        """
        found = Hashed()
        visited: set[Cid] = set()
        pending: deque[tuple[_Inner, range, Future[list[_Result]]]] = deque()
        stack = list(reversed(list(roots)))
        while stack:
            path, cid = stack.pop()
            if cid in visited or (cid in self._known and not self._any_wrong):
                continue
            visited.add(cid)
            node = self._inner(path, cid, found)
            if node is None:
                continue
            for indices in self._leaves(node, found):
                pending.append((node, indices, self._pool.submit(self._hash_all, node, indices)))
                if len(pending) > 4 * HASHERS:
                    self._note(*pending.popleft(), found)
            below = [at for at, link in enumerate(node.links) if link.codec != RAW and link not in visited]
            stack += [(node.path_to(at), node.links[at]) for at in reversed(below)]
        while pending:
            self._note(*pending.popleft(), found)
        return found

    def _inner(self, path: _Path, cid: Cid, found: Hashed) -> _Inner | None:
        """A block that may have links, hashed; None where there is nothing below it to look at."""
        try:
            data = bytes(memoryview(self._blocks.get(cid)))
            cid.check(data, source="the store")
            links = links_of(cid, data)
        except HoldfastError as error:
            self._fault(found, Fault(path, cid, str(error)))
            return None
        if cid not in self._known:
            self._count(found, cid, len(data))
        here = [link for link in links if link not in self._known]
        with suppress(HoldfastError):  # whoever is missing says so when it is read
            bring_near(self._blocks, [link for link in here if not self._blocks.has(link)], cid)
        return _Inner(path, cid, data, links, _stated_sizes(cid, data, len(links)))

    def _leaves(self, node: _Inner, found: Hashed) -> Iterator[range]:
        """Groups of neighbours among the links that are leaves nobody has hashed; known faults are noted at once."""
        start = 0
        for at, link in enumerate((*node.links, None)):
            wanted = link is not None and link.codec == RAW and link not in self._known
            if wanted and link is not None:
                self._known[link] = None  # it is about to be hashed: not twice
            elif link is not None and (problem := self._known.get(link)) is not None:
                self._fault(found, Fault(node.path_to(at), link, problem))
            if not wanted or at - start == _LEAVES_AT_ONCE:
                if at > start:
                    yield range(start, at)
                start = at if wanted else at + 1

    def _hash_all(self, node: _Inner, indices: range) -> list[_Result]:
        """Hash neighbours; runs in the threads. Asking the store where each of them lies would take a tenth of the time."""
        cids, sizes = [node.links[at] for at in indices], [node.sizes[at] for at in indices]
        places: Sequence[_Place | None] = self._places(cids, sizes) or [None] * len(cids)
        return [self._hash(cid, place) for cid, place in zip(cids, places, strict=True)]

    def _places(self, cids: Sequence[Cid], sizes: Sequence[int | None]) -> list[_Place] | None:
        """Where blocks of such sizes lie in the store's memory; None where they are not there, or not of these sizes."""
        if self._maps is None:
            return None
        try:
            pieces = iter(self._maps.mapped(cids) or ())
        except Corrupt:
            return None
        places: list[_Place] = []
        piece, at = next(pieces, None), 0
        for size in sizes:
            if piece is not None and at == piece.memory.nbytes:
                piece, at = next(pieces, None), 0
            if piece is None or size is None or not 0 < size <= piece.memory.nbytes - at:
                return None
            places.append((piece, at, at + size))
            at += size
        return places

    def _hash(self, cid: Cid, place: _Place | None) -> _Result:
        """Hash one block where it lies, or else as the store gives it."""
        try:
            if place is not None:
                piece, start, end = place
                with suppress(
                    Corrupt
                ):  # its stated size may be wrong, and what is read by itself may be mended
                    piece.check(cid, start, end)
                    if not piece.hashes:
                        cid.check(piece.memory[start:end], source="the store")
                    return end - start
            data = memoryview(self._blocks.get(cid))
            cid.check(data, source="the store")
        except HoldfastError as error:
            return str(error)
        return data.nbytes

    def _note(self, node: _Inner, indices: range, future: Future[list[_Result]], found: Hashed) -> None:
        for at, result in zip(indices, future.result(), strict=True):
            if isinstance(result, str):
                self._fault(found, Fault(node.path_to(at), node.links[at], result))
            else:
                self._count(found, node.links[at], result)

    def _count(self, found: Hashed, cid: Cid, size: int) -> None:
        self._known[cid] = None
        found.blocks += 1
        found.size_bytes += size
        if self._progress is not None:
            self._progress(size)

    def _fault(self, found: Hashed, fault: Fault) -> None:
        self._known[fault.cid] = fault.problem
        self._any_wrong = True
        if len(found.faults) < MOST_FAULTS:
            found.faults.append(fault)
