"""The contract of everything that holds blocks, and the wrapper that verifies what is read."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from holdfast.errors import Unsupported
from holdfast.storage.cid import IDENTITY, read_varint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from holdfast.storage.cid import Buffer, Cid
    from holdfast.storage.local.references import FileRange

    Payload: TypeAlias = Buffer | FileRange | None
    """A block's bytes, or where in the user's own files they lie, or None for a block that is here already."""

__all__ = [
    "MAX_BLOCK_BYTES",
    "BlockStore",
    "Extent",
    "Mapped",
    "Pin",
    "SupportsExtent",
    "SupportsLacking",
    "SupportsMap",
    "SupportsPins",
    "SupportsPrefetch",
    "SupportsRepair",
    "SupportsView",
    "VerifyingStore",
    "bring_near",
    "inline_block",
]

_THREADS_FROM_BYTES = 8 << 20
_HASHERS = min(4, os.cpu_count() or 1)
MAX_BLOCK_BYTES = 2 << 20
"""The largest block that IPFS implementations exchange."""


def inline_block(cid: Cid) -> bytes | None:
    """The bytes of an identity CID, which carries its block in its name; None for any other."""
    multihash = cid.multihash
    return multihash[read_varint(multihash, 1)[1] :] if multihash[0] == IDENTITY else None


class BlockStore(Protocol):
    """Blocks by the multihash of their CID.

    Two CIDs that differ in version or codec only name the same block. Implementations are safe to use
    from several threads.
    """

    def get(self, cid: Cid) -> Buffer:
        """The block's bytes.

        Raises:
            NotFound: The store does not have it.
        """
        ...

    def has(self, cid: Cid) -> bool:
        """Whether the block is here, without reading it."""
        ...

    def put_many(self, blocks: Iterable[tuple[Cid, Payload]], *, resume: bytes | None = None) -> int:
        """Store blocks; when it returns they are all durable, if it raises none is visible.

        Of a work with a name some may be, if the disk fails at its very end. The buffers are not kept. The caller vouches for the CIDs.

        Args:
            blocks: With their CIDs.
            resume: Names the work, for a store that can go on where the same work was interrupted; others ignore it.

        Returns:
            How many bytes were new.

        Raises:
            InvalidInput: A block is larger than :data:`MAX_BLOCK_BYTES`.
            NotFound: A block that is said to be here already is not.
            Unsupported: A block is a :class:`FileRange`, and the store can't refer to files.
            Unavailable: The disk is full.
        """
        ...

    def multihashes(self) -> Iterator[bytes]:
        """The multihash of every block, in the order of their bytes."""
        ...

    def close(self) -> None:
        """Release files and threads; buffers handed out stay valid."""
        ...


@runtime_checkable
class SupportsView(Protocol):
    """A store that can hand out several blocks as one piece of memory."""

    def view(self, cids: Sequence[Cid]) -> memoryview | None:
        """The blocks joined in this order, with no copy, or None where they do not lie back to back."""
        ...


@dataclass(frozen=True, slots=True)
class Mapped:
    """Blocks as one piece of memory, each to be checked before its bytes are used."""

    memory: memoryview
    check: Callable[[Cid, int, int], object]
    """Takes a block's CID and where in ``memory`` it begins and ends; raises ``Corrupt`` as the store's own reads do."""
    hashes: bool = False
    """Whether checking a block hashes it: who must be sure then need not do it a second time."""


@runtime_checkable
class SupportsMap(Protocol):
    """A store that can hand out many blocks as memory before any of them is read."""

    def mapped(self, cids: Sequence[Cid]) -> list[Mapped] | None:
        """The blocks in this order, joined to pieces where they lie back to back; None if not all of them are here so."""
        ...


@runtime_checkable
class SupportsPrefetch(Protocol):
    """A store that can bring many blocks near at once."""

    def prefetch(self, cids: Iterable[Cid], *, root: Cid | None = None) -> None:
        """Fetch those of the blocks that are not here yet, several at a time.

        Args:
            cids: What will be read soon, in this order.
            root: The DAG that they are part of, if known: providers are looked up by it, and announced for it.

        Raises:
            NotFound: No provider has one of them.
            Unavailable: A provider that might have it does not answer.
        """
        ...


@runtime_checkable
class SupportsLacking(Protocol):
    """A store that tells of many blocks at once which are not there: to ask it for one at a time is slow."""

    def lacking(self, cids: Sequence[Cid]) -> list[Cid]:
        """Those of ``cids`` that it has not got, in their order."""
        ...


def bring_near(blocks: BlockStore, cids: Sequence[Cid], root: Cid | None = None) -> None:
    """Fetch several blocks at once, where the store fetches."""
    if cids and isinstance(blocks, SupportsPrefetch):
        blocks.prefetch(cids, root=root)


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of a file on the disk."""

    path: Path
    offset: int
    length: int


@runtime_checkable
class SupportsExtent(Protocol):
    """A store whose blocks lie in files, from where the kernel can send them without a copy."""

    def extent(self, cid: Cid) -> Extent | None:
        """Where the block lies now, or None if it is not here; not hashed.

        The file may be removed at any time: open it at once, and look again if it is gone.
        """
        ...


@runtime_checkable
class SupportsRepair(Protocol):
    """A store that can put right bytes in the place of wrong ones."""

    def replace_many(self, blocks: Iterable[tuple[Cid, Buffer]]) -> None:
        """Store blocks as ``put_many`` does, also where there is one of the same CID already."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """What keeps content from being collected as garbage."""

    cid: Cid
    recursive: bool = True
    """With everything below it, or the one block only."""
    name: str = ""


@runtime_checkable
class SupportsPins(Protocol):
    """A store that forgets what nobody pinned, when it is told to or runs out of room."""

    def pin(self, cid: Cid, *, recursive: bool = True, name: str = "") -> None:
        """Keep ``cid``; pinning again changes the name, and recursive stays recursive.

        Raises:
            NotFound: A block of what is to be kept is not here.
        """
        ...

    def unpin(self, cid: Cid) -> None:
        """Keep ``cid`` no longer on its own behalf.

        Raises:
            NotFound: It is not pinned.
        """
        ...

    def pins(self) -> list[Pin]:
        """Every pin, sorted by CID."""
        ...

    def hold(self, label: str, cid: Cid, *, recursive: bool = True) -> None:
        """Keep as much of ``cid`` as is here, for as long as the label stands for it; set again, it moves."""
        ...

    def release(self, label: str) -> None:
        """Forget a hold; one that is not there is fine."""
        ...

    def used(self, cid: Cid) -> None:
        """Note that content was used now, for a store that lets go of what was used longest ago."""
        ...

    def adding(self) -> AbstractContextManager[None]:
        """While this lasts, what this thread adds, or finds to be here already, can't be collected: time to pin it."""
        ...


class VerifyingStore:
    """Hashes what the inner store returns: a wrong byte on the disk is an error, never an answer."""

    def __init__(self, inner: BlockStore, *, source: str) -> None:
        self._inner = inner
        self._source = source
        # To ask what a store can do is slow, and this is asked for each block that is served.
        self._extents = inner if isinstance(inner, SupportsExtent) else None

    @property
    def inner(self) -> BlockStore:
        """The store that is verified."""
        return self._inner

    def get(self, cid: Cid) -> Buffer:
        """The block's bytes, hashed just now.

        Raises:
            NotFound: The inner store does not have it.
            Corrupt: The bytes do not hash to ``cid``.
        """
        inline = inline_block(cid)
        if inline is not None:
            return inline
        data = self._inner.get(cid)
        cid.check(data, source=self._source)
        return data

    def view(self, cids: Sequence[Cid]) -> memoryview | None:
        """The blocks as one piece of memory, each hashed just now."""
        if not isinstance(self._inner, SupportsView):
            return None
        joined = self._inner.view(cids)
        if joined is None:
            return None
        if joined.nbytes < _THREADS_FROM_BYTES:
            for part in self._parts(cids, joined):
                self._check(part)
            return joined
        # A few at once, in order: what was read lately is then all that stays in this process's memory.
        pending: deque[Future[None]] = deque()
        with ThreadPoolExecutor(_HASHERS, thread_name_prefix="holdfast-hash") as pool:
            for part in self._parts(cids, joined):
                pending.append(pool.submit(self._check, part))
                if len(pending) > 4 * _HASHERS:
                    pending.popleft().result()
            while pending:
                pending.popleft().result()
        return joined

    def _parts(self, cids: Sequence[Cid], joined: memoryview) -> Iterator[tuple[Cid, memoryview]]:
        at = 0
        for cid in cids:
            size = memoryview(self._inner.get(cid)).nbytes
            yield cid, joined[at : at + size]
            at += size

    def _check(self, part: tuple[Cid, memoryview]) -> None:
        cid, data = part
        cid.check(data, source=self._source)

    def mapped(self, cids: Sequence[Cid]) -> list[Mapped] | None:
        """The blocks as memory; checking a block hashes it."""
        pieces = self._inner.mapped(cids) if isinstance(self._inner, SupportsMap) else None
        return None if pieces is None else [self._hashed(piece) for piece in pieces]

    def _hashed(self, piece: Mapped) -> Mapped:
        def check(cid: Cid, start: int, end: int) -> None:
            piece.check(cid, start, end)
            cid.check(piece.memory[start:end], source=self._source)

        return Mapped(piece.memory, check, hashes=True)

    def has(self, cid: Cid) -> bool:
        """Whether the block is here."""
        return inline_block(cid) is not None or self._inner.has(cid)

    def extent(self, cid: Cid) -> Extent | None:
        """Where the block lies; the one answer that is not hashed. None also where the inner store can't tell."""
        return self._extents.extent(cid) if self._extents is not None else None

    def put_many(self, blocks: Iterable[tuple[Cid, Payload]], *, resume: bytes | None = None) -> int:
        """Store blocks in the inner store."""
        return self._inner.put_many(blocks, resume=resume)

    def replace_many(self, blocks: Iterable[tuple[Cid, Buffer]]) -> None:
        """Store blocks in the inner store, also in the place of wrong ones.

        Raises:
            Unsupported: The inner store can't replace blocks.
        """
        if not isinstance(self._inner, SupportsRepair):
            raise Unsupported(f"{self._source} can't replace blocks")
        self._inner.replace_many(blocks)

    def multihashes(self) -> Iterator[bytes]:
        """The multihash of every block."""
        return self._inner.multihashes()

    def close(self) -> None:
        """Close the inner store."""
        self._inner.close()
