"""Everything that answers questions with a finished model.

========================== =====================================================================
:class:`ONNXConverter`      turns a torch module into an ONNX file whose bytes are repeatable
:class:`ONNXInferenceEngine` runs an ONNX file or buffer, checks its inputs, keeps statistics
:class:`InferenceServer`    serves engines over HTTP (Open Inference Protocol v2), in micro-batches
:class:`TorchModelWrapper`  base class of torch models that turn values into vectors
:class:`VectorIndex`        finds the nearest vectors of a corpus, opened from bytes with no copy
========================== =====================================================================

The names below are loaded on first use, so that importing this package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.inference._batcher import BatcherStatistics
    from holdfast.inference._comparison import Comparison
    from holdfast.inference._tensors import Engine, InferenceResult, TensorInfo
    from holdfast.inference.model_wrappers import TorchModelWrapper
    from holdfast.inference.onnx_converter import ONNXConverter
    from holdfast.inference.onnx_engine import ONNXInferenceEngine
    from holdfast.inference.rest_server import InferenceServer, ServedModel
    from holdfast.inference.vector_index import SearchResult, VectorIndex

__all__ = [
    "BatcherStatistics",
    "Comparison",
    "Engine",
    "InferenceResult",
    "InferenceServer",
    "ONNXConverter",
    "ONNXInferenceEngine",
    "SearchResult",
    "ServedModel",
    "TensorInfo",
    "TorchModelWrapper",
    "VectorIndex",
]

_HOMES = {
    "BatcherStatistics": "_batcher",
    "Comparison": "_comparison",
    "Engine": "_tensors",
    "InferenceResult": "_tensors",
    "InferenceServer": "rest_server",
    "ONNXConverter": "onnx_converter",
    "ONNXInferenceEngine": "onnx_engine",
    "SearchResult": "vector_index",
    "ServedModel": "rest_server",
    "TensorInfo": "_tensors",
    "TorchModelWrapper": "model_wrappers",
    "VectorIndex": "vector_index",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
