"""ONNX graphs: kept as they are, checked before they are kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.errors import Corrupt, InvalidInput
from holdfast.registry.models.model_format import SavedModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from holdfast.registry.models.model_format import Trust
    from holdfast.registry.records import ModelRecord
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = ["OnnxModels"]

_FILE = "model.onnx"
_SUFFIX = ".onnx"


class OnnxModels:
    """An ``onnx.ModelProto``, or the path of an ``.onnx`` file; got back as a ``ModelProto``."""

    framework: ClassVar[str] = "onnx"
    name: ClassVar[str] = "onnx"

    def accepts(self, model: Any) -> bool:
        """Whether it is a graph, or a file of one."""
        onnx = sys.modules.get("onnx")
        if isinstance(model, Path):
            return model.suffix == _SUFFIX
        return onnx is not None and isinstance(model, onnx.ModelProto)

    def save(self, store: ContentStore, model: Any) -> SavedModel:
        """A graph, checked by ONNX' own checker; its inputs and outputs become the signature."""
        import onnx

        if isinstance(model, Path):
            try:
                graph = onnx.load(model, load_external_data=False)
            except (OSError, ValueError) as error:
                raise InvalidInput(f"{model} is no ONNX file: {error}") from error
            except Exception as error:  # protobuf's own error class has moved between its releases
                if type(error).__name__ != "DecodeError":
                    raise
                raise InvalidInput(f"{model} is no ONNX file: {error}") from error
        else:
            graph = model
        outside = sorted(
            {
                entry.value
                for each in graph.graph.initializer
                for entry in each.external_data
                if entry.key == "location"
            }
        )
        if outside:
            raise InvalidInput(
                f"the graph keeps weights in other files ({', '.join(outside[:3])}): join them with "
                "onnx.load() and onnx.save() first"
            )
        try:
            onnx.checker.check_model(graph)
        except onnx.checker.ValidationError as error:
            raise InvalidInput(f"this is no valid ONNX graph: {error}") from error
        file = (
            store.add(model, pin=False)
            if isinstance(model, Path)
            else graph.SerializeToString(deterministic=True)
        )
        known = {each.name for each in graph.graph.initializer}
        return SavedModel(
            files={_FILE: file},
            inputs=tuple(_described(each) for each in graph.graph.input if each.name not in known),
            outputs=tuple(_described(each) for each in graph.graph.output),
        )

    def load(self, store: ContentStore, cid: Cid, record: ModelRecord, trust: Trust) -> Any:
        """The graph, for ONNX Runtime or any other."""
        import onnx

        del trust  # a graph runs nothing
        data = bytes(store.open(store.resolve(f"{record.files}/{_FILE}")))
        try:
            return onnx.load_model_from_string(data)
        except Exception as error:  # as above
            if type(error).__name__ != "DecodeError":
                raise
            raise Corrupt(f"the file of model {cid} is no ONNX graph: {error}") from error


def _described(value: Any) -> Mapping[str, Any]:
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    shape = [int(size.dim_value) if size.HasField("dim_value") else -1 for size in tensor.shape.dim]
    dtype = str(tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else "unknown"
    return {"name": value.name, "dtype": dtype, "shape": shape[1:]}
