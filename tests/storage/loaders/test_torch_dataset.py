"""torch's DataLoader, with whatever workers, gives the one order; and goes on exactly where it stopped."""

from __future__ import annotations

import gc
import itertools
import json
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from holdfast.errors import InvalidInput, NotFound
from holdfast.storage.content import ContentStore
from holdfast.storage.datasets.dataset import store_dataset
from holdfast.storage.loaders.torch_dataset import TorchDataset, torch_loader
from holdfast.storage.local.local_store import LocalStore

if TYPE_CHECKING:
    from holdfast.storage.datasets.dataset import Dataset

ROWS = 403

# torchdata 0.11 calls a function of torch that 2.13 deprecates.
torchdata_is_older_than_torch = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


@pytest.fixture
def dataset(store: ContentStore) -> Dataset:
    """Small row groups, so that there are several of everything."""
    return store_dataset(store, table_of(ROWS), chunk_size=2048)


def table_of(rows: int) -> pa.Table:
    values = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    return pa.table({"i": np.arange(rows), "x": tensors, "t": [f"text {n}" for n in range(rows)]})


def ids(batches: Any) -> list[list[int]]:
    return [batch["i"].tolist() for batch in batches]


def flat(batches: Any) -> list[int]:
    return list(itertools.chain.from_iterable(ids(batches)))


def test_every_row_comes_once_as_tensors_of_its_own_type(dataset):
    batches = list(TorchDataset(dataset, batch_size=50, shuffle=True, seed=7))
    assert [len(batch["t"]) for batch in batches] == [50] * 8 + [3]
    assert sorted(flat(batches)) == list(range(ROWS))
    expected = dataset.to_pandas()
    for batch in batches:
        assert (batch["x"].dtype, batch["x"].shape[1:]) == (torch.float32, (3,))
        assert isinstance(batch["t"], list)
        rows = batch["i"].tolist()
        assert batch["t"] == expected["t"][rows].tolist()
        assert np.array_equal(batch["x"].numpy(), np.stack(expected["x"][rows]).reshape(-1, 3))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_worker_processes_do_not_change_the_order(dataset, workers, shuffle):
    torch_dataset = TorchDataset(dataset, batch_size=32, shuffle=shuffle, seed=3, epoch=2)
    alone = ids(torch_dataset)
    loader = DataLoader(torch_dataset, batch_size=None, num_workers=workers, multiprocessing_context="fork")
    assert len(loader) == len(alone) == 13
    assert ids(loader) == alone


SPAWN = """
import json, sys
from holdfast.storage.cid import Cid
from holdfast.storage.datasets.dataset import open_dataset
from holdfast.storage.loaders.torch_dataset import TorchDataset
from holdfast.storage.opening import open_store
from torch.utils.data import DataLoader

if __name__ == "__main__":
    home, cid = sys.argv[1:]
    orders = []
    with open_store(home) as store:
        made = TorchDataset(open_dataset(store, Cid.parse(cid)), batch_size=32, shuffle=True, epoch=2)
        for workers in (0, 1, 2):
            loader = DataLoader(made, batch_size=None, num_workers=workers, multiprocessing_context="spawn" if workers else None)
            orders.append([batch["i"].tolist() for batch in loader])
    print(json.dumps(orders))
"""


@pytest.mark.slow
def test_spawned_workers_open_the_home_by_themselves(dataset, tmp_path):
    script = tmp_path / "spawn.py"
    script.write_text(SPAWN)
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(script), str(tmp_path), str(dataset.cid)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    wanted = ids(TorchDataset(dataset, batch_size=32, shuffle=True, epoch=2))
    assert json.loads(done.stdout) == [wanted] * 3


def test_single_rows_come_in_the_same_order_and_shape(dataset):
    options: dict[str, Any] = {"shuffle": True, "seed": 5, "columns": ["i", "x", "t"]}
    rows = list(TorchDataset(dataset, batch_size=None, **options))
    assert [int(row["i"]) for row in rows] == flat(TorchDataset(dataset, batch_size=32, **options))
    assert rows[0]["x"].shape == (3,)
    assert isinstance(rows[0]["t"], str)
    split = DataLoader(TorchDataset(dataset, batch_size=None, **options), batch_size=None, num_workers=2)
    assert [int(row["i"]) for row in split] == [int(row["i"]) for row in rows]
    collated = DataLoader(TorchDataset(dataset, batch_size=None, **options), batch_size=20)
    assert flat(collated) == [int(row["i"]) for row in rows]


@pytest.mark.parametrize("remainder", ["keep", "drop", "pad"])
@pytest.mark.parametrize("batch_size", [None, 1, 7, 500])
@pytest.mark.parametrize("world_size", [1, 3])
def test_ranks_share_the_rows_as_distributed_sampler_does(dataset, remainder, batch_size, world_size):
    def share(rank: int, size: int) -> list[int]:
        made = TorchDataset(
            dataset,
            batch_size=batch_size,
            shuffle=True,
            rank=rank,
            world_size=size,
            remainder=remainder,
            epoch=1,
        )
        given = list(made)
        assert len(made) == len(given)
        return [int(row["i"]) for row in given] if batch_size is None else flat(given)

    order = flat(TorchDataset(dataset, batch_size=ROWS, shuffle=True, epoch=1))
    whole = world_size * (batch_size or 1)
    total = {"keep": ROWS, "drop": ROWS // whole * whole, "pad": -(-ROWS // whole) * whole}[remainder]
    wanted = [order[i % ROWS] for i in range(total)]
    for rank in range(world_size):
        assert share(rank, world_size) == wanted[rank::world_size]


def test_an_epoch_is_an_order_of_its_own_in_worker_processes_that_live_on(dataset):
    torch_dataset = TorchDataset(dataset, batch_size=64, shuffle=True)
    epochs = []
    for epoch in range(3):
        torch_dataset.set_epoch(epoch)
        epochs.append(flat(torch_dataset))
    assert len({tuple(order) for order in epochs}) == 3
    loader = DataLoader(
        torch_dataset,
        batch_size=None,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    for epoch in (2, 0, 1):
        torch_dataset.set_epoch(epoch)
        assert flat(loader) == epochs[epoch]
    del loader


def test_a_loader_made_for_training_shuffles_anew_every_time(dataset):
    torch_dataset = TorchDataset(dataset, batch_size=64, shuffle=True)
    loader = torch_loader(torch_dataset)
    first, second = flat(loader), flat(loader)
    assert first != second
    torch_dataset.set_epoch(0)
    assert flat(loader) == first
    assert flat(loader) == second


@torchdata_is_older_than_torch
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("stop", [1, 4, 12])
def test_stateful_data_loader_goes_on_in_the_middle_of_an_epoch(dataset, workers, stop):
    def loader(epoch: int) -> StatefulDataLoader[Any]:
        torch_dataset = TorchDataset(dataset, batch_size=32, shuffle=True, seed=9, epoch=epoch)
        return StatefulDataLoader(torch_dataset, batch_size=None, num_workers=workers)

    whole = ids(TorchDataset(dataset, batch_size=32, shuffle=True, seed=9, epoch=4))
    first = loader(4)
    seen = ids(itertools.islice(first, stop))
    state = first.state_dict()
    del first
    again = loader(0)  # the state says which epoch it is
    again.load_state_dict(state)
    assert seen == whole[:stop]
    assert ids(again) == whole[stop:]
    assert ids(again) == whole, "the next pass is a whole one"


@torchdata_is_older_than_torch
def test_stateful_data_loader_goes_on_row_by_row(dataset):
    def loader() -> StatefulDataLoader[Any]:
        torch_dataset = TorchDataset(dataset, batch_size=None, shuffle=True, columns=["i"])
        return StatefulDataLoader(torch_dataset, batch_size=10, num_workers=0)

    whole = flat(loader())
    first = loader()
    seen = flat(itertools.islice(first, 9))
    again = loader()
    again.load_state_dict(first.state_dict())
    assert seen + flat(again) == whole


def test_a_state_of_some_workers_is_one_for_any_number_of_them(dataset):
    def share(rank: int, world_size: int, state: dict[str, Any] | None, stop: int | None) -> Any:
        made = TorchDataset(
            dataset, batch_size=10, shuffle=True, seed=1, rank=rank, world_size=world_size, epoch=3
        )
        if state is not None:
            made.load_state_dict(state)
        seen = list(itertools.islice(made, stop))
        return [batch["i"].tolist() for batch in seen], made.state_dict()

    order = flat(TorchDataset(dataset, batch_size=ROWS, shuffle=True, seed=1, epoch=3))
    before = [share(rank, 3, None, 4) for rank in range(3)]
    (state,) = {json.dumps(state) for _, state in before}
    assert json.loads(state)["position"] == 120
    for world_size in (1, 2, 5):
        after = [share(rank, world_size, json.loads(state), None)[0] for rank in range(world_size)]
        rows = [list(itertools.chain.from_iterable(batches)) for batches in after]
        together: list[int | None] = [None] * (ROWS - 120)
        for position in range(120, ROWS):
            own = rows[position % world_size]
            together[position - 120] = own.pop(0)
        assert together == order[120:]
        assert not any(rows)


@given(data=st.data())
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
def test_wherever_it_is_interrupted_no_row_is_lost_or_doubled(dataset, data):
    seed, epoch = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 3))
    shuffle = data.draw(st.booleans())
    whole = flat(TorchDataset(dataset, batch_size=ROWS, shuffle=shuffle, seed=seed, epoch=epoch))
    seen: list[int] = []
    state: dict[str, Any] | None = None
    for _ in range(ROWS):
        batch_size = data.draw(st.integers(8, 200))
        made = TorchDataset(dataset, batch_size=batch_size, shuffle=shuffle, seed=seed, epoch=epoch)
        if state is not None:
            made.load_state_dict(state)
        taken = flat(itertools.islice(made, data.draw(st.integers(1, 3))))
        if not taken:
            break
        seen += taken
        state = made.state_dict()
    assert seen == whole


def test_tensors_can_be_changed_without_changing_what_is_stored(dataset):
    for batch in TorchDataset(dataset, batch_size=ROWS):
        batch["x"].zero_()
        batch["i"].add_(1)
    (batch,) = TorchDataset(dataset, batch_size=ROWS)
    assert batch["x"].any()
    assert batch["i"].tolist() == list(range(ROWS))


def test_it_is_pickled_as_a_place_and_not_as_what_is_there(dataset):
    torch_dataset = TorchDataset(dataset, batch_size=32, shuffle=True, rank=1, world_size=2)
    sent = pickle.dumps(torch_dataset)
    assert len(sent) < 100_000
    assert ids(pickle.loads(sent)) == ids(torch_dataset)


def test_a_store_that_no_other_process_can_open_says_so(tmp_path):
    with ContentStore(LocalStore(tmp_path / "elsewhere")) as alone:
        made = store_dataset(alone, table_of(10))
        assert flat(TorchDataset(made)) == list(range(10))
        with pytest.raises(InvalidInput, match="home="):
            pickle.dumps(TorchDataset(made))
        assert pickle.dumps(TorchDataset(made, home=tmp_path))


def test_what_worker_processes_did_is_counted_here(dataset):
    torch_dataset = TorchDataset(dataset, batch_size=32)
    list(torch_dataset)
    loader = DataLoader(torch_dataset, batch_size=None, num_workers=2)
    for _ in range(2):
        list(loader)
    seen = torch_dataset.counters()
    assert seen["rows"] == 3 * ROWS
    assert seen["batches"] == 3 * 13
    assert seen["bytes_from_disk"] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"rank": 2},
        {"rank": 2, "world_size": 2},
        {"remainder": "some"},
        {"bad_images": "ignore"},
        {"image_size": (1, 0)},
        {"transform": 3},
        {"tokenize": {"t": "bert"}},
        {"tokenize": {"nope": len}},
    ],
)
def test_an_option_that_can_not_be_is_refused_with_its_name(dataset, options):
    with pytest.raises(InvalidInput) as failed:
        list(TorchDataset(dataset, **options))
    assert any(str(word) in str(failed.value) for word in [*options, *options.values(), "nope"])


def test_what_the_dataset_does_not_have_is_named(dataset):
    with pytest.raises(NotFound, match="validation"):
        list(TorchDataset(dataset, "validation"))
    with pytest.raises(InvalidInput, match="'nope'; it has i, x, t"):
        list(TorchDataset(dataset, columns=["nope"]))


def test_a_state_of_other_rows_is_refused(dataset, store):
    other = store_dataset(store, table_of(5))
    state = TorchDataset(other).state_dict()
    with pytest.raises(InvalidInput, match=str(other.cid)):
        TorchDataset(dataset).load_state_dict(state)
    with pytest.raises(InvalidInput):
        TorchDataset(dataset).load_state_dict({})


def test_pinned_memory_without_a_gpu_is_refused(dataset):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(InvalidInput, match="CUDA"):
        torch_loader(TorchDataset(dataset), pin_memory=True)


@pytest.mark.slow  # torch gives each of its processes five seconds to end after an error
def test_an_error_in_a_worker_process_reaches_the_loop(dataset):
    def fail(batch: dict[str, Any]) -> dict[str, Any]:
        if 100 in batch["i"]:
            raise ValueError("the hundredth")
        return batch

    loader = DataLoader(TorchDataset(dataset, batch_size=32, transform=fail), batch_size=None, num_workers=2)
    with pytest.raises(ValueError, match="the hundredth"):
        list(loader)
    gc.collect()  # the error holds the loop, and the loop its processes


GLOO = """
import json, sys
import torch.distributed
from datetime import timedelta
from holdfast.storage.cid import Cid
from holdfast.storage.opening import open_store
from holdfast.storage.datasets.dataset import open_dataset
from holdfast.storage.loaders.torch_dataset import TorchDataset

home, cid, rank, meeting = sys.argv[1:]
with open_store(home) as store:
    made = TorchDataset(open_dataset(store, Cid.parse(cid)), batch_size=10, shuffle=True, seed=2)
    torch.distributed.init_process_group(
        "gloo", init_method="file://" + meeting, rank=int(rank), world_size=2, timeout=timedelta(seconds=40)
    )
    rows = [batch["i"].tolist() for batch in made]  # the place is asked for when a pass begins
    torch.distributed.destroy_process_group()
print(json.dumps(rows))
"""


@pytest.mark.slow
def test_real_workers_know_their_place_from_torch_distributed(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    order = flat(TorchDataset(dataset, batch_size=ROWS, shuffle=True, seed=2))
    arguments = [str(tmp_path), str(dataset.cid)]
    meeting = str(tmp_path / "meeting")
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", GLOO, *arguments, str(rank), meeting],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [worker.communicate(timeout=60) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    for rank, (out, errors) in enumerate(said):
        assert workers[rank].returncode == 0, errors
        assert list(itertools.chain.from_iterable(json.loads(out.splitlines()[-1]))) == order[rank::2]
