"""PyTorch loops and scikit-learn's ``fit``, measured without a line of them changed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol, Self

from holdfast.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from holdfast.registry.measurements.collector import AIMLMetricsCollector

__all__ = ["Autolog", "Watcher", "autolog"]

FRAMEWORKS = ("torch", "sklearn")


class Watcher(Protocol):
    """Watches one framework from when it is made until it is stopped."""

    def stop(self) -> None:
        """Leave the framework as it was, and record what was under way."""
        ...


def autolog(
    metrics: AIMLMetricsCollector,
    *,
    model: str | None = None,
    frameworks: Iterable[str] | None = None,
    score: bool = True,
) -> Autolog:
    """Measure training from now on, until ``stop()`` or the end of a ``with`` block.

    scikit-learn: every ``fit`` and ``partial_fit`` is an epoch, with its duration, its samples, the score on what it was
    fitted to (``train_score``) and the estimator's parameters. PyTorch: every pass over a ``DataLoader`` in which an
    optimizer makes steps is an epoch, with the mean loss, the learning rate, the steps and the time waited for data; so is a
    ``track_training_epoch`` block, and what happens outside of both is one epoch, recorded at the end.

    Args:
        metrics: The collector to record into.
        model: The name to record under; the estimator's class, or ``model`` for PyTorch, if not given.
        frameworks: Of ``torch`` and ``sklearn``; those that are imported already, if not given.
        score: Whether estimators are scored, which costs a prediction of what they were fitted to.

    Raises:
        InvalidInput: A framework is unknown, or none is given and none is imported yet.

    Example:
        >>> from sklearn.linear_model import Ridge
        >>> from holdfast.registry import AIMLMetricsCollector
        >>> metrics = AIMLMetricsCollector()
        >>> with autolog(metrics):
        ...     _ = Ridge(alpha=0.5).fit([[0.0], [1.0]], [0.0, 2.0])
        >>> metrics.measurements()[-1].about["alpha"]
        0.5
    """
    if frameworks is None:
        wanted = tuple(name for name in FRAMEWORKS if name in sys.modules)
        if not wanted:
            raise InvalidInput("there is nothing to watch yet: import torch or sklearn before autolog()")
    else:
        wanted = (frameworks,) if isinstance(frameworks, str) else tuple(frameworks)
    for name in wanted:
        if name not in FRAMEWORKS:
            raise InvalidInput(f"autolog() knows {' and '.join(FRAMEWORKS)}, not {name!r}")
    watchers: list[Watcher] = []
    if "sklearn" in wanted:
        from holdfast.registry.measurements.sklearn_watcher import SklearnWatcher

        watchers.append(SklearnWatcher(metrics, model=model, score=score))
    if "torch" in wanted:
        from holdfast.registry.measurements.torch_watcher import TorchWatcher

        watchers.append(TorchWatcher(metrics, model=model or "model"))
    return Autolog(watchers)


class Autolog:
    """What :func:`autolog` started."""

    def __init__(self, watchers: Iterable[Watcher]) -> None:
        self._watchers = list(watchers)

    def stop(self) -> None:
        """End it; everything that was watched is as it was before. More calls do nothing."""
        while self._watchers:
            self._watchers.pop().stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
