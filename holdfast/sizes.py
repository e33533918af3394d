"""Sizes as people read them."""

from __future__ import annotations

__all__ = ["human_size"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def human_size(size_bytes: float) -> str:
    """A size with a binary unit and one decimal: ``1.5 MiB``; bytes alone have none."""
    value, unit = float(size_bytes), 0
    while abs(value) >= 1023.95 and unit + 1 < len(_UNITS):  # what would be rounded to 1,024.0
        value, unit = value / 1024, unit + 1
    return f"{value:,.1f} {_UNITS[unit]}" if unit else f"{size_bytes:.0f} B"
