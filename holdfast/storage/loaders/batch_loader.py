"""The loader: batches of one worker's share of a dataset, in an order that no number of workers changes."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from holdfast.errors import InvalidInput
from holdfast.storage.loaders.pipeline.batch_stream import Batch, BatchStream, Progress, Span
from holdfast.storage.loaders.pipeline.counters import LoaderCounters
from holdfast.storage.loaders.pipeline.engine import Engine
from holdfast.storage.loaders.pipeline.gathering import Columns
from holdfast.storage.loaders.pipeline.group_source import DatasetGroups
from holdfast.storage.loaders.pipeline.order import EpochOrder
from holdfast.storage.loaders.pipeline.schedule import Limits, Schedule
from holdfast.storage.loaders.state import REMAINDERS, LoaderState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import pyarrow as pa

    from holdfast.storage.datasets.dataset import Dataset
    from holdfast.storage.loaders.pipeline.gathering import Chunk

    Arrays: TypeAlias = dict[str, np.ndarray[Any, Any]]

__all__ = ["BatchLoader", "Remainder"]

Remainder: TypeAlias = Literal["keep", "drop", "pad"]


class BatchLoader:
    """Streams one worker's share of an epoch as batches: each a dict from column to an array with rows first.

    The order of the rows depends on the dataset, the seed and the epoch only. Position ``i`` of it belongs to worker
    ``i mod world_size``. Each iteration is a pass of its own, which reads ahead in threads; close it, or drop it, to stop early.
    Arrays may be parts of verified memory of the store: they are not to be written to.

    Args:
        dataset: What to read.
        split: Which part of it; None for its only split, or ``train``.
        batch_size: Rows of a batch of this worker.
        shuffle: Mix the rows anew every epoch; else they come as they are stored.
        seed: Decides the order together with the epoch.
        epoch: Number of the pass, from 0.
        rank: This worker.
        world_size: How many workers share the epoch.
        remainder: What becomes of rows that do not fill a batch on every worker. ``keep``: every row exactly once; last
            batches are shorter, and a worker may have one less. ``drop``: leave them out. ``pad``: add the epoch's first rows
            again, so that all workers have equally many whole batches.
        columns: Which ones to read, in this order; None for all.
        transform: Called with each batch, in a thread that reads ahead; what it returns takes the batch's place. With more
            than one thread, calls overlap.
        prefetch: Batches that are made, and fetched from other nodes, before they are asked for, at least.
        memory_bytes: What a pass may hold in memory.
        disk_bytes: How much may be fetched from other nodes before it is read.
        threads: How many threads hash, decode and gather.
        with_positions: Give each batch as a :class:`~holdfast.storage.loaders.pipeline.batch_stream.Batch`, a dict that also says
            which rows it has.

    Raises:
        InvalidInput: An option is impossible, there is no such column, or the memory is too small for the dataset's row
            groups; the message says what is needed.
        NotFound: The dataset has no such split.

    Example::

        with BatchLoader(dataset, batch_size=256, shuffle=True, rank=rank, world_size=world_size) as loader:
            for epoch in range(loader.epoch, epochs):
                loader.set_epoch(epoch)
                for batch in loader:
                    train(batch)
                    checkpoint["loader"] = loader.state_dict()
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str | None = None,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        remainder: Remainder = "keep",
        columns: Sequence[str] | None = None,
        transform: Callable[[Arrays], Any] | None = None,
        prefetch: int = 2,
        memory_bytes: int = 512 << 20,
        disk_bytes: int = 256 << 20,
        threads: int = 2,
        with_positions: bool = False,
    ) -> None:
        if batch_size < 1 or world_size < 1 or not 0 <= rank < world_size:
            raise InvalidInput(f"batch_size={batch_size}, rank={rank}, world_size={world_size} can't be")
        if prefetch < 0 or threads < 1 or memory_bytes < 1 or disk_bytes < 1:
            raise InvalidInput(
                f"prefetch={prefetch}, threads={threads}, memory_bytes={memory_bytes}, disk_bytes={disk_bytes} can't be"
            )
        if remainder not in REMAINDERS:
            raise InvalidInput(f"remainder is 'keep', 'drop' or 'pad', not {remainder!r}")
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.counters = LoaderCounters()
        self._source = DatasetGroups(dataset, split, columns)
        self._transform = transform
        self._with_positions = with_positions
        self._limits = Limits(
            memory_bytes=memory_bytes, disk_bytes=disk_bytes, prefetch=prefetch, threads=threads
        )
        self._shuffle = shuffle
        self._seed = seed
        self._epoch = epoch
        self._remainder: str = remainder
        self._start = 0
        self._progress = Progress(0)
        self._lock = threading.Lock()
        self._order: EpochOrder | None = None
        self._streams: weakref.WeakSet[BatchStream[Any]] = weakref.WeakSet()
        self._schedule(as_arrow=False)  # says now, not at the first batch, what can't be

    @property
    def dataset(self) -> Dataset:
        """What is read."""
        return self._source.dataset

    @property
    def split(self) -> str:
        """Which part of it."""
        return self._source.split

    @property
    def epoch(self) -> int:
        """The epoch of the next pass, or of the one that goes on."""
        return self._epoch

    @property
    def order(self) -> EpochOrder:
        """The global order of this epoch."""
        if self._order is None:
            self._order = EpochOrder(
                self._source.shards, seed=self._seed, epoch=self._epoch, shuffle=self._shuffle
            )
        return self._order

    def __len__(self) -> int:
        """How many batches the next iteration gives, from where it begins."""
        span = self._span()
        rows = max(0, span.stop - span.first + self.world_size - 1) // self.world_size
        return (rows + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> BatchStream[Any]:
        """Begin a pass: at the epoch's first row, or once where a loaded state stands.

        Raises:
            InvalidInput: A numeric column has missing values.
        """
        self._source.check_complete()
        schedule, span, columns = self._schedule(as_arrow=False)
        transform, with_positions = self._transform, self._with_positions

        def batch(chunk: Chunk, begin: int, end: int) -> Any:
            arrays = columns.batch(chunk, begin, end)
            return Batch(arrays, span, begin, end) if with_positions else arrays

        def finished(chunk: Chunk) -> Any:
            return transform(batch(chunk, chunk.begin, chunk.end)) if transform is not None else chunk

        if transform is None:
            return self._stream(schedule, span, columns, cut=batch)
        return self._stream(schedule, span, columns, cut=lambda made, _begin, _end: made, finish=finished)

    def record_batches(self) -> BatchStream[pa.RecordBatch]:
        """The same rows in the same batches, as Arrow record batches with all their types; no transform is applied."""
        schedule, span, columns = self._schedule(as_arrow=True)
        return self._stream(schedule, span, columns, cut=columns.record_batch)

    def set_epoch(self, epoch: int) -> None:
        """The next pass is this epoch, from its beginning; a loaded position stays if it is of this epoch.

        Raises:
            InvalidInput: The number is negative.
        """
        if epoch < 0:
            raise InvalidInput(f"epoch={epoch} can't be negative")
        with self._lock:
            if epoch != self._epoch:
                self._epoch, self._order = epoch, None
                self._start, self._progress = 0, Progress(0)

    def state_dict(self) -> dict[str, Any]:
        """Plain values that say where the pass is: behind the last batch that was received, whatever was read ahead."""
        with self._lock:
            return LoaderState(
                dataset=str(self.dataset.cid),
                split=self.split,
                seed=self._seed,
                epoch=self._epoch,
                position=self._progress.position,
                shuffle=self._shuffle,
                remainder=self._remainder,
            ).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next pass begin where ``state`` was saved; seed, epoch, order and remainder become the state's.

        Raises:
            InvalidInput: It was saved over another dataset or split, or is no loader's state.
        """
        loaded = LoaderState.from_dict(state)
        loaded.check(dataset=self.dataset.cid, split=self.split, rows=self.order.rows)
        with self._lock:
            self._seed, self._epoch, self._shuffle = loaded.seed, loaded.epoch, loaded.shuffle
            self._remainder = loaded.remainder
            self._order = None
            self._start = loaded.position
            self._progress = Progress(loaded.position)

    def close(self) -> None:
        """Stop all passes and their threads. Closing twice is fine; a new iteration may begin afterwards."""
        for stream in list(self._streams):
            stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --------------------------------------------------------------------------------------------------------

    def _span(self) -> Span:
        order, world = self.order, self.world_size
        step = world * self.batch_size
        left = max(0, order.rows - self._start)
        stop = {
            "keep": order.rows,
            "drop": self._start + left // step * step,
            "pad": self._start - (-left // step * step),
        }[self._remainder]
        start = min(self._start, stop)
        return Span(
            order=order,
            first=start + (self.rank - start) % world,
            world_size=world,
            start=start,
            stop=stop,
            over=max(stop, order.rows),
        )

    def _schedule(self, *, as_arrow: bool) -> tuple[Schedule, Span, Columns]:
        span = self._span()
        schedule = Schedule(
            span.order,
            span.order.shares(self.rank, self.world_size, span.start, span.stop),
            self._source.groups,
            batch_size=self.batch_size,
            limits=self._limits,
            by_batch=self._transform is not None and not as_arrow,
        )
        return (
            schedule,
            span,
            Columns(self._source.schema, as_arrow=as_arrow, spare_bytes=schedule.spare_bytes),
        )

    def _stream(
        self,
        schedule: Schedule,
        span: Span,
        columns: Columns,
        *,
        cut: Callable[[Any, int, int], Any],
        finish: Callable[[Chunk], Any] | None = None,
    ) -> BatchStream[Any]:
        engine = Engine(
            schedule, columns, self._source, limits=self._limits, counters=self.counters, finish=finish
        )
        with self._lock:
            self._progress = Progress(self._start)
            self._start = 0
            stream = BatchStream(
                engine, schedule, span, cut=cut, progress=self._progress, counters=self.counters
            )
            self._streams.add(stream)
        return stream
