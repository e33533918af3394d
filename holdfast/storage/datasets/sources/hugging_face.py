"""Hugging Face ``datasets``: in memory, memory-mapped and streamed, with what their features mean."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from holdfast.errors import Denied, InvalidInput, NotFound, Unsupported
from holdfast.storage.datasets.batch_sizes import size_of
from holdfast.storage.datasets.sources.rows import open_rows
from holdfast.storage.datasets.sources.source import IMAGE, MEDIA, BatchSource, rows_a_batch
from holdfast.storage.datasets.sources.values import tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["is_dataset", "is_dataset_dict", "open_dataset"]

_MEDIA = ("Image", "Audio", "Video", "Pdf", "Nifti")
"""Features that are stored as a struct of bytes and path."""
_STREAMED_ROWS = 256
_LINKED_ROWS = 8
"""Rows at a time where they only name files, which may be large."""
_LINKED_BYTES = 1024


def is_dataset_dict(data: Any) -> bool:
    """Whether it is a mapping from split to Hugging Face dataset; the package is not imported to find out."""
    module = sys.modules.get("datasets")
    kinds = [getattr(module, name, None) for name in ("DatasetDict", "IterableDatasetDict")]
    return isinstance(data, tuple(kind for kind in kinds if isinstance(kind, type)))


def is_dataset(data: Any) -> bool:
    """Whether :func:`open_dataset` takes it."""
    module = sys.modules.get("datasets")
    kinds = [getattr(module, name, None) for name in ("Dataset", "IterableDataset")]
    return isinstance(data, tuple(kind for kind in kinds if isinstance(kind, type)))


def open_dataset(data: Any) -> BatchSource:
    """A Hugging Face dataset as a source.

    Images become their encoded bytes, class labels int64 with their names under ``classes``, arrays of fixed shape
    tensors. Transforms and formats that were set on the dataset are not applied.

    Raises:
        InvalidInput: A streamed dataset does not say its features and has no rows to tell them from.
        Unsupported: Images or the like are nested in lists or mappings.
    """
    what = f"the Hugging Face {type(data).__name__}"
    features = data.features
    if features is None:
        return open_rows(lambda: iter(data), what=what)
    known = features.arrow_schema
    schema = pa.schema([_field(name, feature, known.field(name).type) for name, feature in features.items()])
    classes = {name: list(f.names) for name, f in features.items() if type(f).__name__ == "ClassLabel"}
    media = [name for name, feature in features.items() if type(feature).__name__ in _MEDIA]
    rows: int | None = None
    size_bytes: int | None = None
    step = _STREAMED_ROWS
    if hasattr(data, "__len__"):
        rows, table = len(data), data.data
        average = size_of(table) // max(1, table.num_rows)
        size_bytes = average * rows
        step = min(rows_a_batch(rows, size_bytes), 16384)
        if media and average < _LINKED_BYTES:
            step = _LINKED_ROWS
    elif media:
        step = _LINKED_ROWS

    def read() -> Iterator[pa.RecordBatch]:
        done = 0
        for table in _tables(data, step, what=what):
            columns = [
                _column(table.column(field.name), field, done, media=field.name in media, what=what)
                for field in schema
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)
            done += table.num_rows

    metadata = {"classes": classes} if classes else {}
    return BatchSource(
        schema=schema, read=read, what=what, rows=rows, size_bytes=size_bytes, metadata=metadata
    )


def _tables(data: Any, step: int, *, what: str) -> Iterable[pa.Table]:
    try:
        yield from data.with_format("arrow").iter(batch_size=step)
    except (pa.ArrowException, TypeError) as error:
        raise InvalidInput(f"{what} has rows that don't fit its own features: {error}") from error


def _field(name: str, feature: Any, kind: pa.DataType) -> pa.Field:
    found = type(feature).__name__
    if found in _MEDIA:
        return pa.field(name, pa.binary(), metadata={MEDIA: IMAGE} if found == "Image" else None)
    if _holds_media(feature):
        raise Unsupported(
            f"column {name!r} has images, sound or the like nested in lists or mappings: make a column of each"
        )
    if isinstance(kind, pa.BaseExtensionType):
        shape = getattr(feature, "shape", (None,))
        if None in shape:
            return pa.field(name, kind.storage_type)
        return pa.field(name, pa.fixed_shape_tensor(_innermost(kind.storage_type), shape))
    return pa.field(name, kind)


def _holds_media(feature: Any) -> bool:
    if type(feature).__name__ in _MEDIA:
        return True
    if isinstance(feature, dict):
        return any(map(_holds_media, feature.values()))
    if isinstance(feature, (list, tuple)):
        return any(map(_holds_media, feature))
    return hasattr(feature, "feature") and _holds_media(feature.feature)


def _innermost(kind: pa.DataType) -> pa.DataType:
    while pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return kind


def _column(column: pa.ChunkedArray, field: pa.Field, first_row: int, *, media: bool, what: str) -> pa.Array:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    if media:
        return _embedded(array, field, first_row, what=what)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if isinstance(field.type, pa.FixedShapeTensorType):
        return _tensors(array, field, first_row, what=what)
    return array if array.type == field.type else array.cast(field.type)


def _tensors(array: pa.Array, field: pa.Field, first_row: int, *, what: str) -> pa.Array:
    missing = array.is_null()
    if array.null_count:
        raise InvalidInput(
            f"{what}, row {first_row + missing.index(True).as_py()} (the first is 0), column {field.name!r}: "
            "an array is missing; leave the row out or fill it"
        )
    flat = array
    while pa.types.is_list(flat.type) or pa.types.is_large_list(flat.type):
        flat = flat.flatten()
    shape = (len(array), *field.type.shape)
    values = flat.to_numpy(zero_copy_only=False)
    try:
        return tensors(values.reshape(shape))
    except ValueError as error:
        raise InvalidInput(
            f"{what}, column {field.name!r}, rows from {first_row} on: {len(values)} values don't make arrays of {shape}"
        ) from error


def _embedded(array: pa.Array, field: pa.Field, first_row: int, *, what: str) -> pa.Array:
    """The bytes of images, read from their files where the dataset only names these."""
    data, paths = pc.struct_field(array, "bytes"), pc.struct_field(array, "path")
    linked = pc.and_(data.is_null(), paths.is_valid())
    if pc.any(linked).as_py():
        values = []
        for index, (value, path) in enumerate(zip(data, paths, strict=True)):
            if value.is_valid or not path.is_valid:
                values.append(value.as_py())
                continue
            where = f"{what}, row {first_row + index} (the first is 0), column {field.name!r}"
            values.append(_bytes_of(path.as_py(), where=where))
        return pa.array(values, field.type)
    return data if data.type == field.type else data.cast(field.type)


def _bytes_of(path: str, *, where: str) -> bytes:
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            data: bytes = file.read()
    except FileNotFoundError as error:
        raise NotFound(f"{where} names the file {path}, which is not there") from error
    except PermissionError as error:
        raise Denied(f"{where} names the file {path}, which may not be read") from error
    except (OSError, ValueError, ImportError) as error:
        raise InvalidInput(f"{where} names the file {path}, which can't be read: {error}") from error
    return data
