"""The loader by CID: what it promises holds, and what it is told wrong it says."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from holdfast.errors import Conflict, InvalidInput, NotFound
from holdfast.storage import IPFSDataLoader, ipfs_data_loader_context, open_store
from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.cid import RAW, Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.datasets.dataset import store_dataset
from holdfast.storage.exchange.fetcher import Fetcher, FetchingStore, Provider
from holdfast.storage.local.local_store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from holdfast.storage.datasets.dataset import Dataset

ROWS = 303


@pytest.fixture
def dataset(store: ContentStore) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (ROWS, 3, 4, 4), dtype=np.uint8)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(images)
    table = pa.table({"image": tensors, "i": np.arange(ROWS), "t": [str(n) for n in range(ROWS)]})
    return store_dataset(store, {"train": table, "test": table.slice(0, 7)}, chunk_size=2048)


@pytest.fixture
def loader(store: ContentStore, dataset: Dataset) -> Iterator[IPFSDataLoader]:
    with IPFSDataLoader(store, batch_size=32, seed=4) as made:
        yield made.load_dataset(dataset.cid)


def flat(batches: Any) -> list[int]:
    return list(itertools.chain.from_iterable(np.asarray(batch["i"]).tolist() for batch in batches))


def test_batches_are_tensors_in_the_order_of_the_data(store, dataset):
    loader = IPFSDataLoader(store, batch_size=100, shuffle=False).load_dataset(str(dataset.cid))
    batches = list(loader)
    assert [len(batch["i"]) for batch in batches] == [100, 100, 100, 3]
    assert len(loader) == 4
    assert flat(batches) == list(range(ROWS))
    expected = dataset.to_arrow("train")["image"].combine_chunks().to_numpy_ndarray()
    assert np.array_equal(torch.cat([batch["image"] for batch in batches]).numpy(), expected)
    assert batches[3]["t"] == ["300", "301", "302"]


def test_every_iteration_is_an_epoch_of_its_own_and_can_be_had_again(loader, store, dataset):
    first, second = flat(loader), flat(loader)
    assert sorted(first) == sorted(second) == list(range(ROWS))
    assert first != second
    again = IPFSDataLoader(store, batch_size=7, seed=4).load_dataset(dataset)
    assert flat(again) == first
    loader.set_epoch(0)
    assert flat(loader) == first
    assert flat(loader) == second
    assert flat(IPFSDataLoader(store, seed=5).load_dataset(dataset)) != first


def test_it_goes_on_where_it_stopped_and_then_with_the_next_epoch(loader, store, dataset):
    whole, following = flat(loader), flat(loader)
    loader.set_epoch(0)
    seen = flat(itertools.islice(loader, 4))
    state = json.loads(json.dumps(loader.state_dict()))
    again = IPFSDataLoader(store, batch_size=10, seed=4).load_dataset(dataset.cid)
    again.load_state_dict(state)
    assert len(again) == -(-(ROWS - 128) // 10)
    assert seen + flat(again) == whole
    assert flat(again) == following


def test_a_state_of_the_end_of_an_epoch_leads_to_the_next(loader, store, dataset):
    flat(loader)
    state = loader.state_dict()
    following = flat(loader)
    again = IPFSDataLoader(store, seed=4).load_dataset(dataset.cid)
    again.load_state_dict(state)
    torch_loader = again.to_pytorch()
    assert len(again) == len(again.to_numpy()) == len(torch_loader) == 10
    assert flat(again) == flat(torch_loader) == following
    assert len(again) == len(torch_loader) == 10


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_gets_the_same_epochs(loader, workers):
    data_loader = loader.to_pytorch(num_workers=workers)
    assert isinstance(data_loader, torch.utils.data.DataLoader)
    assert len(data_loader) == 10
    wanted = [flat(loader), flat(loader)]
    assert [flat(data_loader), flat(data_loader)] == wanted
    assert flat(loader.to_pytorch_dataset()) not in wanted, "it begins where the loader is"


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_goes_on_where_the_loader_was_to(loader, workers):
    whole, following = flat(loader), flat(loader)
    loader.set_epoch(0)
    seen = flat(itertools.islice(loader, 4))
    loader.load_state_dict(loader.state_dict())
    data_loader = loader.to_pytorch(num_workers=workers)
    assert len(data_loader) == 6
    assert seen + flat(data_loader) == whole
    assert flat(data_loader) == following


def test_numpy_gets_arrays(loader):
    view = loader.to_numpy()
    assert len(view) == 10
    first, second = list(view), list(view)
    assert flat(first) != flat(second)
    assert {name: type(values) for name, values in first[0].items()} == dict.fromkeys(first[0], np.ndarray)
    assert first[0]["image"].shape == (32, 3, 4, 4)


def test_only_the_columns_that_are_asked_for_are_read(store, dataset):
    with IPFSDataLoader(store, columns=["i"], shuffle=False).load_dataset(dataset) as some:
        (batch, *_) = some
        assert list(batch) == ["i"]
        list(some)
        few = some.get_performance_metrics()["bytes_from_disk"]
    with IPFSDataLoader(store, shuffle=False).load_dataset(dataset) as everything:
        list(everything)
        list(everything)
        assert few < everything.get_performance_metrics()["bytes_from_disk"]


def test_a_transform_takes_the_place_of_the_batch(store, dataset):
    def scaled(batch: dict[str, Any]) -> dict[str, Any]:
        return {"i": batch["i"], "x": batch["image"].astype(np.float32) / 255}

    batches = list(IPFSDataLoader(store, transform=scaled, split="test").load_dataset(dataset))
    assert list(batches[0]) == ["i", "x"]
    assert batches[0]["x"].dtype == torch.float32
    with pytest.raises(InvalidInput, match="mapping"):
        list(IPFSDataLoader(store, transform=lambda _: [1]).load_dataset(dataset))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("step", ["transform", "tokenize"])
def test_an_iterator_that_ends_within_a_step_is_an_error_and_no_end_of_the_rows(store, dataset, step):
    def ended(_: Any) -> Any:
        return next(iter(()))

    options: dict[str, Any] = {step: ended if step == "transform" else {"t": ended}}
    with IPFSDataLoader(store, **options).load_dataset(dataset) as loader:
        for form in (loader, loader.to_numpy(), loader.to_pytorch()):
            with pytest.raises(RuntimeError, match="raised StopIteration in batch 0"):
                list(form)


@pytest.mark.parametrize(("options", "rows"), [({"drop_last": True}, 300), ({"remainder": "pad"}, 310)])
def test_rows_are_dropped_or_padded_only_as_asked_and_said(store, dataset, options, rows):
    with IPFSDataLoader(store, 10, **options).load_dataset(dataset) as loader:
        batches = list(loader)
        assert [len(batch["i"]) for batch in batches] == [10] * (rows // 10)
        seen = loader.get_performance_metrics()
        assert (seen["rows"], seen["padded_rows"]) == (rows, max(0, rows - ROWS))


def test_workers_share_the_rows(store, dataset):
    shares = [
        flat(IPFSDataLoader(store, 16, rank=rank, world_size=3).load_dataset(dataset)) for rank in range(3)
    ]
    whole = flat(IPFSDataLoader(store, 16).load_dataset(dataset))
    assert shares == [whole[rank::3] for rank in range(3)]


def test_metrics_are_what_happened(loader):
    fresh = loader.get_performance_metrics()
    assert not any(fresh.values())
    list(loader)
    list(loader.to_pytorch(num_workers=2))
    seen = loader.get_performance_metrics()
    assert (seen["rows"], seen["batches"]) == (2 * ROWS, 20)
    assert seen["bytes_from_disk"] > 2 * ROWS * 48
    assert (seen["bytes_from_peers"], seen["cache_hit_rate"]) == (0, 1.0)
    assert seen["rows_per_second"] == pytest.approx(seen["rows"] / seen["elapsed_seconds"])
    assert 0 < seen["wait_seconds"] <= 3 * seen["elapsed_seconds"]
    assert seen["decode_seconds"] > 0
    json.dumps(seen)
    loader.clear()
    assert not any(loader.get_performance_metrics().values())


def test_a_collector_of_metrics_is_told_after_a_pass(store, dataset):
    class Collector:
        def __init__(self) -> None:
            self.told: dict[str, float] = {}

        def record_metric(self, name: str, value: float) -> None:
            self.told[name] = value

    collector = Collector()
    loader = IPFSDataLoader(store, metrics=collector).load_dataset(dataset)
    next(iter(loader))
    assert collector.told == {}
    list(loader)
    assert collector.told["data_loader/rows"] == loader.get_performance_metrics()["rows"] > ROWS


def test_what_comes_from_peers_is_counted_as_such(tmp_path, store, blocks, start_node):
    rows = 3000
    table = pa.table({"i": np.arange(rows), "other": np.random.default_rng(0).normal(size=rows)})
    dataset = store_dataset(
        store, {"train": table, "large": pa.concat_tables([table] * 100)}, chunk_size=1 << 18
    )
    node = start_node(blocks)
    with LocalStore(tmp_path / "here") as here:
        fetching = FetchingStore(
            VerifyingStore(here, source="the disk"), Fetcher(lambda: [Provider(node.url)])
        )
        with ContentStore(fetching) as empty:
            loader = IPFSDataLoader(empty, 500, columns=["i"], split="large").load_dataset(dataset.cid)
            assert sorted(flat(loader)) == sorted(list(range(rows)) * 100)
            first = loader.get_performance_metrics()
            assert 0 < first["bytes_from_peers"] < dataset.size_bytes
            assert first["cache_hit_rate"] < 1
            flat(loader)
            assert loader.get_performance_metrics()["bytes_from_peers"] == first["bytes_from_peers"]


def test_the_home_is_opened_when_it_is_needed_and_closed(own_home):
    with ipfs_data_loader_context(batch_size=2, shuffle=False, timeout=3.0) as loader:
        assert not own_home.exists()
        with open_store(own_home) as store:
            cid = store_dataset(store, pa.table({"x": [1, 2, 3]})).cid
        assert [batch["x"].tolist() for batch in loader.load_dataset(cid)] == [[1, 2], [3]]
        assert [batch["x"].tolist() for batch in loader.to_pytorch(num_workers=1)] == [[1, 2], [3]]
    with pytest.raises(InvalidInput, match="load_dataset"):
        list(loader)


def test_nothing_can_be_done_before_a_dataset_is_loaded(store):
    loader = IPFSDataLoader(store)
    for use in (
        lambda: iter(loader),
        lambda: len(loader),
        loader.state_dict,
        loader.to_pytorch,
        loader.to_numpy,
        loader.to_ray,
        lambda: loader.dataset,
        lambda: loader.set_epoch(1),
    ):
        with pytest.raises(InvalidInput, match="load_dataset"):
            use()


def test_what_is_no_dataset_is_said_to_be_something_else(store):
    loader = IPFSDataLoader(store)
    with pytest.raises(InvalidInput, match="bafkrei"):
        loader.load_dataset(store.add_bytes(b"hello"))
    with pytest.raises(InvalidInput, match="model"):
        loader.load_dataset(store.put_record({"kind": "model"}))
    with pytest.raises(InvalidInput):
        loader.load_dataset("not a cid")
    with pytest.raises((NotFound, InvalidInput)):
        loader.load_dataset(Cid.of(b"nobody has this", RAW))


def test_a_wrong_column_or_split_is_found_when_the_dataset_is_loaded(store, dataset):
    with pytest.raises(InvalidInput, match="'nope'"):
        IPFSDataLoader(store, columns=["nope"]).load_dataset(dataset)
    for split in ("validation", ""):
        with pytest.raises(NotFound, match=f"no split '{split}'"):
            IPFSDataLoader(store, split=split).load_dataset(dataset)
    with pytest.raises(InvalidInput, match="'nope'"):
        IPFSDataLoader(store, tokenize={"nope": lambda texts: {"n": texts}}).load_dataset(dataset)


@pytest.mark.parametrize(
    "options",
    [
        {"drop_last": True, "remainder": "keep"},
        {"columns": "image"},
        {"rank": 1},
        {"batch_size": 0},
        {"memory_bytes": 10},
        {"image_size": 3},
        {"bad_images": "hide"},
        {"transform": "x"},
        {"seed": -1},
        {"threads": 0},
        {"remainder": "most"},
        {"timeout": 3.0},
        {"batch_size": 2.5},
        {"batch_size": "3"},
        {"seed": 1.5},
        {"seed": None},
        {"seed": True},
        {"prefetch": None},
        {"threads": "2"},
        {"rank": 0.0, "world_size": 1},
        {"tokenize": str.split},
    ],
)
def test_an_option_that_can_not_be_is_refused(store, dataset, options):
    with pytest.raises(InvalidInput):
        IPFSDataLoader(store, **options).load_dataset(dataset)


def test_numbers_of_numpy_are_numbers(store, dataset):
    options: dict[str, Any] = {
        "seed": np.int64(4),
        "batch_size": np.int32(32),
        "rank": np.int8(0),
        "world_size": np.int8(1),
    }
    plain = IPFSDataLoader(store, batch_size=32, seed=4).load_dataset(dataset)
    loader = IPFSDataLoader(store, **options).load_dataset(dataset)
    assert flat(loader) == flat(plain)
    assert json.loads(json.dumps(loader.state_dict())) == plain.state_dict()
    loader.set_epoch(np.int64(0))  # type: ignore[arg-type]
    plain.set_epoch(0)
    assert flat(loader) == flat(plain)


@pytest.mark.parametrize("epoch", [-1, "a", 1.5, None, True])
def test_an_epoch_that_is_none_is_refused_at_once(loader, epoch):
    for each in (loader, loader.to_pytorch_dataset()):
        with pytest.raises(InvalidInput, match="epoch must be a whole number from 0, not"):
            each.set_epoch(epoch)
    assert loader.state_dict()["epoch"] == loader.to_pytorch_dataset().epoch == 0


@pytest.mark.parametrize("option", [{"batch_size": 4}, {"shuffle": True}, {"drop_last": True}])
def test_torch_is_told_nothing_that_the_loader_decides(loader, option):
    (name,) = option
    with pytest.raises(InvalidInput, match=rf"{name} is the loader's own: IPFSDataLoader\({name}="):
        loader.to_pytorch(**option)
    assert len(loader.to_pytorch(batch_size=None, shuffle=False)) == 10


def test_a_pass_that_is_closed_does_not_look_as_if_it_were_done(loader, dataset):
    for end in (loader.clear, lambda: loader.load_dataset(dataset), loader.close):
        loader.load_dataset(dataset)
        batches = iter(loader)
        next(batches)
        end()
        with pytest.raises(Conflict, match="closed"):
            list(batches)


def test_a_pass_that_is_left_early_leaves_nothing_behind(loader):
    for _ in range(3):
        next(iter(loader))
    loader.close()
    loader.close()
