"""What passes did, in numbers that processes can add up."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from holdfast.storage.loaders.batch_steps import BatchSteps
    from holdfast.storage.loaders.feed_work import Unit
    from holdfast.storage.loaders.pipeline.counters import LoaderCounters

__all__ = ["COUNTERS", "FeedCounters", "PassCounting", "added_up", "metrics_of"]

_TELL_S = 0.05

_OWN: Final = (
    "rows",
    "batches",
    "padded_rows",
    "skipped_images",
    "image_s",
    "steps_s",
    "wait_s",
    "elapsed_s",
)
_READING: Final = (
    "bytes_from_memory",
    "bytes_from_disk",
    "bytes_from_peers",
    "fetch_s",
    "read_s",
    "gather_s",
)
_HIGHEST: Final = ("peak_memory_bytes", "peak_ahead_bytes")
COUNTERS: Final = (*_OWN, *_READING, *_HIGHEST)
"""All of them, in the order in which other processes report them."""


class FeedCounters:
    """Sums over passes that follow each other; may be used from any thread.

    Rows, batches and times are counted where batches are given, reading where the engine reads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values = dict.fromkeys(COUNTERS, 0.0)
        self._engines: list[LoaderCounters] = []

    def add(self, **amounts: float) -> None:
        """Add to some of them."""
        with self._lock:
            for name, amount in amounts.items():
                self._values[name] += amount

    def attach(self, engine: LoaderCounters) -> None:
        """Count what an engine reads from now on, too."""
        with self._lock:
            self._engines.append(engine)

    def detach(self, engine: LoaderCounters) -> None:
        """Keep what an engine has read; it reads no more."""
        with self._lock:
            if engine in self._engines:
                self._engines.remove(engine)
                _take(self._values, engine)

    def values(self) -> dict[str, float]:
        """All of them now."""
        with self._lock:
            values = dict(self._values)
            for engine in self._engines:
                _take(values, engine)
        return values


def _take(values: dict[str, float], engine: LoaderCounters) -> None:
    seen = engine.snapshot()
    for name in _READING:
        values[name] += seen[name]
    for name in _HIGHEST:
        values[name] = max(values[name], seen[name])


class PassCounting:
    """Counts what a pass gives, and tells it now and then: every batch would cost more than some batches do."""

    def __init__(self, counters: FeedCounters, steps: BatchSteps) -> None:
        self.asked_s = time.perf_counter()
        self._counters = counters
        self._steps = steps
        self._told_s = self.asked_s
        self._rows = self._batches = self._padded = self._skipped = 0
        self._wait_s = self._steps_s = self._image_s = 0.0
        self._now_s = self.asked_s

    def given(self, unit: Unit | None) -> None:
        """Count a batch, or None for the end, since it was asked for."""
        self._now_s = time.perf_counter()
        self._wait_s += self._now_s - self.asked_s
        if unit is not None:
            self._rows += unit.rows
            self._batches += 1
            self._padded += unit.padded
            self._steps_s += unit.seconds
        if self._now_s - self._told_s > _TELL_S:
            self.tell()

    def tell(self) -> None:
        """Add what was counted to the counters."""
        skipped, image_s = self._steps.skipped_images, self._steps.image_s
        self._counters.add(
            rows=self._rows - (skipped - self._skipped),
            batches=self._batches,
            padded_rows=self._padded,
            skipped_images=skipped - self._skipped,
            image_s=image_s - self._image_s,
            steps_s=self._steps_s,
            wait_s=self._wait_s,
            elapsed_s=self._now_s - self._told_s,
        )
        self._told_s, self._skipped, self._image_s = self._now_s, skipped, image_s
        self._rows = self._batches = self._padded = 0
        self._wait_s = self._steps_s = 0.0


def added_up(values: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The numbers of processes that work side by side as one: the longest of their times, and otherwise the sums."""
    total = dict.fromkeys(COUNTERS, 0.0)
    for each in values:
        for name in COUNTERS:
            if name == "elapsed_s":
                total[name] = max(total[name], each[name])
            else:
                total[name] += each[name]
    return total


def metrics_of(values: Mapping[str, float]) -> dict[str, float | int]:
    """The numbers as people read them; rates are 0 where nothing has been read yet."""
    here = values["bytes_from_memory"] + values["bytes_from_disk"]
    everything = here + values["bytes_from_peers"]
    return {
        "rows": int(values["rows"]),
        "batches": int(values["batches"]),
        "padded_rows": int(values["padded_rows"]),
        "skipped_images": int(values["skipped_images"]),
        "rows_per_second": values["rows"] / values["elapsed_s"] if values["elapsed_s"] else 0.0,
        "bytes_from_memory": int(values["bytes_from_memory"]),
        "bytes_from_disk": int(values["bytes_from_disk"]),
        "bytes_from_peers": int(values["bytes_from_peers"]),
        "cache_hit_rate": here / everything if everything else 0.0,
        "elapsed_seconds": values["elapsed_s"],
        "wait_seconds": values["wait_s"],
        "fetch_seconds": values["fetch_s"],
        "decode_seconds": values["read_s"],
        "gather_seconds": values["gather_s"],
        "transform_seconds": values["steps_s"],
        "image_decode_seconds": values["image_s"],
        "peak_memory_bytes": int(values["peak_memory_bytes"]),
        "peak_fetched_ahead_bytes": int(values["peak_ahead_bytes"]),
    }
