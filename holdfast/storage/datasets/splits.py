"""Cutting a dataset into parts for training and testing: by chance that can be repeated, or by a column."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.row_groups import chosen_split
from holdfast.storage.datasets.schema import type_text
from holdfast.storage.datasets.writer import DatasetWriter
from holdfast.whole_numbers import whole_number

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from holdfast.storage.datasets.dataset import Dataset

    Numbers: TypeAlias = np.ndarray[Any, Any]

__all__ = ["train_test_split"]

_MAX_SPLITS = 64
_ROUNDS = 8
_NAN = object()


def train_test_split(
    dataset: Dataset,
    *,
    test_size: float = 0.2,
    random_state: int | None = None,
    stratify: str | None = None,
    split_column: str | None = None,
    split: str | None = None,
    format: str | None = None,  # noqa: A002 -- what everybody calls it
    metadata: Mapping[str, Any] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Dataset:
    """A dataset with the splits ``train`` and ``test``, each with its rows in the old order; in constant memory.

    Which rows are tested depends on the seed, the number of rows and, with ``stratify``, their classes: not on batches,
    shards or a library's generator.

    Args:
        dataset: What to cut; its CID is in the result's provenance.
        test_size: Part of the rows for ``test``, between 0 and 1; or how many, as an integer.
        random_state: The seed. None is 0: cutting twice gives the same dataset.
        stratify: A column: each of its values has the same part of its rows in ``test``, exactly, as far as rows can be
            divided (by largest remainder). Missing values, and NaN, are values of their own.
        split_column: A column that says where each row goes, instead of chance: text is the name of the split; true and 1
            are ``test``, false and 0 ``train``.
        split: The split to cut; default: the only one.
        format: What to store the result as; default: as the source is.
        metadata: Plain values for the manifest; default: the source's.
        progress: Told how many more rows were written.

    Raises:
        InvalidInput: The sizes or the seed can't be, a column is not there or is of a type that has no classes, or the dataset has
            several splits and none was chosen.
    """
    if split is None and len(dataset.splits) > 1:
        raise InvalidInput(
            f"dataset {dataset.cid} has the splits {', '.join(dataset.splits)}: say which one to cut (split=)"
        )
    split = chosen_split(dataset, split)
    _check_size(test_size)
    seed = 0 if random_state is None else whole_number("random_state", random_state)
    provenance: dict[str, Any] = {"operation": "train_test_split", "source": dataset.cid, "split": split}
    if split_column is not None:
        if stratify is not None:
            raise InvalidInput("stratify and split_column can't both say where rows go")
        _check_column(dataset, split_column)
        parts: _Parts = _ByColumn(split_column)
        provenance |= {"split_column": split_column}
    else:
        rows = dataset.rows_in(split)
        wanted = _test_rows(test_size, rows)
        classes = _Classes(dataset, split, stratify)
        parts = _ByChance(classes, classes.shares(wanted), seed)
        size = test_size.item() if isinstance(test_size, np.generic) else test_size
        provenance |= {"test_size": size, "random_state": seed, "stratify": stratify}
    with DatasetWriter(
        dataset.store,
        dataset.schema,
        format=dataset.format if format is None else format,
        chunk_size=dataset.chunk_size,
    ) as writer:
        for batch in dataset.batches(split):
            for name, mask in parts.of(batch).items():
                writer.write(name, batch if mask.all() else batch.filter(pa.array(mask)))
            if progress is not None:
                progress(batch.num_rows)
        return writer.finish(
            metadata=dataset.metadata if metadata is None else metadata, provenance=provenance
        )


def _check_column(dataset: Dataset, column: str) -> None:
    if column not in dataset.schema.names:
        raise InvalidInput(f"there is no column {column!r}; there is {', '.join(dataset.schema.names)}")


def _check_size(test_size: float) -> None:
    if isinstance(test_size, bool) or not isinstance(test_size, (int, float, np.integer, np.floating)):
        raise InvalidInput(f"test_size is a part of the rows, or how many they are, not {test_size!r}")
    if not isinstance(test_size, (int, np.integer)) and not 0 < test_size < 1:
        raise InvalidInput(f"test_size={test_size} is a part of the rows between 0 and 1, or an integer")


def _test_rows(test_size: float, rows: int) -> int:
    if isinstance(test_size, (int, np.integer)):
        wanted = int(test_size)
    else:
        wanted = max(1, min(rows - 1, int(Fraction(str(float(test_size))) * rows + Fraction(1, 2))))
    if not 0 < wanted < rows:
        raise InvalidInput(f"{wanted} of {rows} rows can't be for testing: both parts need at least one row")
    return wanted


class _Classes:
    """The classes of the rows, and how many rows each has; without a column there is one."""

    def __init__(self, dataset: Dataset, split: str, column: str | None) -> None:
        self._column = column
        self._numbers: dict[Any, int] = {}
        if column is None:
            self.sizes = np.array([dataset.rows_in(split)], np.int64)
            return
        _check_column(dataset, column)
        kind = dataset.schema.field(column).type
        if pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType):
            raise InvalidInput(
                f"the column {column!r} of type {type_text(kind)} has no classes to stratify by"
            )
        sizes = np.zeros(0, np.int64)
        for batch in dataset.batches(split, [column]):
            found = np.bincount(self.of(batch))
            sizes = np.concatenate((sizes, np.zeros(max(0, len(found) - len(sizes)), np.int64)))
            sizes[: len(found)] += found
        self.sizes = sizes

    def of(self, batch: pa.RecordBatch) -> Numbers:
        """The class of each row, numbered in the order in which they first come up."""
        if self._column is None:
            return np.zeros(batch.num_rows, np.int64)
        coded = batch.column(self._column).dictionary_encode(null_encoding="encode")
        codes = coded.indices.to_numpy(zero_copy_only=False)
        numbers = np.empty(max(1, len(coded.dictionary)), np.int64)
        for code, value in enumerate(coded.dictionary.to_pylist()):
            key = _NAN if isinstance(value, float) and value != value else value  # noqa: PLR0124 -- NaN
            numbers[code] = self._numbers.setdefault(key, len(self._numbers))
        classes: Numbers = numbers[codes]
        return classes

    def shares(self, wanted: int) -> Numbers:
        """How many of each class are for testing: the same part of each, by largest remainder."""
        total = int(self.sizes.sum())
        quotas = [divmod(wanted * int(size), total) for size in self.sizes]
        shares = np.array([whole for whole, _ in quotas], np.int64)
        by_remainder = sorted(range(len(quotas)), key=lambda number: -quotas[number][1])
        shares[by_remainder[: wanted - int(shares.sum())]] += 1
        return shares


class _ByChance:
    """Takes from each class as many rows as are wanted, by a permutation that the seed decides."""

    def __init__(self, classes: _Classes, shares: Numbers, seed: int) -> None:
        self._classes = classes
        self._shares = shares
        self._seen = np.zeros(len(shares), np.int64)
        digest = hashlib.sha256(f"holdfast train_test_split {seed}".encode()).digest()
        self._key = int.from_bytes(digest[:8], "little")

    def of(self, batch: pa.RecordBatch) -> dict[str, Numbers]:
        """Which rows of the next batch go where."""
        classes = self._classes.of(batch)
        order = np.argsort(classes, kind="stable")
        counts = np.bincount(classes, minlength=len(self._seen))
        before = np.cumsum(counts) - counts
        ranks = np.empty(len(classes), np.int64)
        ranks[order] = np.arange(len(classes)) - before[classes[order]]
        ranks += self._seen[classes]
        self._seen += counts
        place = _permuted(ranks, self._classes.sizes[classes], classes, self._key)
        test: Numbers = place < self._shares[classes]
        return {name: mask for name, mask in (("train", ~test), ("test", test)) if mask.any()}


class _ByColumn:
    """Sends each row where its own column says."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._names: set[str] = set()

    def of(self, batch: pa.RecordBatch) -> dict[str, Numbers]:
        """Which rows of the next batch go where."""
        column = batch.column(self._column)
        kind = column.type
        if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
            names: dict[Any, str] = {0: "train", 1: "test"}
        elif pa.types.is_string(kind):
            names = {}
        else:
            raise InvalidInput(f"the column {self._column!r} of type {type_text(kind)} names no splits")
        coded = column.dictionary_encode(null_encoding="encode")
        codes = coded.indices.to_numpy(zero_copy_only=False)
        found: dict[str, Numbers] = {}
        for code, value in enumerate(coded.dictionary.to_pylist()):
            name = names.get(value, value)
            if not isinstance(name, str) or not name:
                raise InvalidInput(
                    f"{value!r} in column {self._column!r} names no split: text does, or true and false, or 1 and 0"
                )
            found[name] = codes == code
        self._names |= set(found)
        if len(self._names) > _MAX_SPLITS:
            raise InvalidInput(
                f"column {self._column!r} has more than {_MAX_SPLITS} values: it names no splits"
            )
        return found


_Parts: TypeAlias = _ByChance | _ByColumn


def _permuted(ranks: Numbers, sizes: Numbers, classes: Numbers, key: int) -> Numbers:
    """The place of each rank in a permutation of its class: one Feistel network for each class, in constant memory.

    A network permutes a power of four of at least the class' size; what falls outside of the class goes through again.
    """
    bits = np.array([max(1, (int(size) - 1).bit_length()) for size in np.unique(sizes)], np.uint64)
    half = ((bits + np.uint64(1)) // np.uint64(2))[np.searchsorted(np.unique(sizes), sizes)]
    values = ranks.astype(np.uint64)
    keys = _mixed(classes.astype(np.uint64) + np.uint64(key))
    limits = sizes.astype(np.uint64)
    walking = np.arange(len(values))
    while len(walking):
        moved = _network(values[walking], half[walking], keys[walking])
        values[walking] = moved
        walking = walking[moved >= limits[walking]]
    return values.astype(np.int64)


def _network(values: Numbers, half: Numbers, keys: Numbers) -> Numbers:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for turn in range(_ROUNDS):
        left, right = right, left ^ (_mixed(right ^ _mixed(keys + np.uint64(turn))) & mask)
    joined: Numbers = (left << half) | right
    return joined


def _mixed(values: Numbers) -> Numbers:
    """SplitMix64's finaliser: every bit of the value decides about every bit of the result."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Numbers = values ^ (values >> np.uint64(31))
    return mixed
