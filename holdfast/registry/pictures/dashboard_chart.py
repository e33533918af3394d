"""Everything in one picture, as far as there is data."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from holdfast.registry.measurements.measurement import Kind
from holdfast.registry.measurements.views import models_trained, percentile, values_of
from holdfast.registry.pictures.chart import Chart
from holdfast.registry.pictures.resource_charts import loads_chart, memory_chart, workers_chart
from holdfast.registry.pictures.serving_charts import latency_chart, throughput_chart
from holdfast.registry.pictures.training_chart import training_chart
from holdfast.registry.pictures.units import number_text, seconds_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.registry.measurements.measurement import Measurement

__all__ = ["all_charts", "dashboard_chart", "key_facts"]

MOST = {"training": 4, "inference_latency": 2}
"""How many panels of a chart the dashboard has room for; two, if not named here."""


def all_charts(measurements: Sequence[Measurement]) -> tuple[Chart, ...]:
    """Every chart but the dashboard, those without data too."""
    return (
        training_chart(measurements, None),
        latency_chart(measurements, None),
        throughput_chart(measurements, None),
        workers_chart(measurements),
        loads_chart(measurements),
        loads_chart(measurements, Kind.MODEL_LOAD),
        memory_chart(measurements),
    )


def dashboard_chart(measurements: Sequence[Measurement]) -> Chart:
    """The chart ``dashboard``: the first panels of all charts that have data, and the key figures."""
    charts = all_charts(measurements)
    panels = [
        replace(panel, title=_title(chart, panel.title))
        for chart in charts
        for panel in chart.panels[: MOST.get(chart.key, 2)]
    ]
    facts = key_facts(measurements)
    return Chart(
        key="dashboard",
        title="Dashboard",
        subtitle=" · ".join(f"{value} {label}" for label, value in facts),
        panels=tuple(panels),
        nothing="Nothing has been measured yet.",
        facts=facts,
    )


def _title(chart: Chart, panel: str) -> str:
    """What a panel is called among those of other charts."""
    if chart.key == "inference_latency":
        return f"Latency: {panel}"
    if chart.key == "worker_utilization":
        return "Worker utilization" + (" over time" if panel == "Over time" else "")
    return panel


def key_facts(measurements: Sequence[Measurement]) -> tuple[tuple[str, str], ...]:
    """The figures that matter most, as label and value; only those that there is data for."""
    epochs = [m for m in measurements if m.kind is Kind.EPOCH]
    requests = [m for m in measurements if m.kind is Kind.INFERENCE]
    facts = []
    trained = len(models_trained(measurements))
    if trained:
        facts.append(("model trained" if trained == 1 else "models trained", number_text(trained)))
    if epochs:
        facts.append(("epoch" if len(epochs) == 1 else "epochs", number_text(len(epochs))))
        seconds = math.fsum(m.values["duration_s"] for m in epochs if "duration_s" in m.values)
        facts.append(("of training", seconds_text(seconds)))
    if requests:
        facts.append(("request" if len(requests) == 1 else "requests", number_text(len(requests))))
        latencies = values_of(requests, "duration_s")
        if latencies:
            facts.append(("median latency", seconds_text(percentile(latencies, 0.5))))
    workers = len({m.subject for m in measurements if m.kind is Kind.WORKER})
    if workers:
        facts.append(("worker" if workers == 1 else "workers", number_text(workers)))
    failed = sum(m.failed for m in measurements)
    if failed:
        facts.append(("failure" if failed == 1 else "failures", number_text(failed)))
    return tuple(facts)
