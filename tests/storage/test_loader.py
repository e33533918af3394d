import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import InvalidInput, NotFound, Unsupported
from holdfast.storage.content import ContentStore
from holdfast.storage.dataset import open_dataset, store_dataset
from holdfast.storage.exchange.fetcher import Fetcher, FetchingStore, Provider
from holdfast.storage.loader import column_to_numpy, iter_batches, rows_of_rank
from holdfast.storage.local.local_store import LocalStore

shapes = st.tuples(st.integers(1, 60), st.integers(1, 12))  # rows, and rows a shard
worlds = st.integers(1, 5)
batch_sizes = st.integers(1, 15)
seeds = st.none() | st.integers(0, 5)


@pytest.fixture(scope="module")
def dataset_of():
    """Datasets of `rows` numbered rows in shards of `rows_per_shard`."""
    with tempfile.TemporaryDirectory() as folder, closing(LocalStore(Path(folder))) as blocks:
        store = ContentStore(blocks)

        def make(rows, rows_per_shard):
            numbers = np.arange(rows)
            data = {"id": numbers, "pair": np.stack([numbers, -numbers], axis=1)}
            return store_dataset(store, data, rows_per_shard=rows_per_shard)

        yield make


def ids(batches):
    return [int(each) for batch in batches for each in batch["id"]]


@settings(max_examples=40, deadline=None)
@given(shapes, worlds, batch_sizes, st.tuples(seeds, st.integers(0, 3)))
def test_every_row_is_seen_exactly_once(dataset_of, shape, world, batch_size, shuffle):
    seed, epoch = shuffle
    dataset = dataset_of(*shape)
    seen: list[int] = []
    for rank in range(world):
        batches = list(
            iter_batches(
                dataset, "train", batch_size=batch_size, seed=seed, epoch=epoch, rank=rank, world_size=world
            )
        )
        sizes = [len(batch["id"]) for batch in batches]
        assert all(size == batch_size for size in sizes[:-1])
        assert not sizes or 1 <= sizes[-1] <= batch_size
        assert sum(sizes) == rows_of_rank(dataset, "train", rank, world)
        for batch in batches:
            np.testing.assert_array_equal(batch["pair"], np.stack([batch["id"], -batch["id"]], axis=1))
        seen += ids(batches)
    assert sorted(seen) == list(range(shape[0]))
    if seed is None and world == 1:
        assert seen == list(range(shape[0]))


@settings(max_examples=40, deadline=None)
@given(shapes, worlds, batch_sizes, seeds)
def test_no_worker_waits_for_a_batch_that_another_does_not_have(dataset_of, shape, world, batch_size, seed):
    dataset = dataset_of(*shape)
    options = {"batch_size": batch_size, "seed": seed, "world_size": world, "equal_steps": True}
    fewest = min(rows_of_rank(dataset, "train", rank, world) for rank in range(world))
    if fewest < batch_size:
        with pytest.raises(InvalidInput, match="too few"):
            list(iter_batches(dataset, "train", **options))
        return
    workers = [list(iter_batches(dataset, "train", rank=rank, **options)) for rank in range(world)]
    assert [len(batches) for batches in workers] == [fewest // batch_size] * world
    assert {len(batch["id"]) for batches in workers for batch in batches} == {batch_size}
    seen = [each for batches in workers for each in ids(batches)]
    assert len(seen) == len(set(seen))


def order(dataset, **options):
    return ids(iter_batches(dataset, "train", batch_size=7, **options))


def test_an_order_can_be_repeated_and_epochs_do_not_repeat_it(dataset_of):
    dataset = dataset_of(200, 20)
    first = order(dataset, seed=1, epoch=0)
    assert order(dataset, seed=1, epoch=0) == first
    others = [
        order(dataset, seed=1, epoch=1),
        order(dataset, seed=1, epoch=2),
        order(dataset, seed=2),
        order(dataset),
    ]
    for other in others:
        assert other != first
        assert sorted(other) == sorted(first)
    assert order(dataset, epoch=5) == list(range(200))
    workers = [order(dataset, seed=1, rank=rank, world_size=2) for rank in range(2)]
    assert [order(dataset, seed=1, rank=rank, world_size=2) for rank in range(2)] == workers


def test_the_order_does_not_change_between_releases(dataset_of):
    assert order(dataset_of(12, 4), seed=3, epoch=1) == [1, 2, 0, 3, 4, 5, 6, 7, 8, 11, 9, 10]


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"batch_size": -1},
        {"world_size": 0},
        {"rank": 1},
        {"rank": -1},
        {"rank": 2, "world_size": 2},
        {"seed": -1},
        {"seed": 1, "epoch": -1},
        {"batch_size": 100, "equal_steps": True},
        {"world_size": 20, "equal_steps": True},
    ],
)
def test_impossible_options_are_refused(dataset_of, options):
    with pytest.raises(InvalidInput):
        list(iter_batches(dataset_of(10, 2), "train", **{"batch_size": 1, **options}))


def test_a_missing_split_is_named(dataset_of):
    with pytest.raises(NotFound, match="no split 'test'"):
        list(iter_batches(dataset_of(10, 2), "test", batch_size=1))


def test_a_worker_does_not_fetch_the_shards_of_others(tmp_path, blocks, start_node):
    with closing(LocalStore(tmp_path / "other")) as other:
        made = store_dataset(ContentStore(other), {"id": np.arange(70)}, rows_per_shard=10)
        node = start_node(other)
        with closing(FetchingStore(blocks, Fetcher(lambda: [Provider(node.url)]))) as fetching:
            dataset = open_dataset(ContentStore(fetching), made.cid)
            batches = iter_batches(dataset, "train", batch_size=10, rank=1, world_size=3)
            next(batches)
            assert node.asked == [
                str(made.cid),
                str(made.shards("train")[1].cid),
            ]  # and not before they are needed
            assert ids(batches) == [*range(40, 50)]
            assert node.asked == [str(made.cid), *(str(made.shards("train")[i].cid) for i in (1, 4))]


def test_a_value_that_is_missing_is_not_read_as_a_number(store):
    dataset = store_dataset(store, pa.table({"a": pa.array([1.0, None])}))
    with pytest.raises(InvalidInput, match="1 missing"):
        list(iter_batches(dataset, "train", batch_size=1))


def test_types_without_an_array_form_are_named():
    with pytest.raises(Unsupported, match="'a' of type list"):
        column_to_numpy("a", pa.chunked_array([[[1], [2, 3]]]))


def test_tensors_and_texts_keep_their_shape_over_shards(store):
    images = np.arange(5 * 2 * 3, dtype=np.float32).reshape(5, 2, 3)
    words = np.array([f"w{i}" for i in range(5)], dtype=object)
    flags = np.array([True, False, True, True, False])
    dataset = store_dataset(store, {"image": images, "word": words, "flag": flags}, rows_per_shard=2)
    batches = list(iter_batches(dataset, "train", batch_size=3))
    for name, values in (("image", images), ("word", words), ("flag", flags)):
        joined = np.concatenate([batch[name] for batch in batches])
        assert joined.dtype == values.dtype
        np.testing.assert_array_equal(joined, values)


def test_a_split_without_rows_gives_no_batch(store):
    empty = pa.table({"id": pa.array([], pa.int64())})
    dataset = store_dataset(store, {"train": empty, "test": pa.table({"id": pa.array([1])})})
    assert list(iter_batches(dataset, "train", batch_size=1)) == []
    assert list(iter_batches(dataset, "train", batch_size=1, seed=1)) == []
