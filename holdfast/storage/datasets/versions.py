"""New versions of a dataset: each is a dataset of its own, with a link to its parent and a note of what was done.

Shards that did not change keep their CIDs, so a version takes as much room as what is new in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.conditions import Condition
from holdfast.storage.datasets.pruning import possible
from holdfast.storage.datasets.queries import rows_that_meet
from holdfast.storage.datasets.read_ahead import in_order
from holdfast.storage.datasets.schema import logical_array, logical_schema, type_text
from holdfast.storage.datasets.sources import open_sources
from holdfast.storage.datasets.sources.arrays import column_array, column_field
from holdfast.storage.datasets.sources.casts import cast_exactly
from holdfast.storage.datasets.sources.frames import is_series, series_array
from holdfast.storage.datasets.sources.rows import row_error
from holdfast.storage.datasets.sources.source import in_words
from holdfast.storage.datasets.sources.values import Misfit, convert, infer_field
from holdfast.storage.datasets.writer import DatasetWriter
from holdfast.storage.formats import dag_cbor

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from holdfast.storage.datasets.conditions import Where
    from holdfast.storage.datasets.dataset import Dataset
    from holdfast.storage.datasets.shards.shard import Shard
    from holdfast.storage.datasets.sources import Source

    Progress: TypeAlias = Callable[[int], object] | None

__all__ = ["Edit", "append", "edit", "filter_rows"]

Edit: TypeAlias = Callable[[pa.RecordBatch], pa.RecordBatch | pa.Table] | Mapping[str, Any]
"""A function from rows to rows, or what becomes of single columns; see :func:`edit`."""

_PLAIN = (bool, int, float, str, bytes, type(None))


def append(
    dataset: Dataset,
    data: Any = None,
    *,
    path: str | os.PathLike[str] | None = None,
    source_format: str | None = None,
    split: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress = None,
) -> Dataset:
    """A child with more rows at the end of its splits.

    Its shards are those that storing all rows at once would have made. Only the last shard of a split that grows is
    read.

    Args:
        dataset: The parent.
        data: Rows of any kind, or a mapping from split to rows; see
            :func:`~holdfast.storage.datasets.sources.open_sources`.
        path: A file or a folder instead.
        source_format: What the files are, where their names don't tell.
        split: Where the rows go; default: the split that the source names, or the dataset's only one.
        metadata: Plain values that are added to the parent's.
        progress: Told how many more rows were written.

    Raises:
        InvalidInput: The rows have other columns, or values that don't fit, or mean other things by them (classes); or
            there are none.
    """
    sources = _named(open_sources(data, path=path, format=source_format), dataset, split)
    added = dict.fromkeys(sorted(sources), 0)
    _same_metadata(sources, dataset)
    with _writer_like(dataset) as writer:
        for name, shards in dataset.splits.items():
            grows = name in sources
            for shard in shards[:-1] if grows else shards:
                writer.reuse(name, shard)
            if grows:
                for batch in _batches_of(dataset, shards[-1:]):
                    writer.write(name, batch)
        for name, source in sources.items():
            writer.add_split(name)
            for batch in source.batches():
                writer.write(name, _fitted(batch, dataset.schema, name, added[name]))
                added[name] += batch.num_rows
                if progress is not None:
                    progress(batch.num_rows)
        if not any(added.values()):
            raise InvalidInput("there are no rows to append")
        return writer.finish(
            metadata={**_same_metadata(sources, dataset), **(metadata or {})},
            provenance={"operation": "append", "rows": added},
            parent=dataset.cid,
        )


def filter_rows(
    dataset: Dataset,
    where: Where,
    *,
    split: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress = None,
) -> Dataset:
    """A child with those rows only that meet a condition, in constant memory.

    Shards that can't have such a row are not read. Nor are those in which every row is one, as far as the manifest tells.

    Args:
        dataset: The parent.
        where: See :func:`~holdfast.storage.datasets.queries.query`.
        split: Filter this one only; the others stay as they are.
        metadata: Plain values that are added to the parent's.
        progress: Told how many more rows were looked at.

    Raises:
        InvalidInput: The condition can't be used on the columns, or no row meets it.
        NotFound: No such split.
    """
    condition = Condition.parse(where, dataset.schema)
    with _writer_like(dataset) as writer:
        for name in _chosen_and_kept(dataset, split, writer):
            _filter_split(dataset, name, condition, writer, progress)
        return writer.finish(
            metadata={**dataset.metadata, **(metadata or {})},
            provenance=_of_split({"operation": "filter", "where": condition.plain}, split),
            parent=dataset.cid,
        )


def edit(
    dataset: Dataset,
    change: Edit,
    *,
    split: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress = None,
) -> Dataset:
    """A child with changed rows, in constant memory.

    Args:
        dataset: The parent.
        change: A function that is given the rows, a row group at a time, and gives those that are to be there instead: as many
            as it likes, with the same columns for each group. Or a mapping from column to what becomes of it: a function
            that is given the column's values as an Arrow array (for a new column: the whole record batch) and gives as many
            values; or a constant.
        split: Edit this one only; the others stay as they are.
        metadata: Plain values that are added to the parent's.
        progress: Told how many more rows were edited.

    Raises:
        InvalidInput: The function gives something else, or other columns for some rows than for others.
        NotFound: No such split.
    """
    apply = change if callable(change) else _Columns(change, dataset.schema)
    named = [name for name in dataset.splits if split in (None, name)] if split else list(dataset.splits)
    if split is not None:
        dataset.shards(split)
    edited = ((name, batch) for name in named for batch in _edited(dataset, name, apply, progress))
    first = next(edited, None)
    if first is None:
        raise InvalidInput(f"dataset {dataset.cid} has no rows to edit in {', '.join(named)}")
    schema = logical_schema(first[1].schema)
    if split is not None and len(dataset.splits) > 1 and not schema.equals(dataset.schema):
        raise InvalidInput(
            f"the edit of split {split!r} changes the columns, which all splits share: edit them all (split=None)"
        )
    with DatasetWriter(dataset.store, schema, format=dataset.format, chunk_size=dataset.chunk_size) as writer:
        for name in dataset.splits:
            writer.add_split(name)
            for shard in dataset.shards(name) if name not in named else ():
                writer.reuse(name, shard)
        writer.write(*first)
        del first
        for name, rows in edited:
            writer.write(name, rows)
        return writer.finish(
            metadata={**dataset.metadata, **(metadata or {})},
            provenance=_of_split({"operation": "edit", "change": _plain_change(change)}, split),
            parent=dataset.cid,
        )


# ----------------------------------------------------------------------------------------------- helpers


def _named(sources: dict[str, Source], dataset: Dataset, split: str | None) -> dict[str, Source]:
    """The sources by the splits that they are appended to."""
    if split is not None and len(sources) > 1:
        raise InvalidInput(f"the data has the splits {', '.join(sources)}: leave out split={split!r}")
    if split is None and list(sources) == ["train"] and len(dataset.splits) == 1:
        split = next(iter(dataset.splits))
    return sources if split is None else {split: next(iter(sources.values()))}


def _same_metadata(sources: Mapping[str, Source], dataset: Dataset) -> dict[str, Any]:
    """The dataset's metadata with what belongs to the new rows, which must not mean other things by the same values."""
    common = dict(dataset.metadata)
    for split, source in sources.items():
        for key, value in source.metadata.items():
            if dag_cbor.encode(common.setdefault(key, value)) != dag_cbor.encode(value):
                raise InvalidInput(
                    f"the rows for split {split!r} have other {key} than dataset {dataset.cid}: {str(value)[:200]} / "
                    f"{str(common[key])[:200]}"
                )
    return common


def _writer_like(dataset: Dataset) -> DatasetWriter:
    return DatasetWriter(dataset.store, dataset.schema, format=dataset.format, chunk_size=dataset.chunk_size)


def _of_split(provenance: dict[str, Any], split: str | None) -> dict[str, Any]:
    return provenance if split is None else {**provenance, "split": split}


def _batches_of(dataset: Dataset, shards: Sequence[Shard]) -> Iterator[pa.RecordBatch]:
    for shard in shards:
        read = dataset.open_shard(shard).read_group
        yield from in_order(partial(read, index) for index in range(len(shard.groups)))


def _chosen_and_kept(dataset: Dataset, split: str | None, writer: DatasetWriter) -> list[str]:
    """The splits that are to change; the others are taken over."""
    if split is not None:
        dataset.shards(split)
    chosen = []
    for name, shards in dataset.splits.items():
        writer.add_split(name)
        if split in (None, name):
            chosen.append(name)
        else:
            for shard in shards:
                writer.reuse(name, shard)
    return chosen


def _filter_split(
    dataset: Dataset, split: str, condition: Condition, writer: DatasetWriter, progress: Progress
) -> None:
    shards = dataset.shards(split)
    known = [(shard.rows, shard.statistics) for shard in shards]
    some = set(possible(condition, dataset.schema, known))
    opposite = Condition(~condition.expression, condition.columns, None)
    not_all = set(possible(opposite, dataset.schema, known))
    for number, shard in enumerate(shards):
        if number in some:
            whole = number not in not_all and _no_nulls(shard, condition.columns)
            if whole and number < len(shards) - 1 and writer.at_shard_start(split):
                writer.reuse(split, shard)
            else:
                for batch in _batches_of(dataset, [shard]):
                    rows = rows_that_meet(condition, batch)
                    if len(rows):
                        writer.write(split, batch.take(pa.array(rows)))
        if progress is not None:
            progress(shard.rows)


def _no_nulls(shard: Shard, columns: Sequence[str]) -> bool:
    """Whether a condition on these columns is either true or false for each row, never unknown."""
    return all(name in shard.statistics and not shard.statistics[name].nulls for name in columns)


def _edited(
    dataset: Dataset,
    split: str,
    apply: Callable[[pa.RecordBatch], Any],
    progress: Progress,
) -> Iterator[pa.RecordBatch | pa.Table]:
    for batch in _batches_of(dataset, dataset.shards(split)):
        given = apply(batch)
        if not isinstance(given, (pa.RecordBatch, pa.Table)):
            raise InvalidInput(
                f"an edit gives a RecordBatch or a Table for each RecordBatch, not {type(given).__name__}"
            )
        yield given
        if progress is not None:
            progress(batch.num_rows)


class _Columns:
    """An edit of single columns."""

    def __init__(self, changes: Mapping[str, Any], schema: pa.Schema) -> None:
        if not changes:
            raise InvalidInput("an edit names at least one column")
        self._changes = changes
        self._schema = schema

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        fields = {field.name: field for field in batch.schema}
        for name, change in self._changes.items():
            old = columns.get(name)
            values = change(batch if old is None else old) if callable(change) else change
            kind = fields[name].type if name in fields else None
            columns[name] = new = _as_array(name, values, batch.num_rows, kind, constant=not callable(change))
            if kind is None or new.type != kind:
                fields[name] = pa.field(name, new.type)
        return pa.RecordBatch.from_arrays(list(columns.values()), schema=pa.schema(list(fields.values())))


def _as_array(name: str, values: Any, rows: int, kind: pa.DataType | None, *, constant: bool) -> pa.Array:
    """The new values of a column, in its type where they are no Arrow values, which say their own."""
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    if not isinstance(values, pa.Array):
        try:
            if constant:
                one = _as_arrow(
                    name, pa.repeat(values, 1) if isinstance(values, pa.Scalar) else [values], kind
                )
                values = one.take(pa.array(np.zeros(rows, np.int64)))
            else:
                values = _as_arrow(name, values, kind)
        except (Misfit, pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, InvalidInput):
                raise
            wanted = f" of type {type_text(kind)}" if kind is not None else " of one type"
            which = f"{in_words(error.value)} " if isinstance(error, Misfit) else ""
            raise InvalidInput(
                f"the new values of column {name!r} are no values{wanted}: {which}{error}"
            ) from error
    if len(values) != rows:
        raise InvalidInput(f"the edit of column {name!r} gave {len(values)} values for {rows} rows")
    return values


def _as_arrow(name: str, values: Any, kind: pa.DataType | None) -> pa.Array:
    if isinstance(values, np.ndarray):
        what = f"the edit of column {name!r}"
        array = column_array(values, column_field(name, values, what=what), 0, what=what)
        return array if kind is None or values.ndim > 1 else cast_exactly(array, kind)
    if is_series(values):
        values = series_array(name, values)
    if isinstance(values, pa.Array):
        return values if kind is None else cast_exactly(values, kind)
    values = list(values)
    return convert(values, infer_field(name, values) if kind is None else pa.field(name, kind))


def _plain_change(change: Edit) -> Any:
    """What provenance can say of an edit: constants as they are, functions by name."""
    if callable(change):
        return {"function": _name_of(change)}
    return {
        "columns": {
            name: {"function": _name_of(value)}
            if callable(value)
            else {"value": value if isinstance(value, _PLAIN) else str(value)}
            for name, value in change.items()
        }
    }


def _name_of(function: Callable[..., Any]) -> str:
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    return f"{module}:{name}" if name else type(function).__qualname__


def _fitted(batch: pa.RecordBatch, schema: pa.Schema, split: str, before: int) -> pa.RecordBatch:
    """Rows with the types of the dataset, as far as no value is lost by it."""
    if set(batch.schema.names) != set(schema.names):
        return batch  # the writer says which are missing or too many
    columns = []
    for field in schema:
        column = batch.column(field.name)
        plain = not (
            isinstance(column.type, pa.BaseExtensionType) or isinstance(field.type, pa.BaseExtensionType)
        )
        if plain and column.type != field.type:
            own = logical_schema(pa.schema([pa.field(field.name, column.type)])).field(0)
            try:
                column = cast_exactly(logical_array(column, own.type), field.type)
            except Misfit as error:
                what = f"the rows for split {split!r}"
                raise row_error(what, before + error.index, field.name, error.value, error.reason) from error
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, names=schema.names)
