"""Small ONNX models, written node by node, so that most tests need no torch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper


def make_model(nodes, inputs, outputs, initializers=()) -> bytes:
    """``inputs`` and ``outputs``: ``{name: (type, shape)}``; ``initializers``: ``{name: array}``."""
    starts, ends = (
        [
            helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)
            for name, (kind, shape) in infos.items()
        ]
        for infos in (inputs, outputs)
    )
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in dict(initializers).items()]
    graph = helper.make_graph([helper.make_node(*node) for node in nodes], "g", starts, ends, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="session")
def model_of():
    return make_model


@pytest.fixture(scope="session")
def weights():
    return np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


@pytest.fixture(scope="session")
def linear(weights) -> bytes:
    """``y = x @ weights`` with a dynamic batch."""
    return make_model(
        [("MatMul", ["x", "w"], ["y"])],
        {"x": ("FLOAT", ["batch", 4])},
        {"y": ("FLOAT", ["batch", 3])},
        {"w": weights},
    )


@pytest.fixture(scope="session")
def lookup() -> bytes:
    """Rows of a table of 4 rows: an index beyond it fails inside the model, whatever its shape."""
    return make_model(
        [("Gather", ["t", "i"], ["y"])],
        {"i": ("INT64", ["batch"])},
        {"y": ("FLOAT", ["batch", 2])},
        {"t": np.arange(8, dtype=np.float32).reshape(4, 2)},
    )
