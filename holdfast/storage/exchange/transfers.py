"""The requests of a fetcher to all of its providers, for all of its downloads.

One thread for each request in flight. All state is under one lock, and decisions are made where something changes: a block
came, a request failed, a caller took a block. Which block is asked of whom is for :mod:`~holdfast.storage.exchange.download` to say.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from holdfast.errors import Corrupt, HoldfastError, NotFound, Unavailable
from holdfast.storage.exchange.block_client import BufferPool, Provider
from holdfast.storage.exchange.peers import Peer
from holdfast.telemetry import counter, get_logger

if TYPE_CHECKING:
    from holdfast.storage.cid import Buffer
    from holdfast.storage.exchange.download import Download, Job

__all__ = ["Statistics", "Transfers"]

log = get_logger(__name__)

_IDLE_S = 10.0
_JOIN_S = 8.0  # longer than a thread can hang in connecting


@dataclass(slots=True)
class Statistics:
    """What a fetcher received."""

    counts: Counter[str] = field(default_factory=Counter)
    bytes_by_provider: Counter[str] = field(default_factory=Counter)


class Transfers:
    """The requests of one fetcher, in this process.

    Args:
        timeout_s: Deadline of one request.
        concurrency: Requests in flight at most, over all downloads.
        window_bytes: How many bytes one download holds at most before they are taken, about.
        statistics: Filled in as blocks arrive.
    """

    def __init__(
        self, *, timeout_s: float, concurrency: int, window_bytes: int, statistics: Statistics
    ) -> None:
        self.process = os.getpid()
        self.timeout_s = timeout_s
        self.window_bytes = window_bytes
        self.statistics = statistics
        self.buffers = BufferPool(window_bytes)
        self.lock = threading.Lock()
        self.closed = False
        self.mean_s: float | None = None
        self._concurrency = concurrency
        self._peers: dict[Provider, Peer] = {}
        self._downloads: deque[Download] = deque()
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._jobs: set[Job] = set()
        self._threads: set[threading.Thread] = set()

    def add(self, download: Download) -> None:
        """Begin a download."""
        with self.lock:
            self._downloads.append(download)

    def drop(self, download: Download) -> None:
        """End a download; what is in flight for it is broken off."""
        with self.lock:
            if download in self._downloads:
                self._downloads.remove(download)
            for job in [job for job in self._jobs if job.download is download]:
                job.cancel()
            self.schedule()

    def peer(self, provider: Provider) -> Peer:
        """What is known of a provider; with the lock held."""
        key = Provider(provider.url.rstrip("/"), provider.token)
        if key not in self._peers:
            self._peers[key] = Peer(key, self._concurrency)
        return self._peers[key]

    def schedule(self) -> None:
        """Send every request that may be sent now; with the lock held. The downloads take turns."""
        passed = 0
        while passed < len(self._downloads) and len(self._jobs) < self._concurrency and not self.closed:
            download = self._downloads[0]
            self._downloads.rotate(-1)
            job = download.next_job()
            if job is None:
                passed += 1
                continue
            passed = 0
            self.submit(job)

    def submit(self, job: Job) -> bool:
        """Send one request, if one more may be sent; with the lock held."""
        if len(self._jobs) >= self._concurrency:
            return False
        job.download.asked(job)
        job.peer.begin()
        self._jobs.add(job)
        if len(self._jobs) > len(self._threads):
            thread = threading.Thread(target=self._work, name="holdfast-fetch", daemon=True)
            self._threads.add(thread)
            thread.start()
        self._queue.put(job)
        return True

    def close(self) -> None:
        """Break off everything, and end the threads. Closing twice is fine."""
        if self.process != os.getpid():
            return  # a fork inherits no thread, and must not touch the connections of its parent
        with self.lock:
            self.closed = True
            for job in self._jobs:
                job.cancel()
            threads = list(self._threads)
            for _ in threads:
                self._queue.put(None)
            for download in self._downloads:
                download.changed.notify_all()
        for thread in threads:
            if thread is not threading.current_thread():  # the garbage collector calls from anywhere
                thread.join(_JOIN_S)
        with self.lock:
            self._let_go()

    def _let_go(self) -> None:
        for peer in self._peers.values():
            peer.close_idle()
        self.buffers.clear()

    def _work(self) -> None:
        while True:
            try:
                job = self._queue.get(timeout=_IDLE_S)
            except Empty:
                job = None
                with self.lock:
                    if not self._queue.empty():
                        continue
                    self._threads.discard(threading.current_thread())
                    if not self._threads:
                        self._let_go()
                    return
            if job is None:
                with self.lock:
                    self._threads.discard(threading.current_thread())
                return
            self._do(job)
            del job  # an idle thread keeps no download alive

    def _do(self, job: Job) -> None:
        outcome: Buffer | HoldfastError
        connection = None
        try:
            with self.lock:
                if not job.cancelled:
                    connection = job.connection = job.peer.connection()
                    job.started = time.monotonic()
            if connection is None:
                outcome = Unavailable("broken off")
            else:
                outcome = connection.get(job.block.cid, timeout_s=self.timeout_s, buffers=self.buffers)
        except HoldfastError as error:
            outcome = error
        except Exception as error:  # a thread must not end silently, whatever a provider made it meet
            log.exception("asking %s for %s failed", job.peer.provider.url, job.block.cid)
            outcome = Unavailable(f"{job.peer.provider.url}: {error!r}")
        duration_s = time.monotonic() - job.started
        with self.lock:
            self._jobs.discard(job)
            job.peer.in_flight -= 1
            job.download.ended(job)
            if connection is not None:
                if job.cancelled or self.closed:
                    connection.close()
                else:
                    job.peer.keep(connection)
            if not job.cancelled:
                self._finish(job, outcome, duration_s)
            elif not isinstance(outcome, HoldfastError):
                self.buffers.give(outcome)
            self.schedule()

    def _finish(self, job: Job, outcome: Buffer | HoldfastError, duration_s: float) -> None:
        block, peer = job.block, job.peer
        if not isinstance(outcome, HoldfastError):
            peer.gave(len(outcome), duration_s)
            self.mean_s = duration_s if self.mean_s is None else 0.9 * self.mean_s + 0.1 * duration_s
            self._count(peer, len(outcome))
            for other in list(block.jobs):
                if other.started < job.started and not other.early and other.peer.stalled(other.started):
                    self._blame(other.peer, "failures", Unavailable(f"another node gave {block.cid} sooner"))
                other.cancel()
            job.download.arrived(job, outcome)
            return
        if isinstance(outcome, NotFound):
            peer.answered()
        elif isinstance(outcome, Corrupt):
            block.wrong = True
            self._blame(peer, "wrong_blocks", outcome)
        else:
            block.unreachable = True
            self._blame(peer, "failures", outcome)
        job.download.refused(job, outcome)

    def _count(self, peer: Peer, size: int) -> None:
        self.statistics.counts["blocks"] += 1
        self.statistics.counts["bytes"] += size
        self.statistics.bytes_by_provider[peer.provider.url] += size
        counter(
            "holdfast_fetched_bytes_total", "Bytes of blocks received from other nodes and verified."
        ).inc(size)

    def _blame(self, peer: Peer, what: str, error: HoldfastError) -> None:
        self.statistics.counts[what] += 1
        penalty_s = peer.blame(lied=what == "wrong_blocks")
        log.warning("%s is asked last for %.0f s: %s", peer.provider.url, penalty_s, error)
