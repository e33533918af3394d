"""PyTorch's training loops, measured: the steps of optimizers, the losses that go backward, and the waiting for data."""

from __future__ import annotations

import functools
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from holdfast.registry.measurements.measurement import Kind
from holdfast.registry.measurements.tracked import memory_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from holdfast.registry.measurements.collector import AIMLMetricsCollector
    from holdfast.registry.measurements.tracked import Tracked

__all__ = ["TorchWatcher"]


@dataclass(slots=True)
class _Steps:
    """What happened since an epoch began."""

    begin: float = field(default_factory=time.perf_counter)
    steps: int = 0
    losses: int = 0
    loss: Any = None
    """Sum of the losses, a tensor on their device: reading each of them would make the device wait."""
    learning_rate: float | None = None
    waited_s: float = 0.0
    samples: int = 0

    def add_loss(self, loss: Any) -> None:
        loss = loss.detach().double() if loss.device.type == "cpu" else loss.detach().float()
        self.loss = loss if self.loss is None else self.loss.to(loss.device) + loss
        self.losses += 1

    def values(self) -> dict[str, float]:
        """The metrics of the epoch."""
        found: dict[str, float] = {}
        if self.losses:
            found["train_loss"] = float(self.loss) / self.losses
        if self.learning_rate is not None:
            found["learning_rate"] = self.learning_rate
        return found


class TorchWatcher:
    """Follows optimizers by torch's own hook; ``Tensor.backward``, ``GradScaler.scale`` and ``DataLoader.__iter__`` are wrapped while it watches.

    Steps are counted for each thread. The losses of an epoch are summed where they are, and read once, at its end.
    """

    def __init__(self, metrics: AIMLMetricsCollector, *, model: str) -> None:
        import torch
        from torch.optim.optimizer import register_optimizer_step_post_hook
        from torch.utils.data import DataLoader

        self._metrics = metrics
        self._model = model
        self._on = True
        self._epoch = 0
        self._lock = threading.Lock()
        self._of_thread = threading.local()
        self._open: list[_Steps] = []
        self._hook = register_optimizer_step_post_hook(self._stepped)
        self._wrapped: list[tuple[type, str, Any, Any]] = []
        self._replace(torch.Tensor, "backward", self._backward)
        self._replace(torch.amp.GradScaler, "scale", self._scaled)
        self._replace(DataLoader, "__iter__", self._iterated)

    def _replace(self, cls: type, name: str, make: Callable[[Any], Any]) -> None:
        before = cls.__dict__[name]
        wrapper = functools.wraps(before)(make(before))
        setattr(cls, name, wrapper)
        self._wrapped.append((cls, name, wrapper, before))

    # ---------------------------------------------------------------------------------------- what is followed

    def _stepped(self, optimizer: Any, *_: Any) -> None:
        now = self._now()
        now.steps += 1
        now.learning_rate = float(optimizer.param_groups[0]["lr"])

    def _backward(self, backward: Callable[..., Any]) -> Callable[..., Any]:
        def watched(tensor: Any, *args: Any, **options: Any) -> Any:
            if self._on and tensor.numel() == 1 and not tensor.is_complex():
                scaled, loss = getattr(self._of_thread, "scaled", (None, None))
                self._now().add_loss((tensor if loss is None or scaled is not tensor else loss).reshape(()))
                self._of_thread.scaled = None, None
            return backward(tensor, *args, **options)

        return watched

    def _scaled(self, scale: Callable[..., Any]) -> Callable[..., Any]:
        """Mixed precision sends a multiple of the loss backward: remember which loss it is a multiple of."""

        def watched(scaler: Any, outputs: Any) -> Any:
            scaled = scale(scaler, outputs)
            if self._on and hasattr(outputs, "detach"):
                self._of_thread.scaled = scaled, outputs.detach()
            return scaled

        return watched

    def _iterated(self, iterate: Callable[[Any], Iterator[Any]]) -> Callable[[Any], Iterator[Any]]:
        def watched(loader: Any) -> Iterator[Any]:
            begin = time.perf_counter()
            batches = iterate(loader)
            if not self._on:
                return batches
            return _Pass(self, batches, time.perf_counter() - begin)

        return watched

    def _now(self) -> _Steps:
        """The steps of this thread; those inside a tracked epoch belong to it."""
        epoch = self._metrics.current_epoch()
        state = self._of_thread
        if epoch is not None and getattr(state, "tracked", None) is not epoch:
            self._close()
            state.tracked = epoch
            state.steps = _Steps()
            epoch.at_end(functools.partial(self._tracked_end, epoch, state.steps))
        elif epoch is None and getattr(state, "tracked", None) is not None:
            state.tracked, state.steps = None, self._new()
        steps: _Steps | None = getattr(state, "steps", None)
        if steps is None:
            steps = state.steps = self._new()
        return steps

    def _new(self) -> _Steps:
        steps = _Steps()
        with self._lock:
            self._open.append(steps)
        return steps

    # ------------------------------------------------------------------------------------------------- epochs

    def _tracked_end(self, epoch: Tracked, steps: _Steps) -> None:
        if steps.steps:
            epoch.measured(steps=steps.steps)
        values = steps.values()
        if values:
            epoch.record(**values)

    def begin_pass(self, seconds: float) -> None:
        """A loader began so many seconds ago: outside of tracked epochs, this is where an epoch may begin."""
        if self._metrics.current_epoch() is None and not getattr(self._of_thread, "passes", 0):
            self._close()
            self._of_thread.steps = self._new()
            self._of_thread.steps.begin -= seconds
        self._of_thread.passes = getattr(self._of_thread, "passes", 0) + 1

    def waited(self, seconds: float, batch: Any) -> None:
        """A loader gave a batch after so many seconds."""
        now = self._now()
        if getattr(self._of_thread, "passes", 0) == 1:
            now.samples += _size(batch)
            now.waited_s += seconds
            epoch = self._metrics.current_epoch()
            if epoch is not None:
                epoch.waited(seconds)

    def end_pass(self) -> None:
        """A loader ended: what it was trained with is an epoch, if it was trained with."""
        self._of_thread.passes = max(0, getattr(self._of_thread, "passes", 0) - 1)
        if self._on and self._metrics.current_epoch() is None and not self._of_thread.passes:
            self._close()

    def _close(self) -> None:
        steps: _Steps | None = getattr(self._of_thread, "steps", None)
        self._of_thread.steps = None
        if steps is not None:
            self._record(steps)

    def _record(self, steps: _Steps) -> None:
        with self._lock:
            if steps not in self._open:
                return
            self._open.remove(steps)
            if not steps.steps:
                return
            number = max(self._epoch, self._metrics.next_epoch(self._model))
            self._epoch = number + 1
        values: dict[str, float] = {
            "duration_s": time.perf_counter() - steps.begin,
            "steps": steps.steps,
            "data_loading_s": steps.waited_s,
            "memory_bytes": memory_bytes(),
        }
        if steps.samples:
            values["num_samples"] = steps.samples
        metrics = steps.values()
        if metrics:
            self._metrics.add(Kind.METRIC, self._model, metrics, step=number)
        self._metrics.add(Kind.EPOCH, self._model, values, step=number)

    def stop(self) -> None:
        """Remove the hook and give torch its own methods back, and record the epoch that was under way."""
        self._on = False
        self._hook.remove()
        for cls, name, wrapper, before in self._wrapped:
            if cls.__dict__.get(name) is wrapper:
                setattr(cls, name, before)
        self._wrapped.clear()
        for steps in tuple(self._open):
            self._record(steps)


class _Pass:
    """One pass over a loader: its own iterator, and how long each batch took to come."""

    def __init__(self, watcher: TorchWatcher, batches: Iterator[Any], seconds: float) -> None:
        self._watcher = watcher
        self._batches = batches
        self._seconds = seconds
        self._state = "new"

    def __iter__(self) -> _Pass:
        return self

    def __next__(self) -> Any:
        if self._state == "new":
            self._state = "open"
            self._watcher.begin_pass(self._seconds)
        begin = time.perf_counter()
        try:
            batch = next(self._batches)
        except BaseException:
            if self._state == "open":
                self._state = "ended"
                self._watcher.end_pass()
            raise
        self._watcher.waited(self._seconds + time.perf_counter() - begin, batch)
        self._seconds = 0.0
        return batch

    def __del__(self) -> None:
        if self._state == "open":  # the loop broke off
            self._state = "ended"
            self._watcher.end_pass()

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)


def _size(batch: Any) -> int:
    """The samples of a batch: the first dimension of the first tensor in it."""
    if isinstance(batch, dict):
        return next((size for value in batch.values() if (size := _size(value))), 0)
    if isinstance(batch, (list, tuple)):
        return next((size for value in batch if (size := _size(value))), 0)
    shape = getattr(batch, "shape", None)
    return int(shape[0]) if shape is not None and len(shape) else 0
