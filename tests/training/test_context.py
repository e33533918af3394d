"""What a training function sees: its own rows, once each, and reports that can be believed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from holdfast.errors import InvalidInput, NotFound
from holdfast.registry import load_weights
from holdfast.storage.cid import Cid
from holdfast.storage.datasets.dataset import store_dataset
from holdfast.training import TrainContext


def context_of(dataset, **changes):
    return TrainContext(**{"dataset": dataset, "config": {}, "seed": 3, **changes})


def rows(batches):
    return np.concatenate([batch["x"].numpy() for batch in batches])


def test_every_row_comes_once_and_in_order_without_an_epoch(dataset):
    whole = np.concatenate([batch["x"] for batch in context_of(dataset).batches("train", batch_size=64)])
    seen = rows(context_of(dataset).batches("train", batch_size=10))
    assert seen.shape == (64, 3)
    assert np.array_equal(seen, whole)


def test_an_epoch_shuffles_anew_and_always_the_same_way(dataset):
    first, again, second = (
        rows(context_of(dataset).batches("train", batch_size=8, epoch=epoch)) for epoch in (0, 0, 1)
    )
    plain = rows(context_of(dataset).batches("train", batch_size=8))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, plain), "epoch 0 is shuffled, too"
    assert np.array_equal(np.sort(first, axis=0), np.sort(plain, axis=0))
    assert not np.array_equal(
        first, rows(context_of(dataset, seed=4).batches("train", batch_size=8, epoch=0))
    )


def test_workers_get_different_rows_and_the_same_number_of_steps(dataset):
    shares = [
        list(context_of(dataset, rank=rank, world_size=2).batches("train", batch_size=8, epoch=0))
        for rank in (0, 1)
    ]
    assert [len(share) for share in shares] == [4, 4]
    together = np.concatenate([rows(share) for share in shares])
    assert len(np.unique(together, axis=0)) == 64


def test_a_batch_can_be_changed_without_changing_the_stored_rows(dataset):
    for batch in context_of(dataset).batches("train", batch_size=64):
        batch["x"].zero_()
    assert rows(context_of(dataset).batches("train", batch_size=64)).any()


def test_a_batch_has_the_columns_and_types_of_the_data(dataset):
    batch = next(iter(context_of(dataset).batches("test", batch_size=5)))
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        "x": ((5, 3), torch.float32),
        "y": ((5, 1), torch.float32),
    }


def test_text_stays_text_and_is_tokenized_when_asked(store):
    texts = store_dataset(store, {"train": {"id": np.array(["a", "bb"]), "x": np.arange(2.0)}})
    (batch,) = context_of(texts).batches("train", batch_size=2)
    assert batch["id"] == ["a", "bb"]

    def lengths(words: list[str]) -> dict[str, list[int]]:
        return {"length": [len(word) for word in words]}

    (batch,) = context_of(texts).batches("train", batch_size=2, tokenize={"id": lengths})
    assert batch["length"].tolist() == [1, 2]
    assert "id" not in batch


def test_the_rows_of_a_step_do_not_depend_on_the_number_of_workers(dataset):
    def steps(world_size: int) -> list[list[list[float]]]:
        shares = [
            list(
                context_of(dataset, rank=rank, world_size=world_size).batches(
                    "train", batch_size=16 // world_size, epoch=1
                )
            )
            for rank in range(world_size)
        ]
        together = [torch.cat([batch["x"] for batch in step]) for step in zip(*shares, strict=True)]
        return [sorted(step.tolist()) for step in together]

    assert steps(1) == steps(2) == steps(4) == steps(8)


def test_rows_that_do_not_fill_a_batch_on_every_worker_are_left_out_of_an_epoch(dataset):
    shares = [
        list(context_of(dataset, rank=rank, world_size=3).batches("train", batch_size=10, epoch=0))
        for rank in range(3)
    ]
    assert [[len(batch["x"]) for batch in share] for share in shares] == [[10, 10]] * 3
    with pytest.raises(InvalidInput, match="64 rows: too few to give each of 3 workers a batch of 22"):
        context_of(dataset, world_size=3).batches("train", batch_size=22, epoch=0)


def test_a_transform_and_columns_are_those_of_the_loader(dataset):
    (batch,) = context_of(dataset).batches(
        "test", batch_size=16, columns=["x"], transform=lambda batch: {"double": 2 * batch["x"]}
    )
    (plain,) = context_of(dataset).batches("test", batch_size=16)
    assert list(batch) == ["double"]
    assert torch.equal(batch["double"], 2 * plain["x"])


def test_a_split_that_is_not_there_is_named(dataset):
    with pytest.raises(NotFound, match="'validation'"):
        next(iter(context_of(dataset).batches("validation", batch_size=1)))


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), "0.5", None, True, torch.tensor(1.0)]
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_metric_that_is_no_finite_number_stops_the_run(dataset, value, rank):
    context = context_of(dataset, rank=rank, world_size=2)
    with pytest.raises(InvalidInput, match="metric 'loss'"):
        context.report(loss=value, epoch=1)
    assert context.history == []


def test_a_checkpoint_is_stored_and_is_the_model(store, dataset):
    events: list[dict[str, object]] = []
    context = context_of(dataset, report=events.append)
    model = torch.nn.Linear(2, 2)
    context.report(model=model, loss=0.5)
    context.report(loss=0.25, epoch=1)
    assert context.history == [{"loss": 0.5}, {"loss": 0.25, "epoch": 1}]
    assert events[1] == {"type": "report", "metrics": {"loss": 0.25, "epoch": 1}}
    again = torch.nn.Linear(2, 2)
    load_weights(again, store, Cid.parse(str(events[0]["checkpoint"])))
    assert torch.equal(again.weight, model.weight)


def test_only_one_worker_reports(dataset):
    events: list[dict[str, object]] = []
    context = context_of(dataset, rank=1, world_size=2, report=events.append)
    context.report(model=torch.nn.Linear(1, 1), loss=0.5)
    assert events == []
    assert context.history == []


def test_what_was_reported_does_not_change_afterwards(dataset):
    metrics = {"loss": 0.5}
    context = context_of(dataset)
    context.report(**metrics)
    metrics["loss"] = 0.0
    assert context.history == [{"loss": 0.5}]


def test_one_worker_needs_nobody_to_add_up_with(dataset):
    context = context_of(dataset)
    model = torch.nn.Linear(1, 1)
    assert context.sum(2.5) == 2.5
    assert context.mean(2.5) == 2.5
    assert context.prepare(model) is model
