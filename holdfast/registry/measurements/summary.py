"""What measurements come to: counts, failures and statistics as nested plain values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from holdfast.registry.measurements.measurement import Kind, finite
from holdfast.registry.measurements.views import by_subject, epochs_of, models_trained, percentile, values_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from holdfast.registry.measurements.measurement import Measurement

__all__ = ["statistics_of", "summarize"]

_OTHERS = {
    "inference": Kind.INFERENCE,
    "model_loads": Kind.MODEL_LOAD,
    "dataset_loads": Kind.DATASET_LOAD,
    "workers": Kind.WORKER,
    "cells": Kind.CELL,
}
_TOTALS = ("duration_s", "num_samples", "data_loading_s")


def summarize(measurements: Sequence[Measurement], *, dropped: Mapping[str, int]) -> dict[str, Any]:
    """The summary of measurements; see :meth:`AIMLMetricsCollector.get_summary`."""
    trained = {model: _training(measurements, model) for model in models_trained(measurements)}
    others = {
        name: {subject: _statistics(of) for subject, of in by_subject(measurements, kind).items()}
        for name, kind in _OTHERS.items()
    }
    return {
        "measurements": len(measurements),
        "failures": sum(m.failed for m in measurements),
        "dropped": dict(dropped),
        "training": trained,
        **others,
    }


def statistics_of(values: Sequence[float]) -> dict[str, float]:
    """Count, smallest, mean, largest and percentiles of finite values; there must be some."""
    return {
        "min": min(values),
        "mean": math.fsum(values) / len(values),
        "max": max(values),
        "p50": percentile(values, 0.5),
        "p95": percentile(values, 0.95),
        "p99": percentile(values, 0.99),
    }


def _training(measurements: Sequence[Measurement], model: str) -> dict[str, Any]:
    epochs = epochs_of(measurements, model)
    measured = [m for m in measurements if m.kind is Kind.EPOCH and m.subject == model]
    summary: dict[str, Any] = {"epochs": len(epochs), "failures": sum(m.failed for m in measured)}
    for name in _TOTALS:
        values = [m.values[name] for m in measured if name in m.values]
        if values:
            summary[f"total_{name}"] = math.fsum(values)
    metrics: dict[str, dict[str, Any]] = {}
    for m in measurements:
        if m.kind is Kind.METRIC and m.subject == model:
            for name, value in m.values.items():
                metrics.setdefault(name, {"values": []})["values"].append(value)
    summary["metrics"] = {name: _metric(body["values"]) for name, body in metrics.items()}
    summary["by_epoch"] = {
        str(epoch.number): {
            **{name: finite(value) for name, value in (epoch.measured | epoch.metrics).items()},
            **({"error": epoch.error} if epoch.error else {}),
        }
        for epoch in epochs
    }
    return summary


def _metric(values: Sequence[float]) -> dict[str, Any]:
    """Of a metric, where it began, where it ended, and its bounds; None where a value is not finite."""
    good = [value for value in values if math.isfinite(value)]
    return {
        "count": len(values),
        "not_finite": len(values) - len(good),
        "first": finite(values[0]),
        "last": finite(values[-1]),
        "min": min(good, default=None),
        "max": max(good, default=None),
    }


def _statistics(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Of loads, requests and workers: what did not fail decides the statistics."""
    summary: dict[str, Any] = {
        "count": len(measurements),
        "failures": sum(m.failed for m in measurements),
    }
    for name in dict.fromkeys(name for m in measurements for name in m.values):
        values = values_of(measurements, name)
        if values:
            summary["latency_s" if _is_latency(measurements, name) else name] = statistics_of(values)
    samples, seconds = (math.fsum(values_of(measurements, name)) for name in ("batch_size", "duration_s"))
    if samples and seconds:
        summary["num_samples"] = samples
        summary["samples_per_busy_s"] = samples / seconds
    return summary


def _is_latency(measurements: Sequence[Measurement], name: str) -> bool:
    return name == "duration_s" and measurements[0].kind is Kind.INFERENCE
