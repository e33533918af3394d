"""One pass: the iterator that hands out batches, and what it knows of them."""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.storage.loaders.pipeline.counters import LoaderCounters
    from holdfast.storage.loaders.pipeline.engine import Engine
    from holdfast.storage.loaders.pipeline.gathering import Chunk
    from holdfast.storage.loaders.pipeline.order import EpochOrder, Integers
    from holdfast.storage.loaders.pipeline.schedule import Schedule

__all__ = ["Batch", "BatchStream", "Progress", "Span"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Which positions of an epoch a worker goes through in a pass: every ``world_size``-th from ``first``."""

    order: EpochOrder
    first: int
    world_size: int
    start: int
    """Where the pass of all workers begins."""
    stop: int
    """Where it ends; behind the last row if it is padded."""
    over: int
    """The position of a pass that is done."""

    def positions(self, begin: int, end: int) -> Integers:
        """The positions of the worker's rows from ``begin`` to ``end`` (exclusive); padded ones count on behind the last row."""
        return self.first + self.world_size * np.arange(begin, end, dtype=np.int64)

    @property
    def real_rows(self) -> int:
        """How many of the worker's rows come for the first time; the ones behind them are padding."""
        return max(0, -((self.first - self.order.rows) // self.world_size))


class Batch(dict[str, np.ndarray[Any, Any]]):
    """A batch that knows its rows."""

    __slots__ = ("_begin", "_end", "_span")

    def __init__(self, columns: dict[str, np.ndarray[Any, Any]], span: Span, begin: int, end: int) -> None:
        super().__init__(columns)
        self._span, self._begin, self._end = span, begin, end

    @property
    def positions(self) -> Integers:
        """Where each row stands in the global order of the epoch; padded rows count on behind the last one."""
        return self._span.positions(self._begin, self._end)

    @property
    def rows(self) -> Integers:
        """The number of each row in the split as it is stored."""
        return self._span.order.rows_at(self.positions % self._span.order.rows)


@dataclass(slots=True)
class Progress:
    """How far the consumer is, in rows of all workers."""

    position: int


class BatchStream(Generic[T]):
    """An iterator over the batches of one pass; for one thread at a time.

    It ends its threads when it is done, closed, or dropped.
    """

    def __init__(
        self,
        engine: Engine,
        schedule: Schedule,
        span: Span,
        *,
        cut: Callable[[Any, int, int], T],
        progress: Progress,
        counters: LoaderCounters,
    ) -> None:
        self._engine = engine
        self._span = span
        self._cut = cut
        self._progress = progress
        self._counters = counters
        self._edges: list[int] = schedule.edges.tolist()
        self._batch_size = schedule.batch_size
        self._rows = schedule.shares.rows
        self._start, self._stop_at, self._world_size = span.start, span.stop, span.world_size
        self._real_rows = span.real_rows
        self._number = 0
        self._chunk: Chunk | Any = None
        self._chunk_end = 0
        self._at = 0
        self._failure: BaseException | None = None
        self._marked_s: float | None = None
        self._stop = weakref.finalize(self, engine.stop)
        engine.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        begin = self._at
        if begin >= self._chunk_end:
            self._next_chunk()
        end = min(begin + self._batch_size, self._chunk_end)
        batch = self._cut(self._chunk, begin, end)
        self._at = end
        position = self._start + (begin + self._batch_size) * self._world_size
        self._progress.position = min(self._stop_at, position)
        padded = end - max(begin, self._real_rows) if end > self._real_rows else 0
        self._counters.received(end - begin, padded)
        return batch

    def close(self) -> None:
        """End the pass and its threads. Closing twice is fine."""
        self._mark()
        self._chunk = None
        self._chunk_end = self._at = self._rows
        self._edges = self._edges[: self._number + 1]
        self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next_chunk(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._number + 1 >= len(self._edges):
            if self._at >= self._rows and self._stop.alive:
                self._progress.position = self._span.over
            self.close()
            raise StopIteration
        self._mark()
        self._chunk = None  # so that its memory can be used for the next ones
        began = time.perf_counter()
        try:
            self._chunk = self._engine.take(self._number)
        except StopIteration as error:  # raised on from here, it would say that the rows are over
            self._failure = RuntimeError(
                f"transform or tokenize raised StopIteration in batch {self._number} of this pass: a next() in it has nothing "
                "left to give"
            )
            self._stop()
            raise self._failure from error
        except Exception as error:
            self._failure = error
            self._stop()
            raise
        finally:
            self._counters.add(wait_s=time.perf_counter() - began)
        self._number += 1
        self._chunk_end = self._edges[self._number]

    def _mark(self) -> None:
        """Add to the elapsed time what passed since the last time."""
        now = time.perf_counter()
        if self._marked_s is not None:
            self._counters.add(elapsed_s=now - self._marked_s)
        self._marked_s = now if self._number + 1 < len(self._edges) else None
