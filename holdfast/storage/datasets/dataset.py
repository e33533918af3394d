"""A dataset: an immutable table in named splits, known by the CID of its manifest.

The CID depends on the rows, their types, the splits, the format, the target size of row groups, metadata, provenance and
parent: not on a name, a machine, a clock, the batches in which the rows came, or a library's version.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from holdfast.errors import Corrupt, InvalidInput, NotFound
from holdfast.storage.block_store import bring_near
from holdfast.storage.datasets.conditions import checked_columns
from holdfast.storage.datasets.manifest import Manifest, SplitSummary, shards_from_plain
from holdfast.storage.datasets.schema import logical_schema, type_text
from holdfast.storage.datasets.shards.shard_reader import ShardReader
from holdfast.storage.datasets.writer import DatasetWriter
from holdfast.storage.formats import dag_cbor

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    import pandas as pd

    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore
    from holdfast.storage.datasets.comparing.comparison import Difference
    from holdfast.storage.datasets.comparing.finding import RowPlace
    from holdfast.storage.datasets.conditions import Where
    from holdfast.storage.datasets.queries import ColumnSummary, Query
    from holdfast.storage.datasets.shards.shard import Shard
    from holdfast.storage.datasets.sources import Source
    from holdfast.storage.datasets.sources.opening import VerifyImages

__all__ = ["Dataset", "open_dataset", "store_dataset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """An immutable table in named splits. Opening it reads its manifest only; reading fetches what is read, and only that."""

    cid: Cid
    schema: pa.Schema = field(compare=False)
    """Logical; a column's metadata may say what is in its bytes, see :func:`~holdfast.storage.datasets.schema.media_of`."""
    format: str
    """``parquet-v2`` or ``arrow-v2``."""
    chunk_size: int
    """Target bytes of a row group."""
    splits: Mapping[str, tuple[Shard, ...]] = field(compare=False, repr=False)
    """The shards of each split, in order; read from the store when they are asked for."""
    metadata: Mapping[str, Any] = field(compare=False)
    provenance: Mapping[str, Any] = field(compare=False)
    parent: Cid | None
    """The dataset that this one is a version of."""
    store: ContentStore = field(repr=False, compare=False)
    summaries: Mapping[str, SplitSummary] = field(repr=False, compare=False)
    """Rows, bytes and shards of each split, as the manifest has them."""

    @property
    def columns(self) -> Mapping[str, str]:
        """Each column's type as text."""
        return {column.name: type_text(column.type) for column in self.schema}

    @property
    def rows(self) -> int:
        """Rows in all splits together."""
        return sum(summary.rows for summary in self.summaries.values())

    @property
    def size_bytes(self) -> int:
        """Bytes of all shards together."""
        return sum(summary.size_bytes for summary in self.summaries.values())

    def rows_in(self, split: str) -> int:
        """Rows in one split.

        Raises:
            NotFound: The dataset has no such split.
        """
        self._check_split(split)
        return self.summaries[split].rows

    def shards(self, split: str) -> tuple[Shard, ...]:
        """The shards of a split, in order.

        Raises:
            NotFound: The dataset has no such split, or nobody has a list of its shards.
            Corrupt: A list of shards is not what the manifest states.
        """
        self._check_split(split)
        return self.splits[split]

    def open_shard(self, shard: Shard) -> ShardReader:
        """What reads the row groups of a shard; nothing is read yet."""
        self.store.used(self.cid)
        return ShardReader(self.store, shard, self.schema, format=self.format)

    def read_shard(self, shard: Shard, columns: Sequence[str] | None = None) -> pa.Table:
        """One shard as an Arrow table.

        Raises:
            NotFound: Nobody has it.
            Corrupt: It is not what the manifest states.
        """
        reader = self.open_shard(shard)
        schema = self.schema_of(columns)
        return pa.Table.from_batches(
            [reader.read_group(index, columns) for index in range(len(shard.groups))], schema
        )

    def batches(self, split: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a split in order, one batch for each row group, in constant memory.

        Raises:
            NotFound: As :meth:`shards` does, or a block is missing and nobody has it.
            Corrupt: A shard is not what the manifest states.
            InvalidInput: There is no such column.
        """
        self.schema_of(columns)
        for shard in self.shards(split):
            reader = self.open_shard(shard)
            for index in range(len(shard.groups)):
                yield reader.read_group(index, columns)

    def to_arrow(self, split: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """A whole split as one Arrow table; by default the only split, else ``train``."""
        return pa.Table.from_batches(
            self.batches(self.default_split() if split is None else split, columns), self.schema_of(columns)
        )

    def to_pandas(self, split: str | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """A whole split as a pandas frame; by default the only split, else ``train``."""
        return self.to_arrow(split, columns).to_pandas()

    def query(
        self,
        *,
        columns: Sequence[str] | None = None,
        where: Where | None = None,
        split: str | None = None,
        limit: int | None = None,
    ) -> Query:
        """The rows that meet a condition, read as they are asked for; see :func:`~holdfast.storage.datasets.queries.query`."""
        from holdfast.storage.datasets.queries import query

        return query(self, columns=columns, where=where, split=split, limit=limit)

    def preview(
        self, rows: int = 10, *, split: str | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """The first rows of a split; see :func:`~holdfast.storage.datasets.queries.preview`."""
        from holdfast.storage.datasets.queries import preview

        return preview(self, split=split, rows=rows, columns=columns)

    def statistics(self) -> dict[str, dict[str, ColumnSummary]]:
        """What the manifest says of each column of each split; no shard is read."""
        from holdfast.storage.datasets.queries import statistics

        return statistics(self)

    def contains(self, row: Mapping[str, Any], split: str | None = None) -> bool:
        """Whether there is such a row; see :func:`~holdfast.storage.datasets.comparing.finding.find`."""
        from holdfast.storage.datasets.comparing.finding import contains

        return contains(self, row, split)

    def find(self, row: Mapping[str, Any], split: str | None = None) -> Iterator[RowPlace]:
        """Yield where such rows are; see :func:`~holdfast.storage.datasets.comparing.finding.find`."""
        from holdfast.storage.datasets.comparing.finding import find

        return find(self, row, split)

    def diff(
        self, other: Dataset, *, key: str | Sequence[str] | None = None, split: str | None = None
    ) -> Difference:
        """What differs from here to ``other``; see :func:`~holdfast.storage.datasets.comparing.comparison.diff`."""
        from holdfast.storage.datasets.comparing.comparison import diff

        return diff(self, other, key=key, split=split)

    def default_split(self) -> str:
        """The only split, or ``train`` where there are several."""
        return next(iter(self.summaries)) if len(self.summaries) == 1 else "train"

    def schema_of(self, columns: Sequence[str] | None) -> pa.Schema:
        """The schema of some columns, in the order in which they are named; None for all.

        Raises:
            InvalidInput: There is no such column, or one is named twice.
        """
        if columns is None:
            return self.schema
        return pa.schema([self.schema.field(name) for name in checked_columns(columns, self.schema)])

    def _check_split(self, split: str) -> None:
        if split not in self.summaries:
            raise NotFound(f"dataset {self.cid} has no split {split!r}; it has {', '.join(self.summaries)}")


class _Splits(Mapping[str, "tuple[Shard, ...]"]):
    """The shards of each split, read when they are asked for first."""

    def __init__(self, store: ContentStore, cid: Cid, manifest: Manifest) -> None:
        self._store = store
        self._cid = cid
        self._columns = manifest.schema.names
        self._summaries = manifest.splits
        self._lock = threading.Lock()
        self._loaded: dict[str, tuple[Shard, ...]] = {}

    def __getitem__(self, split: str) -> tuple[Shard, ...]:
        summary = self._summaries[split]
        with self._lock:
            if split not in self._loaded:
                self._loaded[split] = self._load(split, summary)
            return self._loaded[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._summaries)

    def __len__(self) -> int:
        return len(self._summaries)

    def _load(self, split: str, summary: SplitSummary) -> tuple[Shard, ...]:
        if len(summary.lists) > 1:
            bring_near(self._store.blocks, summary.lists, self._cid)
        shards: list[Shard] = []
        for link in summary.lists:
            try:
                value = self._store.get_record(link)
            except InvalidInput as error:
                raise Corrupt(f"dataset {self._cid}: {error}") from error
            shards += shards_from_plain(link, value, self._columns)
        found = (sum(shard.rows for shard in shards), sum(shard.size_bytes for shard in shards), len(shards))
        if found != (summary.rows, summary.size_bytes, summary.shards):
            raise Corrupt(
                f"dataset {self._cid}: the lists of split {split!r} have {found[0]} rows and {found[1]} bytes in "
                f"{found[2]} shards where the manifest states {summary.rows} and {summary.size_bytes} in {summary.shards}"
            )
        return tuple(shards)


def open_dataset(store: ContentStore, cid: Cid) -> Dataset:
    """The dataset whose manifest is ``cid``. Only the manifest is read.

    Raises:
        InvalidInput: The CID is something else; the message says what.
        NotFound: Nobody has the manifest.
        Corrupt: The manifest breaks the format.
    """
    manifest = Manifest.from_plain(cid, store.get_record(cid))
    return Dataset(
        cid=cid,
        schema=manifest.schema,
        format=manifest.format,
        chunk_size=manifest.chunk_size,
        splits=_Splits(store, cid, manifest),
        metadata=manifest.metadata,
        provenance=manifest.provenance,
        parent=manifest.parent,
        store=store,
        summaries=manifest.splits,
    )


def store_dataset(
    store: ContentStore,
    data: Any = None,
    *,
    path: str | os.PathLike[str] | None = None,
    format: str = "parquet",  # noqa: A002 -- what everybody calls it
    source_format: str | None = None,
    verify_images: VerifyImages = None,
    chunk_size: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    parent: Cid | None = None,
    progress: Callable[[int], object] | None = None,
) -> Dataset:
    """Store rows, and give the dataset that they became. It is not pinned: a name, or a pin, keeps it.

    Args:
        store: Where to.
        data: Whatever :func:`~holdfast.storage.datasets.sources.open_sources` takes: a table, frame, NumPy columns, an
            iterator of rows, and so on (then the split ``train``), or a mapping from split to one of these.
        path: A file or folder in place of ``data``.
        format: ``parquet``, which every tool reads, or ``arrow``, which is read with no decoding.
        source_format: What is at ``path``, where its name does not say it.
        verify_images: Decode each image once: ``"fail"`` raises at the first that can't be, ``"skip"`` leaves its row out, and
            the provenance says how many (``skipped_images``).
        chunk_size: Target bytes of a row group; default 4 MiB. Part of what decides the CID.
        metadata: Plain values that become part of the manifest, and of the CID; with those that belong to the data, such as
            the ``classes`` of a folder of images.
        provenance: How the dataset came to be; as above.
        parent: The dataset that this one is a version of; as above.
        progress: Told how many more rows were taken, now and then.

    Raises:
        InvalidInput: There are no rows, columns with the same name or of a kind that can't be stored, splits with
            different columns, or the data can't be read; the message says what.
        NotFound: There is nothing at ``path``.
        Unavailable: The disk, or the store's quota, is full.
    """
    from holdfast.storage.datasets.sources import open_sources

    dag_cbor.encode([dict(metadata or {}), dict(provenance or {})])
    sources = open_sources(data, path=path, format=source_format, verify_images=verify_images)
    if not sources:
        raise InvalidInput("a dataset without rows can't be stored")
    schema = _common_schema({split: source.schema for split, source in sources.items()})
    with DatasetWriter(store, schema, format=format, chunk_size=chunk_size) as writer:
        for split, source in sources.items():
            writer.add_split(split)
            for batch in source.batches():
                writer.write(split, batch)
                if progress is not None:
                    progress(batch.num_rows)
        skipped = sum(source.skipped for source in sources.values())
        return writer.finish(
            metadata={**_common_metadata(sources), **(metadata or {})},
            provenance={**({"skipped_images": skipped} if skipped else {}), **(provenance or {})},
            parent=parent,
        )


def _common_metadata(sources: Mapping[str, Source]) -> dict[str, Any]:
    """What belongs to the data of all splits.

    Raises:
        InvalidInput: Two splits say different things, so that one would be wrong.
    """
    common: dict[str, Any] = {}
    for split, source in sources.items():
        for key, value in source.metadata.items():
            if common.setdefault(key, value) != value:
                raise InvalidInput(
                    f"split {split!r} has other {key} than the split before it: {str(value)[:200]} / {str(common[key])[:200]}"
                )
    return common


def _common_schema(schemas: Mapping[str, pa.Schema]) -> pa.Schema:
    """The logical schema that all splits have; where one has only missing values in a column, another says its type."""
    common: pa.Schema | None = None
    first = ""
    for split, given in schemas.items():
        try:
            schema = logical_schema(given)
        except InvalidInput as error:
            raise InvalidInput(f"split {split!r}: {error}") from error
        if common is None:
            common, first = schema, split
            continue
        if set(schema.names) != set(common.names):
            raise InvalidInput(
                f"split {split!r} has other columns than {first!r}: {', '.join(schema.names)} / {', '.join(common.names)}"
            )
        for index, column in enumerate(common):
            other = schema.field(column.name)
            if pa.types.is_null(column.type):
                common = common.set(index, other)
            elif not pa.types.is_null(other.type) and not other.type.equals(column.type):
                raise InvalidInput(
                    f"split {split!r} has other columns than {first!r}: {column.name!r} is {type_text(other.type)} / "
                    f"{type_text(column.type)}"
                )
    assert common is not None  # noqa: S101 -- there is a split
    return common
