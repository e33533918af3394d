"""Stored datasets of many small row groups, and a node that gets them from another one."""

from __future__ import annotations

import datetime as dt
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from hypothesis import strategies as st

from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.content import ContentStore
from holdfast.storage.datasets.dataset import open_dataset
from holdfast.storage.datasets.writer import DatasetWriter
from holdfast.storage.exchange.fetcher import Fetcher, FetchingStore, Provider
from holdfast.storage.local.local_store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from holdfast.storage.datasets.dataset import Dataset
    from holdfast.storage.datasets.shards.shard import Shard

FORMATS = ("parquet", "arrow")
SMALL = 256
"""Bytes of a row group: a few dozen rows make several shards."""


def stored(
    store: ContentStore,
    splits: pa.Table | Mapping[str, pa.Table],
    *,
    chunk_size: int = SMALL,
    format: str = "parquet",  # noqa: A002
    metadata: Mapping[str, Any] | None = None,
) -> Dataset:
    """The dataset of a table, or of one a split."""
    tables = {"train": splits} if isinstance(splits, pa.Table) else splits
    schema = next(iter(tables.values())).schema
    with DatasetWriter(store, schema, format=format, chunk_size=chunk_size) as writer:
        for split, table in tables.items():
            writer.add_split(split)
            writer.write(split, table)
        return writer.finish(metadata=metadata)


def span(shard: Shard, column: str) -> tuple[int, int]:
    """The smallest and the largest value of an integer column, as the manifest has them."""
    known = shard.statistics[column]
    assert isinstance(known.minimum, int)
    assert isinstance(known.maximum, int)
    return known.minimum, known.maximum


@contextmanager
def fetched(
    tmp_path: Path,
    blocks: LocalStore,
    start_node: Callable[..., Any],
    make: Callable[[ContentStore], Dataset],
) -> Iterator[tuple[Dataset, list[str]]]:
    """A dataset that lies on another node: opened here, and what that node is asked for."""
    with closing(LocalStore(tmp_path / "other")) as other:
        made = make(ContentStore(other))
        node = start_node(VerifyingStore(other, source="the other disk"))
        with closing(FetchingStore(blocks, Fetcher(lambda: [Provider(node.url)]))) as fetching:
            yield open_dataset(ContentStore(fetching), made.cid), node.asked


SCHEMA = pa.schema(
    [
        ("i", pa.int32()),
        ("f", pa.float64()),
        ("s", pa.string()),
        ("b", pa.bool_()),
        ("t", pa.timestamp("ms")),
        ("u", pa.uint64()),
        ("l", pa.list_(pa.int16())),
    ]
)
_DAY = dt.datetime(2026, 1, 1)  # noqa: DTZ001 -- the column has no zone

ROW = st.fixed_dictionaries(
    {
        "i": st.none() | st.integers(-3, 3),
        "f": st.none() | st.sampled_from([float("nan"), -0.0, 0.0, 1.5, -2.0, float("inf")]),
        "s": st.none() | st.sampled_from(["", "a", "b", "z" * 70, "é"]),
        "b": st.none() | st.booleans(),
        "t": st.none() | st.integers(0, 4).map(lambda days: _DAY + dt.timedelta(days=days)),
        "u": st.none() | st.sampled_from([0, 1, 2**63, 2**64 - 1]),
        "l": st.none() | st.lists(st.none() | st.integers(-1, 1), max_size=3),
    }
)
"""Rows of few different values, with everything that makes comparing hard."""

TABLE = st.lists(ROW, min_size=1, max_size=60).map(lambda rows: pa.Table.from_pylist(rows, SCHEMA))


def comparable(rows: list[dict[str, Any]]) -> list[str]:
    """Rows as text in which NaN is NaN and 0.0 is -0.0."""
    return [repr({k: v + 0.0 if isinstance(v, float) else v for k, v in row.items()}) for row in rows]
