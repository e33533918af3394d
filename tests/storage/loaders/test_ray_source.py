"""Ray Data reads a dataset's row groups in tasks of its own: every row once, tensors as tensors, and no column more."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from holdfast.errors import InvalidInput, NotFound
from holdfast.storage import IPFSDataLoader, open_store, read_dataset
from holdfast.storage.content import ContentStore
from holdfast.storage.datasets.dataset import store_dataset
from holdfast.storage.datasets.schema import MEDIA_KEY
from holdfast.storage.loaders.ray_source import RowGroupSource
from holdfast.storage.local.local_store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from holdfast.storage.datasets.dataset import Dataset

ROWS = 1000

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture
def dataset(own_home: Any) -> Iterator[Dataset]:
    tensors = np.random.default_rng(1).normal(size=(ROWS, 2, 3)).astype(np.float32)
    table = pa.table(
        {
            "x": pa.FixedShapeTensorArray.from_numpy_ndarray(tensors),
            "i": np.arange(ROWS),
            "t": [f"text {n}" for n in range(ROWS)],
        }
    )
    with open_store(own_home) as store:
        yield store_dataset(store, {"train": table, "test": table.slice(0, 10)}, chunk_size=4096)


def test_tasks_cover_every_row_once_however_many_are_asked_for(dataset):
    source = RowGroupSource(dataset, split="train")
    groups = sum(len(shard.groups) for shard in dataset.shards("train"))
    assert groups > 5
    for parallelism in (1, 3, groups, 10 * groups):
        tasks = source.get_read_tasks(parallelism)
        assert len(tasks) <= min(parallelism, groups)
        assert sum(task.metadata.num_rows or 0 for task in tasks) == ROWS
        tables = [table for task in tasks for table in task()]
        assert np.concatenate([table["i"].to_numpy() for table in tables]).tolist() == list(range(ROWS))
        assert len(tables) == groups
    assert len(source.get_read_tasks(3)) == 3


def test_sizes_are_estimated_by_the_columns_that_are_read(dataset):
    everything = RowGroupSource(dataset, split="train").estimate_inmemory_data_size()
    some = RowGroupSource(dataset, ["i"], split="train").estimate_inmemory_data_size()
    assert 0.5 * dataset.size_bytes < everything <= dataset.size_bytes
    assert ROWS * 4 < some < everything / 3


def test_what_can_not_be_read_is_said_before_any_task_is_sent(dataset, tmp_path):
    with pytest.raises(NotFound, match="'nope'"):
        RowGroupSource(dataset, split="nope")
    with pytest.raises(InvalidInput, match="'nope'"):
        RowGroupSource(dataset, ["nope"])
    with ContentStore(LocalStore(tmp_path / "elsewhere")) as store:
        alone = store_dataset(store, pa.table({"i": [1]}))
        with pytest.raises(InvalidInput, match="home="):
            RowGroupSource(alone)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[Any]:
    """A Ray of two CPUs in this process's tree, without a dashboard and without a network beyond loopback."""
    import ray

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            object_store_memory=1 << 28,
        )
        yield ray
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("local_ray")
class TestOnRay:
    def test_every_row_comes_once_with_its_own_values(self, dataset):
        rows = read_dataset(dataset)
        assert rows.count() == ROWS
        batches = list(rows.iter_batches(batch_size=64, batch_format="numpy"))
        order = np.concatenate([batch["i"] for batch in batches])
        assert sorted(order.tolist()) == list(range(ROWS))
        expected = dataset.to_arrow("train")["x"].combine_chunks().to_numpy_ndarray()
        assert np.array_equal(np.concatenate([batch["x"] for batch in batches]), expected[order])
        assert [t for batch in batches for t in batch["t"]] == [f"text {n}" for n in order]

    def test_tensors_reach_torch_and_only_the_columns_that_are_wanted(self, dataset):
        rows = read_dataset(dataset, ["x", "i"], split="test")
        assert rows.columns() == ["x", "i"]
        (batch,) = rows.iter_torch_batches(batch_size=10)
        assert batch["x"].shape == (10, 2, 3)
        assert sorted(batch["i"].tolist()) == list(range(10))

    def test_the_order_is_kept_when_ray_is_told_to(self, dataset, local_ray):
        context = local_ray.data.DataContext.get_current()
        before = context.execution_options.preserve_order
        context.execution_options.preserve_order = True
        try:
            rows = read_dataset(dataset, ["i"]).take_all()
        finally:
            context.execution_options.preserve_order = before
        assert [row["i"] for row in rows] == list(range(ROWS))

    def test_a_loader_brings_its_steps_along(self, own_home):
        def encoded(n: int) -> bytes:
            file = io.BytesIO()
            Image.new("RGB", (4, 3), (n, 0, 0)).save(file, "PNG")
            return file.getvalue()

        schema = pa.schema(
            [pa.field("image", pa.binary(), metadata={MEDIA_KEY: b"image"}), ("n", pa.int64())]
        )
        table = pa.table([[encoded(n) for n in range(40)], range(40)], schema=schema)
        with open_store(own_home) as store:
            cid = store_dataset(store, table).cid
        with IPFSDataLoader(home=own_home, batch_size=16, image_size=(2, 2)).load_dataset(cid) as loader:
            batches = list(loader.to_ray().iter_batches(batch_size=16, batch_format="numpy"))
        assert {batch["image"].shape[1:] for batch in batches} == {(3, 2, 2)}
        for batch in batches:
            assert batch["image"][:, 0, 0, 0].tolist() == batch["n"].tolist()
        assert sorted(n for batch in batches for n in batch["n"].tolist()) == list(range(40))

    def test_a_dataset_that_is_gone_is_an_error_and_not_an_empty_answer(self, dataset, tmp_path):
        rows = read_dataset(dataset, home=tmp_path / "another-home")
        with pytest.raises(Exception, match=str(dataset.cid)):
            rows.take_all()

    def test_workers_of_ray_train_know_their_place(self, own_home, dataset, tmp_path):
        from ray.train import RunConfig, ScalingConfig
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        def loop(config: dict[str, str]) -> None:
            import json
            from pathlib import Path

            import ray.train

            from holdfast.storage import IPFSDataLoader

            with IPFSDataLoader(home=config["home"], batch_size=10, seed=3).load_dataset(
                config["cid"]
            ) as loader:
                rows = [row for batch in loader for row in batch["i"].tolist()]
                loader.set_epoch(0)
                in_process = loader.to_pytorch(num_workers=1, multiprocessing_context="fork")
                assert [row for batch in in_process for row in batch["i"].tolist()] == rows
            rank = ray.train.get_context().get_world_rank()
            Path(config["out"], str(rank)).write_text(json.dumps(rows))

        config = {"home": str(own_home), "cid": str(dataset.cid), "out": str(tmp_path)}
        DataParallelTrainer(
            loop,
            train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
            run_config=RunConfig(storage_path=str(tmp_path / "ray")),
        ).fit()
        with IPFSDataLoader(home=own_home, batch_size=ROWS, seed=3).load_dataset(dataset.cid) as loader:
            (batch,) = loader
        order = batch["i"].tolist()
        shares = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(2)]
        assert shares == [order[0::2], order[1::2]]
