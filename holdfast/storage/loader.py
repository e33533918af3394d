"""Batches for training: each worker streams its own shards of a dataset, in a repeatable order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from holdfast.errors import InvalidInput, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from holdfast.storage.dataset import Dataset, Shard

__all__ = ["column_to_numpy", "iter_batches", "rows_of_rank", "table_to_numpy"]


def rows_of_rank(dataset: Dataset, split: str, rank: int, world_size: int) -> int:
    """How many rows worker ``rank`` of ``world_size`` gets of a split."""
    return sum(shard.rows for shard in _shards_of_rank(dataset, split, rank, world_size))


def iter_batches(  # noqa: C901 -- one loop, and what each of its options adds
    dataset: Dataset,
    split: str,
    *,
    batch_size: int,
    seed: int | None = None,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    equal_steps: bool = False,
) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """Yield one worker's share of a split, as one array a column with rows first.

    Shards are dealt out in turn: worker ``r`` reads shards ``r, r + world_size, ...`` and fetches no others. One shard is
    in memory at a time.

    Args:
        dataset: What to read.
        split: Which part of it.
        batch_size: Rows of each batch; the last one is shorter.
        seed: Shuffles the shards, and the rows within each, anew every epoch; None keeps the order.
        epoch: Number of the pass, from 0.
        rank: This worker.
        world_size: How many workers share the split.
        equal_steps: Give every worker the same number of whole batches, as many as the one with the
            fewest rows has, for training in lockstep. The rows left over differ with each epoch.

    Raises:
        InvalidInput: ``batch_size``, ``rank``, ``world_size``, ``seed`` or ``epoch`` is impossible, or a worker would get
            no batch at all.
        NotFound: The dataset has no such split.
    """
    if batch_size < 1 or world_size < 1 or not 0 <= rank < world_size:
        raise InvalidInput(f"batch_size={batch_size}, rank={rank}, world_size={world_size} can't be")
    if epoch < 0 or (seed is not None and seed < 0):
        raise InvalidInput(f"seed={seed}, epoch={epoch}: neither can be negative")
    shards = _shards_of_rank(dataset, split, rank, world_size)
    limit: int | None = None
    if equal_steps:
        fewest = min(rows_of_rank(dataset, split, r, world_size) for r in range(world_size))
        limit = fewest // batch_size
        if limit == 0:
            raise InvalidInput(
                f"split {split!r} has {dataset.rows_in(split)} rows in {len(dataset.shards(split))} shards: too few to "
                f"give each of {world_size} workers a batch of {batch_size}"
            )
    random = None if seed is None else np.random.default_rng((seed, epoch, rank))
    if random is not None:
        shards = [shards[i] for i in random.permutation(len(shards))]
    steps = 0
    rest: dict[str, np.ndarray[Any, Any]] | None = None
    for shard in shards:
        columns = table_to_numpy(dataset.read_shard(shard))
        if random is not None:
            order = random.permutation(shard.rows)
            columns = {name: values[order] for name, values in columns.items()}
        if rest is not None:
            columns = {name: np.concatenate((rest[name], values)) for name, values in columns.items()}
        rows = len(next(iter(columns.values())))
        whole = rows - rows % batch_size
        for at in range(0, whole, batch_size):
            if steps == limit:
                return
            yield {name: values[at : at + batch_size] for name, values in columns.items()}
            steps += 1
        rest = {name: values[whole:] for name, values in columns.items()} if whole < rows else None
    if rest is not None and limit is None:
        yield rest


def _shards_of_rank(dataset: Dataset, split: str, rank: int, world_size: int) -> list[Shard]:
    return list(dataset.shards(split)[rank::world_size])


def table_to_numpy(table: pa.Table) -> dict[str, np.ndarray[Any, Any]]:
    """Each column as one array with rows first; tensors keep their shape."""
    return {name: column_to_numpy(name, table.column(name)) for name in table.column_names}


def column_to_numpy(name: str, column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """A column as an array with rows first; numeric ones without a copy where Arrow allows it.

    Raises:
        InvalidInput: A numeric column has missing values.
        Unsupported: The type has no array form.
    """
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # no chunk at all
        array = pa.array([], type=column.type)
    if isinstance(array.type, pa.FixedShapeTensorType):
        if array.type.permutation is not None:
            tensors: np.ndarray[Any, Any] = array.to_numpy_ndarray()
            return tensors
        flat: np.ndarray[Any, Any] = array.storage.flatten().to_numpy()
        return flat.reshape(len(array), *array.type.shape)
    if array.null_count:
        raise InvalidInput(f"column {name!r} has {array.null_count} missing values; fill or drop them first")
    if pa.types.is_primitive(array.type) or pa.types.is_string(array.type) or pa.types.is_boolean(array.type):
        values: np.ndarray[Any, Any] = array.to_numpy(zero_copy_only=False)
        return values
    raise Unsupported(f"column {name!r} of type {array.type} has no NumPy form")
