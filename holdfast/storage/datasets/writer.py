"""Writing a dataset row by row: the same rows make the same dataset, in whatever batches they come."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from holdfast.errors import InvalidInput, Unavailable
from holdfast.storage.datasets.manifest import Manifest, ShardLists, SplitSummary
from holdfast.storage.datasets.schema import logical_batch, logical_schema
from holdfast.storage.datasets.shards.boundaries import GroupCutter, checked_chunk_size
from holdfast.storage.datasets.shards.shard import Shard
from holdfast.storage.datasets.shards.shard_format import new_encoder, shard_profile, stored_format
from holdfast.storage.datasets.shards.statistics import StatisticsCollector
from holdfast.storage.formats import dag_cbor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore
    from holdfast.storage.datasets.dataset import Dataset
    from holdfast.storage.datasets.shards.shard_format import ShardEncoder

__all__ = ["DatasetWriter"]

_MAX_SPLIT_CHARS = 200


class DatasetWriter:
    """Writes rows into splits. In memory there is at most one shard of each split that was begun.

    Used as a context manager, in one thread, nothing that it stores can be collected before the body ends. Where the
    body raises, there is no dataset, and what was stored of it is garbage.

    Args:
        store: Where to.
        schema: Of all splits; the types become those of :func:`~holdfast.storage.datasets.schema.logical_schema`.
        format: ``parquet`` or ``arrow``.
        chunk_size: Target bytes of a row group; default 4 MiB. Part of what decides the CID.

    Raises:
        InvalidInput: The schema can't be stored, or an option is impossible.

    Example:
        >>> import pyarrow as pa
        >>> from holdfast.storage import open_store
        >>> table = pa.table({"x": [1, 2, 3]})
        >>> with open_store(getfixture("tmp_path")) as store, DatasetWriter(store, table.schema) as writer:
        ...     writer.write("train", table)
        ...     writer.finish().rows
        3
    """

    def __init__(
        self,
        store: ContentStore,
        schema: pa.Schema,
        *,
        format: str = "parquet",  # noqa: A002 -- what everybody calls it
        chunk_size: int | None = None,
    ) -> None:
        self.schema = logical_schema(schema)
        self.format = stored_format(format)
        self.chunk_size = checked_chunk_size(chunk_size)
        self._store = store
        self._splits: dict[str, _SplitWriter] = {}
        self._open = True
        self._context = ExitStack()

    def __enter__(self) -> Self:
        if self._store.pins is not None:
            self._context.enter_context(self._store.pins.adding())
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop what is not finished. Closing twice, or after :meth:`finish`, is fine."""
        self._open = False
        self._splits.clear()
        self._context.close()

    def add_split(self, split: str) -> None:
        """Make sure that there is such a split, even if no rows come.

        Raises:
            InvalidInput: The name is empty, too long or not text.
        """
        self._split(split)

    def write(self, split: str, rows: pa.RecordBatch | pa.Table) -> None:
        """Append rows to a split.

        Raises:
            InvalidInput: The columns or types are not those of the schema; the message names them.
            Unavailable: The disk, or the store's quota, is full.
        """
        writer = self._split(split)
        try:
            for batch in logical_batch(rows, self.schema):
                writer.write(batch)
        except (InvalidInput, pa.ArrowException) as error:
            self.close()
            raise InvalidInput(f"split {split!r}: {error}") from error
        except BaseException:
            self.close()
            raise

    def at_shard_start(self, split: str) -> bool:
        """Whether the next row of this split begins a shard; then a shard can be taken over."""
        return self._split(split).at_shard_start

    def reuse(self, split: str, shard: Shard) -> None:
        """Append the rows of a shard that is stored already, as it is; nothing of it is read.

        For the dataset to be the one that writing its rows would make, it must come from a dataset with the same schema,
        format and chunk size, and must not be the last of its split, unless nothing follows.

        Raises:
            InvalidInput: The split is in the middle of a shard.
        """
        writer = self._split(split)
        if not writer.at_shard_start:
            raise InvalidInput(
                f"shard {shard.cid} can't be taken over: the split {split!r} is in the middle of another"
            )
        writer.append(shard)

    def finish(
        self,
        *,
        metadata: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        parent: Cid | None = None,
    ) -> Dataset:
        """Store what is left and the manifest, and give the dataset. It is not pinned: a name, or a pin, keeps it.

        Args:
            metadata: Plain values that become part of the manifest, and of the CID.
            provenance: How it came to be; as above.
            parent: The dataset that this one is a version of; as above.

        Raises:
            InvalidInput: No split has any rows, or a value can't be part of a record.
            Unavailable: The disk, or the store's quota, is full.
        """
        from holdfast.storage.datasets.dataset import open_dataset

        self._check_open()
        dag_cbor.encode([dict(metadata or {}), dict(provenance or {})])
        if not any(writer.has_rows for writer in self._splits.values()):
            self.close()
            raise InvalidInput("a dataset without rows can't be stored")
        try:
            manifest = Manifest(
                format=self.format,
                chunk_size=self.chunk_size,
                schema=self.schema,
                splits={split: writer.finish() for split, writer in sorted(self._splits.items())},
                metadata=dict(metadata or {}),
                provenance=dict(provenance or {}),
                parent=parent,
            )
            cid = self._store.put_record(manifest.to_plain())
        except BaseException:
            self.close()
            raise
        self._open = False
        self._splits.clear()
        return open_dataset(self._store, cid)

    def _split(self, split: str) -> _SplitWriter:
        self._check_open()
        found = self._splits.get(split)
        if found is None:
            _check_split_name(split)
            found = self._splits[split] = _SplitWriter(self._store, self.schema, self.format, self.chunk_size)
        return found

    def _check_open(self) -> None:
        if not self._open:
            raise InvalidInput("this dataset writer is finished or has failed: make a new one")


def _check_split_name(split: Any) -> None:
    if not isinstance(split, str) or not 0 < len(split) <= _MAX_SPLIT_CHARS:
        raise InvalidInput(
            f"a split has a name of 1 to {_MAX_SPLIT_CHARS} characters, not {str(split)[:_MAX_SPLIT_CHARS]!r}"
        )
    try:
        split.encode()
    except UnicodeError as error:
        raise InvalidInput(f"the name {split!r} of a split is not valid Unicode") from error


class _SplitWriter:
    def __init__(self, store: ContentStore, schema: pa.Schema, stored: str, chunk_size: int) -> None:
        self._store = store
        self._schema = schema
        self._format = stored
        self._cutter = GroupCutter(chunk_size)
        self._pending: list[pa.RecordBatch] = []
        self._encoder: ShardEncoder | None = None
        self._statistics = StatisticsCollector(schema)
        self._lists = ShardLists()
        self._links: list[Cid] = []
        self._rows = self._bytes = self._shards = 0

    @property
    def at_shard_start(self) -> bool:
        return self._encoder is None and not self._pending

    @property
    def has_rows(self) -> bool:
        return bool(self._rows or self._encoder or self._pending)

    def write(self, batch: pa.RecordBatch) -> None:
        begin = 0
        for cut in self._cutter.cuts(batch):
            self._pending.append(batch.slice(begin, cut.row - begin))
            begin = cut.row
            self._end_group()
            if cut.ends_shard:
                self._end_shard()
        if begin < batch.num_rows:
            self._pending.append(batch.slice(begin))

    def append(self, shard: Shard) -> None:
        record = self._lists.add(shard)
        if record is not None:
            self._links.append(self._store.put_record(record))
        self._rows += shard.rows
        self._bytes += shard.size_bytes
        self._shards += 1

    def finish(self) -> SplitSummary:
        if self._pending:
            self._end_group()
        if self._encoder is not None:
            self._end_shard()
        record = self._lists.rest()
        if record is not None:
            self._links.append(self._store.put_record(record))
        return SplitSummary(self._rows, self._bytes, self._shards, tuple(self._links))

    def _end_group(self) -> None:
        batches, self._pending = self._pending, []
        group = batches[0] if len(batches) == 1 else pa.concat_batches(batches)
        if self._encoder is None:
            self._encoder = new_encoder(self._format, self._schema)
        self._encoder.write(group)
        self._statistics.add(group)

    def _end_shard(self) -> None:
        encoder, self._encoder = self._encoder, None
        statistics, self._statistics = self._statistics.result(), StatisticsCollector(self._schema)
        assert encoder is not None  # noqa: S101 -- a group was written
        stream, size, groups = encoder.finish()
        try:
            cid = self._store.add_stream(
                stream, profile=shard_profile(self._format, self._store.profile.hash), pin=False
            )
        except Unavailable as error:
            if not self._shards:
                raise
            raise Unavailable(
                f"the dataset can't be stored: {error}; its {self._shards} shards before are garbage, which the next "
                "collection removes"
            ) from error
        rows = sum(group.rows for group in groups)
        self.append(Shard(cid, rows, size, groups, dict(zip(self._schema.names, statistics, strict=False))))
