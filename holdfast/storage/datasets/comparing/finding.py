"""Whether a row is in a dataset, and where: statistics first, then one column after the other, the smallest first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.comparing.row_hashes import RowHasher
from holdfast.storage.datasets.conditions import Condition, checked_columns
from holdfast.storage.datasets.queries import QueryCounts, wanted_groups
from holdfast.storage.datasets.read_ahead import in_order
from holdfast.storage.datasets.row_groups import GroupPlace, Readers
from holdfast.storage.datasets.schema import type_text
from holdfast.storage.datasets.shards.statistics import is_comparable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from holdfast.storage.datasets.comparing.row_hashes import Words
    from holdfast.storage.datasets.dataset import Dataset

__all__ = ["RowPlace", "contains", "find"]


@dataclass(frozen=True, slots=True)
class RowPlace:
    """Where a row is."""

    split: str
    row: int
    """Its number in the split, from 0."""


def contains(dataset: Dataset, row: Mapping[str, Any], split: str | None = None) -> bool:
    """Whether a dataset has a row; see :func:`find`."""
    return next(find(dataset, row, split), None) is not None


def find(dataset: Dataset, row: Mapping[str, Any], split: str | None = None) -> Iterator[RowPlace]:
    """Yield where a dataset has a row, in order; read only as far as they are asked for.

    NaN equals NaN and None is a missing value.

    Args:
        dataset: Where to look.
        row: The values of all columns, or of those that matter. Tensors are NumPy arrays.
        split: Look in this one only.

    Raises:
        InvalidInput: There is no such column, or a value can't be one of its column.
        NotFound: There is no such split.
    """
    names = checked_columns(row, dataset.schema)
    if not names:
        raise InvalidInput(
            f"a row to look for has a value at least; the columns are {', '.join(dataset.schema.names)}"
        )
    wanted = {name: _as_array(dataset.schema.field(name), row[name]) for name in names}
    if split is not None:
        dataset.rows_in(split)
    return _found(dataset, wanted, list(dataset.splits) if split is None else [split])


def _as_array(field: pa.Field, value: Any) -> pa.Array:
    kind = field.type
    try:
        if isinstance(kind, pa.FixedShapeTensorType) and value is not None:
            array = np.asarray(value, kind.value_type.to_pandas_dtype())
            if array.ndim == 1 and array.size == kind.storage_type.list_size:
                array = array.reshape(kind.shape)  # as Arrow gives tensors as Python values
            if array.shape != tuple(kind.shape):
                raise InvalidInput(
                    f"the value of {field.name!r} has the shape {array.shape}, not {tuple(kind.shape)}"
                )
            return pa.FixedShapeTensorArray.from_numpy_ndarray(array[None].copy())
        if isinstance(kind, pa.BaseExtensionType):
            return pa.nulls(1, kind)
        return pa.array([value.item() if isinstance(value, np.generic) else value], kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(
            f"{value!r:.100} can't be a value of {field.name!r}, which is {type_text(kind)}: {error}"
        ) from error


def _found(dataset: Dataset, wanted: Mapping[str, pa.Array], splits: list[str]) -> Iterator[RowPlace]:
    hasher = RowHasher()
    hashes = {name: hasher.hashes(pa.table({name: values}), [name]) for name, values in wanted.items()}
    condition = _condition(wanted)
    readers = Readers(dataset)
    for split in splits:
        groups = wanted_groups(dataset, readers, split, condition, QueryCounts())
        for place, rows in in_order(_searching(readers, place, hasher, hashes) for place in groups):
            for row in rows:
                yield RowPlace(split, place.first_row + int(row))


def _condition(wanted: Mapping[str, pa.Array]) -> Condition | None:
    """What statistics can tell of the row."""
    parts = {}
    for name, values in wanted.items():
        value = values[0]
        if not value.is_valid:
            parts[name] = pc.field(name).is_null()
        elif is_comparable(values.type) and value.as_py() == value.as_py():
            parts[name] = pc.field(name) == value
    return Condition(reduce(and_, parts.values()), tuple(parts), None) if parts else None


def _searching(
    readers: Readers, place: GroupPlace, hasher: RowHasher, wanted: Mapping[str, Words]
) -> Callable[[], tuple[GroupPlace, np.ndarray[Any, Any]]]:
    def search() -> tuple[GroupPlace, np.ndarray[Any, Any]]:
        reader = readers.of(place.shard)
        rows = np.arange(place.rows)
        for name in sorted(wanted, key=lambda name: reader.size_bytes(place.index, [name])):
            column = reader.read_group(place.index, [name])
            if len(rows) < column.num_rows:
                column = column.take(pa.array(rows))
            rows = rows[(hasher.hashes(column, [name]) == wanted[name]).all(axis=1)]
            if not len(rows):
                break
        return place, rows

    return search
