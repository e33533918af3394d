"""Parts of a stored file: verified, fetched where they are missing, and without a copy where they lie in one piece."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from holdfast.errors import Corrupt, InvalidInput
from holdfast.storage.block_store import Mapped, SupportsMap, bring_near
from holdfast.storage.cid import RAW, Cid
from holdfast.storage.formats.unixfs import file_leaves

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeAlias

    from holdfast.storage.content import ContentStore
    from holdfast.storage.formats.unixfs import Leaf

    _Place: TypeAlias = tuple[Mapped, int]
    """A piece of memory, and where in it a block begins."""

__all__ = ["LoadedParts", "StoredFile"]


class StoredFile:
    """A file by its CID, for those who read parts of it again and again. Safe to use from several threads.

    Opening it reads the nodes above its blocks, and none of the blocks themselves, unless it is a single one. Where blocks
    lie is looked up once.

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
        # No lock: two threads that look the same block up find the same, and either answer may stay.
        self._places: list[_Place | None] = [None] * len(self._leaves)
        self._memory: tuple[Mapped, memoryview] | None = None

    def map(self) -> bool:
        """Look up where all of it lies, at once, for those who will read most of it; whether all of it is here."""
        numbers = range(len(self._leaves))
        self._places = [None] * len(numbers)  # what was found by itself would not be of the same piece
        found = self._find(numbers)
        if found and (first := self._places[0]) is not None:
            joined = self._joined(numbers, self._places, 0, self.size)
            self._memory = None if joined is None else (first[0], joined)
        return found

    def cids(self, start: int, end: int) -> list[Cid]:
        """The blocks that hold the bytes from ``start`` to ``end`` (exclusive), in order.

        Raises:
            InvalidInput: The file has no such range.
        """
        return [leaf.cid for leaf in self._leaves[slice(*self._bounds(start, end))] if leaf.data is None]

    def parts(self, start: int, end: int) -> list[tuple[Cid, int, int]]:
        """The same blocks, each with the bytes of it that are in the range: two ranges with equal parts have equal bytes.

        Raises:
            InvalidInput: The file has no such range.
        """
        found = []
        for number in range(*self._bounds(start, end)):
            leaf = self._leaves[number]
            found.append((leaf.cid, max(0, start - leaf.offset), min(end, self._ends[number]) - leaf.offset))
        return found

    def missing(self, ranges: Iterable[tuple[int, int]]) -> dict[Cid, int]:
        """The blocks of these ranges that are not on this node, with their sizes."""
        numbers = self._touched(ranges)
        if self._find(numbers):
            return {}
        blocks = self._store.blocks
        return {
            self._leaves[i].cid: self._ends[i] - self._leaves[i].offset
            for i in numbers
            if self._leaves[i].data is None and not blocks.has(self._leaves[i].cid)
        }

    def near(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Fetch what of these ranges is not on this node, several blocks at once.

        Raises:
            NotFound: Nobody has one of the blocks; what did come is kept.
            Corrupt: Somebody sent wrong bytes, and nobody the right ones.
            Unavailable: Somebody who might have it does not answer.
        """
        bring_near(self._store.blocks, list(self.missing(ranges)), self.cid)

    def view(self, start: int, end: int) -> memoryview:
        """The bytes from ``start`` to ``end`` (exclusive), verified.

        Raises:
            NotFound: A block is missing and nobody has it.
            Corrupt: A block is not what its CID says, and nobody has the right bytes.
            InvalidInput: The file has no such range.
        """
        return self.load([(start, end)]).view(start, end)

    def load(self, ranges: Sequence[tuple[int, int]]) -> LoadedParts:
        """Verify these ranges at once, for those who read in smaller pieces.

        Raises:
            NotFound: As :meth:`view` does.
            Corrupt: As above.
            InvalidInput: As above.
        """
        self._store.used(self.cid)
        numbers = self._touched(ranges)
        if not self._find(numbers):
            self.near(ranges)
            self._find(numbers)
        return LoadedParts(self, {number: self._verified(number) for number in numbers})

    def unverified(self, start: int, end: int) -> memoryview | None:
        """Memory of a range as it lies, for those who read only what they :meth:`load` of it; None if it lies in parts."""
        numbers = range(*self._bounds(start, end))
        self._find(numbers)
        places = [self._places[number] for number in numbers]
        return self._joined(numbers, places, start, end)

    def _bring_nodes(self, cids: list[Cid]) -> None:
        bring_near(self._store.blocks, [cid for cid in cids if cid.codec != RAW], self.cid)

    def _touched(self, ranges: Iterable[tuple[int, int]]) -> list[int]:
        """The numbers of the leaves that any of the ranges touches, in order."""
        return sorted({i for start, end in ranges for i in range(*self._bounds(start, end))})

    def _bounds(self, start: int, end: int) -> tuple[int, int]:
        if not 0 <= start <= end <= self.size:
            raise InvalidInput(f"bytes {start} to {end} of {self.cid}, which has {self.size}")
        first = bisect_right(self._ends, start)
        return (first, bisect_left(self._ends, end) + 1) if end > start else (first, first)

    def _find(self, numbers: Sequence[int]) -> bool:
        """Look up where leaves lie; whether all of them are mapped now."""
        unknown = [i for i in numbers if self._places[i] is None]
        if not unknown:
            return True
        if not isinstance(self._store.blocks, SupportsMap) or any(
            self._leaves[i].data is not None for i in unknown
        ):
            return False
        pieces = self._store.blocks.mapped([self._leaves[i].cid for i in unknown])
        if pieces is None:
            return False
        left = iter(pieces)
        piece, at = Mapped(memoryview(b""), lambda *_: None), 0
        for number in unknown:
            size = self._ends[number] - self._leaves[number].offset
            while at >= piece.memory.nbytes and size:
                following = next(left, None)
                if following is None:
                    return False
                piece, at = following, 0
            if at + size > piece.memory.nbytes:
                return False  # a block is not as long as its parent states: reading it by itself tells which
            self._places[number] = piece, at
            at += size
        return True

    def _verified(self, number: int) -> _Place:
        """Where a leaf's verified bytes are."""
        leaf, place = self._leaves[number], self._places[number]
        if place is not None:
            piece, at = place
            try:
                piece.check(leaf.cid, at, at + self._ends[number] - leaf.offset)
            except Corrupt:
                self._places[number] = None  # what is read by itself may be mended, and lies elsewhere then
            else:
                return place
        data = memoryview(leaf.data if leaf.data is not None else self._store.blocks.get(leaf.cid)).cast("B")
        stated = self._ends[number] - leaf.offset
        if data.nbytes != stated:
            raise Corrupt(
                f"{leaf.cid} in the file {self.cid} has {data.nbytes} bytes, not {stated} as its parent states"
            )
        return Mapped(data.toreadonly(), lambda *_: None), 0

    def _joined(
        self, numbers: Sequence[int], places: Sequence[_Place | None], start: int, end: int
    ) -> memoryview | None:
        """The range as one part of a piece, if all leaves lie in it one behind the other."""
        if not numbers or places[0] is None:
            return None if numbers else memoryview(b"")
        piece, first = places[0]
        shift = first - self._leaves[numbers[0]].offset
        for number, place in zip(numbers, places, strict=True):
            if place is None or place[0] is not piece or place[1] - self._leaves[number].offset != shift:
                return None
        return piece.memory[start + shift : end + shift]


class LoadedParts:
    """Ranges of a file that were verified together; made by :meth:`StoredFile.load`."""

    def __init__(self, file: StoredFile, places: dict[int, _Place]) -> None:
        self._file = file
        self._places = places

    @property
    def file_memory(self) -> memoryview | None:
        """Memory of the whole file, of which nothing may be read but these ranges; None unless it was mapped in one piece."""
        memory = self._file._memory  # noqa: SLF001 -- two halves of one thing
        if memory is None or any(piece is not memory[0] for piece, _ in self._places.values()):
            return None  # what was rotten lies elsewhere now
        return memory[1]

    def view(self, start: int, end: int) -> memoryview:
        """The bytes from ``start`` to ``end``, with no copy where they lie in one piece.

        Raises:
            InvalidInput: Not all of them were loaded.
        """
        numbers = range(*self._file._bounds(start, end))  # noqa: SLF001 -- two halves of one thing
        try:
            places = [self._places[number] for number in numbers]
        except KeyError:
            raise InvalidInput(f"bytes {start} to {end} of {self._file.cid} were not loaded") from None
        joined = self._file._joined(numbers, places, start, end)  # noqa: SLF001 -- as above
        if joined is not None:
            return joined
        leaves, ends = self._file._leaves, self._file._ends  # noqa: SLF001 -- as above
        parts = [
            piece.memory[at + max(0, start - leaves[i].offset) : at + min(end, ends[i]) - leaves[i].offset]
            for i, (piece, at) in zip(numbers, places, strict=True)
        ]
        return memoryview(b"".join(parts))
