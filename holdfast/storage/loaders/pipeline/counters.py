"""What a loader did: rows, bytes by where they came from, and where the time went."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["LoaderCounters"]

_SUMS: Final = (
    "rows",
    "batches",
    "padded_rows",
    "groups",
    "bytes_from_memory",
    "bytes_from_disk",
    "bytes_from_peers",
)
_TIMES: Final = ("fetch_s", "read_s", "gather_s", "transform_s", "wait_s", "elapsed_s")
_PEAKS: Final = ("peak_memory_bytes", "peak_ahead_bytes")


class LoaderCounters:
    """Sums over all passes of a loader; may be read and added to from any thread.

    ``rows`` and ``batches`` were received by the consumer, ``padded_rows`` of them were there before. ``groups`` row groups
    were read: ``bytes_from_peers`` came from other nodes, ``bytes_from_disk`` lay here, ``bytes_from_memory`` had been
    read shortly before for other rows. ``fetch_s``, ``read_s`` (hashing and decoding), ``gather_s`` (rows into batches) and
    ``transform_s`` are summed over threads; ``wait_s`` is how long the consumer waited for batches, of ``elapsed_s`` between
    asking for the first and receiving the last one. ``peak_memory_bytes`` is what the engine held at most,
    ``peak_ahead_bytes`` how far it fetched ahead of what it read.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, float] = dict.fromkeys((*_SUMS, *_PEAKS), 0) | dict.fromkeys(_TIMES, 0.0)

    def add(self, **amounts: float) -> None:
        """Add to some of the sums and times."""
        with self._lock:
            for name, amount in amounts.items():
                self._values[name] += amount

    def received(self, rows: int, padded_rows: int) -> None:
        """Count one batch; the same as :meth:`add`, in less time."""
        with self._lock:
            values = self._values
            values["rows"] += rows
            values["batches"] += 1
            values["padded_rows"] += padded_rows

    def peak(self, **amounts: float) -> None:
        """Note that these peaks were reached, if they are the highest so far."""
        with self._lock:
            for name, amount in amounts.items():
                self._values[name] = max(self._values[name], amount)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add how long the block takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(**{name: time.perf_counter() - began})

    def snapshot(self) -> dict[str, float]:
        """All of them now, by name, with ``rows_per_s``: rows by elapsed time, 0 before the first batch."""
        with self._lock:
            values = dict(self._values)
        elapsed_s = values["elapsed_s"]
        return {**values, "rows_per_s": values["rows"] / elapsed_s if elapsed_s > 0 else 0.0}

    def merge(self, other: LoaderCounters | Mapping[str, float]) -> None:
        """Add those of another loader, such as one in another process; the peaks are the higher ones.

        ``elapsed_s`` becomes the longer one: loaders that are merged ran side by side.
        """
        values = other.snapshot() if isinstance(other, LoaderCounters) else other
        highest = (*_PEAKS, "elapsed_s")
        with self._lock:
            for name in self._values:
                value = values.get(name, 0)
                self._values[name] = (
                    max(self._values[name], value) if name in highest else self._values[name] + value
                )

    def __getitem__(self, name: str) -> float:
        return self.snapshot()[name]

    def __repr__(self) -> str:
        return f"LoaderCounters({self.snapshot()})"
