"""Numbers as people read them: the unit that fits a whole axis, and values as short text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Unit",
    "bytes_text",
    "bytes_unit",
    "number_text",
    "rounded",
    "seconds_text",
    "seconds_unit",
    "time_unit",
]


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit, and how much of the base unit it is."""

    name: str
    size: float

    def of(self, value: float) -> float:
        """The value, which is in the base unit, in this one."""
        return value / self.size


_SECONDS = (Unit("µs", 1e-6), Unit("ms", 1e-3), Unit("s", 1.0), Unit("min", 60.0), Unit("h", 3600.0))
_BYTES = (
    Unit("B", 1),
    Unit("KiB", 1 << 10),
    Unit("MiB", 1 << 20),
    Unit("GiB", 1 << 30),
    Unit("TiB", 1 << 40),
)


def _fitting(units: tuple[Unit, ...], largest: float) -> Unit:
    return next((unit for unit in reversed(units) if largest >= unit.size), units[0])


def seconds_unit(values: Iterable[float]) -> Unit:
    """The unit for durations: the largest one that the greatest of them is at least one of (two, from minutes on)."""
    largest = max(values, default=1.0)
    unit = _fitting(_SECONDS, largest)
    return unit if unit.size <= 1 or largest >= 2 * unit.size else _SECONDS[_SECONDS.index(unit) - 1]


def time_unit(values: Iterable[float]) -> Unit:
    """The unit for an axis of time that begins at 0: never less than milliseconds."""
    unit = seconds_unit(values)
    return _SECONDS[1] if unit.size < _SECONDS[1].size else unit


def bytes_unit(values: Iterable[float]) -> Unit:
    """The unit for sizes."""
    return _fitting(_BYTES, max(values, default=1.0))


def seconds_text(seconds: float) -> str:
    """A duration with three digits and its unit: ``1.25 s``."""
    unit = seconds_unit([abs(seconds)])
    return f"{number_text(rounded(unit.of(seconds)))} {unit.name}"


def bytes_text(size: float) -> str:
    """A size with three digits and its unit: ``512 MiB``."""
    unit = bytes_unit([abs(size)])
    return f"{number_text(rounded(unit.of(size)))} {unit.name}"


def rounded(value: float, digits: int = 3) -> float:
    """The value with so many significant digits."""
    return float(f"{value:.{digits}g}")


def number_text(value: float | None) -> str:
    """A number as short text without an exponent where that is readable; ``NaN`` for None and what is no number."""
    if value is None or math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1e-4 else f"{value:.2e}"
