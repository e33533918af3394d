"""What the formats of several frameworks need, so that the same model is the same file twice."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["dicts_in", "timeless_zip"]

_TIME = (1980, 1, 1, 0, 0, 0)
"""The earliest that a zip file can say."""


def timeless_zip(parts: Iterable[tuple[str, bytes | str]]) -> bytes:
    """A zip file with these parts in this order, by name, uncompressed, that does not say when it was written."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as new:
        for name, part in parts:
            new.writestr(zipfile.ZipInfo(name, _TIME), part)
    return written.getvalue()


def dicts_in(node: Any) -> Iterator[dict[str, Any]]:
    """Every dict in what JSON may hold; a dict before those in it, which may be changed meanwhile."""
    waiting = [node]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield each
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)
