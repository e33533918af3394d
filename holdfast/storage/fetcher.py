"""Blocks from other nodes, over the Trustless Gateway protocol, from several at once.

Every block is hashed before anybody sees it. A provider that sends wrong bytes is left alone for a while, one that is
slow or gone for a shorter while, and the block is asked for elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp

from holdfast.errors import Conflict, Corrupt, NotFound, Unavailable
from holdfast.loop_thread import LoopThread
from holdfast.storage.block_store import MAX_BLOCK_BYTES
from holdfast.telemetry import counter, get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from holdfast.storage.block_store import BlockStore
    from holdfast.storage.cid import Buffer, Cid

__all__ = ["Fetcher", "FetchingStore", "Provider"]

log = get_logger(__name__)

LIAR_PENALTY_S = 300.0
ABSENT_PENALTY_S = 2.0
_BATCH_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Provider:
    """A gateway that may have blocks.

    ``token`` is sent to it, so give one only to nodes of the own cluster.
    """

    url: str
    token: str | None = field(default=None, repr=False)


class Fetcher:
    """Gets blocks from providers.

    Args:
        providers: Called for each batch: who can be asked now, best first.
        timeout_s: Deadline of one request.
        concurrency: Requests in flight at most.

    It starts one thread with an event loop at the first fetch; :meth:`close` ends it.
    """

    def __init__(
        self, providers: Callable[[], Sequence[Provider]], *, timeout_s: float = 30.0, concurrency: int = 16
    ) -> None:
        self._providers = providers
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(5.0, timeout_s))
        self._concurrency = concurrency
        self._blocked_until: dict[str, float] = {}
        self._statistics: Counter[str] = Counter()
        self._bytes_by_provider: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._connections: _Connections | None = None
        self._forked_from: _Connections | None = None
        self._closed = False

    def fetch(self, cids: Sequence[Cid]) -> list[bytes]:
        """The blocks in the order of ``cids``, each verified.

        Raises:
            NotFound: Every provider answered that it has not got one of them, or there is no provider.
            Corrupt: The only providers that had one of them sent wrong bytes.
            Unavailable: A provider that might have it does not answer.
            Conflict: The fetcher is closed.
        """
        if not cids:
            return []
        connections = self._connected()
        return connections.thread.run(self._fetch_all(connections, cids))

    def statistics(self) -> dict[str, int | dict[str, int]]:
        """``blocks`` and ``bytes`` received and verified, ``wrong_blocks``, ``failures``, and ``bytes_by_provider``."""
        return {
            **{name: self._statistics[name] for name in ("blocks", "bytes", "wrong_blocks", "failures")},
            "bytes_by_provider": dict(self._bytes_by_provider),
        }

    def close(self) -> None:
        """Close connections and end the thread. Closing twice is fine."""
        with self._lock:
            self._closed = True
            connections, self._connections = self._connections, None
        if connections is not None:
            connections.thread.close()

    def _connected(self) -> _Connections:
        with self._lock:
            if self._closed:
                raise Conflict("the fetcher is closed")
            if self._connections is not None and self._connections.thread.process != os.getpid():
                # A fork inherits no thread. What it inherits must stay untouched: the parent works with it.
                self._forked_from, self._connections = self._connections, None
            if self._connections is None:
                self._connections = _Connections(self._timeout, self._concurrency)
                weakref.finalize(self, self._connections.thread.close)  # for those who forget to, or exit
            return self._connections

    async def _fetch_all(self, connections: _Connections, cids: Sequence[Cid]) -> list[bytes]:
        providers = self._providers()
        if not providers:
            raise NotFound(f"{cids[0]} is not in this store, and there is no other node to ask")

        async def one(index: int, cid: Cid) -> bytes:
            async with connections.gate:
                # Neighbours start at different providers, so several share the work.
                turn = index % len(providers)
                return await self._fetch_one(connections, cid, [*providers[turn:], *providers[:turn]])

        tasks = [asyncio.ensure_future(one(index, cid)) for index, cid in enumerate(cids)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _fetch_one(self, connections: _Connections, cid: Cid, providers: Sequence[Provider]) -> bytes:
        now = time.monotonic()
        # Those in disgrace are asked last, not never: they may be the only ones that have it.
        ranked = sorted(providers, key=lambda p: max(0.0, self._blocked_until.get(p.url, 0.0) - now))
        reasons: list[str] = []
        wrong = unreachable = False
        for provider in ranked:
            try:
                data = await _ask(connections.session, provider, cid)
            except NotFound as error:
                reasons.append(str(error))
            except Corrupt as error:
                wrong = True
                self._blame(provider, LIAR_PENALTY_S, "wrong_blocks", error)
                reasons.append(str(error))
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                unreachable = True
                self._blame(provider, ABSENT_PENALTY_S, "failures", error)
                reasons.append(f"{provider.url}: {str(error) or type(error).__name__}")
            else:
                self._statistics["blocks"] += 1
                self._statistics["bytes"] += len(data)
                self._bytes_by_provider[provider.url] += len(data)
                counter(
                    "holdfast_fetched_bytes_total", "Bytes of blocks received from other nodes and verified."
                ).inc(len(data))
                return data
        text = f"no node gave {cid}: " + "; ".join(reasons)
        if wrong:
            raise Corrupt(text)
        raise Unavailable(text) if unreachable else NotFound(text)

    def _blame(self, provider: Provider, penalty_s: float, what: str, error: BaseException) -> None:
        self._statistics[what] += 1
        self._blocked_until[provider.url] = time.monotonic() + penalty_s
        log.warning(
            "%s is asked last for %.0f s: %s", provider.url, penalty_s, str(error) or type(error).__name__
        )


class _Connections:
    """What lives in the fetcher's thread: the connections, and the bound on requests."""

    def __init__(self, timeout: aiohttp.ClientTimeout, concurrency: int) -> None:
        self.gate = asyncio.Semaphore(concurrency)
        self.thread = LoopThread("holdfast-fetch", at_end=self._end)
        self.session = self.thread.run(self._open_session(timeout, concurrency))

    async def _open_session(self, timeout: aiohttp.ClientTimeout, concurrency: int) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            timeout=timeout,
            connector=aiohttp.TCPConnector(limit=concurrency),
            auto_decompress=False,  # a block comes as it is; a small body can't become a large one
            headers={"Accept": "application/vnd.ipld.raw", "Accept-Encoding": "identity"},
        )

    async def _end(self) -> None:
        await self.session.close()


async def _ask(session: aiohttp.ClientSession, provider: Provider, cid: Cid) -> bytes:
    headers = {} if provider.token is None else {"Authorization": f"Bearer {provider.token}"}
    url = f"{provider.url.rstrip('/')}/ipfs/{cid}?format=raw"
    async with session.get(url, headers=headers, allow_redirects=False) as response:
        if response.status in (404, 410, 412):
            raise NotFound(f"{provider.url} does not have it")
        if response.status != 200:
            raise aiohttp.ClientError(f"HTTP status {response.status}")
        data = await _read_bounded(response)
    cid.check(data, source=provider.url)
    return data


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    """The body, read no further than a block may be long: a peer can't fill the memory."""
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > MAX_BLOCK_BYTES:
            raise Corrupt(f"{response.url.origin()} sends more than the {MAX_BLOCK_BYTES} bytes of a block")
        pieces.append(piece)
    return b"".join(pieces)


class FetchingStore:
    """A local store that gets what it lacks from other nodes, verifies it, and keeps it."""

    def __init__(self, local: BlockStore, fetcher: Fetcher) -> None:
        self._local = local
        self._fetcher = fetcher

    def get(self, cid: Cid) -> Buffer:
        """The block, from here or from another node.

        Raises:
            NotFound: Nobody has it.
            Unavailable: It is not here and no provider answers.
        """
        with suppress(NotFound):
            return self._local.get(cid)
        self.prefetch([cid])
        return self._local.get(cid)

    def prefetch(self, cids: Iterable[Cid], *, root: Cid | None = None) -> None:  # noqa: ARG002 -- to come
        """Fetch those of ``cids`` that are not here, several at a time, and store them."""
        missing = list(dict.fromkeys(cid for cid in cids if not self._local.has(cid)))
        step = max(1, _BATCH_BYTES // (1 << 20))
        for at in range(0, len(missing), step):
            batch = missing[at : at + step]
            self._local.put_many(zip(batch, self._fetcher.fetch(batch), strict=True))

    def view(self, cids: Sequence[Cid]) -> memoryview | None:
        """The blocks as one piece of local memory, fetched first if need be."""
        from holdfast.storage.block_store import SupportsView

        self.prefetch(cids)
        return self._local.view(cids) if isinstance(self._local, SupportsView) else None

    def has(self, cid: Cid) -> bool:
        """Whether the block is here, on this node."""
        return self._local.has(cid)

    def put_many(self, blocks: Iterable[tuple[Cid, Buffer]]) -> int:
        """Store blocks here."""
        return self._local.put_many(blocks)

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
