"""Images as encoded bytes: image files as they are, Pillow's as PNG, and a check of either on request."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from holdfast.errors import InvalidInput, require
from holdfast.storage.datasets.sources.source import IMAGE, MEDIA, BatchSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from holdfast.storage.datasets.sources.source import Source

__all__ = ["VerifiedSource", "encoded", "verified"]

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
"""Pillow writes some others, too, depending on its version, and cuts their values to fit."""


def encoded(image: Any) -> bytes:
    """A Pillow image as PNG, which loses nothing.

    Raises:
        ValueError: PNG does not have the image's mode.
        OSError: The image's own file can't be read.
    """
    if image.mode not in _PNG_MODES:
        raise ValueError(f"no PNG holds the mode {image.mode} without loss; convert it first")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def verified(source: Source, how: Literal["fail", "skip"], *, what: str) -> Source:
    """The source with every image decoded once on its way; the source itself where it has no images.

    Raises:
        Unsupported: Pillow is not installed.
    """
    columns = [field.name for field in source.schema if (field.metadata or {}).get(MEDIA) == IMAGE]
    if not columns:
        return source
    require("PIL.Image", extra="images", why="checking images")
    return VerifiedSource(source, columns, skip=how == "skip", what=what)


class VerifiedSource:
    """A source whose images can all be decoded."""

    def __init__(self, source: Source, columns: list[str], *, skip: bool, what: str) -> None:
        self._source = source
        self._columns = columns
        self._skip = skip
        self._what = what
        self.skipped = 0

    @property
    def schema(self) -> pa.Schema:
        """See :class:`Source`."""
        return self._source.schema

    @property
    def rows(self) -> int | None:
        """See :class:`Source`; not known where rows may be left out."""
        return None if self._skip else self._source.rows

    @property
    def size_bytes(self) -> int | None:
        """See :class:`Source`."""
        return self._source.size_bytes

    @property
    def metadata(self) -> Any:
        """See :class:`Source`."""
        return self._source.metadata

    def batches(self) -> Iterator[pa.RecordBatch]:
        """See :class:`Source`.

        Raises:
            InvalidInput: An image is unreadable, and such rows are not to be skipped.
        """
        batches = self._source.batches()
        self.skipped = 0
        return self._checked(batches)

    def _checked(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        done = 0
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "holdfast-images") as pool:
            for batch in batches:
                good = [True] * batch.num_rows
                for name in self._columns:
                    for index, problem in enumerate(pool.map(_problem, batch.column(name))):
                        if problem is None:
                            continue
                        if not self._skip:
                            raise InvalidInput(
                                f"{self._where(done + index)}, column {name!r}: the image is unreadable: {problem}; "
                                "verify_images='skip' leaves such rows out"
                            )
                        good[index] = False
                done += batch.num_rows
                self.skipped += good.count(False)
                kept = batch if all(good) else batch.filter(pa.array(good))
                if kept.num_rows:
                    yield kept

    def _where(self, row: int) -> str:
        locate = self._source.locate if isinstance(self._source, BatchSource) else None
        return locate(row) if locate is not None else f"{self._what}, row {row} (the first is 0)"


def _problem(value: pa.Scalar) -> str | None:
    """Why an image can't be decoded, or None. A missing image is none that is unreadable."""
    from PIL import Image

    data = value.as_buffer() if value.is_valid else None
    if data is None:
        return None
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Exception as error:  # noqa: BLE001 -- decoders raise whatever the bytes lead them to
        return f"{type(error).__name__}: {error}"
    return None
