"""What there is to draw of inference and throughput."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from holdfast.registry.measurements.measurement import Kind
from holdfast.registry.measurements.views import by_subject, epochs_of, models_trained, percentile, values_of
from holdfast.registry.pictures.chart import (
    Bar,
    BarPanel,
    Chart,
    HistogramPanel,
    Line,
    LinePanel,
    Mark,
    count_of,
    shortened,
    thinned,
)
from holdfast.registry.pictures.theme import COLOURS
from holdfast.registry.pictures.units import number_text, rounded, seconds_unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.registry.measurements.measurement import Measurement
    from holdfast.registry.pictures.chart import Panel

__all__ = ["latency_chart", "throughput_chart"]

MAX_MODELS = 6
MAX_BARS = 12
BINS = 40
LOG_FROM = 30.0
"""Latencies that differ by this factor get bins of equal ratio."""


def latency_chart(measurements: Sequence[Measurement], model: str | None) -> Chart:
    """The chart ``inference_latency``: how long requests took, for each model its distribution and percentiles."""
    requests = by_subject(measurements, Kind.INFERENCE)
    if model is not None:
        requests = {model: requests.get(model, [])}
    found = {name: values_of(of, "duration_s") for name, of in requests.items()}
    by_count = sorted((name for name in found if found[name]), key=lambda name: -len(found[name]))
    shown = by_count[:MAX_MODELS]
    panels = tuple(_distribution(name, found[name], place) for place, name in enumerate(shown))
    failed = sum(m.failed for of in requests.values() for m in of)
    notes = [count_of(sum(map(len, found.values())), "request")]
    notes += [f"{len(shown)} of {len(by_count)} models, those with the most requests"] * (
        len(by_count) > len(shown)
    )
    notes += [f"{failed} failed and {'is' if failed == 1 else 'are'} not in it"] * bool(failed)
    title = "Inference latency" + (f" of {shortened(shown[0], 60)}" if len(shown) == 1 else "")
    return Chart(
        key="inference_latency",
        title=title,
        subtitle=" · ".join(notes) if panels else "",
        panels=panels,
        nothing="No request has been measured" + (f" of {model}." if model else "."),
    )


def _distribution(model: str, latencies: list[float], place: int) -> HistogramPanel:
    unit = seconds_unit([percentile(latencies, 0.5)])
    values = [unit.of(value) for value in latencies]
    low, high = min(values), max(values)
    log_x = low > 0 and high / low >= LOG_FROM
    bins = min(BINS, math.ceil(2 * len(values) ** 0.5))
    if high - low <= 1e-9 * high:
        low, high, bins = 0.9 * low, (1.1 * high or 1.0), 1
    if log_x:
        ratio = (high / low) ** (1 / bins)
        edges = [low * ratio**i for i in range(bins)]
    else:
        edges = [low + (high - low) * i / bins for i in range(bins)]
    counts = [0] * bins
    for value in values:
        position = math.log(value / low) / math.log(ratio) if log_x else (value - low) / (high - low) * bins
        counts[min(bins - 1, max(0, int(position)))] += 1
    named = (("median", 0.5), ("p95", 0.95), ("p99", 0.99))
    marks = tuple(
        Mark(x=at, label=f"{name} {number_text(rounded(at))} {unit.name}")
        for name, share in named
        for at in (percentile(values, share),)
    )
    return HistogramPanel(
        title=model,
        x_label=f"latency ({unit.name}{', log scale' if log_x else ''})",
        y_label="requests",
        edges=(*edges, high),
        counts=tuple(counts),
        marks=marks if len(values) > 1 else marks[:1],
        log_x=log_x,
        colour=place % COLOURS,
    )


def throughput_chart(measurements: Sequence[Measurement], model: str | None) -> Chart:
    """The chart ``throughput``: samples a second, of training by epoch and of inference by model."""
    trained = [model] if model is not None else list(models_trained(measurements))
    lines: list[Line] = []
    for name in trained:
        points = [
            (float(e.number), e.measured["samples_per_s"])
            for e in epochs_of(measurements, name)
            if "samples_per_s" in e.measured
        ]
        if points and len(lines) < COLOURS:
            x, y = thinned(tuple(p[0] for p in points), tuple(p[1] for p in points))
            lines.append(Line(name=name, x=x, y=y, colour=len(lines)))
    panels: list[Panel] = []
    if lines:
        top = max(y for line in lines for y in line.y)
        panels.append(
            LinePanel(
                title="Training throughput",
                x_label="epoch",
                y_label="samples per second",
                lines=tuple(lines),
                whole_x=True,
                y_range=(0.0, 1.08 * top),
            )
        )
    bars = _served(measurements, model)
    if bars:
        title = "Inference throughput"
        panels.append(BarPanel(title=title, x_label="samples per second of busy time", bars=bars[:MAX_BARS]))
    notes = [f"{len(lines)} of {len(trained)} trained models"] * (len(lines) == COLOURS < len(trained))
    notes += [f"{MAX_BARS} of {len(bars)} serving models, the quickest"] * (len(bars) > MAX_BARS)
    return Chart(
        key="throughput",
        title="Throughput" + (f" of {shortened(model, 60)}" if model else ""),
        subtitle=" · ".join(notes),
        panels=tuple(panels),
        nothing="No epoch with its number of samples, and no request, has been measured.",
    )


def _served(measurements: Sequence[Measurement], model: str | None) -> tuple[Bar, ...]:
    bars = []
    for name, of in by_subject(measurements, Kind.INFERENCE).items():
        seconds = math.fsum(values_of(of, "duration_s"))
        samples = math.fsum(values_of(of, "batch_size"))
        if seconds and samples and model in (None, name):
            rate = samples / seconds
            text = f"{number_text(rounded(rate))} ({count_of(len(of), 'request')})"
            bars.append(Bar(name=name, value=rate, text=text))
    return tuple(sorted(bars, key=lambda bar: -bar.value))
