"""Parquet files for tests of what is read of them."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from holdfast.storage.cid import RAW, Cid
from holdfast.storage.content import ContentStore


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", use_dictionary=False, **options)
    return sink.getvalue()


def numbers(rows: int, columns: int) -> pa.Table:
    generator = np.random.default_rng(7)
    return pa.table({f"c{i}": generator.integers(0, 1 << 60, rows) for i in range(columns)})


def leaves_of(cid: Cid, store: ContentStore) -> list[Cid]:
    return [each for each, _ in store.walk(cid) if each.codec == RAW]
