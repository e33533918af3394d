"""Measurements in the order in which people ask for them: the epochs of a model, its requests, the loads of a dataset."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from holdfast.errors import NotFound
from holdfast.registry.measurements.measurement import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from holdfast.registry.measurements.measurement import Measurement

__all__ = [
    "Epoch",
    "by_subject",
    "epochs_of",
    "known_model",
    "models_trained",
    "percentile",
    "values_of",
]


@dataclass(slots=True)
class Epoch:
    """What is known of one epoch of one model."""

    number: int
    metrics: dict[str, float] = field(default_factory=dict)
    """What was recorded of it; of a name that came twice, the later value."""
    measured: dict[str, float] = field(default_factory=dict)
    """What was measured of it: ``duration_s``, ``num_samples``, ``samples_per_s``, ``data_loading_s``, ``memory_bytes``."""
    error: str | None = None


def models_trained(measurements: Iterable[Measurement]) -> tuple[str, ...]:
    """The models with metrics or epochs, in the order in which they came first."""
    kinds = (Kind.METRIC, Kind.EPOCH)
    return tuple(dict.fromkeys(m.subject for m in measurements if m.kind in kinds))


def known_model(
    measurements: Iterable[Measurement], model: str, *, kinds: tuple[Kind, ...] = tuple(Kind)
) -> str:
    """``model`` itself, if something was measured of it.

    Raises:
        NotFound: Nothing was; the message names what is nearest.
    """
    known = dict.fromkeys(m.subject for m in measurements if m.kind in kinds)
    if model in known:
        return model
    near = difflib.get_close_matches(str(model), known, n=3)
    hint = (
        f"did you mean {' or '.join(map(repr, near))}?" if near else f"measured are: {', '.join(known)[:300]}"
    )
    raise NotFound(f"nothing was measured of {model!r}; {hint if known else 'there are no measurements yet'}")


def epochs_of(measurements: Iterable[Measurement], model: str) -> list[Epoch]:
    """The epochs of a model by number; of an epoch that was measured twice, the later one."""
    epochs: dict[int, Epoch] = {}
    for m in measurements:
        if m.subject != model or m.step is None or m.kind not in (Kind.METRIC, Kind.EPOCH):
            continue
        epoch = epochs.setdefault(m.step, Epoch(m.step))
        if m.kind is Kind.METRIC:
            epoch.metrics.update(m.values)
            continue
        epoch.error = m.error
        epoch.measured = dict(m.values)
        samples, duration_s = m.values.get("num_samples"), m.values.get("duration_s")
        if samples is not None and duration_s and not m.failed:
            epoch.measured["samples_per_s"] = samples / duration_s
    return [epochs[step] for step in sorted(epochs)]


def by_subject(measurements: Iterable[Measurement], kind: Kind) -> dict[str, list[Measurement]]:
    """The measurements of one kind, for each subject in the order in which it came first."""
    found: dict[str, list[Measurement]] = {}
    for m in measurements:
        if m.kind is kind:
            found.setdefault(m.subject, []).append(m)
    return found


def values_of(measurements: Iterable[Measurement], name: str) -> list[float]:
    """The finite values of one name among what did not fail."""
    return [
        m.values[name]
        for m in measurements
        if not m.failed and name in m.values and math.isfinite(m.values[name])
    ]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least ``share`` of them do not exceed; there must be values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
