"""Measuring while it happens: every measurement of a run, in memory, readable from any thread."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from holdfast.errors import InvalidInput
from holdfast.registry.measurements.measurement import Kind, Measurement, metric_name, number
from holdfast.registry.measurements.tracked import Tracked
from holdfast.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import pyarrow as pa

    from holdfast.registry.measurements.findings import Report
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = ["AIMLMetricsCollector"]

log = get_logger(__name__)


class AIMLMetricsCollector:
    """Measures training, inference, loading and workers, and tells about it at any time.

    All methods may be called from any thread. What fails is counted as a failure, and its error passes through.

    Args:
        keep: How many measurements of each kind are kept; the oldest ones go first, and ``dropped`` counts them.
        clock: Gives the seconds that durations are differences of.

    Raises:
        InvalidInput: ``keep`` is not positive.

    Example:
        >>> metrics = AIMLMetricsCollector()
        >>> with metrics.track_training_epoch("digits", epoch=0, num_samples=1000) as epoch:
        ...     epoch.record(train_loss=1.5)
        >>> metrics.get_summary()["training"]["digits"]["by_epoch"]["0"]["train_loss"]
        1.5
    """

    def __init__(self, *, keep: int = 50_000, clock: Callable[[], float] = time.perf_counter) -> None:
        if type(keep) is not int or keep < 1:
            raise InvalidInput(f"keep must be a whole number from 1, not {keep!r}")
        self.keep = keep
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[Kind, deque[Measurement]] = {kind: deque(maxlen=keep) for kind in Kind}
        self._dropped = dict.fromkeys(Kind, 0)
        self._last = 0
        self._listeners: list[Callable[[Measurement], object]] = []
        self._of_thread = threading.local()

    # ------------------------------------------------------------------------------------------- recording

    def record_metric(self, name: str, value: float) -> None:
        """Record a number under ``model/epoch/number/metric`` or ``model/metric``; NaN and infinity are recorded as they are.

        Raises:
            InvalidInput: The name is of another form, or the value is no number.
        """
        subject, step, metric = metric_name(name)
        self.add(Kind.METRIC, subject, {metric: value}, step=step)

    def record_worker_utilization(
        self,
        worker: str,
        utilization: float,
        *,
        memory_bytes: int | None = None,
        active_tasks: int | None = None,
    ) -> None:
        """Record how busy a worker is: the share of its time that it works, from 0 to 1.

        Raises:
            InvalidInput: The share is outside of that.
        """
        share = number("utilization", utilization)
        if not 0 <= share <= 1:
            raise InvalidInput(
                f"the utilization of {worker!r} is a share from 0 to 1 (85 % is 0.85), not {share}"
            )
        more = {"memory_bytes": memory_bytes, "active_tasks": active_tasks}
        given = {name: value for name, value in more.items() if value is not None}
        self.add(Kind.WORKER, worker, {"utilization": share, **given})

    @contextmanager
    def track_training_epoch(
        self, model: str, epoch: int, num_samples: int | None = None
    ) -> Iterator[Tracked]:
        """A context that measures one epoch: its duration, its samples a second, and what it waited for data.

        The object that it gives records metrics (``epoch.record(train_loss=...)``) and watches a loader
        (``for batch in epoch.batches(loader)``). Datasets that are loaded inside, on the same thread, count as waiting for data.

        Raises:
            InvalidInput: ``epoch`` or ``num_samples`` is no whole number from 0.
        """
        values = {} if num_samples is None else {"num_samples": num_samples}
        if type(epoch) is not int or not 0 <= epoch < 1 << 63:
            raise InvalidInput(f"epoch must be a whole number from 0, not {epoch!r}")
        with self._track(Kind.EPOCH, model, values, step=epoch) as tracked:
            yield tracked

    @contextmanager
    def track_inference(self, model: str, batch_size: int = 1) -> Iterator[Tracked]:
        """A context that measures one request of ``batch_size`` samples.

        Raises:
            InvalidInput: ``batch_size`` is no whole number from 0.
        """
        with self._track(Kind.INFERENCE, model, {"batch_size": batch_size}) as tracked:
            yield tracked

    @contextmanager
    def track_model_load(self, model: str, *, size_bytes: int | None = None) -> Iterator[Tracked]:
        """A context that measures how long a model takes to load."""
        values = {} if size_bytes is None else {"size_bytes": size_bytes}
        with self._track(Kind.MODEL_LOAD, model, values) as tracked:
            yield tracked

    @contextmanager
    def track_dataset_load(
        self, dataset: str, *, size_bytes: int | None = None, num_samples: int | None = None
    ) -> Iterator[Tracked]:
        """A context that measures how long a dataset takes to load; inside an epoch, the epoch waits for it."""
        given = {"size_bytes": size_bytes, "num_samples": num_samples}
        values = {name: value for name, value in given.items() if value is not None}
        outer = self.current_epoch()
        with self._track(Kind.DATASET_LOAD, dataset, values) as tracked:
            try:
                yield tracked
            finally:
                if outer is not None:
                    outer.waited(tracked.elapsed_s())

    @contextmanager
    def track_cell(self, model: str) -> Iterator[Tracked]:
        """A context that measures a notebook's cell that works on a model."""
        with self._track(Kind.CELL, model, {}) as tracked:
            yield tracked

    @contextmanager
    def _track(
        self, kind: Kind, subject: str, values: Mapping[str, int], *, step: int | None = None
    ) -> Iterator[Tracked]:
        for name, value in values.items():
            if type(value) is not int or value < 0:
                raise InvalidInput(f"{name} of {subject!r} must be a whole number from 0, not {value!r}")
        _named(kind, subject)
        tracked = Tracked(self, kind, subject, step=step, values=values, clock=self._clock)
        stack = self._stack()
        stack.append(tracked)
        error: BaseException | None = None
        try:
            yield tracked
        except BaseException as failure:
            error = failure
            raise
        finally:
            stack.remove(tracked)
            tracked.finish(error)

    def _stack(self) -> list[Tracked]:
        stack: list[Tracked] | None = getattr(self._of_thread, "stack", None)
        if stack is None:
            stack = self._of_thread.stack = []
        return stack

    def current_epoch(self) -> Tracked | None:
        """The epoch that this thread is in, the innermost one; None outside of any."""
        return next((each for each in reversed(self._stack()) if each.kind is Kind.EPOCH), None)

    def next_epoch(self, model: str) -> int:
        """The number after the last epoch of a model; 0 for a new one."""
        with self._lock:
            return 1 + max((m.step or 0 for m in self._kept[Kind.EPOCH] if m.subject == model), default=-1)

    def add(
        self,
        kind: Kind,
        subject: str,
        values: Mapping[str, float],
        *,
        step: int | None = None,
        error: str | None = None,
        about: Mapping[str, Any] | None = None,
        time_s: float | None = None,
    ) -> Measurement:
        """Record what was measured elsewhere; gives the measurement.

        Args:
            kind: What was measured.
            subject: The model, dataset or worker that it is about.
            values: Numbers by name, with their units in the names: ``{"duration_s": 0.2, "batch_size": 8}``.
            step: The epoch, where there is one.
            error: What it failed with.
            about: Plain JSON values beside the numbers.
            time_s: When it ended, in seconds since 1970; now, if not given.

        Raises:
            InvalidInput: A value is no number, there is none, the subject is no text, there is no such kind, or ``about`` can't be
                JSON.
        """
        try:
            kind = Kind(kind)
        except ValueError as unknown:
            raise InvalidInput(
                f"there is no kind of measurement {kind!r:.50}; there is {', '.join(Kind)}"
            ) from unknown
        _named(kind, subject)
        numbers = {str(name): number(f"{name} of {subject!r}", value) for name, value in values.items()}
        if not numbers:
            raise InvalidInput(f"there is no value to record of {subject!r}")
        when = time.time() if time_s is None else number("time_s", time_s)
        plain = _plain(subject, about or {})
        with self._lock:
            self._last += 1
            measurement = Measurement(
                number=self._last,
                time_s=when,
                kind=kind,
                subject=subject,
                step=step,
                values=numbers,
                error=error,
                about=plain,
            )
            kept = self._kept[kind]
            self._dropped[kind] += len(kept) == self.keep
            kept.append(measurement)
            listeners = tuple(self._listeners)
        for listener in listeners:
            self._tell(listener, measurement)
        return measurement

    # -------------------------------------------------------------------------------------------- following

    def subscribe(self, listener: Callable[[Measurement], object]) -> Callable[[], None]:
        """Have ``listener`` called with every measurement from now on; gives a function that ends this.

        It is called in the thread that records, after the measurement can be read. A listener that fails is logged and
        not called again: what is measured must not end because somebody who looks on can't go on.
        """
        with self._lock:
            self._listeners.append(listener)

        def unsubscribe() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return unsubscribe

    def _tell(self, listener: Callable[[Measurement], object], measurement: Measurement) -> None:
        try:
            listener(measurement)
        except Exception:
            log.exception("a listener failed at measurement %d and is not called again", measurement.number)
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

    # ---------------------------------------------------------------------------------------------- reading

    def measurements(self, kind: Kind | None = None, *, after: int = 0) -> tuple[Measurement, ...]:
        """What is kept, oldest first: all of it, or one kind, numbered above ``after``."""
        with self._lock:
            kept = [m for each in ([kind] if kind else Kind) for m in self._kept[each] if m.number > after]
        return tuple(sorted(kept, key=lambda m: m.number))

    @property
    def dropped(self) -> dict[str, int]:
        """How many measurements of each kind had to go; kinds that lost none are left out."""
        with self._lock:
            return {kind.value: count for kind, count in self._dropped.items() if count}

    def get_summary(self) -> dict[str, Any]:
        """All that was measured, as nested plain values: ready for JSON and for a record's metadata.

        ``training`` has, for each model, every number of every epoch (``by_epoch``) and what they come to; ``inference``,
        ``model_loads``, ``dataset_loads``, ``workers`` and ``cells`` have counts, failures and statistics.
        """
        from holdfast.registry.measurements.summary import summarize

        return summarize(self.measurements(), dropped=self.dropped)

    def get_comprehensive_report(self) -> Report:
        """The summary, and what it shows: bottlenecks and faults, each with the numbers that it was concluded from."""
        from holdfast.registry.measurements.findings import Report, findings

        return Report(summary=self.get_summary(), findings=findings(self.measurements()))

    # ---------------------------------------------------------------------------------------------- keeping

    def to_arrow(self) -> pa.Table:
        """What is kept as an Arrow table, one row for each number."""
        from holdfast.registry.measurements.table import to_table

        return to_table(self.measurements(), dropped=self.dropped)

    def store(self, store: ContentStore, *, pin: bool = True) -> Cid:
        """Store what is kept as an Arrow file; gives its CID, which a run or a model can link."""
        from holdfast.registry.measurements.table import to_bytes

        return store.add_bytes(to_bytes(self.to_arrow()), pin=pin)

    @classmethod
    def load(cls, store: ContentStore, cid: Cid) -> AIMLMetricsCollector:
        """A collector with the measurements that :meth:`store` stored.

        Raises:
            Corrupt: The CID is no table of measurements.
            NotFound: There is nothing under it.
        """
        from holdfast.registry.measurements.table import from_bytes, from_table

        measurements, dropped = from_table(from_bytes(store.open(cid), cid), cid)
        most = max((sum(m.kind is kind for m in measurements) for kind in Kind), default=0)
        collector = cls(keep=max(50_000, most))
        for measurement in measurements:
            collector._kept[measurement.kind].append(measurement)
        collector._last = max((m.number for m in measurements), default=0)
        collector._dropped.update({Kind(kind): count for kind, count in dropped.items()})
        return collector


def _named(kind: Kind, subject: str) -> None:
    if not isinstance(subject, str) or not subject:
        raise InvalidInput(f"what is measured ({kind.value}) needs a name as text, not {subject!r:.100}")


def _plain(subject: str, about: Mapping[str, Any]) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(about), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"what is noted about {subject!r} must be plain JSON values: {error}") from error
    return plain
