"""What there is to draw of training: a panel for each metric, with training and validation in one."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from holdfast.registry.measurements.training_findings import lower_is_better
from holdfast.registry.measurements.views import epochs_of, models_trained
from holdfast.registry.pictures.chart import Chart, Line, LinePanel, Mark, count_of, shortened, thinned
from holdfast.registry.pictures.theme import COLOURS
from holdfast.registry.pictures.units import number_text, rounded, seconds_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.registry.measurements.measurement import Measurement
    from holdfast.registry.measurements.views import Epoch

__all__ = ["training_chart", "training_panels"]

MAX_PANELS = 8
LOG_FROM = 200.0
"""A positive metric whose values differ by this factor gets a logarithmic axis."""
MARKED_FROM = 5
"""The best epoch is marked where there are so many."""

_ROLES = {
    "train": "training",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_DASHES = {"training": 0, "": 0, "validation": 1, "test": 2}


def training_chart(measurements: Sequence[Measurement], model: str | None) -> Chart:
    """The chart ``training``: of one model, or of all (the first ones, where there are more than colours)."""
    trained = models_trained(measurements)
    shown = [model] if model is not None else list(trained[:COLOURS])
    epochs = {name: epochs_of(measurements, name) for name in shown}
    panels = training_panels(epochs)
    rest = len(trained) - len(shown) if model is None else 0
    notes = []
    if model is None and len(shown) > 1:
        notes.append(f"{len(shown)} models" + (f" of {len(trained)}; name one to see it" if rest else ""))
    if len(shown) == 1:
        notes += _facts(epochs[shown[0]])
    notes += _not_finite(epochs)
    if len(panels) > MAX_PANELS:
        names = ", ".join(panel.title.lower() for panel in panels[MAX_PANELS:])
        notes.append(f"not shown: {shortened(names, 80)}")
    title = f"Training of {shortened(shown[0], 60)}" if len(shown) == 1 else "Training"
    return Chart(
        key="training",
        title=title,
        subtitle=" · ".join(notes),
        panels=panels[:MAX_PANELS],
        nothing="No training metric has been recorded"
        + (f" of {model}, epoch by epoch." if model else ", epoch by epoch."),
    )


def training_panels(epochs: dict[str, list[Epoch]]) -> tuple[LinePanel, ...]:
    """A panel for each metric of some models: losses first, then as they came."""
    names: dict[str, dict[str, str]] = {}
    for of in epochs.values():
        for epoch in of:
            for metric in epoch.metrics:
                role, base = _role(metric)
                names.setdefault(base, {})[metric] = role
    ordered = sorted(names, key=lambda base: base != "loss")
    panels = (_panel(base, names[base], epochs) for base in ordered)
    return tuple(panel for panel in panels if any(not math.isnan(y) for line in panel.lines for y in line.y))


def _role(metric: str) -> tuple[str, str]:
    """What a metric was computed on, and what it is: ``val_loss`` is the loss in validation."""
    prefix, _, base = metric.partition("_")
    return (_ROLES[prefix], base) if base and prefix in _ROLES else ("", metric)


def _panel(base: str, metrics: dict[str, str], epochs: dict[str, list[Epoch]]) -> LinePanel:
    order = sorted(metrics, key=lambda metric: _DASHES[metrics[metric]])
    lines = []
    for place, (model, of) in enumerate(epochs.items()):
        for turn, metric in enumerate(order):
            points = [(e.number, e.metrics[metric]) for e in of if metric in e.metrics]
            if not points:
                continue
            role = metrics[metric]
            x, y = thinned(
                tuple(float(number) for number, _ in points),
                tuple(value if math.isfinite(value) else math.nan for _, value in points),
            )
            alone = role or base.replace("_", " ")
            name = alone if len(epochs) == 1 else f"{model}, {role}" if role and len(order) > 1 else model
            lines.append(
                Line(
                    name=name,
                    x=x,
                    y=y,
                    colour=turn if len(epochs) == 1 else place,
                    dash=_DASHES[role] if len(order) > 1 else 0,
                    group=model,
                    role=role,
                )
            )
    values = [y for line in lines for y in line.y if not math.isnan(y)]
    log_y = bool(values) and min(values) > 0 and max(values) / min(values) >= LOG_FROM
    label = re.sub(r"_s$", " (s)", base).replace("_", " ")
    return LinePanel(
        title=_heading(base),
        x_label="epoch",
        y_label=label + (", log scale" if log_y else ""),
        lines=tuple(lines),
        marks=_best(order, metrics, next(iter(epochs.values()))) if len(epochs) == 1 else (),
        whole_x=True,
        log_y=log_y,
    )


def _heading(base: str) -> str:
    words = re.sub(r"_s$", "", base).replace("_", " ")
    return words[:1].upper() + words[1:]


def _best(order: list[str], metrics: dict[str, str], epochs: list[Epoch]) -> tuple[Mark, ...]:
    """The epoch with the best validation, unless it is the last one, where nobody needs to be told."""
    metric = next((name for name in order if metrics[name] == "validation"), None)
    lower = lower_is_better(metric) if metric else None
    if metric is None or lower is None:
        return ()
    points = [(e.metrics[metric], e.number) for e in epochs if math.isfinite(e.metrics.get(metric, math.nan))]
    if len(points) < MARKED_FROM:
        return ()
    best = min(points, key=lambda point: (point[0] if lower else -point[0], point[1]))
    if best[1] == points[-1][1]:
        return ()
    return (Mark(x=best[1], label=f"best validation: {number_text(rounded(best[0]))}", low=not lower),)


def _facts(epochs: list[Epoch]) -> list[str]:
    facts = [count_of(len(epochs), "epoch")]
    durations = [e.measured["duration_s"] for e in epochs if "duration_s" in e.measured]
    if durations:
        facts.append(f"{seconds_text(math.fsum(durations))} in all")
    failed = sum(e.error is not None for e in epochs)
    return [*facts, *([f"{failed} failed"] if failed else [])]


def _not_finite(epochs: dict[str, list[Epoch]]) -> list[str]:
    """Where values are NaN or infinite, which no line can show."""
    broken: dict[str, list[int]] = {}
    for model, of in epochs.items():
        for epoch in of:
            for metric, value in epoch.metrics.items():
                if not math.isfinite(value):
                    of_model = "" if len(epochs) == 1 else f" of {shortened(model, 24)}"
                    broken.setdefault(metric + of_model, []).append(epoch.number)
    notes = [
        f"{name} is not finite in {'epoch' if len(numbers) == 1 else 'epochs'} {', '.join(map(str, numbers[:3]))}"
        + (f" and {len(numbers) - 3} more" if len(numbers) > 3 else "")
        for name, numbers in broken.items()
    ]
    return notes[:2] + ([f"{len(notes) - 2} more metrics are not finite"] if len(notes) > 2 else [])
