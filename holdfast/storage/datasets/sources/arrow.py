"""Arrow's own kinds: tables, batches, readers, datasets, and whatever gives an Arrow stream (polars, DuckDB, ...)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pds

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.batch_sizes import size_of
from holdfast.storage.datasets.sources.source import BatchSource, reworded

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["from_columns", "is_arrow", "open_arrow"]

_READ_AHEAD = 2
_DATASET_ROWS = 16384


def is_arrow(data: Any) -> bool:
    """Whether :func:`open_arrow` takes it."""
    kinds = (pa.Table, pa.RecordBatch, pa.RecordBatchReader, pds.Dataset, pds.Scanner)
    return (
        isinstance(data, kinds) or hasattr(data, "__arrow_c_stream__") or hasattr(data, "__arrow_c_array__")
    )


def open_arrow(data: Any) -> BatchSource:
    """Arrow data as a source, with no copy of what is in memory.

    Raises:
        InvalidInput: It has no columns, or two of one name, or its stream is one of values and not of tables.
    """
    what = f"the {type(data).__module__.partition('.')[0]} {type(data).__name__}"
    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if isinstance(data, pa.Table):
        table = data
        return BatchSource(
            schema=table.schema,
            read=table.to_batches,
            what=what,
            rows=table.num_rows,
            size_bytes=size_of(table),
        )
    if isinstance(data, pa.RecordBatchReader):
        return BatchSource(schema=data.schema, read=lambda: reworded(data, what=what), what=what, once=True)
    if isinstance(data, pds.Dataset):
        return _open_dataset(data, what=what)
    if isinstance(data, pds.Scanner):
        schema = data.projected_schema
        return BatchSource(schema=schema, read=lambda: reworded(data.to_batches(), what=what), what=what)
    return _open_stream(data, what=what)


def from_columns(data: Any) -> BatchSource:
    """A mapping from column to Arrow arrays as a source.

    Raises:
        InvalidInput: The columns differ in length.
    """
    try:
        return open_arrow(pa.table(dict(data)))
    except pa.ArrowException as error:
        sizes = ", ".join(f"{name} {len(values)}" for name, values in data.items())
        raise InvalidInput(f"the columns don't make a table (rows: {sizes}): {error}") from error


def _open_dataset(dataset: Any, *, what: str) -> BatchSource:
    def read() -> Iterator[pa.RecordBatch]:
        # Arrow's own read-ahead of 16 batches and 4 files is as much memory as their batches need.
        batches = dataset.to_batches(
            batch_size=_DATASET_ROWS, batch_readahead=_READ_AHEAD, fragment_readahead=1
        )
        return reworded(batches, what=what)

    return BatchSource(schema=dataset.schema, read=read, what=what)


def _open_stream(data: Any, *, what: str) -> BatchSource:
    """Anything with ``__arrow_c_stream__``; one that can't give its stream twice says so itself."""
    try:
        if not hasattr(data, "__arrow_c_stream__"):
            return open_arrow(pa.record_batch(data))
        first = [pa.RecordBatchReader.from_stream(data)]
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InvalidInput(
            f"{what} gives no Arrow table ({error}); a series becomes one as a frame of one column"
        ) from error
    schema = pa.schema([field.with_type(_readable(field.type)) for field in first[0].schema])

    def read() -> Iterator[pa.RecordBatch]:
        reader = first.pop() if first else pa.RecordBatchReader.from_stream(data)
        for batch in reworded(reader, what=what):
            columns = [_with_type(column, f.type) for column, f in zip(batch.columns, schema, strict=True)]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return BatchSource(schema=schema, read=read, what=what)


def _readable(kind: pa.DataType) -> pa.DataType:
    """The type, with plain text as the values of dictionaries: Arrow can't look up views (categories of polars)."""
    if pa.types.is_dictionary(kind) and pa.types.is_string_view(kind.value_type):
        return pa.dictionary(kind.index_type, pa.string(), ordered=kind.ordered)
    return kind


def _with_type(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type == kind:
        return column
    values = column.dictionary.cast(kind.value_type)
    return pa.DictionaryArray.from_arrays(column.indices, values, ordered=kind.ordered)
