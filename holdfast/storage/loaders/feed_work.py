"""What a pass makes of the engine's batches, in the engine's threads: the batches, or rows, of one process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

if TYPE_CHECKING:
    from holdfast.storage.loaders.batch_steps import BatchSteps
    from holdfast.storage.loaders.pipeline.batch_stream import Batch
    from holdfast.storage.loaders.state import LoaderState

__all__ = ["ROWS_AT_ONCE", "Finish", "Share", "Unit", "Work", "first_position"]

Finish: TypeAlias = Callable[[dict[str, Any]], Any]
"""What is done to a batch last of all."""
ROWS_AT_ONCE = 64
"""How many rows are read together where they are given one by one."""


@dataclass(frozen=True, slots=True)
class Share:
    """What this process has of a pass: of worker ``rank``'s batches one in ``parts``, after ``skip`` of others."""

    rank: int
    world_size: int
    skip: int
    parts: int


@dataclass(frozen=True, slots=True)
class Unit:
    """One batch, or one row, of this process."""

    number: int
    """Among all of the worker's since the pass began."""
    rows: int
    padded: int
    seconds: float
    made: Any


@dataclass(frozen=True, slots=True)
class Work:
    """What makes a pass's units from the engine's batches, in the engine's threads."""

    steps: BatchSteps
    finish: Finish
    share: Share
    state: LoaderState
    batch_size: int | None
    rows: int
    left: int
    """How many units the worker has."""

    def __call__(self, batch: Batch) -> list[Unit]:
        """The units of one of the engine's batches that belong to this process."""
        share = self.share
        before = int(batch.positions[0]) - first_position(self.state.position, share.rank, share.world_size)
        return self.whole(before // share.world_size // (self.batch_size or ROWS_AT_ONCE), batch)

    def whole(self, number: int, batch: Batch) -> list[Unit]:
        """The units of the engine's batch of this number that belong to this process."""
        if self.batch_size is not None:
            return [self._unit(number, batch, 0)] if self._own(number) else []
        first = number * ROWS_AT_ONCE
        return [
            self._unit(first + at, {name: values[at : at + 1] for name, values in batch.items()}, at, batch)
            for at in range(min(_length(batch), self.left - first))
            if self._own(first + at)
        ]

    def _own(self, number: int) -> bool:
        return number >= self.share.skip and (number - self.share.skip) % self.share.parts == 0

    def _unit(self, number: int, part: dict[str, Any], at: int, batch: Batch | None = None) -> Unit:
        share, size = self.share, _length(part)
        known = batch if batch is not None else cast("Batch", part)
        began = time.perf_counter()
        done: dict[str, Any] = part
        if self.steps:
            done = self.steps(part, lambda row: self._name(known, at + row))
        made = self.finish(done)
        seconds = time.perf_counter() - began
        first = first_position(self.state.position, share.rank, share.world_size)
        first += number * (self.batch_size or 1) * share.world_size
        unpadded = min(size, max(0, math.ceil((self.rows - first) / share.world_size)))
        return Unit(number, size, size - unpadded, seconds, made)

    def _name(self, batch: Batch, at: int) -> str:
        return f"row {batch.rows[at]} of split {self.state.split!r} of dataset {self.state.dataset}"


def first_position(position: int, rank: int, world_size: int) -> int:
    """The first position of a worker from some position on."""
    return position + (rank - position) % world_size


def _length(batch: Mapping[str, Any]) -> int:
    return len(next(iter(batch.values())))
