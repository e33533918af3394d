"""What makes one model another: everything that differs is named, and nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from holdfast.errors import InvalidInput, NotFound
from holdfast.storage.datasets.dataset import store_dataset
from holdfast.training.examples.digits import DigitsCNN

if TYPE_CHECKING:
    from holdfast.storage.cid import Cid

names = st.sampled_from("abcdefgh")
states = st.dictionaries(names, st.tuples(st.integers(0, 2), st.sampled_from([1, 3, 70_000])), max_size=6)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DigitsCNN(width=2, embedding_dim=3)


def test_equal_models_have_no_difference(registry, model):
    first = registry.register("digits", model).cid
    diff = registry.diff("digits", str(first))
    assert not diff
    assert diff.render() == "no difference"


def test_each_fact_dataset_and_tensor_that_differs_is_named(registry, store, model):
    data = [store_dataset(store, {"x": np.arange(float(n))}).cid for n in (3, 4, 5)]
    first = registry.store_model(model, metrics={"accuracy": 0.5}, data=data[:2], metadata={"a": {"b": 1}})
    with torch.no_grad():
        model.classify.bias.add_(1)
    second = registry.store_model(
        model,
        metrics={"accuracy": 0.75},
        data=data[1:],
        metadata={"a": {"b": 2}},
        licence="MIT",
        parent=first,
    )
    diff = registry.diff(first, second)
    assert diff.facts == {
        "metrics.accuracy": (0.5, 0.75),
        "metadata.a.b": (1, 2),
        "licence": ("", "MIT"),
        "parent": (None, first),
    }
    assert (diff.data.added, diff.data.removed) == ((str(data[2]),), (str(data[0]),))
    assert (diff.files.changed, diff.files.added, diff.files.removed) == (("model.safetensors",), (), ())
    assert diff.tensors.changed == ("classify.bias",)
    assert "~ tensor classify.bias" in diff.render().splitlines()
    assert json.loads(json.dumps(diff.to_json()))["facts"]["parent"] == [None, str(first)]
    back = registry.diff(second, first)
    assert (back.data.added, back.data.removed) == (diff.data.removed, diff.data.added)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(states, states)
def test_exactly_the_tensors_that_differ_are_named(registry, before, after):
    def stored(state):
        values = {name: torch.full((size,), float(value)) for name, (value, size) in state.items()}
        return registry.store_model({"always": torch.zeros(1), **values})

    diff = registry.diff(stored(before), stored(after)).tensors
    assert set(diff.added) == after.keys() - before.keys()
    assert set(diff.removed) == before.keys() - after.keys()
    assert set(diff.changed) == {name for name in before.keys() & after.keys() if before[name] != after[name]}


def test_tensors_that_two_versions_share_are_not_read(registry, store, monkeypatch):
    big = {"frozen": torch.randn(1 << 20), "head": torch.zeros(3)}
    first = registry.store_model(big)
    second = registry.store_model({**big, "head": torch.ones(3)})
    read: list[Cid] = []
    inner = store.blocks.get

    def counted(cid):
        read.append(cid)
        return inner(cid)

    monkeypatch.setattr(store.blocks, "get", counted)
    assert registry.diff(first, second).tensors.changed == ("head",)
    sizes = [memoryview(inner(cid)).nbytes for cid in set(read)]
    assert sum(sizes) < 1 << 20, "the frozen tensor has 4 MiB"


def test_what_is_no_model_is_refused(registry, store, model):
    cid = registry.store_model(model)
    with pytest.raises(InvalidInput, match="is no model"):
        registry.diff(cid, store.put_record({"kind": "dataset"}))
    with pytest.raises(NotFound):
        registry.diff(cid, "nobody")


def test_models_of_different_frameworks_differ_in_their_files(registry, model):
    estimator = pytest.importorskip("sklearn.linear_model").LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
    diff = registry.diff(registry.store_model(model), registry.store_model(estimator))
    assert (diff.files.added, diff.files.removed) == (("model.skops",), ("model.safetensors",))
    assert diff.facts["framework"] == ("pytorch", "sklearn")
    assert not diff.tensors


def test_wrapped_modules_are_compared_by_the_attribute_they_are_in(registry, module):
    source = """
        import torch
        from holdfast.inference import TorchModelWrapper

        class Encoder(TorchModelWrapper):
            def __init__(self, size=2):
                self.config = {"size": size}
                self.model = torch.nn.Linear(size, 1)

            def encode(self, text):
                return self.model(text)
    """
    encoder = module("an_encoder", source).Encoder(3)
    first = registry.store_model(encoder)
    again = registry.load(first)
    x = torch.ones(2, 3)
    assert torch.equal(again.encode(x), encoder.encode(x))
    assert not again.model.training
    nn.init.zeros_(encoder.model.weight)
    assert registry.diff(first, registry.store_model(encoder)).tensors.changed == ("model.weight",)
