"""Measurements as a pandas table, one row for each epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdfast.errors import NotFound, require
from holdfast.registry.measurements.measurement import Kind
from holdfast.registry.measurements.views import epochs_of, known_model, models_trained

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.registry.measurements.measurement import Measurement

__all__ = ["epochs_frame"]

_MEASURED = ("duration_s", "num_samples", "samples_per_s", "data_loading_s", "memory_bytes")


def epochs_frame(measurements: Sequence[Measurement], model: str | None) -> Any:
    """The epochs as a ``pandas.DataFrame``.

    Of one model, the index is ``epoch``; of all, it is ``model`` and ``epoch``. The columns are the metrics as they
    were recorded (``train_loss``), then what was measured (``duration_s``, ...), and ``failed``. What an epoch lacks is NaN.

    Raises:
        NotFound: The model has no epochs.
        Unsupported: pandas is not installed.
    """
    pandas = require("pandas", extra="plots", why="get_metrics_dataframe()")
    trained = models_trained(measurements)
    if model is not None:
        known_model(measurements, model, kinds=(Kind.METRIC, Kind.EPOCH))
    models = trained if model is None else (model,)
    rows: list[dict[str, float | bool]] = []
    index: list[tuple[str, int]] = []
    for name in models:
        for epoch in epochs_of(measurements, name):
            rows.append({**epoch.measured, **epoch.metrics, "failed": epoch.error is not None})
            index.append((name, epoch.number))
    if model is not None and not rows:
        raise NotFound(
            f"{model!r} has metrics, but none of an epoch: record them as '{model}/epoch/0/train_loss'"
        )
    names = dict.fromkeys(name for row in rows for name in row if name != "failed")
    metrics = [name for name in names if name not in _MEASURED]
    columns = [*metrics, *(name for name in _MEASURED if name in names), "failed"]
    if model is None:
        labels = pandas.MultiIndex.from_tuples(index, names=["model", "epoch"])
    else:
        labels = pandas.Index([number for _, number in index], name="epoch")
    return pandas.DataFrame(rows, index=labels, columns=columns)
