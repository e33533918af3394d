"""JAX gets the same batches on its device, and no number that was cut off; run by test_jax.py."""

from __future__ import annotations

import jax
import numpy as np
import pyarrow as pa
import pytest

from holdfast.errors import InvalidInput
from holdfast.storage import IPFSDataLoader
from holdfast.storage.datasets.dataset import store_dataset


def table_of(rows: int) -> pa.Table:
    tensors = np.random.default_rng(rows).normal(size=(rows, 2, 2)).astype(np.float32)
    return pa.table(
        {
            "x": pa.FixedShapeTensorArray.from_numpy_ndarray(tensors),
            "i": np.arange(rows),
            "t": [str(n) for n in range(rows)],
        }
    )


def test_batches_lie_on_the_device_with_the_same_rows(store):
    table = table_of(100)
    dataset = store_dataset(store, table)
    loader = IPFSDataLoader(store, 32, shuffle=True).load_dataset(dataset)
    expected = table["x"].combine_chunks().to_numpy_ndarray()
    orders = []
    for _ in range(2):
        batches = list(loader.to_jax())
        assert len(batches) == len(loader) == 4
        order = np.concatenate([np.asarray(batch["i"]) for batch in batches])
        assert all(isinstance(batch["x"], jax.Array) and batch["x"].dtype == np.float32 for batch in batches)
        assert np.array_equal(np.concatenate([np.asarray(batch["x"]) for batch in batches]), expected[order])
        assert [text for batch in batches for text in batch["t"]] == [str(n) for n in order]
        orders.append(order.tolist())
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(100))


def test_a_number_that_does_not_fit_is_refused_and_not_cut_off(store):
    dataset = store_dataset(store, pa.table({"n": [1, 2**40]}))
    with IPFSDataLoader(store, 2, shuffle=False).load_dataset(dataset) as loader:
        with pytest.raises(InvalidInput, match=r"'n'.*jax_enable_x64"):
            list(loader.to_jax())
        with jax.enable_x64(True):
            (batch,) = loader.to_jax()
            assert batch["n"].tolist() == [1, 2**40]
