"""scikit-learn's ``fit`` and ``partial_fit``, measured."""

from __future__ import annotations

import copy
import functools
import threading
from typing import TYPE_CHECKING, Any

from holdfast.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from holdfast.registry.measurements.collector import AIMLMetricsCollector

__all__ = ["SklearnWatcher"]

log = get_logger(__name__)

_METHODS = ("fit", "partial_fit")
TEXT_CHARS = 200


class SklearnWatcher:
    """Wraps the methods of every estimator class, also of those that are imported later.

    Of fits inside of fits (pipelines, searches, ensembles), the outermost one on its thread is recorded.
    """

    def __init__(self, metrics: AIMLMetricsCollector, *, model: str | None, score: bool) -> None:
        from sklearn.base import BaseEstimator

        self._metrics = metrics
        self._model = model
        self._score = score
        self._on = True
        self._fits: dict[str, int] = {}
        self._lock = threading.Lock()
        self._of_thread = threading.local()
        self._wrapped: list[tuple[type, str, Any, Any]] = []
        self._base: type = BaseEstimator
        for cls in _subclasses(self._base):
            self._wrap(cls)
        self._watch_new_classes()

    def _watch_new_classes(self) -> None:
        base = self._base

        def made(cls: type, **options: Any) -> None:
            super(base, cls).__init_subclass__(**options)  # type: ignore[arg-type]
            if self._on:
                self._wrap(cls)

        before = base.__dict__.get("__init_subclass__")
        hook: Any = classmethod(made)  # type: ignore[arg-type]
        setattr(base, "__init_subclass__", hook)  # noqa: B010 -- mypy knows it as a method
        self._wrapped.append((base, "__init_subclass__", hook, before))

    def _wrap(self, cls: type) -> None:
        for name in _METHODS:
            method = cls.__dict__.get(name)
            if callable(method):
                wrapper: Any = self._watched(method)
            elif callable(getattr(method, "fn", None)):
                # scikit-learn's descriptor of a method that only some estimators have.
                wrapper = copy.copy(method)
                wrapper.fn = self._watched(wrapper.fn)
            else:
                continue
            setattr(cls, name, wrapper)
            self._wrapped.append((cls, name, wrapper, method))

    def _watched(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def fit(estimator: Any, *args: Any, **options: Any) -> Any:
            if not self._on or getattr(self._of_thread, "inside", False):
                return method(estimator, *args, **options)
            self._of_thread.inside = True
            try:
                return self._measured(method, estimator, args, options)
            finally:
                self._of_thread.inside = False

        return fit

    def _measured(
        self, method: Callable[..., Any], estimator: Any, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        model = self._model or type(estimator).__name__
        with self._lock:
            number = max(self._fits.get(model, -1) + 1, self._metrics.next_epoch(model))
            self._fits[model] = number
        given = dict(zip(("X", "y"), args, strict=False)) | options
        x, y = given.get("X"), given.get("y")
        with self._metrics.track_training_epoch(model, number, _rows(x)) as epoch:
            epoch.note(**{"class": type(estimator).__name__, **_parameters(estimator)})
            fitted = method(estimator, *args, **options)
            duration_s = epoch.elapsed_s()
            if self._score and x is not None and y is not None and hasattr(estimator, "score"):
                self._add_score(epoch, estimator, x, y)
            epoch.measured(duration_s=duration_s)  # without the score, which the caller did not ask for
        return fitted

    def _add_score(self, epoch: Any, estimator: Any, x: Any, y: Any) -> None:
        try:
            epoch.record(train_score=estimator.score(x, y))
        except (
            AttributeError,
            TypeError,
            ValueError,
        ) as error:  # not every estimator can score what it was fitted to
            log.info("%s has no score: %s", type(estimator).__name__, error)

    def stop(self) -> None:
        """Give every class its own methods back; where somebody else wrapped ours since, ours only passes calls on."""
        self._on = False
        for cls, name, wrapper, before in reversed(self._wrapped):
            if cls.__dict__.get(name) is not wrapper:
                continue
            if before is None:
                delattr(cls, name)
            else:
                setattr(cls, name, before)
        self._wrapped.clear()


def _subclasses(base: type) -> Iterator[type]:
    seen: set[type] = set()
    left = [base]
    while left:
        cls = left.pop()
        if cls not in seen:
            seen.add(cls)
            yield cls
            left += cls.__subclasses__()


def _rows(x: Any) -> int | None:
    shape = getattr(x, "shape", None)
    if shape:
        return int(shape[0])
    return len(x) if hasattr(x, "__len__") else None


def _parameters(estimator: Any) -> dict[str, Any]:
    """The estimator's parameters: plain values as they are, others as short text."""
    plain: dict[str, Any] = {}
    for name, value in sorted(estimator.get_params(deep=False).items()):
        if getattr(value, "shape", None) == ():
            value = value.item()  # noqa: PLW2901 -- a NumPy scalar
        is_plain = value is None or isinstance(value, (bool, int, str))
        finite = isinstance(value, float) and value - value == 0
        plain[name] = value if is_plain or finite else repr(value)[:TEXT_CHARS]
    return plain
