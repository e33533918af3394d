"""TensorFlow gets the same batches as a ``tf.data.Dataset`` that shuffles anew each time."""

from __future__ import annotations

import importlib.util

import numpy as np
import pyarrow as pa
import pytest

from holdfast.errors import InvalidInput, Unsupported
from holdfast.storage import IPFSDataLoader
from holdfast.storage.datasets.dataset import store_dataset

needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="the extra 'tensorflow' is not installed"
)


def table_of(rows: int) -> pa.Table:
    tensors = np.random.default_rng(rows).integers(0, 256, size=(rows, 3, 4, 4), dtype=np.uint8)
    return pa.table(
        {
            "image": pa.FixedShapeTensorArray.from_numpy_ndarray(tensors),
            "i": np.arange(rows),
            "t": [f"text {n}" for n in range(rows)],
            "b": [n % 2 == 0 for n in range(rows)],
        }
    )


@needs_tensorflow
@pytest.mark.filterwarnings("ignore")  # TensorFlow's own
def test_batches_are_those_of_the_loader_with_their_types(store):
    import tensorflow as tf

    table = table_of(100)
    loader = IPFSDataLoader(store, 32).load_dataset(store_dataset(store, table))
    wanted = [np.concatenate([batch["i"] for batch in loader.to_numpy()]).tolist() for _ in range(2)]
    loader.set_epoch(0)
    made = loader.to_tensorflow()
    assert isinstance(made, tf.data.Dataset)
    assert made.element_spec["image"].dtype == tf.uint8
    assert made.element_spec["t"].dtype == tf.string
    expected = table["image"].combine_chunks().to_numpy_ndarray()
    for epoch in range(2):
        batches = list(made.as_numpy_iterator())
        order = np.concatenate([batch["i"] for batch in batches]).tolist()
        assert order == wanted[epoch]
        assert np.array_equal(np.concatenate([batch["image"] for batch in batches]), expected[order])
        assert [t.decode() for batch in batches for t in batch["t"]] == [f"text {n}" for n in order]
        assert [bool(b) for batch in batches for b in batch["b"]] == [n % 2 == 0 for n in order]


@needs_tensorflow
@pytest.mark.filterwarnings("ignore")  # TensorFlow's own
def test_tokens_may_have_another_length_in_every_batch(store):
    def tokenize(texts: list[str]) -> dict[str, list[list[int]]]:
        return {"ids": [list(range(1, int(text) + 1)) for text in texts]}

    dataset = store_dataset(store, pa.table({"t": [str(n) for n in range(1, 7)]}))
    with IPFSDataLoader(store, 2, shuffle=False, tokenize={"t": tokenize}).load_dataset(dataset) as loader:
        shapes = [tuple(batch["ids"].shape) for batch in loader.to_tensorflow()]
    assert shapes == [(2, 2), (2, 4), (2, 6)]


@needs_tensorflow
@pytest.mark.filterwarnings("ignore")  # TensorFlow's own
def test_what_tensorflow_has_no_form_for_is_named(store):
    dataset = store_dataset(store, pa.table({"lists": [[1], [2, 3]]}))
    with pytest.raises(InvalidInput, match="'lists'"):
        IPFSDataLoader(store).load_dataset(dataset).to_tensorflow()


def test_without_tensorflow_the_message_names_the_extra(store, monkeypatch):
    loader = IPFSDataLoader(store).load_dataset(store_dataset(store, table_of(3)))
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    with pytest.raises(Unsupported, match=r"holdfast\[tensorflow\]"):
        loader.to_tensorflow()
