"""The tables of the HTML report: each model's metrics and epochs, requests, loads and workers."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from holdfast.registry.measurements.training_findings import lower_is_better
from holdfast.registry.measurements.views import epochs_of
from holdfast.registry.pictures.chart import count_of
from holdfast.registry.pictures.units import bytes_text, number_text, rounded, seconds_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from holdfast.registry.measurements.measurement import Measurement
    from holdfast.registry.measurements.views import Epoch

__all__ = ["tables"]

OPEN_ROWS = 15
"""A table of so many rows is unfolded."""
MOST_ROWS = 1000
MOST_MODELS = 50

_MEASURED: dict[str, tuple[str, Callable[[float], str]]] = {
    "duration_s": ("duration", seconds_text),
    "num_samples": ("samples", number_text),
    "samples_per_s": ("samples/s", lambda value: number_text(rounded(value))),
    "data_loading_s": ("waiting for data", seconds_text),
    "memory_bytes": ("memory", bytes_text),
}
_GROUPS = {
    "inference": ("Requests", "latency_s", "latency"),
    "dataset_loads": ("Dataset loads", "duration_s", "duration"),
    "model_loads": ("Model loads", "duration_s", "duration"),
    "cells": ("Cells", "duration_s", "duration"),
}


def tables(measurements: Sequence[Measurement], summary: Mapping[str, Any]) -> str:
    """All tables as HTML; nothing where there is no data."""
    parts = [_metrics(summary["training"])]
    parts += [
        _epochs(model, epochs_of(measurements, model)) for model in list(summary["training"])[:MOST_MODELS]
    ]
    for key, (heading, name, label) in _GROUPS.items():
        parts.append(_statistics(heading, summary[key], name, label))
    parts.append(_workers(summary["workers"]))
    return "\n".join(filter(None, parts))


def _metrics(training: Mapping[str, Any]) -> str:
    rows = []
    for model, of in list(training.items())[:MOST_MODELS]:
        for metric, body in of["metrics"].items():
            lower = lower_is_better(metric)
            best = None if lower is None else body["min" if lower else "max"]
            values = [body["first"], body["last"]]
            cells = [number_text(_rounded(value)) for value in values]
            rows.append(
                [
                    _name(model),
                    _cell(metric),
                    *map(_cell, cells),
                    _cell("" if best is None else number_text(_rounded(best))),
                ]
            )
    if not rows:
        return ""
    more = len(training) - MOST_MODELS
    note = f'<p class="soft">{count_of(more, "more model")}.</p>' if more > 0 else ""
    return f"<h2>Metrics</h2>{_table(['model', 'metric', 'first', 'last', 'best'], rows)}{note}"


def _epochs(model: str, epochs: Sequence[Epoch]) -> str:
    if not epochs:
        return ""
    metrics = list(dict.fromkeys(name for epoch in epochs for name in epoch.metrics))
    measured = [name for name in _MEASURED if any(name in epoch.measured for epoch in epochs)]
    failed = any(epoch.error for epoch in epochs)
    heads = ["epoch", *metrics, *(_MEASURED[name][0] for name in measured), *(["error"] if failed else [])]
    rows = []
    for epoch in epochs[-MOST_ROWS:]:
        cells = [_cell(f"{epoch.number:,}")]
        cells += [_exact(epoch.metrics.get(name)) for name in metrics]
        cells += [
            _cell(_MEASURED[name][1](epoch.measured[name]) if name in epoch.measured else "")
            for name in measured
        ]
        if failed:
            cells.append(f'<td class="error">{escape(epoch.error or "")}</td>')
        rows.append(cells)
    note = (
        f"the last {MOST_ROWS:,} of {len(epochs):,} epochs"
        if len(epochs) > MOST_ROWS
        else count_of(len(epochs), "epoch")
    )
    opened = " open" if len(rows) <= OPEN_ROWS else ""
    return (
        f'<details class="card"{opened}><summary>{escape(model)} <span class="soft">· {note}</span></summary>'
        f"{_table(heads, rows, card=False)}</details>"
    )


def _statistics(heading: str, group: Mapping[str, Any], name: str, label: str) -> str:
    rows = []
    for subject, of in group.items():
        told = of.get(name, {})
        cells = [number_text(of["count"]), number_text(of["failures"])]
        cells += [
            seconds_text(told[key]) if key in told else "" for key in ("mean", "p50", "p95", "p99", "max")
        ]
        rows.append([_name(subject), *map(_cell, cells)])
    heads = ["name", "count", "failed", f"mean {label}", "median", "p95", "p99", "longest"]
    return f"<h2>{heading}</h2>{_table(heads, rows)}" if rows else ""


def _workers(workers: Mapping[str, Any]) -> str:
    rows = []
    for worker, of in workers.items():
        told = of.get("utilization", {})
        shares = [f"{100 * told[key]:.0f} %" if key in told else "" for key in ("min", "mean", "max")]
        rows.append([_name(worker), _cell(number_text(of["count"])), *map(_cell, shares)])
    heads = ["worker", "reports", "least busy", "mean", "busiest"]
    return f"<h2>Workers</h2>{_table(heads, rows)}" if rows else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, card: bool = True) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    place = "scroll card" if card else "scroll"
    return f'<div class="{place}"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    return f"<td>{escape(text)}</td>"


def _name(text: str) -> str:
    return f'<td class="name">{escape(text)}</td>'


def _rounded(value: float | None) -> float | None:
    return None if value is None else rounded(value)


def _exact(value: float | None) -> str:
    """A cell with a rounded number, which tells the exact one under the pointer."""
    if value is None:
        return "<td></td>"
    return f'<td title="{value!r}">{escape(number_text(rounded(value)))}</td>'
