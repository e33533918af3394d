"""Rules about everything beside training: failed requests and loads, slow requests, and workers that are idle or uneven."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from holdfast.registry.measurements.finding import Finding, Severity
from holdfast.registry.measurements.measurement import Kind
from holdfast.registry.measurements.views import by_subject, percentile, values_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from holdfast.registry.measurements.measurement import Measurement

__all__ = ["RULES"]

TAIL_REQUESTS, TAIL_FACTOR = 100, 5.0
"""A tail: the 99th percentile is at least this multiple of the median, of at least so many requests."""
FIRST_REQUESTS, FIRST_FACTOR = 10, 10.0
"""A cold start: the first request took this multiple of the median of the others, of which there are so many."""
WORKER_SAMPLES, UNEVEN_SHARE, IDLE_SHARE = 3, 0.25, 0.3
"""Workers count with so many samples; their means differ by this share, or all of them are below that one."""

_FAILING = {
    Kind.INFERENCE: "requests",
    Kind.MODEL_LOAD: "loads of the model",
    Kind.DATASET_LOAD: "loads of the dataset",
    Kind.CELL: "cells",
}


def failures(measurements: Sequence[Measurement]) -> Iterator[Finding]:
    """Requests, loads and cells that ended with an error."""
    for kind, what in _FAILING.items():
        for subject, of in by_subject(measurements, kind).items():
            failed = [m for m in of if m.failed]
            if failed:
                yield Finding(
                    rule=f"failed-{kind.value.replace('_', '-')}",
                    severity=Severity.FAULT,
                    subject=subject,
                    text=f"{len(failed)} of {len(of)} {what} failed, the last one with {failed[-1].error}",
                    numbers={"failed": len(failed), "count": len(of), "share": len(failed) / len(of)},
                )


def latency_tail(measurements: Sequence[Measurement]) -> Iterator[Finding]:
    """Models whose slowest requests are far slower than the usual one."""
    for model, requests in by_subject(measurements, Kind.INFERENCE).items():
        latencies = values_of(requests, "duration_s")
        if len(latencies) < TAIL_REQUESTS:
            continue
        p50, p99 = percentile(latencies, 0.5), percentile(latencies, 0.99)
        if p50 and p99 >= TAIL_FACTOR * p50:
            yield Finding(
                rule="latency-tail",
                severity=Severity.BOTTLENECK,
                subject=model,
                text=f"one request in a hundred takes at least {p99 / p50:.1f} times the median; "
                "look for waiting in queues, or for large batches among small ones",
                numbers={"p50_s": p50, "p99_s": p99, "requests": len(latencies)},
            )


def cold_start(measurements: Sequence[Measurement]) -> Iterator[Finding]:
    """Models whose first request took much longer than the others."""
    for model, requests in by_subject(measurements, Kind.INFERENCE).items():
        latencies = values_of(requests, "duration_s")
        if len(latencies) <= FIRST_REQUESTS:
            continue
        first, median = latencies[0], percentile(latencies[1:], 0.5)
        if median and first >= FIRST_FACTOR * median:
            yield Finding(
                rule="cold-start",
                severity=Severity.HINT,
                subject=model,
                text=f"the first request took {first / median:.0f} times the median of the others; a warm-up request may help",
                numbers={"first_s": first, "p50_s": median, "requests": len(latencies)},
            )


def _mean_by_worker(measurements: Sequence[Measurement]) -> dict[str, float]:
    shares = {
        worker: values_of(of, "utilization") for worker, of in by_subject(measurements, Kind.WORKER).items()
    }
    return {worker: math.fsum(of) / len(of) for worker, of in shares.items() if len(of) >= WORKER_SAMPLES}


def uneven_workers(measurements: Sequence[Measurement]) -> Iterator[Finding]:
    """Workers of which some do much more than others."""
    means = _mean_by_worker(measurements)
    if len(means) < 2:
        return
    busiest, idlest = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    if means[busiest] - means[idlest] >= UNEVEN_SHARE:
        yield Finding(
            rule="uneven-workers",
            severity=Severity.BOTTLENECK,
            subject=idlest,
            text=f"it works {means[idlest]:.0%} of its time, and {busiest} works {means[busiest]:.0%}: "
            "the work is not shared evenly",
            numbers={"least": means[idlest], "most": means[busiest], "workers": len(means)},
        )


def idle_workers(measurements: Sequence[Measurement]) -> Iterator[Finding]:
    """Workers of which none has much to do."""
    means = _mean_by_worker(measurements)
    if means and max(means.values()) < IDLE_SHARE:
        mean = math.fsum(means.values()) / len(means)
        yield Finding(
            rule="idle-workers",
            severity=Severity.BOTTLENECK,
            subject=", ".join(list(means)[:4]) + (", ..." if len(means) > 4 else ""),
            text=f"the workers work {mean:.0%} of their time: they wait for data or for each other, or are too many",
            numbers={"mean": mean, "most": max(means.values()), "workers": len(means)},
        )


RULES: tuple[Callable[[Sequence[Measurement]], Iterator[Finding]], ...] = (
    failures,
    latency_tail,
    cold_start,
    uneven_workers,
    idle_workers,
)
