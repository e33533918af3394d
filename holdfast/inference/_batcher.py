"""Requests of one model, run together where they happen to arrive together or have to wait anyway.

Requests that arrive within one turn of the event loop, or while the engine is busy, queue up; as soon as the
engine is free, those that fit together go through it as one batch. There is no timer, so nobody waits for
company. The engine runs on a thread of its own, the bookkeeping on the event loop.

Handing work to a thread and back costs a fifth of a millisecond, which is longer than a tiny model takes. With
``inline_below_s`` a batch that will take less time than that runs on the event loop itself.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from holdfast.errors import HoldfastError, Unavailable
from holdfast.inference._tensors import rows_can_be_batched
from holdfast.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from holdfast.inference._tensors import Array, Engine

__all__ = ["Batcher", "BatcherStatistics"]

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatcherStatistics:
    """What one model's queue has done so far."""

    requests: int = 0
    """Answered requests, failed ones included."""
    failures: int = 0
    rows: int = 0
    batches: int = 0
    """Times that the engine was called with one or more requests together."""
    largest_batch_rows: int = 0
    queued: int = 0
    """Requests that wait at the moment."""


@dataclass(slots=True, eq=False)
class _Job:
    feeds: dict[str, Array]
    outputs: tuple[str, ...] | None
    rows: int
    answer: asyncio.Future[dict[str, Array]]


_Key = tuple[tuple[str, tuple[int, ...]], ...]
_Outcome = dict[str, "Array"] | Exception


def _elements(jobs: list[_Job]) -> int:
    return sum(array.size for job in jobs for array in job.feeds.values()) or 1


class Batcher:
    """The queue and the thread of one engine.

    Args:
        engine: Who computes; never called twice at the same time.
        name: Name of the model, for messages and the thread.
        max_batch_size: Rows that go through the engine together at most. A larger request runs alone.
        max_queue: Requests that may wait; more are refused.
        batching: ``False`` runs each request alone, for models whose rows influence each other.
        inline_below_s: Batches that take less than this, judging by those before, run on the event loop; 0
            keeps all of them away from it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        name: str,
        max_batch_size: int = 64,
        max_queue: int = 1024,
        batching: bool = True,
        inline_below_s: float = 0.0,
    ) -> None:
        self._engine = engine
        self._name = name
        self._max_rows = max_batch_size
        self._max_queue = max_queue
        self._batching = (
            batching and max_batch_size > 1 and rows_can_be_batched(engine.inputs, engine.outputs)
        )
        self._waiting: dict[_Key, deque[_Job]] = {}
        self._queued = 0
        self._inline_below_s = inline_below_s
        self._seconds_per_element = float("inf")
        self._busy = False
        self._scheduled = False
        self._closing = False
        self._statistics = BatcherStatistics()
        self._handoff: queue.SimpleQueue[list[_Job] | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopped: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Start the thread; call it on the event loop that will call :meth:`submit`."""
        self._loop = asyncio.get_running_loop()
        self._stopped = self._loop.create_future()
        # A daemon, so that a program which forgets aclose() can still end.
        self._thread = threading.Thread(target=self._work, name=f"holdfast-infer-{self._name}", daemon=True)
        self._thread.start()

    async def submit(
        self, inputs: Mapping[str, Array], outputs: tuple[str, ...] | None = None
    ) -> dict[str, Array]:
        """The model's outputs for these inputs.

        Raises:
            InvalidInput: The model refuses the inputs.
            Unavailable: The queue is full, or is being closed.
        """
        if self._loop is None or self._closing:
            raise Unavailable(f"the model {self._name!r} is not being served")
        feeds = self._engine.prepare(inputs)
        first = next(iter(feeds.values())).shape if feeds else ()
        job = _Job(feeds, outputs, first[0] if first else 1, self._loop.create_future())
        if self._queued >= self._max_queue:
            raise Unavailable(
                f"{self._queued} requests for {self._name!r} are waiting already: try again later"
            )
        key: _Key = tuple((name, array.shape[1:]) for name, array in feeds.items()) if self._batching else ()
        self._waiting.setdefault(key, deque()).append(job)
        self._queued += 1
        self._schedule()
        return await job.answer

    def statistics(self) -> BatcherStatistics:
        """Counts since the start."""
        return replace(self._statistics, queued=self._queued)

    async def aclose(self) -> None:
        """Answer what was accepted, then end the thread."""
        if self._thread is None or self._stopped is None:
            self._closing = True
            return
        if not self._closing:
            self._closing = True
            self._schedule()
        # Shielded: cancelling one caller must not cancel the signal for another.
        await asyncio.shield(self._stopped)
        self._thread.join()

    def _next_batch(self) -> list[_Job]:
        """Waiting requests that fit together; different kinds take turns."""
        jobs: list[_Job] = []
        rows = 0
        while self._waiting and not jobs:
            key = next(iter(self._waiting))
            group = self._waiting.pop(key)
            while group and (not jobs or (self._batching and rows + group[0].rows <= self._max_rows)):
                job = group.popleft()
                self._queued -= 1
                if not job.answer.done():  # else nobody waits for it any more
                    jobs.append(job)
                    rows += job.rows
            if group:
                self._waiting[key] = group
        return jobs

    def _schedule(self) -> None:
        """Look at the queue in the next turn of the loop, when all requests of this one have arrived."""
        if self._loop is not None and not self._busy and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """The engine is free: give it what waits."""
        self._scheduled = False
        jobs = self._next_batch()
        if not jobs:
            if self._closing:
                self._busy = True  # for good
                self._handoff.put(None)
        elif self._seconds_per_element * _elements(jobs) < self._inline_below_s:
            self._deliver(jobs, self._run(jobs))
            if self._queued or self._closing:
                self._schedule()
        else:
            self._busy = True
            self._handoff.put(jobs)

    def _finish(self, jobs: list[_Job], outcomes: list[_Outcome]) -> None:
        """The thread is done with a batch: keep it busy, then hand out the answers."""
        self._busy = False
        self._dispatch()
        self._deliver(jobs, outcomes)

    def _deliver(self, jobs: list[_Job], outcomes: list[_Outcome]) -> None:
        before = self._statistics
        rows = sum(job.rows for job in jobs)
        self._statistics = BatcherStatistics(
            requests=before.requests + len(jobs),
            failures=before.failures + sum(isinstance(outcome, Exception) for outcome in outcomes),
            rows=before.rows + rows,
            batches=before.batches + 1,
            largest_batch_rows=max(before.largest_batch_rows, rows),
        )
        for job, outcome in zip(jobs, outcomes, strict=True):
            if job.answer.done():
                continue
            if isinstance(outcome, Exception):
                job.answer.set_exception(outcome)
            else:
                job.answer.set_result(outcome)

    def _work(self) -> None:
        """The thread."""
        loop, stopped = self._loop, self._stopped
        if loop is None or stopped is None:
            return
        try:
            while (jobs := self._handoff.get()) is not None:
                loop.call_soon_threadsafe(self._finish, jobs, self._run(jobs))
            loop.call_soon_threadsafe(stopped.set_result, None)
        except RuntimeError:
            _log.warning("the event loop of %r was closed before its server", self._name)

    def _run(self, jobs: list[_Job]) -> list[_Outcome]:
        started = perf_counter()
        outcomes = self._computed(jobs)
        seconds = (perf_counter() - started) / _elements(jobs)
        # A slow run counts at once and is forgotten slowly, so that no long one slips onto the event loop.
        before = self._seconds_per_element
        self._seconds_per_element = seconds if before == float("inf") else max(seconds, 0.9 * before)
        return outcomes

    def _computed(self, jobs: list[_Job]) -> list[_Outcome]:
        if len(jobs) > 1:
            try:
                return self._together(jobs)
            except HoldfastError:
                # One of them is to blame: each gets its own answer or its own error.
                _log.debug("a batch of %d requests for %r failed", len(jobs), self._name)
            except Exception:  # noqa: BLE001 - logged here, and each request is tried again below
                _log.exception("a batch of %d requests for %r failed", len(jobs), self._name)
        return [self._alone(job) for job in jobs]

    def _together(self, jobs: list[_Job]) -> list[_Outcome]:
        feeds = {name: np.concatenate([job.feeds[name] for job in jobs]) for name in jobs[0].feeds}
        wanted = jobs[0].outputs if len({job.outputs for job in jobs}) == 1 else None
        outputs = self._engine.predict(feeds, outputs=wanted).outputs
        rows = sum(job.rows for job in jobs)
        if any(output.shape[:1] != (rows,) for output in outputs.values()):
            _log.warning(
                "outputs of %r have no row per input row: its requests run one by one from now on", self._name
            )
            self._batching = False
            return [self._alone(job) for job in jobs]
        answers: list[_Outcome] = []
        start = 0
        for job in jobs:
            names = job.outputs or outputs
            answers.append({name: outputs[name][start : start + job.rows] for name in names})
            start += job.rows
        return answers

    def _alone(self, job: _Job) -> _Outcome:
        try:
            return self._engine.predict(job.feeds, outputs=job.outputs).outputs
        except Exception as error:  # noqa: BLE001 - it belongs to this request, not to the thread
            return error
