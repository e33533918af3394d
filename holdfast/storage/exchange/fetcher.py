"""Blocks from other nodes, over the Trustless Gateway protocol, from several at once.

Every block is hashed before anybody sees it. A provider that sends wrong bytes is left alone for a while, one that is
slow or gone for a shorter while, and the block is asked for elsewhere.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import TYPE_CHECKING

from holdfast.errors import Conflict, Corrupt, HoldfastError, NotFound, Unsupported
from holdfast.storage.block_store import (
    SupportsExtent,
    SupportsLacking,
    SupportsMap,
    SupportsPrefetch,
    SupportsRepair,
    SupportsView,
    inline_block,
)
from holdfast.storage.exchange.block_client import Provider
from holdfast.storage.exchange.download import Download, Progress
from holdfast.storage.exchange.sharing import GROUP_BLOCKS
from holdfast.storage.exchange.transfers import Statistics, Transfers
from holdfast.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from holdfast.storage.block_store import BlockStore, Extent, Mapped, Payload
    from holdfast.storage.cid import Buffer, Cid
    from holdfast.storage.exchange.announcing import Routing

    OnProgress = Callable[[Progress], object]

__all__ = ["Fetcher", "FetchingStore", "Progress", "Provider"]

log = get_logger(__name__)

_COMMIT_BYTES = 128 << 20
_COMMIT_S = 2.0
_PAUSE_S = 0.025
_COMMIT_SHARE = 5
"""Where the network is the slower part, each longer pause is used for a commit, as long as commits take
no more than a fifth of the time: so others find early what came."""


class Fetcher:
    """Gets blocks from providers.

    Args:
        providers: Who can be asked, whatever is wanted. Called at every fetch and during long ones, so it answers at once.
        timeout_s: Deadline of one request.
        concurrency: Requests in flight at most.
        window_bytes: How many bytes a fetch holds in memory at most before they are taken, about.
        routing: Knows who has announced a root, and announces what is fetched here; closed together with the fetcher.

    It starts threads at the first fetch; they end when there is nothing to do for a while, and in :meth:`close`.
    """

    def __init__(
        self,
        providers: Callable[[], Sequence[Provider]],
        *,
        timeout_s: float = 30.0,
        concurrency: int = 16,
        window_bytes: int = 64 << 20,
        routing: Routing | None = None,
    ) -> None:
        self._providers = providers
        self._timeout_s = timeout_s
        self._concurrency = concurrency
        self._window_bytes = window_bytes
        self._routing = routing
        self._statistics = Statistics()
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._transfers: Transfers | None = None
        self._forked_from: Transfers | None = None
        self._closed = False

    def fetch(self, cids: Sequence[Cid], *, root: Cid | None = None) -> list[bytes]:
        """The blocks in the order of ``cids``, each verified.

        Raises:
            NotFound: Every provider answered that it has not got one of them, or there is no provider.
            Corrupt: The only providers that had one of them sent wrong bytes.
            Unavailable: A provider that might have it does not answer.
            Conflict: The fetcher is closed.
        """
        return [bytes(data) for _, data in self.stream(cids, root=root)]

    def stream(
        self, cids: Sequence[Cid], *, root: Cid | None = None, progress: OnProgress | None = None
    ) -> Iterator[tuple[Cid, Buffer]]:
        """Yield the blocks in the order of ``cids``, each verified; a buffer is valid until the next step.

        Those that nobody gives are left out, and named in the error that follows the last one.

        Args:
            cids: What is wanted.
            root: The DAG that they are part of, if known.
            progress: Told after each block.

        Raises:
            NotFound: As :meth:`fetch` does, after everything that did come.
            Corrupt: As above.
            Unavailable: As above.
            Conflict: The fetcher is closed.
        """
        if not cids:
            return
        with self.download(cids, root=root, progress=progress) as download:
            while not download.done:
                block = download.take()
                if block is not None:
                    yield block
            download.raise_failures()

    def download(
        self,
        cids: Sequence[Cid],
        *,
        root: Cid | None = None,
        groups: Sequence[bytes] | None = None,
        progress: OnProgress | None = None,
    ) -> Download:
        """The same for callers that want to know when they have to wait: see :class:`Download`."""
        for cid in cids:
            cid.matches(b"")  # Unsupported, before anything is sent: no provider's bytes could be verified
        return Download(
            self._started(),
            cids,
            lambda: self._known_for(root),
            own_url=self._routing.own_url if self._routing is not None else "",
            groups=groups,
            progress=progress,
        )

    @property
    def routing(self) -> Routing | None:
        """What knows who has which root."""
        return self._routing

    def statistics(self) -> dict[str, int | dict[str, int]]:
        """``blocks`` and ``bytes`` received and verified, ``wrong_blocks``, ``failures``, and ``bytes_by_provider``."""
        counts = self._statistics.counts
        return {
            **{name: counts[name] for name in ("blocks", "bytes", "wrong_blocks", "failures")},
            "bytes_by_provider": dict(self._statistics.bytes_by_provider),
        }

    def close(self) -> None:
        """Break off what is in flight, and end the threads. Closing twice is fine."""
        with self._lock:
            self._closed = True
            transfers, self._transfers = self._transfers, None
        if transfers is not None:
            transfers.close()
        if self._routing is not None:
            self._routing.close()

    def _known_for(self, root: Cid | None) -> list[Provider]:
        announced = self._routing.find(root) if self._routing is not None and root is not None else ()
        return [*announced, *self._providers()]

    def _started(self) -> Transfers:
        if self._process != os.getpid():
            # A fork inherits no thread, and perhaps a lock that nobody holds any more. What it inherits must stay
            # untouched: the parent works with it.
            self._process, self._lock = os.getpid(), threading.Lock()
            self._forked_from, self._transfers = self._transfers, None
        with self._lock:
            if self._closed:
                raise Conflict("the fetcher is closed")
            if self._transfers is None:
                self._transfers = Transfers(
                    timeout_s=self._timeout_s,
                    concurrency=self._concurrency,
                    window_bytes=self._window_bytes,
                    statistics=self._statistics,
                )
                weakref.finalize(self, self._transfers.close)  # for those who forget to, or exit
            return self._transfers


class FetchingStore:
    """A local store that gets what it lacks from other nodes, verifies it, and keeps it.

    What turns out to be rotten on the local disk is fetched as well, and put in the place of the wrong bytes.
    """

    def __init__(self, local: BlockStore, fetcher: Fetcher) -> None:
        self._local = local
        self._asks = local if isinstance(local, SupportsLacking) else None
        self._near = local if isinstance(local, SupportsPrefetch) else None
        self._fetcher = fetcher
        self._lock = threading.Lock()
        self._fetching: dict[bytes, threading.Event] = {}

    @property
    def local(self) -> BlockStore:
        """What is here, without the network."""
        return self._local

    @property
    def fetcher(self) -> Fetcher:
        """What asks the other nodes."""
        return self._fetcher

    def get(self, cid: Cid) -> Buffer:
        """The block, from here or from another node.

        Raises:
            NotFound: Nobody has it.
            Corrupt: It is rotten here, and nobody else has it.
            Unavailable: It is not here and no provider answers.
        """
        inline = inline_block(cid)
        if inline is not None:
            return inline
        try:
            return self._local.get(cid)
        except NotFound:
            self.prefetch([cid], root=cid)  # whoever reads block by block begins at a root
        except Corrupt as error:
            self._heal(cid, error)
        return self._local.get(cid)

    def prefetch(
        self, cids: Iterable[Cid], *, root: Cid | None = None, progress: OnProgress | None = None
    ) -> None:
        """Fetch those of ``cids`` that are not here, several at a time, and store them as they come.

        What came is kept when the rest does not: a fetch that is interrupted goes on from there the next time. While it
        goes on, other threads that want the same blocks wait for it in place of asking the network, too.

        Args:
            cids: What will be read soon, in this order.
            root: The DAG that they are part of, if known: providers are looked up by it, and announced for it.
            progress: Told after each block.

        Raises:
            NotFound: Nobody has one of them; the others were stored.
            Corrupt: As above, and somebody gave wrong bytes.
            Unavailable: As above, and somebody who might have it does not answer; or the disk is full.
        """
        wanted = list({cid.multihash: cid for cid in cids}.values())
        places = {cid: wanted[at // GROUP_BLOCKS * GROUP_BLOCKS].multihash for at, cid in enumerate(wanted)}
        missing = self.lacking(wanted)
        while missing:
            mine, others = self._claim(missing)
            try:
                # Another thread may have had its turn after the look above, and before this one's began.
                fetched = self.lacking(list(mine))
                if fetched:
                    self._fetch(fetched, [places[cid] for cid in fetched], root, progress)
            finally:
                self._release(mine)
            for other in others:
                other.wait()
            missing = self.lacking([cid for cid in missing if cid not in mine])
        if self._near is not None and len(wanted) > 1:  # one alone is about to be read anyway
            self._near.prefetch(wanted, root=root)

    def view(self, cids: Sequence[Cid]) -> memoryview | None:
        """The blocks as one piece of local memory, fetched first if need be."""
        if not isinstance(self._local, SupportsView):
            return None
        self.prefetch(cids)
        try:
            return self._local.view(cids)
        except Corrupt:
            for cid in cids:
                self.get(cid)  # which mends it
            return self._local.view(cids)

    def mapped(self, cids: Sequence[Cid]) -> list[Mapped] | None:
        """The blocks as memory, where all of them are on this node; nothing is fetched."""
        return self._local.mapped(cids) if isinstance(self._local, SupportsMap) else None

    def has(self, cid: Cid) -> bool:
        """Whether the block is here, on this node."""
        return inline_block(cid) is not None or self._local.has(cid)

    def put_many(self, blocks: Iterable[tuple[Cid, Payload]], *, resume: bytes | None = None) -> int:
        """Store blocks here."""
        return self._local.put_many(blocks, resume=resume)

    def replace_many(self, blocks: Iterable[tuple[Cid, Buffer]]) -> None:
        """Store blocks here, also in the place of wrong ones."""
        self._repairs().replace_many(blocks)

    def extent(self, cid: Cid) -> Extent | None:
        """Where the block lies on this node's disk, or None if it lies in no file or is not here."""
        return self._local.extent(cid) if isinstance(self._local, SupportsExtent) else None

    def multihashes(self) -> Iterator[bytes]:
        """The multihash of every block that is here."""
        return self._local.multihashes()

    def statistics(self) -> dict[str, int | dict[str, int]]:
        """What was fetched; see :meth:`Fetcher.statistics`."""
        return self._fetcher.statistics()

    def close(self) -> None:
        """Close the fetcher and the local store."""
        self._fetcher.close()
        self._local.close()

    def lacking(self, cids: Sequence[Cid]) -> list[Cid]:
        """Those that are not here, on this node, asked for at once where the store is another process."""
        if self._asks is None:
            return [cid for cid in cids if not self.has(cid)]
        return self._asks.lacking([cid for cid in cids if inline_block(cid) is None])

    def _claim(self, cids: list[Cid]) -> tuple[dict[Cid, None], set[threading.Event]]:
        """Those of the blocks that this thread is to fetch, and what tells that the others were tried for."""
        mine: dict[Cid, None] = {}
        others: set[threading.Event] = set()
        event = threading.Event()
        with self._lock:
            for cid in cids:
                if self._fetching.setdefault(cid.multihash, event) is event:
                    mine[cid] = None
                else:
                    others.add(self._fetching[cid.multihash])
        return mine, others

    def _release(self, cids: Iterable[Cid]) -> None:
        with self._lock:
            events = {self._fetching.pop(cid.multihash) for cid in cids}
        for event in events:
            event.set()

    def _fetch(
        self, cids: list[Cid], groups: list[bytes], root: Cid | None, progress: OnProgress | None
    ) -> None:
        # A single block is here, or not here, before anybody could hear of it.
        routing = self._fetcher.routing if len(cids) > 1 else None
        if routing is not None and root is not None:
            routing.began(root)
        try:
            with self._fetcher.download(cids, root=root, groups=groups, progress=progress) as download:
                commit_s = 0.0
                while not download.done:
                    first = download.take()
                    if first is not None:
                        batch = _Batch(download, first, commit_s)
                        self._local.put_many(batch)
                        commit_s = time.monotonic() - batch.ended
                download.raise_failures()
        finally:
            if routing is not None and root is not None:
                routing.ended(root)

    def _heal(self, cid: Cid, error: Corrupt) -> None:
        """Put the right bytes in the place of rotten ones.

        Raises:
            Corrupt: ``error``, with what the other nodes said.
        """
        try:
            (data,) = self._fetcher.fetch([cid], root=cid)
        except HoldfastError as refused:
            raise Corrupt(f"{error}; the other nodes were asked for it: {refused}") from error
        try:
            self._repairs().replace_many([(cid, data)])
        except Unsupported:
            raise error from None
        log.warning("%s; mended with the bytes of another node", error)

    def _repairs(self) -> SupportsRepair:
        if not isinstance(self._local, SupportsRepair):
            raise Unsupported("the store of this node can't replace blocks")
        return self._local


class _Batch:
    """The blocks of one commit: as they come, until there are enough, time is up, or waiting would be idle.

    Args:
        download: Where they come from.
        first: The first one, so that nothing is begun in the store before there is something to store.
        commit_s: How long the last commit took.
    """

    def __init__(self, download: Download, first: tuple[Cid, Buffer], commit_s: float) -> None:
        self.ended = 0.0
        self._download = download
        self._first = first
        self._patience_s = min(_COMMIT_S, (_COMMIT_SHARE - 1) * commit_s)

    def __iter__(self) -> Iterator[tuple[Cid, Buffer]]:
        began = time.monotonic()
        size = 0
        block: tuple[Cid, Buffer] | None = self._first
        while block is not None:
            size += len(block[1])
            yield block
            elapsed_s = time.monotonic() - began
            if size >= _COMMIT_BYTES or elapsed_s >= _COMMIT_S:
                break
            patience_s = max(_PAUSE_S, self._patience_s - elapsed_s)
            block = self._download.take(min(patience_s, _COMMIT_S - elapsed_s))
        self.ended = time.monotonic()
