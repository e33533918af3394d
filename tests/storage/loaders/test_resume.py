"""A pass that was interrupted goes on exactly where it stopped, with any number of workers."""

import json
from itertools import islice
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import InvalidInput
from holdfast.storage.loaders.batch_loader import BatchLoader
from holdfast.storage.loaders.state import LoaderState
from tests.storage.loaders.tables import numbered

layouts = st.lists(st.lists(st.integers(0, 40), max_size=8), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(layouts, st.booleans(), st.integers(0, 3), st.data())
def test_an_epoch_in_pieces_is_the_same_epoch(shards, shuffle, seed, data):
    """Some interruptions, each going on with another number of workers and other batches."""
    dataset = numbered(shards)
    rows = sum(map(sum, shards))
    got = np.full(rows, -1)
    interruptions = data.draw(st.lists(st.integers(1, 6), max_size=4), "batches until each")
    state: Any = None
    for steps in [*interruptions, None]:
        world = data.draw(st.integers(1, 8), "workers")
        size = data.draw(st.integers(1, 30), "batch size")
        positions = []
        for rank in range(world):
            loader = BatchLoader(
                dataset,
                batch_size=size,
                shuffle=shuffle,
                seed=seed,
                epoch=2,
                rank=rank,
                world_size=world,
                with_positions=True,
            )
            if state is not None:
                loader.load_state_dict(json.loads(json.dumps(state)))
            with iter(loader) as stream:
                for batch in islice(stream, steps):
                    assert (got[batch.positions] == -1).all()
                    got[batch.positions] = batch["id"]
            positions.append(loader.state_dict())
        # At the same step, workers whose rows are over say that all are; those that go on say where.
        state = min(positions, key=lambda each: each["position"])
    assert state["position"] == rows
    np.testing.assert_array_equal(got, loader.order.rows_at(np.arange(rows)))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 300), st.integers(1, 6), st.integers(1, 20), st.sampled_from(["drop", "pad"]), st.data()
)
def test_equal_batches_go_on_equal(rows, world, size, remainder, data):
    dataset = numbered([[rows // 3, rows - rows // 3]])
    step = world * size
    chosen = {"batch_size": size, "shuffle": True, "world_size": world, "remainder": remainder}
    whole = [list(BatchLoader(dataset, rank=rank, **chosen)) for rank in range(world)]
    stop = data.draw(st.integers(0, len(whole[0])))
    for rank in range(world):
        first, second = (BatchLoader(dataset, rank=rank, **chosen) for _ in range(2))
        stream = iter(first)
        got = [next(stream) for _ in range(stop)]
        second.load_state_dict(first.state_dict())
        rest = list(second)
        assert [b["id"].tolist() for b in got + rest] == [b["id"].tolist() for b in whole[rank]]
        first.close()
        total = rows // step * step if remainder == "drop" else -(-rows // step) * step
        assert second.state_dict()["position"] == max(total, rows)


def test_the_state_counts_what_was_received_and_not_what_was_read_ahead():
    loader = BatchLoader(numbered([[100] * 10]), batch_size=10, world_size=2, prefetch=3)
    stream = iter(loader)
    assert loader.state_dict()["position"] == 0
    for step in range(1, 5):
        next(stream)
        assert loader.state_dict()["position"] == step * 20
    stream.close()
    assert loader.state_dict()["position"] == 80
    next(iter(loader))
    assert loader.state_dict()["position"] == 20  # a pass of its own


def test_a_loaded_state_decides_the_order_and_counts_for_one_pass():
    dataset = numbered([[50] * 4])
    first = BatchLoader(dataset, batch_size=20, shuffle=True, seed=4, epoch=3)
    stream = iter(first)
    next(stream)
    second = BatchLoader(dataset, batch_size=20)
    second.load_state_dict(first.state_dict())
    assert second.epoch == 3
    assert len(second) == 9
    second.set_epoch(3)  # as a loop over the epochs does that goes on in the middle of one
    assert [b["id"].tolist() for b in second] == [b["id"].tolist() for b in stream]
    assert len(second) == 10
    assert len(list(second)) == 10
    second.load_state_dict(first.state_dict())
    second.set_epoch(4)
    assert second.state_dict()["position"] == 0
    assert len(list(second)) == 10


def test_a_finished_epoch_is_not_begun_again():
    dataset = numbered([[7]])
    first = BatchLoader(dataset, batch_size=3)
    assert len(list(first)) == 3
    second = BatchLoader(dataset, batch_size=3)
    second.load_state_dict(first.state_dict())
    assert len(second) == 0
    assert list(second) == []
    second.set_epoch(1)
    assert len(list(second)) == 3


def test_a_state_of_other_data_is_refused():
    one, other = numbered([[5]]), numbered([[6]])
    state = BatchLoader(one, batch_size=1).state_dict()
    with pytest.raises(InvalidInput, match=f"{one.cid}.*{other.cid}"):
        BatchLoader(other, batch_size=1).load_state_dict(state)
    with pytest.raises(InvalidInput, match=r"'test'.*'train'"):
        BatchLoader(one, batch_size=1).load_state_dict({**state, "split": "test"})


def test_a_state_behind_the_last_row_is_refused_unless_its_end_was_padded():
    loader = BatchLoader(numbered([[5]]), batch_size=3, remainder="pad")
    list(loader)
    state = loader.state_dict()
    assert state["position"] == 6
    loader.load_state_dict(state)
    for remainder in ("keep", "drop"):
        loader.load_state_dict({**state, "position": 5, "remainder": remainder})
        with pytest.raises(
            InvalidInput, match=r"stands behind 6 rows, but split 'train' of dataset .* has 5"
        ):
            loader.load_state_dict({**state, "remainder": remainder})


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"version": None},
        {"seed": "4"},
        {"epoch": -1},
        {"position": 1.0},
        {"position": None},
        {"shuffle": 1},
        {"dataset": 5},
        {"remainder": "wrap"},
    ],
)
def test_what_is_no_state_is_refused(change):
    state = BatchLoader(numbered([[5]]), batch_size=1).state_dict()
    with pytest.raises(InvalidInput):
        LoaderState.from_dict({**state, **change})
    with pytest.raises(InvalidInput):
        LoaderState.from_dict(cast("Any", []))


@pytest.mark.parametrize("shuffle", [False, True])
def test_going_on_reads_little_again(shuffle):
    """At 90 % of an epoch: the row groups in use, and none of those that are done."""
    shards = [[20] * 20] * 100
    dataset = numbered(shards)
    loader = BatchLoader(dataset, batch_size=50, shuffle=shuffle, columns=["id"])
    stream = iter(loader)
    for _ in range(720):
        next(stream)
    state = loader.state_dict()
    stream.close()
    dataset.reads.clear()
    second = BatchLoader(dataset, batch_size=50, shuffle=shuffle, columns=["id"])
    second.load_state_dict(state)
    assert sum(len(batch["id"]) for batch in second) == 4000
    assert sum(dataset.reads) - 4000 <= 0.02 * 40_000
    assert second.counters["groups"] == len(dataset.reads)
