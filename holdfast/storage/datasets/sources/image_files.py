"""Image files as rows: their bytes as they are, and a label where folders name classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from holdfast.storage.datasets.sources.files import file_errors, total_size
from holdfast.storage.datasets.sources.source import BATCH_BYTES, IMAGE, MEDIA, BatchSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["open_images"]


def open_images(
    paths: Sequence[Path], labels: Sequence[int] | None = None, classes: Sequence[str] = ()
) -> BatchSource:
    """Images as one source with the column ``image``, and ``label`` (int64) where labels are given.

    Args:
        paths: One a row.
        labels: The number of each one's class.
        classes: The names of the classes.

    Raises:
        NotFound: A file is not there.
    """
    fields = [pa.field("image", pa.binary(), metadata={MEDIA: IMAGE})]
    if labels is not None:
        fields.append(pa.field("label", pa.int64()))
    schema = pa.schema(fields)

    def batch(images: list[bytes], end: int) -> pa.RecordBatch:
        columns = [pa.array(images, pa.binary())]
        if labels is not None:
            columns.append(pa.array(labels[end - len(images) : end], pa.int64()))
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def read() -> Iterator[pa.RecordBatch]:
        held: list[bytes] = []
        size_bytes = 0
        for number, path in enumerate(paths):
            with file_errors(path, "image"):
                image = path.read_bytes()
            if held and size_bytes + len(image) > BATCH_BYTES:
                yield batch(held, number)
                held, size_bytes = [], 0
            held.append(image)
            size_bytes += len(image)
        if held:
            yield batch(held, len(paths))

    return BatchSource(
        schema=schema,
        read=read,
        what=str(paths[0]) if len(paths) == 1 else str(paths[0].parent),
        rows=len(paths),
        size_bytes=total_size(paths),
        metadata={"classes": {"label": list(classes)}} if labels is not None else {},
        locate=lambda row: str(paths[row]),
    )
