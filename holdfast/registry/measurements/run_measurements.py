"""What a run reports, as measurements: while it goes on, and beside its record when it has ended.

They are no part of the record: they hold times, and the same work would no longer give the same CID.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdfast.registry.measurements.collector import AIMLMetricsCollector
from holdfast.registry.measurements.measurement import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["MEASUREMENTS", "measured_run"]

MEASUREMENTS = "measurements"
"""The part of a run's result that is the CID of its measurements."""
_EPOCH = "epoch"


def measured_run(events: Iterable[Mapping[str, Any]], *, run: str) -> AIMLMetricsCollector:
    """The measurements in the events of a run: the numbers of each report, and how long each epoch took.

    A report is of the epoch that it names, or else of the next one. The time between the reports of two epochs that follow
    each other is the duration of the second; the first one's includes the start, and is left out.

    Args:
        events: As a run table has them, with ``time`` in seconds since 1970.
        run: The run's id, which stands for the model.
    """
    metrics = AIMLMetricsCollector()
    last: tuple[int, float] | None = None
    for event in events:
        if event.get("type") != "report":
            continue
        numbers, time_s = dict(event["metrics"]), float(event["time"])
        named = numbers.pop(_EPOCH, None)
        step = int(named) if isinstance(named, int) and named >= 0 else 0 if last is None else last[0] + 1
        if last is not None and step == last[0] + 1:
            metrics.add(Kind.EPOCH, run, {"duration_s": max(0.0, time_s - last[1])}, step=step, time_s=time_s)
        if numbers:
            metrics.add(Kind.METRIC, run, numbers, step=step, time_s=time_s)
        last = (step, time_s)
    return metrics
