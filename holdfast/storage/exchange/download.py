"""One download: which of its blocks is asked of whom and when, what was delivered, and what nobody gave.

The order of delivery is the order asked for; the window bounds how far the requests run ahead of it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from holdfast.errors import Conflict, Corrupt, HoldfastError, NotFound, Unavailable
from holdfast.storage.block_store import inline_block
from holdfast.storage.exchange.peers import SLOW_MEANS
from holdfast.storage.exchange.sharing import Sharing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from holdfast.storage.cid import Buffer, Cid
    from holdfast.storage.exchange.block_client import BlockConnection, Provider
    from holdfast.storage.exchange.peers import Peer
    from holdfast.storage.exchange.transfers import Transfers

__all__ = ["Download", "Job", "Progress"]

_REFRESH_S = 0.25
_HEDGE_FROM_S = 0.3
_MOST_BEGUN = 512
_MOST_WAITING = 64
_FIRST_ESTIMATE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a fetch is."""

    blocks: int
    size_bytes: int
    total_blocks: int
    bytes_by_provider: Mapping[str, int]


@dataclass(slots=True, eq=False)
class _Block:
    """A block that is wanted, from when it may be asked for until it is delivered."""

    index: int
    cid: Cid
    jobs: list[Job] = field(default_factory=list)
    tried: set[Peer] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)
    wrong: bool = False
    unreachable: bool = False
    data: Buffer | None = None
    error: HoldfastError | None = None

    @property
    def settled(self) -> bool:
        return self.data is not None or self.error is not None

    def failure(self) -> HoldfastError:
        text = f"no node gave {self.cid}: " + "; ".join(self.reasons)
        if self.wrong:
            return Corrupt(text)
        return Unavailable(text) if self.unreachable else NotFound(text)


@dataclass(slots=True, eq=False)
class Job:
    """One request."""

    download: Download
    block: _Block
    peer: Peer
    started: float
    early: bool
    """Whether a provider is asked that may have it soon: that it has not got it yet decides nothing."""
    connection: BlockConnection | None = None
    cancelled: bool = False

    def cancel(self) -> None:
        """Break it off; with the lock held."""
        self.cancelled = True
        if self.connection is not None:
            self.connection.abort()


class Download:
    """Some blocks on their way here; a context manager, so that nothing goes on when the caller stops.

    Args:
        transfers: What sends the requests.
        cids: What is wanted, in this order.
        source: Who can be asked; called again now and then, so that it must answer at once.
        own_url: The block server of this node, as the others know it; empty if it has none.
        groups: For each of ``cids``, the group that it is shared in; see :class:`~holdfast.storage.exchange.sharing.Sharing`.
        progress: Told after each block, in the caller's thread.
    """

    def __init__(
        self,
        transfers: Transfers,
        cids: Sequence[Cid],
        source: Callable[[], Sequence[Provider]],
        *,
        own_url: str = "",
        groups: Sequence[bytes] | None = None,
        progress: Callable[[Progress], object] | None = None,
    ) -> None:
        self.failures: dict[Cid, HoldfastError] = {}
        """The blocks that nobody gave, in order, as far as the download is."""
        self.changed = threading.Condition(transfers.lock)
        self._transfers = transfers
        self._cids = cids
        self._source = source
        self._progress = progress
        self._peers: list[Peer] = []
        self._announced: set[Peer] = set()
        self._hits: Counter[Peer] = Counter()
        self._misses: Counter[Peer] = Counter()
        self._own_url = own_url
        self._sharing = Sharing(own_url, groups)
        self._refreshed = 0.0
        self._blocks: dict[int, _Block] = {}
        self._unasked: dict[int, _Block] = {}
        self._unsettled = 0
        self._begun = self._head = 0
        self._held_bytes = 0
        self._largest = _FIRST_ESTIMATE_BYTES
        self._given_up = False
        self._taken: Buffer | None = None
        self._delivered = 0
        self._delivered_bytes = 0
        self._bytes_by_provider: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._refresh()
        self._transfers.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._transfers.drop(self)

    # ------------------------------------------------------------------------------ for the caller's thread

    def take(self, timeout_s: float | None = None) -> tuple[Cid, Buffer] | None:
        """The next block that arrived, verified and in order; its buffer is valid until the next call.

        Args:
            timeout_s: How long to wait for it; None waits until it comes or is known not to come.

        Returns:
            None at the end, or when the time is over; :attr:`done` tells which.

        Raises:
            Conflict: The fetcher was closed.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        with self.changed:
            if self._taken is not None:
                self._transfers.buffers.give(self._taken)
                self._taken = None
            while True:
                if self._transfers.closed:
                    raise Conflict("the fetcher is closed")
                taken = self._pop()
                self._transfers.schedule()
                if taken is not None or self.done:
                    break
                wait_s = min(self._hedge(), self._sharing.next_try_s())
                if self._refreshed + _REFRESH_S < time.monotonic():
                    self.changed.release()
                    try:
                        self._refresh()
                    finally:
                        self.changed.acquire()
                    continue
                if self._blocks.get(self._head) is not None and self._blocks[self._head].settled:
                    continue
                if until is not None:
                    left = until - time.monotonic()
                    if left <= 0:
                        return None
                    wait_s = min(wait_s, left)
                self.changed.wait(wait_s)
        if taken is not None and self._progress is not None:
            self._progress(
                Progress(
                    blocks=self._delivered,
                    size_bytes=self._delivered_bytes,
                    total_blocks=len(self._cids),
                    bytes_by_provider=dict(self._bytes_by_provider),
                )
            )
        return taken

    @property
    def done(self) -> bool:
        """Whether every block was taken, or is in :attr:`failures`."""
        return self._head >= len(self._cids)

    def raise_failures(self) -> None:
        """Return if every block came.

        Raises:
            NotFound: Who was asked for the first one that did not, and how many more there are.
            Corrupt: As above; somebody gave wrong bytes, and nobody right ones.
            Unavailable: As above; somebody who might have it does not answer.
        """
        if self.failures:
            first = next(iter(self.failures.values()))
            more = len(self.failures) - 1
            raise type(first)(f"{first}" + (f"; {more} more blocks did not come either" if more else ""))

    def _pop(self) -> tuple[Cid, Buffer] | None:
        """The head of the line, if it is there; those that failed are passed over."""
        while not self.done:
            block = self._blocks.get(self._head)
            if block is None and self._given_up:
                cid = self._cids[self._head]
                self.failures[cid] = Unavailable(f"no node gave {cid}: none answers any more")
                self._head += 1
                continue
            if block is None or not block.settled:
                return None
            del self._blocks[self._head]
            self._head += 1
            if block.error is not None:
                self.failures[block.cid] = block.error
                continue
            assert block.data is not None  # noqa: S101 -- it is settled, and not by an error
            self._taken = block.data
            self._held_bytes -= len(block.data)
            self._delivered += 1
            self._delivered_bytes += len(block.data)
            return block.cid, block.data
        return None

    def _refresh(self) -> None:
        """Ask anew who can be asked."""
        providers = self._source()
        with self.changed:
            self._refreshed = time.monotonic()
            known: dict[Peer, Provider] = {}
            for provider in providers:
                if provider.url.rstrip("/") != self._own_url:
                    known.setdefault(self._transfers.peer(provider), provider)
            self._peers = list(known)
            self._announced = {peer for peer, provider in known.items() if provider.announced}
            self._sharing.members({peer for peer, provider in known.items() if provider.partial})

    # ------------------------------------------------------------------------------------ with the lock held

    def next_job(self) -> Job | None:
        """The next request that should be sent, or None when nothing can be done but wait."""
        if self._peers and not any(peer.free for peer in self._peers):
            return (
                None  # to look at every block that waits would find the same, and this is asked all the time
            )
        for index in sorted(self._unasked)[:_MOST_WAITING]:
            job = self._job_for(self._unasked[index])
            if job is not None:
                return job
        while self._may_begin():
            block = _Block(self._begun, self._cids[self._begun])
            self._blocks[self._begun] = self._unasked[self._begun] = block
            self._begun += 1
            self._unsettled += 1
            inline = inline_block(block.cid)
            if inline is not None:
                self._settle(block, data=inline)
                continue
            job = self._job_for(block)
            if job is not None:
                return job
        return None

    def arrived(self, job: Job, data: Buffer) -> None:
        """Take a verified block."""
        self._largest = max(self._largest, len(data))
        self._hits[job.peer] += 1
        self._bytes_by_provider[job.peer.provider.url] += len(data)
        self._sharing.answered(job.peer, here=True)
        self._settle(job.block, data=data)

    def refused(self, job: Job, error: HoldfastError) -> None:
        """Note that a provider did not give a block."""
        if job.early and isinstance(error, NotFound):
            self._sharing.answered(job.peer, here=False)
            return
        job.block.tried.add(job.peer)
        job.block.reasons.append(str(error))
        if isinstance(error, NotFound):
            self._misses[job.peer] += 1
        self._fail_if_nobody_is_left(job.block)

    def asked(self, job: Job) -> None:
        """Note that a request was sent."""
        job.block.jobs.append(job)
        self._unasked.pop(job.block.index, None)

    def ended(self, job: Job) -> None:
        """Note that a request is over, however it ended; what came of it is told next."""
        job.block.jobs.remove(job)
        if not job.block.jobs and not job.block.settled:
            self._unasked[job.block.index] = job.block

    def _fail_if_nobody_is_left(self, block: _Block) -> None:
        if block.jobs or block.settled or any(peer not in block.tried for peer in self._peers):
            return
        if not self._peers:
            self._settle(
                block, error=NotFound(f"{block.cid} is not in this store, and there is no other node to ask")
            )
            return
        # When nobody answers any more, the rest need not wait for the same end.
        self._given_up = self._given_up or all(peer.hopeless for peer in self._peers)
        self._settle(block, error=block.failure())

    def _settle(
        self, block: _Block, *, data: Buffer | None = None, error: HoldfastError | None = None
    ) -> None:
        block.data, block.error = data, error
        self._held_bytes += len(data) if data is not None else 0
        self._unsettled -= 1
        self._unasked.pop(block.index, None)
        if block.index == self._head:
            self.changed.notify_all()

    def _may_begin(self) -> bool:
        if self._begun >= len(self._cids) or self._given_up:
            return False
        if self._begun == self._head:
            return True
        room = self._transfers.window_bytes - self._held_bytes - self._unsettled * self._largest
        return room >= self._largest and len(self._blocks) < _MOST_BEGUN

    def _job_for(self, block: _Block) -> Job | None:
        """A request for this block, if there is somebody to ask now."""
        now = time.monotonic()
        peers = [peer for peer in self._peers if peer not in block.tried]
        if not peers:
            self._fail_if_nobody_is_left(block)
            return None
        good = [peer for peer in peers if peer.blocked_until <= now]
        if not good:
            # Those in disgrace are asked last, not never: they may be the only ones that have it.
            free = [peer for peer in peers if peer.free]
            chosen = min(free, key=lambda peer: peer.blocked_until, default=None)
            return Job(self, block, chosen, now, early=False) if chosen else None
        choice = self._sharing.choose(block.index, good, head=block.index == self._head)
        if choice.wait:
            return None
        if choice.early is not None:
            return Job(self, block, choice.early, now, early=True) if choice.early.free else None
        likely = {peer: self._likelihood(peer) for peer in choice.peers}
        least = max(likely.values()) / 2
        free = [peer for peer in choice.peers if peer.free and likely[peer] >= least]
        chosen = min(free, key=lambda peer: (peer.in_flight / peer.allowed, peer.asked), default=None)
        return Job(self, block, chosen, now, early=False) if chosen else None

    def _likelihood(self, peer: Peer) -> float:
        """How probable it is that a peer has a block of this download, from what it said of the others."""
        hits, all_asked = (9, 10) if peer in self._announced else (2, 5)
        return (self._hits[peer] + hits) / (self._hits[peer] + self._misses[peer] + all_asked)

    def _hedge(self) -> float:
        """Ask a second provider for the block that everything waits for, if the first is slow; when to look again."""
        block = self._blocks.get(self._head)
        if block is None or len(block.jobs) != 1 or block.settled:
            return _REFRESH_S
        now = time.monotonic()
        slow, patience_s = block.jobs[0], max(_HEDGE_FROM_S, SLOW_MEANS * (self._transfers.mean_s or 0.0))
        left = slow.started + min(patience_s, self._transfers.timeout_s / 2) - now
        if left > 0:
            return min(left, _REFRESH_S)
        others = [
            peer
            for peer in self._peers
            if peer not in block.tried and peer is not slow.peer and peer.blocked_until <= now and peer.free
        ]
        if others:
            best = min(others, key=lambda peer: (-self._likelihood(peer), peer.in_flight))
            self._transfers.submit(Job(self, block, best, now, early=False))
        return _REFRESH_S
