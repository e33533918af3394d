"""Which shards and row groups can hold a wanted row, as their statistics tell: the others are never read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from holdfast.storage.datasets.conditions import Condition
    from holdfast.storage.datasets.shards.shard import ColumnStatistics

__all__ = ["possible"]


def possible(
    condition: Condition, schema: pa.Schema, parts: Sequence[tuple[int, Mapping[str, ColumnStatistics]]]
) -> list[int]:
    """The numbers of the parts that may hold a row that meets the condition.

    Args:
        condition: What is wanted.
        schema: The logical schema of the dataset.
        parts: Rows of each part, and what is known of its columns.
    """
    if condition.speaks_of_nan:
        return list(range(len(parts)))
    # Arrow's own datasets decide: each part is a file that is never opened, with its statistics as a guarantee.
    files, disk = ds.ParquetFileFormat(), pyarrow.fs.LocalFileSystem()
    fragments = [
        files.make_fragment(str(number), disk, _guarantee(condition, schema, rows, statistics))
        for number, (rows, statistics) in enumerate(parts)
    ]
    try:
        kept = ds.FileSystemDataset(fragments, schema, files, disk).get_fragments(filter=condition.expression)
        return [int(fragment.path) for fragment in kept]
    except (
        pa.ArrowException
    ):  # a bound has no place in the type of a literal; perhaps the rows themselves have
        return list(range(len(parts)))


def _guarantee(
    condition: Condition, schema: pa.Schema, rows: int, statistics: Mapping[str, ColumnStatistics]
) -> pc.Expression:
    whole = pc.scalar(True)
    for name in condition.columns:
        known = statistics.get(name)
        if known is not None:
            said = _said(pc.field(name), schema.field(name).type, rows, known, condition)
            whole = whole & said if said is not None else whole
    return whole


def _said(
    field: pc.Expression, kind: pa.DataType, rows: int, known: ColumnStatistics, condition: Condition
) -> pc.Expression | None:
    if known.nulls == rows:
        return field.is_null()
    if pa.types.is_floating(kind) and not condition.holds_never_for_nan:
        return None
    bounds: list[Any] = []
    if known.minimum is not None:
        bounds.append(field >= pa.scalar(known.minimum, kind))
    if known.maximum is not None:
        bounds.append(field <= pa.scalar(known.maximum, kind))
    if not bounds:
        return None if known.nulls else field.is_valid()
    within = bounds[0] if len(bounds) == 1 else bounds[0] & bounds[1]
    return within | field.is_null() if known.nulls else within
