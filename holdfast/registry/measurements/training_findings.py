"""Rules about training: waiting for data, overfitting, divergence, standing still, failures, growing memory, uneven epochs."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import TYPE_CHECKING

from holdfast.registry.measurements.finding import Finding, Severity
from holdfast.registry.measurements.measurement import Kind
from holdfast.registry.measurements.views import epochs_of, models_trained, percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from holdfast.registry.measurements.measurement import Measurement
    from holdfast.registry.measurements.views import Epoch

__all__ = ["RULES", "lower_is_better"]

DATA_SHARE = 0.3
"""Waiting for data is a bottleneck from this share of the epochs' time on."""
OVERFIT_EPOCHS, OVERFIT_SHARE = 3, 0.02
"""Overfitting: so many epochs since the best validation, which became worse by this share while training got better."""
STILL_EPOCHS, STILL_SHARE = 8, 0.005
"""Standing still: the best loss fell by less than this share in so many epochs."""
GROWTH_EPOCHS, GROWTH_SHARE = 5, 0.3
"""Memory that grew in each of so many epochs, by this share in all."""
SLOW_EPOCHS, SLOW_FACTOR = 5, 2.0
"""An epoch is slow at this multiple of the median of at least so many epochs."""

_LOWER = re.compile(r"loss|error|perplexity|mse|mae|rmse|nll", re.IGNORECASE)
_HIGHER = re.compile(r"acc|auc|f1|precision|recall|r2|score|bleu|rouge|iou|map$", re.IGNORECASE)


def lower_is_better(name: str) -> bool | None:
    """Whether a metric of this name is better when it is lower; None where the name does not say."""
    if _LOWER.search(name):
        return True
    return False if _HIGHER.search(name) else None


def _of_each_model(
    rule: Callable[[str, list[Epoch]], Iterator[Finding]],
) -> Callable[[Sequence[Measurement]], Iterator[Finding]]:
    """The rule applied to the epochs of every model."""

    def applied(measurements: Sequence[Measurement]) -> Iterator[Finding]:
        for model in models_trained(measurements):
            yield from rule(model, epochs_of(measurements, model))

    return applied


def failed_epochs(measurements: Sequence[Measurement]) -> Iterator[Finding]:
    """Epochs that ended with an error."""
    for model in models_trained(measurements):
        epochs = [m for m in measurements if m.kind is Kind.EPOCH and m.subject == model]
        failed = [m for m in epochs if m.failed]
        if failed:
            yield Finding(
                rule="failed-epochs",
                severity=Severity.FAULT,
                subject=model,
                text=f"{len(failed)} of {len(epochs)} epochs failed; the last one, epoch {failed[-1].step}, with {failed[-1].error}",
                numbers={"failed": len(failed), "epochs": len(epochs)},
            )


@_of_each_model
def divergence(model: str, epochs: list[Epoch]) -> Iterator[Finding]:
    """Metrics that stopped being numbers."""
    for name in _names(epochs):
        broken = [e.number for e in epochs if not math.isfinite(e.metrics.get(name, 0.0))]
        if broken:
            yield Finding(
                rule="not-finite",
                severity=Severity.FAULT,
                subject=model,
                text=f"{name} is NaN or infinite in {len(broken)} epoch{'s' * (len(broken) != 1)}, first in epoch {broken[0]}; "
                "a lower learning rate or clipped gradients may help",
                numbers={"epochs": len(broken), "first_epoch": broken[0]},
            )


@_of_each_model
def data_loading(model: str, epochs: list[Epoch]) -> Iterator[Finding]:
    """Epochs that mostly wait for data."""
    measured = [e.measured for e in epochs if not e.error and "data_loading_s" in e.measured]
    waited_s = math.fsum(m["data_loading_s"] for m in measured)
    duration_s = math.fsum(m["duration_s"] for m in measured)
    if duration_s and waited_s / duration_s >= DATA_SHARE:
        share = waited_s / duration_s
        yield Finding(
            rule="data-loading",
            severity=Severity.BOTTLENECK,
            subject=model,
            text=f"{share:.0%} of the epochs' time is waiting for data; prefetching, more loader workers or a cached dataset may help",
            numbers={
                "data_loading_s": waited_s,
                "duration_s": duration_s,
                "share": share,
                "epochs": len(measured),
            },
        )


@_of_each_model
def overfitting(model: str, epochs: list[Epoch]) -> Iterator[Finding]:
    """Validation that becomes worse while training becomes better."""
    for name in _names(epochs):
        lower = lower_is_better(name)
        base = re.sub(r"^(val|valid|validation|test)_", "", name)
        train = next((n for n in (f"train_{base}", base) if n != name and n in _names(epochs)), None)
        if base == name or lower is None or train is None:
            continue
        sign = 1 if lower else -1
        both = [
            (e.number, sign * e.metrics[name], sign * e.metrics[train])
            for e in epochs
            if math.isfinite(e.metrics.get(name, math.nan)) and math.isfinite(e.metrics.get(train, math.nan))
        ]
        if not both:
            continue
        best = min(both, key=lambda each: each[1])
        since = [each for each in both if each[0] > best[0]]
        if len(since) < OVERFIT_EPOCHS:
            continue
        later = math.fsum(each[1] for each in since[-OVERFIT_EPOCHS:]) / OVERFIT_EPOCHS
        if later - best[1] > OVERFIT_SHARE * abs(best[1]) and since[-1][2] < best[2]:
            yield Finding(
                rule="overfitting",
                severity=Severity.HINT,
                subject=model,
                text=f"{name} was best in epoch {best[0]} and has become worse since, while {train} still gets better: "
                "the model of that epoch is likely the better one",
                numbers={
                    "best_epoch": best[0],
                    f"best_{name}": sign * best[1],
                    f"last_{name}": sign * since[-1][1],
                    f"{train}_then": sign * best[2],
                    f"{train}_last": sign * since[-1][2],
                },
            )


@_of_each_model
def standing_still(model: str, epochs: list[Epoch]) -> Iterator[Finding]:
    """A training loss that has stopped falling."""
    for name in _names(epochs):
        if lower_is_better(name) is not True or re.match(r"(val|valid|validation|test)_", name):
            continue
        values = [(e.number, e.metrics[name]) for e in epochs if math.isfinite(e.metrics.get(name, math.nan))]
        if len(values) <= STILL_EPOCHS:
            continue
        before = min(value for _, value in values[:-STILL_EPOCHS])
        after = min(value for _, value in values[-STILL_EPOCHS:])
        if before - after < STILL_SHARE * abs(before):
            yield Finding(
                rule="standing-still",
                severity=Severity.HINT,
                subject=model,
                text=f"{name} did not get better in the last {STILL_EPOCHS} epochs; stopping earlier or another learning rate may help",
                numbers={
                    "epochs": STILL_EPOCHS,
                    f"best_{name}_before": before,
                    f"best_{name}_since": after,
                },
            )


@_of_each_model
def growing_memory(model: str, epochs: list[Epoch]) -> Iterator[Finding]:
    """Memory that grows with every epoch."""
    memory = [e.measured["memory_bytes"] for e in epochs if "memory_bytes" in e.measured]
    last = memory[-GROWTH_EPOCHS - 1 :]
    if len(last) <= GROWTH_EPOCHS or any(after <= before for before, after in pairwise(last)):
        return
    if last[-1] >= (1 + GROWTH_SHARE) * last[0]:
        yield Finding(
            rule="growing-memory",
            severity=Severity.FAULT,
            subject=model,
            text=f"the process grew in each of the last {GROWTH_EPOCHS} epochs, by {last[-1] / last[0] - 1:.0%} in all; "
            "something keeps what it should let go, such as losses with their graphs",
            numbers={"memory_bytes_then": last[0], "memory_bytes_last": last[-1], "epochs": GROWTH_EPOCHS},
        )


@_of_each_model
def slow_epochs(model: str, epochs: list[Epoch]) -> Iterator[Finding]:
    """Single epochs that took much longer than the others."""
    durations = [(e.number, e.measured["duration_s"]) for e in epochs if e.measured and not e.error]
    if len(durations) < SLOW_EPOCHS:
        return
    median = percentile([seconds for _, seconds in durations], 0.5)
    slow = [each for each in durations if each[1] >= SLOW_FACTOR * median]
    if slow and median:
        number, seconds = max(slow, key=lambda each: each[1])
        yield Finding(
            rule="slow-epochs",
            severity=Severity.HINT,
            subject=model,
            text=f"{len(slow)} of {len(durations)} epochs took at least {SLOW_FACTOR:g} times the median; the slowest is epoch {number}",
            numbers={"slowest_epoch": number, "slowest_s": seconds, "median_s": median},
        )


def _names(epochs: Sequence[Epoch]) -> list[str]:
    return list(dict.fromkeys(name for epoch in epochs for name in epoch.metrics))


RULES: tuple[Callable[[Sequence[Measurement]], Iterator[Finding]], ...] = (
    failed_epochs,
    divergence,
    growing_memory,
    data_loading,
    overfitting,
    standing_still,
    slow_epochs,
)
