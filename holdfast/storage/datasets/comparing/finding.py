"""Whether a row is in a dataset, and where: statistics first, then one column after the other, the smallest first."""

from __future__ import annotations

from collections.abc import Mapping
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
from holdfast.storage.datasets.sources.casts import cast_exactly
from holdfast.storage.datasets.sources.source import in_words
from holdfast.storage.datasets.sources.values import Misfit, convert

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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

    NaN equals NaN and None is a missing value, as is what pandas has in its place: NA, NaT, and NaN in columns without
    floats. Nothing is cut or converted to fit a column, but a Python float means the nearest one in columns of 32 or 16 bits.

    Args:
        dataset: Where to look.
        row: The values of all columns, or of those that matter. Tensors are NumPy arrays.
        split: Look in this one only.

    Raises:
        InvalidInput: There is no such column, or a value can't be one of its column.
        NotFound: There is no such split.
    """
    if not isinstance(row, Mapping):
        raise InvalidInput(f"a row to look for is a mapping from column to value, not a {type(row).__name__}")
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
    if isinstance(value, pa.Scalar):
        value = value.as_py()
    try:
        if isinstance(kind, pa.FixedShapeTensorType) and value is not None:
            return _as_tensor(field.name, kind, value)
        if isinstance(kind, pa.BaseExtensionType):
            return pa.nulls(1, kind)
        return convert([_as_meant(value, kind)], pa.field(field.name, kind))
    except (Misfit, pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(
            f"{in_words(value)} can't be a value of {field.name!r}, which is {type_text(kind)}: {error}"
        ) from error


def _as_tensor(name: str, kind: pa.FixedShapeTensorType, value: Any) -> pa.Array:
    array, shape = np.asarray(value), tuple(kind.shape)
    if isinstance(value, (list, tuple)) and array.dtype.kind == "f" and pa.types.is_floating(kind.value_type):
        array = np.asarray(_nearest(array, kind.value_type))
    flat_too = (kind.storage_type.list_size,)  # as Arrow gives tensors as Python values
    if array.shape not in {shape, flat_too}:
        raise InvalidInput(f"the value of {name!r} has the shape {array.shape}, not {shape}")
    values = cast_exactly(pa.array(array.reshape(-1)), kind.value_type)
    if values.null_count:
        raise InvalidInput(f"the value of {name!r} has missing items, and tensors have none")
    storage = pa.FixedSizeListArray.from_arrays(values, kind.storage_type.list_size)
    return pa.ExtensionArray.from_storage(kind, storage)


def _as_meant(value: Any, kind: pa.DataType) -> Any:
    """A value as one of the type, where Python or pandas had to give it as another.

    pandas has NaN for what is missing and floats for integers among them. Python's floats have 64 bits; in columns of fewer
    they mean the nearest one, as in comparisons of NumPy.
    """
    types = pa.types
    if isinstance(value, np.ndarray) and value.dtype.kind not in "mM":
        value = value.tolist()
    if isinstance(value, (list, tuple)) and (types.is_list(kind) or types.is_fixed_size_list(kind)):
        return [_as_meant(item, kind.value_type) for item in value]
    if isinstance(value, Mapping) and types.is_struct(kind):
        inner = {field.name: field.type for field in kind}
        return {key: _as_meant(item, inner[key]) if key in inner else item for key, item in value.items()}
    if not isinstance(value, (float, np.floating)):
        return value
    if types.is_floating(kind):
        return _nearest(value, kind) if type(value) is float else value
    if np.isnan(value):
        return None
    return int(value) if types.is_integer(kind) and value.is_integer() else value


def _nearest(value: Any, kind: pa.DataType) -> Any:
    """Numbers as floats of the type; those that are too large for it stay as they are."""
    with np.errstate(over="ignore"):
        nearest = np.asarray(value).astype(kind.to_pandas_dtype())
    return nearest[()] if np.array_equal(np.isfinite(nearest), np.isfinite(value)) else value


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
        elif (
            is_comparable(values.type)
            and not pa.types.is_float16(values.type)  # which Arrow does not compare
            and value.as_py() == value.as_py()
        ):
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
