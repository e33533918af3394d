"""Counters and latencies of one engine, exact under any number of threads."""

from __future__ import annotations

import math
import threading
from collections import deque

__all__ = ["Performance"]

WINDOW = 4096
"""Percentiles are over this many of the latest predictions."""


class Performance:
    """How often and how fast something ran.

    Example::

        performance.record(seconds=0.004, samples=8)
        performance.snapshot()["p99_ms"]
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._window: deque[float] = deque(maxlen=WINDOW)
        self._calls = 0
        self._samples = 0
        self._seconds = 0.0

    def record(self, seconds: float, samples: int) -> None:
        """Count one call."""
        with self._lock:
            self._calls += 1
            self._samples += samples
            self._seconds += seconds
            self._window.append(seconds)

    def reset(self) -> None:
        """Start again from zero."""
        with self._lock:
            self._window.clear()
            self._calls = self._samples = 0
            self._seconds = 0.0

    def snapshot(self) -> dict[str, float]:
        """All numbers of one moment; everything is 0 before the first call."""
        with self._lock:
            calls, samples, seconds = self._calls, self._samples, self._seconds
            latest = sorted(self._window)
        return {
            "total_inferences": calls,
            "total_samples": samples,
            "total_time_ms": seconds * 1e3,
            "average_time_ms": seconds * 1e3 / calls if calls else 0.0,
            "p50_ms": _percentile(latest, 0.50),
            "p95_ms": _percentile(latest, 0.95),
            "p99_ms": _percentile(latest, 0.99),
            "throughput_per_second": samples / seconds if seconds else 0.0,
        }


def _percentile(ordered: list[float], share: float) -> float:
    """The smallest latency, in ms, that ``share`` of all latencies don't exceed (nearest rank)."""
    if not ordered:
        return 0.0
    return ordered[math.ceil(share * len(ordered)) - 1] * 1e3
