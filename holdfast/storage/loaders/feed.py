"""What all the loaders' doors share: passes over one worker's share, with their steps, their state and their counters."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from holdfast.errors import InvalidInput
from holdfast.storage.loaders.batch_loader import BatchLoader
from holdfast.storage.loaders.batch_steps import BatchOptions, BatchSteps
from holdfast.storage.loaders.feed_counters import FeedCounters, PassCounting
from holdfast.storage.loaders.feed_work import ROWS_AT_ONCE, Finish, Share, Work, first_position
from holdfast.storage.loaders.place import DatasetPlace, worker_place
from holdfast.storage.loaders.state import LoaderState
from holdfast.whole_numbers import whole_number

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from holdfast.storage.datasets.dataset import Dataset
    from holdfast.storage.loaders.batch_loader import Remainder

__all__ = ["Feed", "FeedOptions"]

_SKIP = "batches_of_others"
"""In a state: how many of the next batches belong to other processes that share the pass."""
_LEAST = {"batch_size": 1, "seed": 0, "prefetch": 0, "memory_bytes": 1, "disk_bytes": 1, "threads": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedOptions:
    """What a pass is like. The names are those of :class:`BatchLoader`; ``batch_size`` None gives single rows.

    Raises:
        InvalidInput: What should be a whole number is none, or too small.
    """

    split: str | None = None
    batch_size: int | None = 32
    shuffle: bool = False
    seed: int = 0
    remainder: Remainder = "keep"
    columns: tuple[str, ...] | None = None
    prefetch: int = 2
    memory_bytes: int = 512 << 20
    disk_bytes: int = 256 << 20
    threads: int = 2
    steps: BatchOptions = field(default_factory=BatchOptions)

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if name != "batch_size" or value is not None:
                object.__setattr__(self, name, whole_number(name, value, least=least))


class Feed:
    """Passes over one worker's share of a dataset, as NumPy batches on which all steps are done.

    A worker's batches may be dealt out to several processes: part ``p`` of ``n`` gets batches ``p, p + n, ...``, so that taking one
    from each in turn gives the order of the whole. Every such process reads all of the worker's row groups; the steps are
    done for its own batches only.

    Args:
        place: The dataset, here or in another process.
        options: What a pass is like.
        rank: This worker; None asks torch or Ray at each pass.
        world_size: How many workers share the rows.
        epoch: The first pass.
    """

    def __init__(
        self,
        place: DatasetPlace,
        options: FeedOptions,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        epoch: int = 0,
    ) -> None:
        if rank is not None or world_size is not None:
            worker_place(rank, world_size)
        self.place = place
        self.options = options
        self.epoch = whole_number("epoch", epoch, least=0)
        self.counters = FeedCounters()
        self._rank, self._world_size = rank, world_size
        self._resume: tuple[LoaderState, int | None] | None = None
        self._now: _Reached | None = None

    @property
    def given_worker(self) -> tuple[int | None, int | None]:
        """The rank and the number of workers as they were given."""
        return self._rank, self._world_size

    @property
    def resume_state(self) -> dict[str, Any] | None:
        """The loaded state that the next pass begins at, if there is one."""
        return self.state_dict() if self._resume is not None and self._now is None else None

    def worker(self) -> tuple[int, int]:
        """The rank and the number of workers, as given or as they are known now."""
        return worker_place(self._rank, self._world_size)

    @property
    def split(self) -> str:
        """The part that is read."""
        split = self.options.split
        return self.place.opened().default_split() if split is None else split

    def check(self) -> None:
        """Refuse options that don't fit the dataset, before a pass does.

        Raises:
            NotFound: The dataset has no such split.
            InvalidInput: It has no such column, or an option is impossible.
            Unsupported: There are images to decode, and Pillow is not installed.
        """
        dataset, options = self.place.opened(), self.options
        self._engine(dataset, self._beginning(), Share(*self.worker(), 0, 1), options.threads, None).close()
        BatchSteps(options.steps, dataset, options.columns).close()

    # --------------------------------------------------------------------------------------------- state

    def set_epoch(self, epoch: int) -> None:
        """The next pass is this one, from its beginning; a loaded position stays if it is of this epoch.

        Raises:
            InvalidInput: The epoch is no whole number from 0.
        """
        self.epoch = whole_number("epoch", epoch, least=0)
        self._now = None
        if self._resume is not None and self._resume[0].epoch != epoch:
            self._resume = None

    def state_dict(self) -> dict[str, Any]:
        """Plain values that say where the pass is: behind what was given last."""
        if self._now is not None:
            skip = self._now.skip
            values = {**self._now.began.to_dict(), "position": self._now.position}
        else:
            state, skip = self._resume or (self._beginning(), None)
            values = state.to_dict()
        return {**values, _SKIP: skip} if skip else values

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next pass begin where ``state`` was saved; seed, epoch, order and remainder become the state's.

        Raises:
            InvalidInput: It was saved over another dataset or split, or is no loader's state.
        """
        loaded = LoaderState.from_dict(state)
        dataset = self.place.opened()
        loaded.check(dataset=dataset.cid, split=self.split, rows=dataset.rows_in(self.split))
        skip = state.get(_SKIP)
        if skip is not None and (not isinstance(skip, int) or skip < 0):
            raise InvalidInput(f"a loader's state has no {_SKIP} like {skip!r}")
        self._resume, self._now = (loaded, skip), None
        self.epoch = loaded.epoch
        self.options = replace(
            self.options,
            seed=loaded.seed,
            shuffle=loaded.shuffle,
            remainder=cast("Remainder", loaded.remainder),
        )

    @property
    def finished(self) -> bool:
        """Whether the next pass would begin at the end of its epoch."""
        return self._resume is not None and self._left(self._resume[0].position) == 0

    def _beginning(self) -> LoaderState:
        dataset, options = self.place.opened(), self.options
        return LoaderState(
            dataset=str(dataset.cid),
            split=self.split,
            seed=options.seed,
            epoch=self.epoch,
            position=0,
            shuffle=options.shuffle,
            remainder=options.remainder,
        )

    # --------------------------------------------------------------------------------------------- length

    def __len__(self) -> int:
        """How many batches (or rows) of this worker the next pass has."""
        return self._left(0 if self._resume is None else self._resume[0].position)

    @property
    def coming(self) -> int:
        """How many come next: what is left of the epoch, or all of the following one if nothing is."""
        return self._left(0) if self.finished else len(self)

    def _left(self, position: int) -> int:
        rank, world_size = self.worker()
        rows = self.place.opened().rows_in(self.split)
        size = self.options.batch_size or 1
        if self.options.remainder == "drop":
            return max(0, rows - position) // (world_size * size)
        if self.options.remainder == "pad":
            return math.ceil(max(0, rows - position) / (world_size * size))
        mine = math.ceil(max(0, rows - first_position(position, rank, world_size)) / world_size)
        return math.ceil(mine / size)

    # --------------------------------------------------------------------------------------------- passes

    def begin(self, finish: Finish = dict, *, part: int = 0, parts: int = 1) -> Generator[Any, None, None]:
        """Begin a pass: at the epoch's first row, or once where a loaded state stands.

        Args:
            finish: Called with each batch after all other steps; what it gives is given, and None is left out.
            part: Which of the processes that share this worker's batches this is.
            parts: How many they are.
        """
        state, loaded_skip = self._resume or (self._beginning(), None)
        self._resume = None
        skip = part if loaded_skip is None else loaded_skip
        self._now = reached = _Reached(state, state.position, skip)
        rank, world_size = self.worker()
        return self._pass(state, Share(rank, world_size, skip, parts), finish, reached)

    def _pass(
        self, state: LoaderState, share: Share, finish: Finish, reached: _Reached
    ) -> Generator[Any, None, None]:
        options, dataset = self.options, self.place.opened()
        rows, left = dataset.rows_in(self.split), self._left(state.position)
        threads = max(1, options.threads // share.parts)
        steps = BatchSteps(options.steps, dataset, options.columns, threads=threads)
        work = Work(steps, finish, share, state, options.batch_size, rows, left)
        # Otherwise there is nothing to do that is worth a thread.
        ahead = bool(steps) or options.batch_size is None
        engine = self._engine(dataset, state, share, threads, work if ahead else None)
        self.counters.attach(engine.counters)
        count = PassCounting(self.counters, steps)
        step = share.world_size * (options.batch_size or 1)
        try:
            for number, made in enumerate(engine):
                for unit in made if ahead else work.whole(number, made):
                    count.given(unit)
                    end = state.position + (unit.number + 1) * step
                    reached.position = min(end, rows) if options.remainder == "keep" else end
                    reached.skip = share.parts - 1
                    if unit.made is not None:
                        yield unit.made
                    count.asked_s = time.perf_counter()
            reached.position, reached.skip = max(rows, state.position), share.parts - 1
            count.given(None)
        finally:
            count.tell()
            engine.close()
            steps.close()
            self.counters.detach(engine.counters)

    def _engine(
        self, dataset: Dataset, state: LoaderState, share: Share, threads: int, work: Work | None
    ) -> BatchLoader:
        options = self.options
        # Whole batches mean nothing to rows that are given one by one: Work stops where it should.
        one_by_one = options.batch_size is None
        remainder = "keep" if one_by_one and options.remainder == "drop" else options.remainder
        engine = BatchLoader(
            dataset,
            self.split,
            batch_size=ROWS_AT_ONCE if options.batch_size is None else options.batch_size,
            shuffle=options.shuffle,
            seed=options.seed,
            epoch=state.epoch,
            rank=share.rank,
            world_size=share.world_size,
            remainder=remainder,
            columns=options.columns,
            transform=cast("Any", work),  # with positions it is given a Batch
            prefetch=options.prefetch,
            memory_bytes=options.memory_bytes,
            disk_bytes=options.disk_bytes,
            threads=threads,
            with_positions=True,
        )
        if state.position:
            engine.load_state_dict(replace(state, remainder=remainder).to_dict())
        return engine


@dataclass(slots=True)
class _Reached:
    """Where a pass is."""

    began: LoaderState
    position: int
    skip: int | None
    """How many of the next batches belong to other processes."""
