"""Datasets: Arrow tables as Parquet shards, with a DAG-CBOR manifest that names them.

The manifest's CID is the dataset. It depends on the rows, their types, the splits and the shard size only: not on a name,
a machine, a clock, or the version of the library that wrote the shards.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from holdfast.errors import Corrupt, HoldfastError, InvalidInput, NotFound
from holdfast.storage.cid import Cid, read_varint, write_varint

if TYPE_CHECKING:
    import pandas as pd

    from holdfast.storage.content import ContentStore

    TableLike: TypeAlias = pa.Table | pd.DataFrame | Mapping[str, np.ndarray[Any, Any]]

__all__ = ["Dataset", "Shard", "open_dataset", "store_dataset"]

FORMAT = "parquet-plain-v1"
"""Names the writer's parameters, all of them: see :func:`_parquet`."""
_CREATED_BY = b"holdfast parquet-plain-v1"


@dataclass(frozen=True, slots=True)
class Shard:
    """One Parquet file of a split."""

    cid: Cid
    rows: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """An immutable table in named splits. Reading fetches the shards that are read, and only those.

    ``cid`` is the manifest's; ``columns`` maps each column to its Arrow type as text.
    """

    cid: Cid
    columns: Mapping[str, str]
    splits: Mapping[str, tuple[Shard, ...]]
    metadata: Mapping[str, Any]
    store: ContentStore = field(repr=False, compare=False)

    @property
    def rows(self) -> int:
        """Rows in all splits together."""
        return sum(self.rows_in(split) for split in self.splits)

    def rows_in(self, split: str) -> int:
        """Rows in one split."""
        return sum(shard.rows for shard in self.shards(split))

    def shards(self, split: str) -> tuple[Shard, ...]:
        """The shards of a split, in order.

        Raises:
            NotFound: The dataset has no such split.
        """
        if split not in self.splits:
            raise NotFound(f"dataset {self.cid} has no split {split!r}; it has {', '.join(self.splits)}")
        return self.splits[split]

    def read_shard(self, shard: Shard) -> pa.Table:
        """One shard as an Arrow table.

        Raises:
            NotFound: Nobody has it.
            Corrupt: It is not what the manifest states.
        """
        try:
            table = pq.read_table(pa.BufferReader(pa.py_buffer(self.store.open(shard.cid))), memory_map=False)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, HoldfastError):
                raise
            raise Corrupt(f"shard {shard.cid} is not a Parquet file: {error}") from error
        if table.num_rows != shard.rows:
            raise Corrupt(
                f"shard {shard.cid} has {table.num_rows} rows where the manifest states {shard.rows}"
            )
        return table

    def to_arrow(self, split: str = "train") -> pa.Table:
        """A whole split as one Arrow table."""
        return pa.concat_tables([self.read_shard(shard) for shard in self.shards(split)])

    def to_pandas(self, split: str = "train") -> pd.DataFrame:
        """A whole split as a pandas frame."""
        return self.to_arrow(split).to_pandas()


def store_dataset(
    store: ContentStore,
    data: TableLike | Mapping[str, TableLike],
    *,
    rows_per_shard: int = 65536,
    metadata: Mapping[str, Any] | None = None,
) -> Dataset:
    """Store a table, or one table a split, and give the dataset that it became.

    Args:
        store: Where to.
        data: A table (then the split ``train``), or a mapping from split to table. A table is one of Arrow's, a
            pandas frame, or a mapping from column to NumPy array with rows first; arrays of more than
            one dimension become fixed-shape tensors.
        rows_per_shard: Part of what decides the CID.
        metadata: Plain values that become part of the manifest, and of the CID.

    Raises:
        InvalidInput: No rows, columns with the same name or of a kind that Arrow does not have, or splits
            with different columns.
    """
    in_splits = isinstance(data, Mapping) and not any(isinstance(v, np.ndarray) for v in data.values())
    tables = {split: _as_table(table) for split, table in (data if in_splits else {"train": data}).items()}
    if rows_per_shard < 1:
        raise InvalidInput(f"rows_per_shard must be at least 1, not {rows_per_shard}")
    schema: pa.Schema | None = None
    for split, table in tables.items():
        names = table.schema.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InvalidInput(f"split {split!r} has columns of the same name: {', '.join(twice)}")
        if schema is not None and not table.schema.equals(schema):
            raise InvalidInput(
                f"split {split!r} has other columns than the first one: {table.schema} / {schema}"
            )
        schema = table.schema
    if schema is None or not any(table.num_rows for table in tables.values()):
        raise InvalidInput("a dataset without rows can't be stored")
    manifest = {
        "kind": "dataset",
        "format": FORMAT,
        "columns": [{"name": f.name, "type": str(f.type), "nullable": f.nullable} for f in schema],
        "splits": {
            split: [
                _store_shard(store, table.slice(at, rows_per_shard))
                for at in range(
                    0, max(1, table.num_rows), rows_per_shard
                )  # no rows: one shard with the schema
            ]
            for split, table in tables.items()
        },
        "metadata": dict(metadata or {}),
    }
    return open_dataset(store, store.put_record(manifest))


def open_dataset(store: ContentStore, cid: Cid) -> Dataset:
    """The dataset whose manifest is ``cid``. Only the manifest is read.

    Raises:
        InvalidInput: The CID is something else; the message says what.
        NotFound: Nobody has the manifest.
    """
    manifest = store.get_record(cid)
    kind = manifest.get("kind") if isinstance(manifest, dict) else None
    if kind != "dataset":
        raise InvalidInput(f"{cid} is not a dataset but {f'a {kind}' if kind else 'another record'}")
    if manifest.get("format") != FORMAT:
        raise InvalidInput(
            f"dataset {cid} has the format {manifest.get('format')!r}; this version reads {FORMAT}"
        )
    try:
        return Dataset(
            cid=cid,
            columns={column["name"]: column["type"] for column in manifest["columns"]},
            splits={
                split: tuple(Shard(s["cid"], s["rows"], s["bytes"]) for s in shards)
                for split, shards in manifest["splits"].items()
            },
            metadata=manifest["metadata"],
            store=store,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"the dataset manifest {cid} lacks a field: {error!r}") from error


def _as_table(data: Any) -> pa.Table:
    try:
        table = _converted(data)
    except (pa.ArrowException, TypeError, ValueError) as error:
        if isinstance(error, HoldfastError):
            raise
        raise InvalidInput(f"the data can't become an Arrow table: {error}") from error
    # Metadata says where a table comes from (pandas, a Parquet file), not what is in it.
    return table.cast(pa.schema([column.remove_metadata() for column in table.schema]))


def _converted(data: Any) -> pa.Table:
    if isinstance(data, pa.Table):
        return data
    if type(data).__module__.partition(".")[0] == "pandas" and hasattr(data, "columns"):
        return pa.Table.from_pandas(data, preserve_index=False)
    if isinstance(data, Mapping) and all(isinstance(values, np.ndarray) for values in data.values()):
        if len({len(values) for values in data.values()}) > 1:
            sizes = ", ".join(f"{name} {len(values)}" for name, values in data.items())
            raise InvalidInput(f"the columns of a table have the same number of rows, not {sizes}")
        return pa.table({name: _as_column(values) for name, values in data.items()})
    raise InvalidInput(
        f"a dataset is made from an Arrow table, a pandas frame or NumPy columns, not {type(data).__name__}"
    )


def _as_column(values: np.ndarray[Any, Any]) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    # Built from the storage, because pyarrow's own conversion records the strides of the given array.
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    storage = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(flat.type, values.shape[1:]), storage)


def _store_shard(store: ContentStore, table: pa.Table) -> dict[str, Any]:
    data = _parquet(table)
    return {"cid": store.add_bytes(data, pin=False), "rows": table.num_rows, "bytes": len(data)}


def _parquet(table: pa.Table) -> bytes:
    """The table as Parquet bytes that depend on nothing but the table.

    No compression, no dictionaries, one row group: what is left to the writer's version is its name in the footer,
    and that is replaced.
    """
    sink = io.BytesIO()
    pq.write_table(
        table.combine_chunks(),
        sink,
        version="2.6",
        data_page_version="1.0",
        compression="none",
        use_dictionary=False,
        write_statistics=True,
        write_page_index=False,
        row_group_size=max(1, table.num_rows),
        data_page_size=1 << 20,
    )
    return _with_created_by(sink.getvalue(), _CREATED_BY)


def _with_created_by(data: bytes, text: bytes) -> bytes:
    """The Parquet file with ``text`` as its footer's ``created_by``.

    Nothing before the footer moves, so all offsets stay right. The footer is Thrift's compact protocol, where a text
    is a varint length and its bytes.
    """
    size = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - size : -8]
    at = footer.rfind(b"parquet-cpp-arrow version ")
    if at < 1:
        raise Corrupt("pyarrow wrote a Parquet footer of an unknown shape")
    length, behind = read_varint(footer, at - 1)
    if behind != at or not footer[at : at + length].startswith(b"parquet-cpp-arrow"):
        raise Corrupt("pyarrow wrote a Parquet footer of an unknown shape")
    footer = footer[: at - 1] + write_varint(len(text)) + text + footer[at + length :]
    return b"".join((data[: -8 - size], footer, len(footer).to_bytes(4, "little"), b"PAR1"))
