"""What a pass gives, in which batches, within which bounds, and how it ends."""

import gc
import subprocess
import sys
import threading
from contextlib import suppress
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import Conflict, Corrupt, InvalidInput
from holdfast.storage.loaders.batch_loader import BatchLoader
from holdfast.storage.loaders.collation import table_to_numpy
from tests.storage.loaders.tables import in_groups, numbered

layouts = st.lists(
    st.lists(st.one_of(st.integers(0, 2), st.integers(0, 40)), max_size=8), min_size=0, max_size=5
)
options = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 50),
        "shuffle": st.booleans(),
        "seed": st.integers(0, 5),
        "epoch": st.integers(0, 2),
        "prefetch": st.integers(0, 3),
        "threads": st.integers(1, 3),
    }
)
worlds = st.integers(1, 12)
JOIN_S = 20.0


def threads_of_loaders():
    return [
        each for each in threading.enumerate() if each.name.startswith(("holdfast-load", "holdfast-near"))
    ]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    for thread in threads_of_loaders():
        thread.join(JOIN_S)
    assert not threads_of_loaders()


def check_rows(batch):
    """A batch's columns say the same of each of its rows."""
    np.testing.assert_array_equal(batch["pair"], np.stack([batch["id"], -batch["id"]], axis=1))
    assert batch["word"].tolist() == [f"w{i}" for i in batch["id"]]


def ids(batches):
    return np.concatenate([batch["id"] for batch in batches] or [np.empty(0, np.int64)])


def order_of(loader):
    return loader.order.rows_at(np.arange(loader.order.rows))


@settings(max_examples=60, deadline=None)
@given(layouts, options, worlds)
def test_kept_rows_come_exactly_once_and_in_the_global_order(shards, chosen, world):
    dataset = numbered(shards)
    rows = sum(map(sum, shards))
    for rank in range(world):
        with BatchLoader(dataset, rank=rank, world_size=world, with_positions=True, **chosen) as loader:
            batches = list(loader)
            assert len(loader) == len(batches)
            expected = order_of(loader)[rank::world]
            np.testing.assert_array_equal(ids(batches), expected)
            size = chosen["batch_size"]
            assert all(len(batch["id"]) == size for batch in batches[:-1])
            for number, batch in enumerate(batches):
                check_rows(batch)
                np.testing.assert_array_equal(batch.rows, batch["id"])
                np.testing.assert_array_equal(
                    batch.positions, np.arange(rank, rows, world)[number * size : (number + 1) * size]
                )
            assert loader.counters["rows"] == len(expected)
            assert loader.counters["batches"] == len(batches)
            assert loader.counters["padded_rows"] == 0


@settings(max_examples=40, deadline=None)
@given(layouts, options, worlds)
def test_dropped_and_padded_epochs_give_every_worker_the_same_whole_batches(shards, chosen, world):
    dataset = numbered(shards)
    rows, size = sum(map(sum, shards)), chosen["batch_size"]
    step = world * size
    remainder: Any
    for remainder, total in (("drop", rows // step * step), ("pad", -(-rows // step) * step)):
        padded = 0.0
        for rank in range(world):
            loader = BatchLoader(dataset, rank=rank, world_size=world, remainder=remainder, **chosen)
            batches = list(loader)
            assert [len(batch["id"]) for batch in batches] == [size] * (total // step)
            expected = order_of(loader)[np.arange(rank, total, world) % max(rows, 1)]
            np.testing.assert_array_equal(ids(batches), expected)
            for batch in batches:
                check_rows(batch)
            padded += loader.counters["padded_rows"]
        assert padded == max(0, total - rows)


@settings(max_examples=40, deadline=None)
@given(layouts, options, worlds, st.data())
def test_record_batches_are_the_same_rows_with_their_types(shards, chosen, world, data):
    dataset = numbered(shards)
    rank = data.draw(st.integers(0, world - 1))
    loader = BatchLoader(dataset, rank=rank, world_size=world, **chosen)
    arrow, arrays = list(loader.record_batches()), list(loader)
    assert len(arrow) == len(arrays)
    for batch, expected in zip(arrow, arrays, strict=True):
        batch.validate(full=True)
        assert batch.schema == dataset.schema
        np.testing.assert_array_equal(batch["id"].to_numpy(), expected["id"])
        np.testing.assert_array_equal(batch["pair"].to_numpy_ndarray(), expected["pair"])
        assert batch["word"].to_pylist() == expected["word"].tolist()


@settings(max_examples=40, deadline=None)
@given(layouts, options, worlds)
def test_a_transform_sees_every_batch_once_and_in_its_place(shards, chosen, world):
    dataset = numbered(shards)
    seen = []
    plain = list(BatchLoader(dataset, rank=world - 1, world_size=world, **chosen))

    def transform(batch):
        seen.append(len(batch["id"]))
        return {"twice": 2 * batch["id"]}

    loader = BatchLoader(dataset, rank=world - 1, world_size=world, transform=transform, **chosen)
    batches = list(loader)
    assert [batch["twice"].tolist() for batch in batches] == [(2 * batch["id"]).tolist() for batch in plain]
    assert sorted(seen) == sorted(len(batch["id"]) for batch in plain)


def every_kind(rows):
    """A table with a column of each kind of type; null where that has a form."""
    numbers = np.arange(rows)
    texts = [None if i % 7 == 3 else f"text {i}" for i in range(rows)]
    tensor = pa.fixed_shape_tensor(pa.float32(), (2, 3))
    tensors = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(rows * 6, dtype=np.float32)), 6)
    turned = pa.fixed_shape_tensor(pa.int16(), (2, 3), permutation=[1, 0])
    turns = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(rows * 6).astype(np.int16)), 6)
    return pa.table(
        {
            "int": numbers,
            "half": pa.array(numbers.astype(np.float16)),
            "byte": pa.array((numbers % 251).astype(np.uint8)),
            "flag": pa.array(numbers % 3 == 0),
            "time": pa.array([None if i % 5 == 2 else i for i in range(rows)], pa.timestamp("us")),
            "day": pa.array(numbers.astype(np.int32), pa.date32()),
            "tensor": pa.ExtensionArray.from_storage(tensor, tensors),
            "turned": pa.ExtensionArray.from_storage(turned, turns),
            "wide": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(rows * 40.0)), 40),
            "text": pa.array(texts, pa.string()),
            "bytes": pa.array([None if t is None else t.encode() for t in texts], pa.binary()),
            "code": pa.array([b"%04d" % i for i in range(rows)], pa.binary(4)),
            "ragged": pa.array([list(range(i % 4)) for i in range(rows)], pa.list_(pa.int32())),
            "pairs": pa.array([[i, i + 1] for i in range(rows)], pa.list_(pa.int64())),
            "words": pa.array([["a", f"b{i}"] for i in range(rows)], pa.list_(pa.string())),
            "both": pa.array([{"x": i, "y": str(i)} for i in range(rows)]),
        }
    )


def plain(value):
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("world", [1, 3, 5])
def test_columns_of_every_type_keep_their_values(shuffle, world):
    shards = [[40, 1, 25], [0, 30], [33, 50, 21]]
    table = every_kind(200)
    dataset = in_groups(table, shards)
    for rank in range(world):
        loader = BatchLoader(
            dataset, batch_size=9, shuffle=shuffle, seed=1, rank=rank, world_size=world, with_positions=True
        )
        batches, arrow = list(loader), list(loader.record_batches())
        for batch, record in zip(batches, arrow, strict=True):
            expected = table_to_numpy(pa.table(record))
            assert list(batch) == table.schema.names
            for name, values in batch.items():
                assert values.dtype == expected[name].dtype, name
                assert values.shape == expected[name].shape, name
                assert [plain(each) for each in values] == [plain(each) for each in expected[name]], name
            record.validate(full=True)
            for row, number in enumerate(batch.rows.tolist()):
                assert record.slice(row, 1).equals(table.slice(number, 1).to_batches()[0])


def test_only_the_chosen_columns_are_read_in_their_order():
    dataset = numbered([[10, 10]])
    (batch,) = BatchLoader(dataset, batch_size=20, columns=["word", "id"])
    assert list(batch) == ["word", "id"]
    with pytest.raises(InvalidInput, match="no column 'size'"):
        BatchLoader(dataset, batch_size=1, columns=["id", "size"])
    for wrong in ([], ["id", "id"], "id"):
        with pytest.raises(InvalidInput, match="columns"):
            BatchLoader(dataset, batch_size=1, columns=wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"world_size": 0},
        {"rank": 1},
        {"rank": -1},
        {"prefetch": -1},
        {"threads": 0},
        {"memory_bytes": 0},
        {"disk_bytes": 0},
        {"remainder": "wrap"},
        {"seed": -1},
        {"epoch": -1},
    ],
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(InvalidInput):
        BatchLoader(numbered([[3]]), **{"batch_size": 1, **wrong})


def test_batches_of_one_row_group_are_parts_of_its_memory():
    dataset = numbered([[64, 64]])
    batches = list(BatchLoader(dataset, batch_size=32))
    assert all(batch["id"].base is not None and not batch["id"].flags.owndata for batch in batches)
    starts = [batch["id"].__array_interface__["data"][0] for batch in batches]
    assert starts[1] - starts[0] == starts[3] - starts[2] == 32 * 8


def test_a_row_group_at_a_lane_border_is_read_once():
    dataset = numbered([[30] * 10] * 5)
    list(BatchLoader(dataset, batch_size=8, shuffle=True))
    assert len(dataset.reads) == 50
    dataset.reads.clear()
    loaders = [BatchLoader(dataset, batch_size=8, shuffle=True, rank=r, world_size=2) for r in range(2)]
    for loader in loaders:
        list(loader)
    assert 50 <= len(dataset.reads) <= 50 + 23  # two workers share the row groups at lane borders


# ------------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("how", ["break", "raise", "close", "forget", "close the loader"])
def test_nothing_goes_on_when_the_consumer_stops_early(shuffle, how):
    dataset = numbered([[50] * 10] * 5)
    loader = BatchLoader(dataset, batch_size=5, shuffle=shuffle, threads=3)
    stream = iter(loader)
    next(stream)
    if how == "break":
        for _ in stream:
            break
    elif how == "raise":
        with suppress(ZeroDivisionError):
            for batch in stream:
                len(batch) / 0
    elif how == "close":
        stream.close()
        stream.close()
        assert list(stream) == []
    elif how == "close the loader":
        loader.close()
        assert list(stream) == []
        assert len(list(loader)) == len(loader)
    del stream, loader
    gc.collect()
    assert not threads_of_loaders()


def test_a_forgotten_pass_does_not_keep_a_process_alive():
    code = (
        "from tests.storage.loaders.tables import numbered\n"
        "from holdfast.storage.loaders.batch_loader import BatchLoader\n"
        "kept = iter(BatchLoader(numbered([[50] * 20] * 5), batch_size=5, shuffle=True))\n"
        "print(len(next(kept)['id']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "5"
    assert not done.stderr


def test_a_pass_does_not_go_on_in_a_forked_process():
    code = (
        "import os, sys, warnings\n"
        "from holdfast.errors import Conflict\n"
        "from tests.storage.loaders.tables import numbered\n"
        "from holdfast.storage.loaders.batch_loader import BatchLoader\n"
        "loader = BatchLoader(numbered([[50] * 20] * 5), batch_size=50)\n"
        "stream = iter(loader)\n"
        "next(stream)\n"
        "if os.fork() == 0:\n"
        "    try:\n"
        "        next(stream)\n"
        "    except Conflict as error:\n"
        "        print('refused:', error, flush=True)\n"
        "    print(sum(len(batch['id']) for batch in loader), flush=True)\n"
        "    os._exit(0)\n"
        "print(os.wait()[1], sum(len(batch['id']) for batch in stream))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    refused, child, parent = done.stdout.splitlines()
    assert refused.startswith("refused: this pass began in another process")
    assert child == "5000"
    assert parent == "0 4950"


def fails_at(row, error):
    def on_read(group):
        if row in group["id"].to_pylist():
            raise error

    return on_read


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_an_error_comes_in_the_place_of_the_batch_that_needs_what_failed(shuffle, threads):
    shards = [[20] * 10] * 3
    loader = BatchLoader(
        numbered(shards, on_read=fails_at(333, Corrupt("rotten"))),
        batch_size=7,
        shuffle=shuffle,
        threads=threads,
    )
    expected = order_of(loader)
    got: list[int] = []
    stream = iter(loader)
    with pytest.raises(Corrupt, match=r"row group 6 of shard \w+ .*rotten") as caught:
        got.extend(chain.from_iterable(batch["id"].tolist() for batch in stream))
    assert isinstance(caught.value.__cause__, Corrupt)
    np.testing.assert_array_equal(got, expected[: len(got)])
    first = int(np.flatnonzero(np.isin(expected, np.arange(320, 340)))[0])
    assert first - 7 < len(got) <= first if not shuffle else len(got) <= first
    assert loader.state_dict()["position"] == len(got)
    with pytest.raises(Corrupt):
        next(stream)


def test_an_error_that_nobody_expected_is_told_and_not_waited_for():
    loader = BatchLoader(numbered([[5] * 4], on_read=fails_at(12, MemoryError("none left"))), batch_size=5)
    stream = iter(loader)
    next(stream)
    next(stream)
    with pytest.raises(MemoryError, match="none left") as caught:
        next(stream)
    assert "row group 2 of shard" in caught.value.__notes__[0]


def test_an_error_of_a_transform_comes_at_its_batch():
    def transform(batch):
        if 17 in batch["id"]:
            raise ValueError("no seventeen")
        return batch["id"].tolist()

    stream = iter(BatchLoader(numbered([[10] * 10]), batch_size=5, transform=transform, threads=3))
    assert [next(stream) for _ in range(3)] == [[*range(5)], [*range(5, 10)], [*range(10, 15)]]
    with pytest.raises(ValueError, match="no seventeen") as caught:
        next(stream)
    assert caught.value.__notes__ == ["in batch 3 of this pass"]


def test_an_iterator_that_ends_within_a_transform_does_not_end_the_pass():
    def transform(batch):
        return next(iter([])) if 17 in batch["id"] else batch["id"].tolist()

    stream = iter(BatchLoader(numbered([[10] * 10]), batch_size=5, transform=transform))
    assert [next(stream) for _ in range(3)] == [[*range(5)], [*range(5, 10)], [*range(10, 15)]]
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match="transform or tokenize raised StopIteration in batch 3 of"
        ) as caught:
            next(stream)
        assert isinstance(caught.value.__cause__, StopIteration)


def test_missing_numbers_are_named_with_their_column():
    table = pa.table({"a": pa.array([1.0, None, None]), "b": pa.array(["x", None, "z"])})
    loader = BatchLoader(in_groups(table, [[3]]), batch_size=3)
    with pytest.raises(InvalidInput, match="column 'a' of type double has 2 missing values"):
        next(iter(loader))
    (batch,) = loader.record_batches()
    assert batch.to_pydict() == table.to_pydict()
    (batch,) = BatchLoader(in_groups(table, [[3]]), batch_size=3, columns=["b"])
    assert batch["b"].tolist() == ["x", None, "z"]


# ----------------------------------------------------------------------------------------------- memory


def wide(shards):
    rows = sum(map(sum, shards))
    return pa.table({f"c{n}": np.arange(rows, dtype=np.float64) + n for n in range(8)})


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("world", [1, 2, 5])
def test_a_pass_keeps_within_its_memory(shuffle, world):
    shards = [[2000] * 10] * 10
    group_bytes = 2000 * 64
    pool_before = pa.total_allocated_bytes()
    table = wide(shards)
    dataset = in_groups(table, shards)
    lanes = 24 if shuffle else 1
    memory = (lanes + 16) * group_bytes
    loader = BatchLoader(
        dataset, batch_size=100, shuffle=shuffle, rank=0, world_size=world, memory_bytes=memory, threads=3
    )
    rows = 0
    for batch in loader:
        rows += len(batch["c0"])
    assert rows == len(range(0, 200_000, world))
    assert 0 < loader.counters["peak_memory_bytes"] <= memory
    del batch, dataset, table
    gc.collect()
    assert pa.total_allocated_bytes() <= pool_before + group_bytes


def test_a_budget_that_is_too_small_says_what_is_needed():
    shards = [[2000] * 10] * 10
    dataset = in_groups(wide(shards), shards)
    chosen: dict[str, Any] = {"batch_size": 100, "shuffle": True}
    with pytest.raises(InvalidInput, match=r"2\d row groups.*at least (\d+), not 1000000") as caught:
        BatchLoader(dataset, **chosen, memory_bytes=1_000_000)
    need = int(str(caught.value).split("at least ")[1].split(",")[0])
    for size in (need, need + 100_000):
        loader = BatchLoader(dataset, **chosen, memory_bytes=size)
        np.testing.assert_array_equal(
            np.concatenate([batch["c0"] for batch in loader]), order_of(loader).astype(float)
        )
        assert loader.counters["peak_memory_bytes"] <= size
    with pytest.raises(InvalidInput, match="at least"):
        BatchLoader(dataset, **chosen, memory_bytes=need - 1)
    fewer = need // 5
    with pytest.raises(InvalidInput, match="at least"):
        BatchLoader(dataset, **chosen, memory_bytes=fewer)
    assert len(list(BatchLoader(dataset, **chosen, memory_bytes=fewer, rank=3, world_size=8))) == 250


def test_a_batch_of_everything_is_no_larger_than_everything():
    shards = [[200] * 3]
    dataset = in_groups(wide(shards), shards)
    for shuffle in (False, True):
        (batch,) = BatchLoader(dataset, batch_size=10**12, shuffle=shuffle, memory_bytes=1 << 20)
        assert sorted(batch["c0"].tolist()) == list(range(600))


def test_what_takes_more_memory_than_it_said_is_an_error_and_no_hang():
    table = pa.table({"word": pa.array(["x" * 1000] * 1000)})
    dataset = in_groups(table, [[100] * 10])
    lying = [
        type(shard)(shard.cid, shard.rows, 1, tuple(type(g)(g.rows, 0, 1) for g in shard.groups))
        for shard in dataset.splits["train"]
    ]
    dataset.splits = {"train": tuple(lying)}
    with pytest.raises(InvalidInput, match="does not fit into memory_bytes"):
        list(BatchLoader(dataset, batch_size=1000, memory_bytes=100_000))


def test_closing_while_a_consumer_waits_wakes_it():
    reached, go = threading.Event(), threading.Event()

    def on_read(_):
        reached.set()
        go.wait(JOIN_S)

    loader = BatchLoader(numbered([[5] * 4], on_read=on_read), batch_size=5)
    stream = iter(loader)
    told: list[Any] = []

    def consume():
        try:
            told.append(next(stream))
        except Conflict as error:
            told.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert reached.wait(JOIN_S)
    closer = threading.Thread(target=stream.close)
    closer.start()
    consumer.join(JOIN_S)
    go.set()
    closer.join(JOIN_S)
    assert isinstance(told[0], Conflict)
