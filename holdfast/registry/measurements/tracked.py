"""What is being measured at the moment: the object that a ``with metrics.track_...`` block gives."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from holdfast.errors import InvalidInput
from holdfast.registry.measurements.measurement import Kind, number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from holdfast.registry.measurements.collector import AIMLMetricsCollector

__all__ = ["Tracked", "memory_bytes"]

T = TypeVar("T")
ERROR_CHARS = 300


class Tracked:
    """An epoch, request, load or cell while it lasts."""

    def __init__(
        self,
        collector: AIMLMetricsCollector,
        kind: Kind,
        subject: str,
        *,
        step: int | None,
        values: Mapping[str, float],
        clock: Callable[[], float],
    ) -> None:
        self.kind = kind
        self.subject = subject
        self.step = step
        self._collector = collector
        self._values: dict[str, float] = dict(values)
        self._about: dict[str, Any] = {}
        self._clock = clock
        self._lock = threading.Lock()
        self._waited_s: float | None = None
        self._at_end: list[Callable[[], object]] = []
        self._begin = clock()

    def record(self, **metrics: float) -> None:
        """Record metrics of this epoch or of whatever this is, such as ``train_loss=0.5``; they can be read at once.

        Raises:
            InvalidInput: A value is no number.
        """
        values = {name: number(f"{name} of {self.subject!r}", value) for name, value in metrics.items()}
        self._collector.add(Kind.METRIC, self.subject, values, step=self.step)

    def note(self, **about: Any) -> None:
        """Keep plain JSON values beside the numbers."""
        with self._lock:
            self._about.update(about)

    def measured(self, **values: float) -> None:
        """Add numbers to this measurement itself, such as ``num_samples=512`` once they are known.

        Raises:
            InvalidInput: A value is no number.
        """
        numbers = {name: number(f"{name} of {self.subject!r}", value) for name, value in values.items()}
        with self._lock:
            self._values.update(numbers)

    def batches(self, loader: Iterable[T]) -> Iterator[T]:
        """The batches of a loader; the time until each of them comes counts as waiting for data."""
        self.waited(0.0)
        batches = iter(loader)
        while True:
            begin = self._clock()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited(self._clock() - begin)
            yield batch

    def waited(self, seconds: float) -> None:
        """Count seconds as waited for data."""
        seconds = number("seconds", seconds)
        if not (math.isfinite(seconds) and seconds >= 0):
            raise InvalidInput(f"seconds must be at least 0, not {seconds}")
        with self._lock:
            self._waited_s = (self._waited_s or 0.0) + seconds

    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return self._clock() - self._begin

    def at_end(self, add: Callable[[], object]) -> None:
        """Have ``add`` called when this has ended and can still be added to."""
        with self._lock:
            self._at_end.append(add)

    def finish(self, error: BaseException | None) -> None:
        """Record what was measured; called once, by the block that gave this."""
        duration_s = self.elapsed_s()
        for add in self._at_end:
            add()
        with self._lock:
            values = {"duration_s": duration_s, **self._values}
            if self._waited_s is not None:
                values["data_loading_s"] = self._waited_s
            about = dict(self._about)
        if self.kind is not Kind.INFERENCE:  # asking for it would take longer than a small request
            values["memory_bytes"] = memory_bytes()
        said = None if error is None else f"{type(error).__name__}: {error}"[:ERROR_CHARS]
        self._collector.add(self.kind, self.subject, values, step=self.step, error=said, about=about)


def memory_bytes() -> int:
    """The memory that this process has resident."""
    import psutil

    return int(psutil.Process().memory_info().rss)
