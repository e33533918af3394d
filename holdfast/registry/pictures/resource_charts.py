"""What there is to draw of workers, memory and loading."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from holdfast.registry.measurements.measurement import Kind
from holdfast.registry.measurements.views import by_subject, values_of
from holdfast.registry.pictures.chart import Bar, BarPanel, Chart, Line, LinePanel, count_of, thinned
from holdfast.registry.pictures.theme import COLOURS
from holdfast.registry.pictures.units import (
    Unit,
    bytes_text,
    bytes_unit,
    seconds_text,
    seconds_unit,
    time_unit,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from holdfast.registry.measurements.measurement import Measurement
    from holdfast.registry.pictures.chart import Panel

__all__ = ["loads_chart", "memory_chart", "workers_chart"]

MAX_BARS = 16


def workers_chart(measurements: Sequence[Measurement]) -> Chart:
    """The chart ``worker_utilization``: how busy each worker is over time, and in the mean."""
    workers = by_subject(measurements, Kind.WORKER)
    means = {}
    for worker, of in workers.items():
        shares = values_of(of, "utilization")
        if shares:
            means[worker] = (100 * math.fsum(shares) / len(shares), len(shares))
    panels: list[Panel] = []
    if any(count > 1 for _, count in means.values()):
        shown = dict(list(workers.items())[:COLOURS])
        panels.append(
            LinePanel(
                title="Over time",
                x_label=_time_label(shown),
                lines=_over_time(shown, "utilization", scale=100.0),
                y_label="time spent working (%)",
                y_range=(0.0, 104.0),
            )
        )
    if means:
        order = sorted(means, key=lambda worker: -means[worker][0])
        colours = {worker: place for place, worker in enumerate(workers)} if panels else {}
        bars = tuple(
            Bar(
                name=worker,
                value=means[worker][0],
                text=f"{means[worker][0]:.0f} %",
                colour=colours.get(worker, 0) if colours.get(worker, 0) < COLOURS else COLOURS - 1,
            )
            for worker in order[:MAX_BARS]
        )
        panels.append(BarPanel(title="In the mean", x_label="time spent working (%)", bars=bars))
    notes = [count_of(len(means), "worker")]
    notes += [f"lines of the first {COLOURS}"] * (len(workers) > COLOURS)
    notes += [f"bars of the {MAX_BARS} busiest"] * (len(means) > MAX_BARS)
    return Chart(
        key="worker_utilization",
        title="Worker utilization",
        subtitle=" · ".join(notes) if means else "",
        panels=tuple(panels),
        nothing="No worker has reported how busy it is.",
    )


def memory_chart(measurements: Sequence[Measurement]) -> Chart:
    """The chart ``memory``: what this process, and the workers that told, had resident over time."""
    own = [m for m in measurements if m.kind is not Kind.WORKER and "memory_bytes" in m.values]
    workers = {
        worker: [m for m in of if "memory_bytes" in m.values]
        for worker, of in by_subject(measurements, Kind.WORKER).items()
    }
    found = {"this process": own, **workers}
    found = {name: of for name, of in found.items() if of}
    shown = dict(list(found.items())[:COLOURS])
    sizes = [m.values["memory_bytes"] for of in shown.values() for m in of]
    unit = bytes_unit(sizes)
    panel = LinePanel(
        title="Resident memory",
        x_label=_time_label(shown),
        lines=_over_time(shown, "memory_bytes", scale=1 / unit.size),
        y_label=f"memory ({unit.name})",
        y_range=(0.0, 1.08 * unit.of(max(sizes))) if sizes else None,
    )
    notes = [f"at most {bytes_text(max(sizes))}"] if sizes else []
    notes += [f"{COLOURS} of {len(found)} processes"] * (len(found) > COLOURS)
    return Chart(
        key="memory",
        title="Memory",
        subtitle=" · ".join(notes),
        panels=(panel,) if sizes else (),
        nothing="Nothing has been measured that tells of memory.",
    )


def _time_axis(of: Mapping[str, Sequence[Measurement]]) -> tuple[float, Unit]:
    """When the time axis of all of these begins, and its unit."""
    times = [m.time_s for each in of.values() for m in each]
    begin = min(times, default=0.0)
    return begin, time_unit([time - begin for time in times])


def _time_label(of: Mapping[str, Sequence[Measurement]]) -> str:
    return f"time since the first measurement ({_time_axis(of)[1].name})"


def _over_time(of: Mapping[str, Sequence[Measurement]], value: str, *, scale: float) -> tuple[Line, ...]:
    """A line for each of them, of a value over the time since the first measurement."""
    begin, unit = _time_axis(of)
    lines = []
    for place, (name, unsorted) in enumerate(of.items()):
        each = sorted(unsorted, key=lambda m: m.time_s)
        x, y = thinned(
            tuple(unit.of(m.time_s - begin) for m in each),
            tuple(scale * m.values[value] for m in each),
        )
        lines.append(Line(name=name, x=x, y=y, colour=place))
    return tuple(lines)


def loads_chart(measurements: Sequence[Measurement], kind: Kind = Kind.DATASET_LOAD) -> Chart:
    """The chart ``dataset_load_times`` (or ``model_load_times``): the mean time of a load, the longest first."""
    what = "dataset" if kind is Kind.DATASET_LOAD else "model"
    found = {}
    failed = 0
    for name, of in by_subject(measurements, kind).items():
        seconds = values_of(of, "duration_s")
        failed += sum(m.failed for m in of)
        if seconds:
            found[name] = (
                math.fsum(seconds) / len(seconds),
                len(seconds),
                values_of(of, "size_bytes"),
                math.fsum(seconds),
            )
    order = sorted(found, key=lambda name: -found[name][0])
    unit = seconds_unit([found[name][0] for name in order])
    bars = []
    for name in order[:MAX_BARS]:
        mean, count, sizes, total = found[name]
        text = seconds_text(mean)
        text += f", {count_of(count, 'load')}" if count > 1 else ""
        if len(sizes) == count and total:
            text += f", {bytes_text(math.fsum(sizes) / total)}/s"
        bars.append(Bar(name=name, value=unit.of(mean), text=text))
    panel = BarPanel(
        title=f"{what.capitalize()} loading", x_label=f"mean time of a load ({unit.name})", bars=tuple(bars)
    )
    notes = [f"{MAX_BARS} of {len(found)} {what}s, the slowest"] * (len(found) > MAX_BARS)
    notes += [f"{count_of(failed, 'load')} failed and {'is' if failed == 1 else 'are'} not in it"] * bool(
        failed
    )
    return Chart(
        key=f"{what}_load_times",
        title=f"{what.capitalize()} load times",
        subtitle=" · ".join(notes),
        panels=(panel,) if bars else (),
        nothing=f"No {what} load has been measured.",
    )
