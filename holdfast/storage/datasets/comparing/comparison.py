"""What differs between two datasets: rows added, removed and changed.

Shards and row groups that both have are never read: their CIDs say that they are equal. Of the others the rows are hashed
(:mod:`~holdfast.storage.datasets.comparing.row_hashes`) and matched by hash, in parts that fit in memory.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from holdfast.errors import InvalidInput, NotFound
from holdfast.storage.datasets.comparing.row_hashes import RowHasher
from holdfast.storage.datasets.comparing.row_matching import RowMatcher
from holdfast.storage.datasets.read_ahead import in_order
from holdfast.storage.datasets.row_groups import GroupPlace, Readers, Rows, places_of
from holdfast.storage.datasets.schema import type_text
from holdfast.storage.stored_file import StoredFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np

    from holdfast.storage.cid import Cid
    from holdfast.storage.datasets.comparing.row_hashes import Words
    from holdfast.storage.datasets.dataset import Dataset

__all__ = ["Changes", "Difference", "SchemaDifference", "SplitDifference", "diff"]

_CHANGED_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaDifference:
    """Columns that only one of two datasets has, or that have another type; types as text."""

    added: Mapping[str, str]
    removed: Mapping[str, str]
    retyped: Mapping[str, tuple[str, str]]
    """Type before, type after."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.retyped)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitDifference:
    """How one split differs. Rows are read when they are asked for, and only the row groups that have any."""

    unchanged: int
    """Rows that both have."""
    added: Rows
    """Rows that only the second dataset has."""
    removed: Rows
    """Rows that only the first one has."""
    changed: Changes
    """Rows that have the same key in both, and other values."""
    rows_read: int
    """Rows of both that had to be read to find out."""

    def to_json(self) -> dict[str, int]:
        """The counts."""
        return {
            "added": len(self.added),
            "removed": len(self.removed),
            "changed": len(self.changed),
            "unchanged": self.unchanged,
            "rows_read": self.rows_read,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How dataset ``b`` differs from dataset ``a``."""

    a: Cid
    b: Cid
    schema: SchemaDifference
    columns: tuple[str, ...]
    """The columns by which rows were compared: those that both have, in types that can be compared."""
    key: tuple[str, ...]
    splits: Mapping[str, SplitDifference]

    @property
    def added(self) -> int:
        """Rows that only ``b`` has."""
        return sum(len(split.added) for split in self.splits.values())

    @property
    def removed(self) -> int:
        """Rows that only ``a`` has."""
        return sum(len(split.removed) for split in self.splits.values())

    @property
    def changed(self) -> int:
        """Rows with the same key and other values."""
        return sum(len(split.changed) for split in self.splits.values())

    @property
    def same(self) -> bool:
        """Whether both have the same columns and the same rows in the same splits, in whatever order."""
        return not (self.schema or self.added or self.removed or self.changed)

    def to_json(self) -> dict[str, Any]:
        """Everything but the rows, as plain values."""
        return {
            "a": str(self.a),
            "b": str(self.b),
            "same": self.same,
            "schema": {
                "added": dict(self.schema.added),
                "removed": dict(self.schema.removed),
                "retyped": {name: list(types) for name, types in self.schema.retyped.items()},
            },
            "columns": list(self.columns),
            "key": list(self.key),
            "added": self.added,
            "removed": self.removed,
            "changed": self.changed,
            "splits": {name: split.to_json() for name, split in self.splits.items()},
        }


@dataclass(frozen=True, slots=True)
class Changes:
    """Rows that changed: each with what it was and what it became, in the first dataset's order."""

    before: Rows
    after: Rows
    """The row at the same position is what ``before``'s row became."""
    key: tuple[str, ...]
    _pairs: np.ndarray[Any, Any] = field(repr=False)

    def __len__(self) -> int:
        return len(self._pairs)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The key columns, then ``before`` and ``after``: structs of all other columns."""
        for at in range(0, len(self._pairs), _CHANGED_AT_ONCE):
            pairs = self._pairs[at : at + _CHANGED_AT_ONCE]
            before, after = self.before.take(pairs[:, 0]), self.after.take(pairs[:, 1])
            arrays = [before.column(name) for name in self.key]
            arrays += [_without(rows, self.key) for rows in (before, after)]
            yield pa.RecordBatch.from_arrays(arrays, names=[*self.key, "before", "after"])

    def to_arrow(self) -> pa.Table:
        """All of them as one table; see :meth:`batches`."""
        batches = list(self.batches())
        if not batches:
            empty = [self.before.schema.empty_table(), self.after.schema.empty_table()]
            structs = [
                _without(pa.RecordBatch.from_pylist([], schema=table.schema), self.key) for table in empty
            ]
            arrays = [empty[0].column(name).combine_chunks() for name in self.key]
            return pa.table([*arrays, *structs], names=[*self.key, "before", "after"])
        return pa.Table.from_batches(batches)


def diff(
    a: Dataset,
    b: Dataset,
    *,
    key: str | Sequence[str] | None = None,
    split: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> Difference:
    """What was added, removed and changed from ``a`` to ``b``, split by split.

    Without a key rows are compared by all of their values, as multisets: a row that ``a`` has twice and ``b`` once was
    removed once, and order does not matter. NaN equals NaN and null equals null. If the schemas differ, rows are
    compared by the columns that both have.

    Args:
        a: The dataset before.
        b: The dataset after.
        key: The column, or columns, that say which row is which: a row with the same key and other values is
            changed. Rows of one dataset that share a key are paired in their order.
        split: Compare this one only.
        progress: Told how many more rows were read.

    Raises:
        NotFound: Neither has the split.
        InvalidInput: The key is not a column of both, or they have no column in common; or the types of a column differ,
            and the type that holds both does not hold a value of it (as float64 does not hold 2**53 + 1).
        Unsupported: A column is of a type that can't be compared.
    """
    schema, compared = _compared_schema(a, b)
    keys = (key,) if isinstance(key, str) else tuple(key or ())
    for name in keys:
        if name not in compared.names:
            raise InvalidInput(
                f"the key {name!r} is not a column that both datasets have; they have {', '.join(compared.names)}"
            )
    splits = list(dict.fromkeys((*a.splits, *b.splits)))
    if split is not None:
        if split not in splits:
            raise NotFound(
                f"neither {a.cid} nor {b.cid} has a split {split!r}; they have {', '.join(splits)}"
            )
        splits = [split]
    comparing = _Comparison(a, b, compared, keys, not schema, progress)
    found = {name: comparing.of_split(name) for name in splits}
    return Difference(a=a.cid, b=b.cid, schema=schema, columns=tuple(compared.names), key=keys, splits=found)


def _compared_schema(a: Dataset, b: Dataset) -> tuple[SchemaDifference, pa.Schema]:
    """How the schemas differ, and in which columns, in which types, rows can be compared."""
    before, after = ({field.name: field.type for field in each.schema} for each in (a, b))
    common = []
    for name in before:
        if name in after:
            try:
                pair = [pa.schema([(name, kinds[name])]) for kinds in (before, after)]
                common.append(pa.unify_schemas(pair, promote_options="permissive").field(0))
            except pa.ArrowException:
                continue  # reported as retyped
    if not common:
        raise InvalidInput(f"datasets {a.cid} and {b.cid} have no column in common by which to compare rows")
    difference = SchemaDifference(
        added={name: str(kind) for name, kind in after.items() if name not in before},
        removed={name: str(kind) for name, kind in before.items() if name not in after},
        retyped={
            name: (str(kind), str(after[name]))
            for name, kind in before.items()
            if name in after and after[name] != kind
        },
    )
    return difference, pa.schema(common)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Two datasets, and by what their rows are compared."""

    a: Dataset
    b: Dataset
    compared: pa.Schema
    key: tuple[str, ...]
    same_schema: bool
    progress: Callable[[int], object] | None

    def of_split(self, split: str) -> SplitDifference:
        """How one split differs; one that a dataset does not have is empty."""
        sides = [places_of(dataset, split) if split in dataset.splits else [] for dataset in (self.a, self.b)]
        total = sum(place.rows for place in sides[0])
        if self.same_schema and all(sides):
            sides = list(_unequal_groups(self.a, self.b, sides[0], sides[1]))
        rows = [sum(place.rows for place in places) for places in sides]
        hasher = RowHasher()
        with RowMatcher(rows[0], rows[1], keyed=bool(self.key)) as matcher:
            for side, dataset in enumerate((self.a, self.b)):
                for hashes, keys in in_order(self._hashed(dataset, sides[side], hasher)):
                    matcher.add(side, hashes, keys)
                    if self.progress is not None:
                        self.progress(len(hashes))
            matched = matcher.match()
        before = Rows(self.a, sides[0], matched.only_a)
        after = Rows(self.b, sides[1], matched.only_b)
        return SplitDifference(
            unchanged=total - len(before) - len(matched.pairs),
            added=after,
            removed=before,
            changed=Changes(before, after, self.key, matched.pairs),
            rows_read=sum(rows),
        )

    def _hashed(
        self, dataset: Dataset, places: Sequence[GroupPlace], hasher: RowHasher
    ) -> Iterator[Callable[[], tuple[Words, Words | None]]]:
        readers = Readers(dataset)

        def reading(place: GroupPlace) -> Callable[[], tuple[Words, Words | None]]:
            def read() -> tuple[Words, Words | None]:
                batch = readers.read(place, self.compared.names)
                table = pa.table([_widened(batch, field) for field in self.compared], schema=self.compared)
                keys = hasher.hashes(table, self.key) if self.key else None
                return hasher.hashes(table, self.compared.names), keys

            return read

        return (reading(place) for place in places)


def _widened(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    """A column in the type in which it is compared."""
    values = batch.column(field.name)
    if values.type == field.type:
        return values
    try:
        return values.cast(field.type)
    except pa.ArrowException as error:
        raise InvalidInput(
            f"column {field.name!r} is of two types, and as {type_text(field.type)}, in which both would be compared, not all of "
            f"its values of type {type_text(values.type)} are the same: {error}"
        ) from error


def _unequal_groups(
    a: Dataset, b: Dataset, of_a: Sequence[GroupPlace], of_b: Sequence[GroupPlace]
) -> tuple[list[GroupPlace], list[GroupPlace]]:
    """The groups of both without those that both have, as the CIDs of their blocks tell."""
    left_a, left_b = _cancelled(of_a, of_b, lambda place: place.shard.cid, lambda place: place.shard.cid)
    return _cancelled(left_a, left_b, _Signatures(a).of, _Signatures(b).of)


def _cancelled(
    of_a: Sequence[GroupPlace],
    of_b: Sequence[GroupPlace],
    name_a: Callable[[GroupPlace], Any],
    name_b: Callable[[GroupPlace], Any],
) -> tuple[list[GroupPlace], list[GroupPlace]]:
    """What is left when groups of the same name are taken from both sides, as often as both have them."""
    named = [[(name(place), place) for place in places] for name, places in ((name_a, of_a), (name_b, of_b))]
    both = Counter(name for name, _ in named[0]) & Counter(name for name, _ in named[1])
    del both[None]
    left: list[list[GroupPlace]] = []
    for side in named:
        still = both.copy()
        kept = []
        for name, place in side:
            if still[name] > 0:
                still[name] -= 1
            else:
                kept.append(place)
        left.append(kept)
    return left[0], left[1]


class _Signatures:
    """Names groups by the blocks that they are, where they are whole blocks."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._file: StoredFile | None = None

    def of(self, place: GroupPlace) -> Any:
        """Equal for groups of equal bytes; None where the blocks don't tell."""
        if self._file is None or self._file.cid != place.shard.cid:
            self._file = StoredFile(self._dataset.store, place.shard.cid)
        group = place.shard.groups[place.index]
        start, end = group.offset, group.offset + group.size_bytes
        aligned = self._ends_at(start)
        # The first block of a file may begin with the file's own first bytes.
        if not (aligned or place.index == 0) or not self._ends_at(end):
            return None
        return aligned, group.rows, group.size_bytes, tuple(self._file.cids(start, end))

    def _ends_at(self, position: int) -> bool:
        file = self._file
        if file is None or position in (0, file.size):
            return True
        return len(file.cids(position - 1, position + 1)) == 2


def _without(rows: pa.RecordBatch, names: tuple[str, ...]) -> pa.StructArray:
    kept = [field for field in rows.schema if field.name not in names]
    return pa.StructArray.from_arrays([rows.column(field.name) for field in kept], fields=kept)
