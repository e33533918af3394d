"""The bytes of a shard: a function of its rows, their types and the format's name, and of nothing else.

``parquet-v2``: Parquet 2.6, PLAIN, no compression, no dictionaries, data pages of version 1 that end behind a batch of 1024
values once they have 1 MiB, statistics of plain columns without fractions, no Arrow schema, no page index, this format's
name as the writer's.

``arrow-v2``: an Arrow IPC file of version 5, no compression, one record batch a row group, every buffer without an offset
and with zeros under nulls.

:mod:`~holdfast.storage.datasets.shards.shard_blocks` says where their blocks end.

What versions of pyarrow from 22 on write differently is not used: their content-defined pages (whose cuts in a row group
depend on the groups before it in some), statistics of lists (which count nulls in two ways) and of floats (where all are
NaN), and a limit of rows a page.
"""

from __future__ import annotations

import inspect
import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from holdfast.errors import Corrupt, InvalidInput
from holdfast.storage.cid import read_varint, write_varint
from holdfast.storage.datasets.shards.arrays import cleared
from holdfast.storage.datasets.shards.parquet_types import parquet_schema, to_parquet
from holdfast.storage.datasets.shards.shard import RowGroup
from holdfast.storage.datasets.shards.shard_blocks import ArrowShardChunker, ParquetShardChunker
from holdfast.storage.datasets.shards.statistics import is_comparable
from holdfast.storage.formats.unixfs import PROFILES, Profile

if TYPE_CHECKING:
    from holdfast.storage.formats.chunkers import Chunker
__all__ = [
    "ARROW",
    "CREATED_BY",
    "FORMATS",
    "PARQUET",
    "ShardEncoder",
    "ipc_schema",
    "new_encoder",
    "shard_profile",
    "stored_format",
]

PARQUET, ARROW = "parquet-v2", "arrow-v2"
FORMATS = {"parquet": PARQUET, "arrow": ARROW}
"""What callers say, and what manifests do."""

_CHUNKERS: dict[str, Chunker] = {PARQUET: ParquetShardChunker(), ARROW: ArrowShardChunker()}
_PARQUET_OPTIONS: dict[str, Any] = {
    "version": "2.6",
    "data_page_version": "1.0",
    "compression": "none",
    "use_dictionary": False,
    "write_page_index": False,
    "write_page_checksum": False,
    "write_batch_size": 1024,
    "data_page_size": 1 << 20,
    "store_schema": False,
    "use_compliant_nested_type": True,
}
if "max_rows_per_page" in inspect.signature(pq.ParquetWriter).parameters:
    # Without it, later versions of pyarrow also end pages after 20,000 rows, as the earlier ones do not.
    _PARQUET_OPTIONS["max_rows_per_page"] = (1 << 31) - 1
CREATED_BY = "holdfast parquet-v2"


def stored_format(name: str) -> str:
    """The manifest's name of a format that a caller names: ``parquet`` or ``arrow``, with or without the version.

    Raises:
        InvalidInput: There is no such format.
    """
    known = FORMATS.get(name, name)
    if known not in _CHUNKERS:
        raise InvalidInput(f"datasets are stored as {' or '.join(FORMATS)}, not as {name!r}")
    return known


def shard_profile(stored: str, hash: str = "sha2-256") -> Profile:  # noqa: A002 -- the name that everybody knows it by
    """How a shard's bytes become blocks; the same in every store that has this hash, so that it has one CID there."""
    return replace(PROFILES["unixfs-v1-2025"], chunker=_CHUNKERS[stored], hash=hash)


def ipc_schema(schema: pa.Schema) -> pa.Schema:
    """The schema in Arrow shards: the logical one without marks."""
    return pa.schema([field.remove_metadata() for field in schema])


class ShardEncoder(Protocol):
    """Writes one shard into memory, row group by row group."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Write one row group of logical rows."""
        ...

    def finish(self) -> tuple[BinaryIO, int, tuple[RowGroup, ...]]:
        """The shard's bytes from their beginning on, how many they are, and where its groups lie."""
        ...


def new_encoder(stored: str, schema: pa.Schema) -> ShardEncoder:
    """An encoder for a shard of logical rows."""
    return _ParquetEncoder(schema) if stored == PARQUET else _ArrowEncoder(schema)


class _ParquetEncoder:
    def __init__(self, schema: pa.Schema) -> None:
        self._schema = parquet_schema(schema)
        self._sink = io.BytesIO()
        with_statistics = [field.name for field in schema if _has_statistics(field)]
        self._writer = pq.ParquetWriter(
            self._sink, self._schema, write_statistics=with_statistics or False, **_PARQUET_OPTIONS
        )

    def write(self, batch: pa.RecordBatch) -> None:
        """Write one row group."""
        columns = [
            to_parquet(column, field.type) for column, field in zip(batch.columns, self._schema, strict=True)
        ]
        table = pa.Table.from_arrays(columns, schema=self._schema)
        self._writer.write_table(table, row_group_size=table.num_rows)

    def finish(self) -> tuple[BinaryIO, int, tuple[RowGroup, ...]]:
        """The file, with this format's name as that of its writer."""
        self._writer.close()
        sink = self._sink
        footer_at, footer = _footer(sink)
        metadata = pq.read_metadata(sink)
        groups = tuple(_parquet_group(metadata.row_group(index)) for index in range(metadata.num_row_groups))
        sink.seek(footer_at)
        sink.truncate()
        sink.write(_with_created_by(footer, CREATED_BY.encode()))
        size = sink.tell()
        sink.seek(0)
        return sink, size, groups


def _has_statistics(field: pa.Field) -> bool:
    """Whether the file has statistics of a column; a name with a dot might mean a part of another column."""
    return is_comparable(field.type) and not pa.types.is_floating(field.type) and "." not in field.name


def _parquet_group(group: Any) -> RowGroup:
    columns = [group.column(index) for index in range(group.num_columns)]
    start = min(column.data_page_offset for column in columns)
    end = max(column.data_page_offset + column.total_compressed_size for column in columns)
    return RowGroup(rows=group.num_rows, offset=start, size_bytes=end - start)


def _footer(sink: io.BytesIO) -> tuple[int, bytes]:
    """Where the footer begins, and its Thrift bytes."""
    data = sink.getbuffer()
    try:
        size = int.from_bytes(data[-8:-4], "little")
        return len(data) - 8 - size, bytes(data[-8 - size : -8])
    finally:
        data.release()


def _with_created_by(footer: bytes, text: bytes) -> bytes:
    """The end of a Parquet file, from its footer on, with ``text`` as ``created_by``.

    Nothing before the footer moves, so all offsets stay right. The footer is Thrift's compact protocol, where a text
    is a varint length and its bytes.
    """
    at = footer.rfind(b"parquet-cpp-arrow version ")
    if at < 1:
        raise Corrupt("pyarrow wrote a Parquet footer of an unknown shape")
    length, behind = read_varint(footer, at - 1)
    if behind != at or not footer[at : at + length].startswith(b"parquet-cpp-arrow"):
        raise Corrupt("pyarrow wrote a Parquet footer of an unknown shape")
    footer = footer[: at - 1] + write_varint(len(text)) + text + footer[at + length :]
    return b"".join((footer, len(footer).to_bytes(4, "little"), b"PAR1"))


class _ArrowEncoder:
    def __init__(self, schema: pa.Schema) -> None:
        self._schema = ipc_schema(schema)
        self._sink = io.BytesIO()
        options = pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V5, use_threads=False)
        self._writer = pa.ipc.new_file(self._sink, self._schema, options=options)
        self._groups: list[RowGroup] = []

    def write(self, batch: pa.RecordBatch) -> None:
        """Write one row group."""
        columns = [cleared(column) for column in batch.columns]
        start = self._sink.tell()
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        if not self._groups:
            start = _schema_end(self._sink)
        self._groups.append(RowGroup(batch.num_rows, start, self._sink.tell() - start))

    def finish(self) -> tuple[BinaryIO, int, tuple[RowGroup, ...]]:
        """The file."""
        self._writer.close()
        size = self._sink.tell()
        self._sink.seek(0)
        return self._sink, size, tuple(self._groups)


def _schema_end(sink: io.BytesIO) -> int:
    """Where the first batch of an IPC file begins: behind eight bytes of magic, and the message of the schema."""
    head = bytes(sink.getbuffer()[:16])
    return 16 + int.from_bytes(head[12:16], "little")
