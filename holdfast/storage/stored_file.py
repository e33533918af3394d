"""Parts of a stored file: verified, fetched where they are missing, and without a copy where they lie in one piece."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from holdfast.errors import Corrupt, InvalidInput
from holdfast.storage.block_store import Mapped, SupportsMap, SupportsPrefetch, SupportsView
from holdfast.storage.cid import RAW, Cid
from holdfast.storage.formats.unixfs import file_leaves

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from holdfast.storage.content import ContentStore
    from holdfast.storage.formats.unixfs import Leaf

__all__ = ["StoredFile"]


class StoredFile:
    """A file by its CID, for those who read parts of it again and again. Safe to use from several threads.

    Opening it reads the nodes above its blocks, and none of the blocks themselves, unless it is a single one.

    Args:
        store: Where it is, or is fetched to.
        cid: The file's root.

    Raises:
        NotFound: Nobody has the root, or a node below it.
        InvalidInput: The CID is a directory or a record.
    """

    def __init__(self, store: ContentStore, cid: Cid) -> None:
        self.cid = cid
        self._store = store
        self._leaves: list[Leaf] = list(file_leaves(cid, store.blocks.get, self._bring_nodes))
        last = self._leaves[-1]
        size = last.size if last.size is not None else memoryview(store.blocks.get(cid)).nbytes
        self.size = last.offset + size
        """In bytes."""
        self._ends = [*(leaf.offset for leaf in self._leaves[1:]), self.size]
        self._lock = threading.Lock()
        self._map: Mapped | None = None

    def cids(self, start: int, end: int) -> list[Cid]:
        """The blocks that hold the bytes from ``start`` to ``end`` (exclusive), in order.

        Raises:
            InvalidInput: The file has no such range.
        """
        return [leaf.cid for leaf in self._leaves_in(start, end) if leaf.data is None]

    def near(self, ranges: Iterable[tuple[int, int]]) -> int:
        """Fetch what of these ranges is not on this node, several blocks at once; how many bytes that were.

        Raises:
            NotFound: Nobody has one of the blocks; what did come is kept.
            Corrupt: Somebody sent wrong bytes, and nobody the right ones.
            Unavailable: Somebody who might have it does not answer.
        """
        blocks = self._store.blocks
        leaves = self._distinct(ranges)
        missing = [i for i in leaves if self._leaves[i].data is None and not blocks.has(self._leaves[i].cid)]
        if missing and isinstance(blocks, SupportsPrefetch):
            blocks.prefetch([self._leaves[i].cid for i in missing], root=self.cid)
        return sum(self._ends[i] - self._leaves[i].offset for i in missing)

    def view(self, start: int, end: int) -> memoryview:
        """The bytes from ``start`` to ``end`` (exclusive), verified.

        Raises:
            NotFound: A block is missing and nobody has it.
            Corrupt: A block is not what its CID says, and nobody has the right bytes.
            InvalidInput: The file has no such range.
        """
        leaves = self._leaves_in(start, end)
        if not leaves:
            return memoryview(b"")
        whole = self._mapped()
        if whole is not None and self._check(whole, leaves):
            return whole.memory[start:end]
        begin = leaves[0].offset
        return self._joined(leaves)[start - begin : end - begin]

    def sparse(self, ranges: Sequence[tuple[int, int]]) -> memoryview:
        """Memory of the whole file's length, in which these ranges hold their verified bytes.

        What lies outside of them is not verified, or not even there: it must not be read. It is for readers that seek, such
        as Parquet's. With no copy where the whole file is on this node in one piece.

        Raises:
            NotFound: As :meth:`view` does.
            Corrupt: As above.
            InvalidInput: As above.
        """
        wanted = self._distinct(ranges)
        whole = self._mapped()
        if whole is not None and self._check(whole, [self._leaves[i] for i in wanted]):
            return whole.memory
        import numpy as np

        self.near(ranges)
        memory = np.empty(self.size, np.uint8).data  # the kernel gives pages to what is written only
        for first, last in _runs(wanted):
            run = self._leaves[first : last + 1]
            memory[run[0].offset : self._ends[last]] = self._joined(run)
        return memory.toreadonly()

    def _bring_nodes(self, cids: list[Cid]) -> None:
        nodes = [cid for cid in cids if cid.codec != RAW]
        if nodes and isinstance(self._store.blocks, SupportsPrefetch):
            self._store.blocks.prefetch(nodes, root=self.cid)

    def _distinct(self, ranges: Iterable[tuple[int, int]]) -> list[int]:
        """The numbers of the leaves that any of the ranges touches, in order."""
        return sorted({i for start, end in ranges for i in range(*self._bounds(start, end))})

    def _bounds(self, start: int, end: int) -> tuple[int, int]:
        if not 0 <= start <= end <= self.size:
            raise InvalidInput(f"bytes {start} to {end} of {self.cid}, which has {self.size}")
        first = bisect_right(self._ends, start)
        return (first, bisect_left(self._ends, end) + 1) if end > start else (first, first)

    def _leaves_in(self, start: int, end: int) -> list[Leaf]:
        return self._leaves[slice(*self._bounds(start, end))]

    def _mapped(self) -> Mapped | None:
        """The whole file as it lies, if it does in one piece."""
        with self._lock:
            if self._map is None and isinstance(self._store.blocks, SupportsMap):
                if any(leaf.data is not None for leaf in self._leaves):
                    return None
                found = self._store.blocks.mapped([leaf.cid for leaf in self._leaves])
                if found is not None and found.memory.nbytes == self.size:
                    self._map = found
            return self._map

    def _check(self, whole: Mapped, leaves: Iterable[Leaf]) -> bool:
        """Check these parts of the map; False if one is rotten, then blocks are read one by one, which mends them."""
        memory, check = whole.memory, whole.check
        try:
            for leaf in leaves:
                check(leaf.cid, memory[leaf.offset : leaf.offset + (leaf.size or self.size)])
        except Corrupt:
            with self._lock:
                self._map = None
            return False
        return True

    def _joined(self, leaves: Sequence[Leaf]) -> memoryview:
        blocks = self._store.blocks
        if len(leaves) > 1 and isinstance(blocks, SupportsPrefetch):
            blocks.prefetch([leaf.cid for leaf in leaves if leaf.data is None], root=self.cid)
        if len(leaves) > 1 and isinstance(blocks, SupportsView) and all(leaf.data is None for leaf in leaves):
            joined = blocks.view([leaf.cid for leaf in leaves])
            if joined is not None and joined.nbytes == sum(leaf.size or 0 for leaf in leaves):
                return joined
        parts = [self._load(leaf) for leaf in leaves]
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def _load(self, leaf: Leaf) -> memoryview:
        data = memoryview(leaf.data if leaf.data is not None else self._store.blocks.get(leaf.cid)).cast("B")
        stated = self.size if leaf.size is None else leaf.size
        if data.nbytes != stated:
            raise Corrupt(
                f"{leaf.cid} in the file {self.cid} has {data.nbytes} bytes, not {stated} as its parent states"
            )
        return data


def _runs(numbers: Sequence[int]) -> Iterable[tuple[int, int]]:
    """First and last of each run of neighbours, whose bytes together are a few blocks at most."""
    most = 16  # so that a joined run is no second copy of a large file
    first = last = -2
    for number in numbers:
        if number != last + 1 or number - first >= most:
            if first >= 0:
                yield first, last
            first = number
        last = number
    if first >= 0:
        yield first, last
