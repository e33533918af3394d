"""Blocks on their way to and from an IPFS daemon: the spool that an import is sent from, and what is read ahead."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from holdfast.storage.formats.car import car_frames

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from holdfast.storage.cid import Cid

__all__ = ["ReadAhead", "Spool"]

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Frame:
    cid: Cid
    size: int
    """Of the block."""
    end: int
    """Where its frame ends in the file."""


class Spool:
    """Blocks in a temporary file, as frames of a CAR."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._frames: list[_Frame] = []
        self._end = 0
        self.multihashes: set[bytes] = set()
        """What is in it."""

    def write(self, cid: Cid, data: bytes) -> None:
        """Append a block."""
        _, frame = car_frames([], [(cid, data)])
        self.file.write(frame)
        self._end += len(frame)
        self._frames.append(_Frame(cid, len(data), self._end))
        self.multihashes.add(cid.multihash)

    @property
    def payload_bytes(self) -> int:
        """The size of all blocks."""
        return sum(frame.size for frame in self._frames)

    def parts(self, max_bytes: int, max_blocks: int) -> Iterator[Part]:
        """Everything, cut between blocks into parts of about ``max_bytes``, and of ``max_blocks``, at most."""
        first = start = 0
        for index, frame in enumerate(self._frames):
            last = index == len(self._frames) - 1
            full = index + 1 - first >= max_blocks
            if last or full or self._frames[index + 1].end - start > max_bytes:
                cids = [frame.cid for frame in self._frames[first : index + 1]]
                yield Part(self.file, start, frame.end, cids)
                first, start = index + 1, frame.end


@dataclass(frozen=True, slots=True)
class Part:
    """Some blocks of a spool, and perhaps one more, their guard."""

    file: IO[bytes]
    start: int
    end: int
    cids: Sequence[Cid]
    guard: tuple[Cid, bytes] | None = None

    async def car(self) -> AsyncIterator[bytes]:
        """The pieces of a CAR with these blocks. Its root is the guard, else the first: some daemons want one."""
        if self.guard is None:
            yield next(car_frames(self.cids[:1], []))
        else:
            for piece in car_frames([self.guard[0]], [self.guard]):
                yield piece
        at = self.start
        while at < self.end:
            self.file.seek(at)
            piece = self.file.read(min(_PIECE_BYTES, self.end - at))
            at += len(piece)
            yield piece


class ReadAhead:
    """Blocks that are fetched before they are asked for, a window of them at a time. Used in one event loop.

    Args:
        fetch: Gets one block.
        window: How many are fetched or held at most.
    """

    def __init__(self, fetch: Callable[[Cid], Awaitable[bytes]], window: int) -> None:
        self._fetch = fetch
        self._window = window
        self._wanted: deque[Cid] = deque()
        self._begun: dict[bytes, asyncio.Future[bytes]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self, cids: Sequence[Cid]) -> None:
        """Read these ahead, in this order, and nothing else any more."""
        self._stay_in_this_loop()
        keep = {cid.multihash for cid in cids}
        for multihash in [multihash for multihash in self._begun if multihash not in keep]:
            self._begun.pop(multihash).cancel()
        self._wanted = deque(cids)
        self._fill()

    def take(self, cid: Cid) -> asyncio.Future[bytes] | None:
        """The block that is on its way, or None if it is not; it makes room for the next."""
        self._stay_in_this_loop()
        begun = self._begun.pop(cid.multihash, None)
        self._fill()
        return begun

    def _stay_in_this_loop(self) -> None:
        """Forget what a process inherited when it was forked: that happens in another loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._begun, self._wanted = loop, {}, deque()

    def _fill(self) -> None:
        while self._wanted and len(self._begun) < self._window:
            cid = self._wanted.popleft()
            if cid.multihash not in self._begun:
                task = asyncio.ensure_future(self._fetch(cid))
                task.add_done_callback(_retrieve)
                self._begun[cid.multihash] = task


def _retrieve(task: asyncio.Future[bytes]) -> None:
    """Whoever takes the block gets its error; one that nobody takes is no event."""
    if not task.cancelled():
        task.exception()
