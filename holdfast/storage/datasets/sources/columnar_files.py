"""Parquet and Arrow IPC files (Feather among them): schemas when they are opened, then a batch at a time."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from holdfast.storage.datasets.sources.files import as_schema, common_schema, file_errors, total_size
from holdfast.storage.datasets.sources.source import BatchSource, rows_a_batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["open_ipc", "open_parquet"]

_UNNAMED_INDEX = re.compile(r"__index_level_\d+__")
_BUFFER_BYTES = 1 << 20
"""Column chunks are read through a buffer of this size, so that a row group need not fit into memory."""
_IPC_MAGIC = b"ARROW1"


def open_parquet(paths: Sequence[Path]) -> BatchSource:
    """Parquet files as one source. An unnamed pandas index that was written with them is left out.

    Raises:
        InvalidInput: A file has other columns than the first.
        NotFound: A file is not there.
        Corrupt: A file is damaged, or not Parquet.
    """
    rows: list[int] = []

    def schema_of(path: Path) -> pa.Schema:
        with file_errors(path, "parquet"), _parquet(path) as file:
            rows.append(file.metadata.num_rows)
            return _without_index(file.schema_arrow)

    schema = common_schema(paths, schema_of)

    def read() -> Iterator[pa.RecordBatch]:
        for path in paths:
            with file_errors(path, "parquet"), _parquet(path) as file:
                groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
                step = min((rows_a_batch(g.num_rows, g.total_byte_size) for g in groups), default=1)
                every = set(file.schema_arrow.names) == set(
                    schema.names
                )  # names with dots can't be asked for
                for batch in file.iter_batches(batch_size=step, columns=None if every else schema.names):
                    yield from as_schema(batch, schema)

    return BatchSource(
        schema=schema, read=read, what=str(paths[0]), rows=sum(rows), size_bytes=total_size(paths)
    )


def open_ipc(paths: Sequence[Path]) -> BatchSource:
    """Arrow IPC files or streams, and Feather files (version 2), as one source.

    Raises:
        InvalidInput: A file has other columns than the first.
        NotFound: A file is not there.
        Corrupt: A file is damaged, or not Arrow IPC.
    """

    def schema_of(path: Path) -> pa.Schema:
        with file_errors(path, "arrow"), _ipc(path) as reader:
            return reader.schema.remove_metadata()

    schema = common_schema(paths, schema_of)

    def read() -> Iterator[pa.RecordBatch]:
        for path in paths:
            with file_errors(path, "arrow"), _ipc(path) as reader:
                if isinstance(reader, pa.RecordBatchFileReader):
                    for number in range(reader.num_record_batches):
                        yield from as_schema(reader.get_batch(number), schema)
                else:
                    for batch in reader:
                        yield from as_schema(batch, schema)

    return BatchSource(schema=schema, read=read, what=str(paths[0]), size_bytes=total_size(paths))


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
        yield file


@contextmanager
def _ipc(path: Path) -> Iterator[Any]:
    # Mapped, because a file may well be one batch of gigabytes; a stream's batches are read one by one.
    with path.open("rb") as start:
        is_file = start.read(len(_IPC_MAGIC)) == _IPC_MAGIC
    with (
        pa.memory_map(str(path)) if is_file else pa.OSFile(str(path)) as file,
        pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file) as reader,
    ):
        yield reader


def _without_index(schema: pa.Schema) -> pa.Schema:
    try:
        index = json.loads((schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", [])
    except (ValueError, AttributeError):
        index = []
    unnamed = {name for name in index if isinstance(name, str) and _UNNAMED_INDEX.fullmatch(name)}
    return pa.schema([field for field in schema if field.name not in unnamed])
