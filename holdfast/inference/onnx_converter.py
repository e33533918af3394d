"""Models to ONNX files, checked and compared.

Example::

    converter = ONNXConverter()
    converter.convert_pytorch_model(net, "model.onnx", (1, 3, 224, 224))
    report = converter.compare_models(net, "model.onnx", real_images)
    assert report.passed, report.problem
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import Corrupt, HoldfastError, InvalidInput, NotFound, disk_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.inference._comparison import Comparison

__all__ = ["ONNXConverter"]


class ONNXConverter:
    """Writes ONNX files, and says whether they are sound.

    Args:
        optimize: Fold constants and fuse nodes while converting; the results are the same.
    """

    def __init__(self, optimize: bool = True) -> None:  # noqa: FBT001, FBT002 - the established signature
        self.optimize = optimize

    def convert_pytorch_model(
        self,
        model: Any,
        output_path: str | os.PathLike[str],
        input_shape: Sequence[int | None] | None = None,
        *,
        example_input: Any = None,
        input_names: Sequence[str] = ("input",),
        output_names: Sequence[str] | None = None,
        opset_version: int = 20,
        dynamic_batch: bool = True,
    ) -> bool:
        """``True`` once the ONNX file of a torch module is in place.

        The same weights, versions and options give the same bytes, so the file's CID is repeatable. The file
        appears complete or not at all. The module's train and eval modes are left as they were.

        Args:
            model: A ``torch.nn.Module`` that returns a tensor, or a tuple, list or dict of tensors.
            output_path: Where to write; folders are created, an existing file is replaced.
            input_shape: Shape of a float32 input, batch first, such as ``(1, 3, 224, 224)``.
            example_input: A tensor or array, or a tuple of them for several inputs, instead of ``input_shape``.
            input_names: Names of the inputs in the file.
            output_names: Names of the outputs; default ``output``, or ``output_0`` and so on, or a dict's keys.
            opset_version: The ONNX operator set to write.
            dynamic_batch: Let the first dimension of every input vary.

        Raises:
            InvalidInput: No torch module, no usable shape or example, or names that don't match.
            Unsupported: torch can't express the module in ONNX, or the file would exceed 2 GiB.
            Unavailable: The disk is full.
            Denied: ``output_path`` can't be written.
        """
        torch = sys.modules.get("torch")  # a torch module can't exist unless torch was imported
        if torch is None or not isinstance(model, torch.nn.Module):
            raise InvalidInput(f"the model must be a torch.nn.Module, not {type(model).__name__}")
        example = _example(torch, model, input_shape, example_input, dynamic_batch=dynamic_batch)

        from holdfast.inference import _torch_export

        data = _torch_export.export(
            model,
            example,
            input_names=input_names,
            output_names=output_names,
            opset_version=opset_version,
            dynamic_batch=dynamic_batch,
            optimize=self.optimize,
        )
        _write_atomically(Path(output_path), data)
        return True

    def validate_onnx_model(self, path: str | os.PathLike[str]) -> bool:
        """Whether the file is there, whole, valid ONNX, and can be loaded by ONNX Runtime."""
        import onnx

        from holdfast.inference import _ort

        try:
            onnx.checker.check_model(str(Path(path)), full_check=True)
            options = _ort.default_options(1)
            # The optimiser is not needed for a check, and has crashed on valid models that were converted to fp16.
            options.graph_optimization_level = _ort.NO_OPTIMIZATION
            _ort.open_session(path, options, ["CPUExecutionProvider"])
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, HoldfastError):
            return False
        except (OSError, ValueError, RuntimeError):  # the checker's own failures to read or parse
            return False
        return True

    def get_model_info(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """What an ONNX file holds.

        Returns:
            ``file_size_mb`` (10**6 bytes), ``file_size_bytes``, ``opset``, ``ir_version``, ``producer``,
            ``node_count``, and ``inputs`` and ``outputs``: lists of ``{"name", "dtype", "shape"}``, where a
            string or ``None`` in ``shape`` is a dynamic dimension.

        Raises:
            NotFound: There is no such file.
            Corrupt: It is no ONNX model, or only a part of one.
        """
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

        file = Path(path)
        try:
            size = file.stat().st_size
            model = onnx.load(str(file), load_external_data=False)
        except FileNotFoundError as error:
            raise NotFound(f"there is no ONNX file {file}") from error
        except (DecodeError, ValueError, IsADirectoryError) as error:
            raise Corrupt(f"{file} is not an ONNX model: {error}") from error
        opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
        if opset is None:
            raise Corrupt(f"{file} is not a complete ONNX model: it names no operator set")
        weights = {item.name for item in model.graph.initializer}
        return {
            "file_size_mb": size / 1e6,
            "file_size_bytes": size,
            "opset": opset,
            "ir_version": model.ir_version,
            "producer": f"{model.producer_name} {model.producer_version}".strip(),
            "node_count": len(model.graph.node),
            "inputs": [_described(onnx, value) for value in model.graph.input if value.name not in weights],
            "outputs": [_described(onnx, value) for value in model.graph.output],
        }

    def compare_models(
        self,
        original: Any,
        onnx_path: str | os.PathLike[str],
        inputs: Any,
        *,
        rtol: float = 1e-3,
        atol: float = 1e-4,
        batch_size: int | None = None,
    ) -> Comparison:
        """How far the ONNX file's answers are from the original's on these inputs.

        Args:
            original: A torch module, an object with ``predict()``, or a function; it gets the arrays that the
                ONNX model gets, in the order of its inputs.
            onnx_path: The converted model.
            inputs: Real samples: an array, or a mapping from input names to arrays; first dimension: samples.
            rtol: Allowed difference relative to the original's number.
            atol: Allowed absolute difference, added to that.
            batch_size: Samples per step; default 32, or the model's own batch size if that is fixed.

        Raises:
            InvalidInput: No inputs, inputs that the model refuses, or another number of outputs.
            NotFound: There is no such file.
            Corrupt: It is no ONNX model.
        """
        from holdfast.inference._comparison import compare
        from holdfast.inference.onnx_engine import ONNXInferenceEngine

        engine = ONNXInferenceEngine(onnx_path)
        return compare(original, engine, inputs, rtol=rtol, atol=atol, batch_size=batch_size)


def _example(
    torch: Any, model: Any, shape: Sequence[int | None] | None, example: Any, *, dynamic_batch: bool
) -> tuple[Any, ...]:
    """Tensors to trace with. A dynamic batch is traced with two rows, because torch makes 0 and 1 constants."""
    if (shape is None) == (example is None):
        raise InvalidInput("pass either input_shape, such as (1, 3, 224, 224), or example_input")
    weight = next(model.parameters(), None)
    device = "cpu" if weight is None else weight.device
    if shape is not None:
        sizes = [2 if dynamic_batch and axis == 0 else size for axis, size in enumerate(shape)]
        if not sizes or not all(type(size) is int and size > 0 for size in sizes):
            raise InvalidInput(f"input_shape must be positive whole numbers, batch first, not {tuple(shape)}")
        return (torch.zeros(sizes, device=device),)
    try:
        tensors = tuple(
            torch.as_tensor(value).detach().to(device)
            for value in (example if isinstance(example, (tuple, list)) else (example,))
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"example_input must be a tensor or array, or a tuple of them: {error}") from error
    if not dynamic_batch:
        return tensors
    if not all(tensor.ndim and len(tensor) for tensor in tensors):
        raise InvalidInput(
            "with dynamic_batch, every example input needs a first dimension with at least one row"
        )
    return tuple(tensor if len(tensor) > 1 else torch.cat([tensor, tensor]) for tensor in tensors)


def _write_atomically(path: Path, data: bytes) -> None:
    # In the same folder, so that the rename stays within one file system.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except IsADirectoryError as error:
            raise InvalidInput(f"{path} is a folder: pass the path of a file") from error
        finally:
            temporary.unlink(missing_ok=True)


def _described(onnx: Any, value: Any) -> dict[str, Any]:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return {"name": value.name, "dtype": str(kind).removesuffix("_type"), "shape": None}
    tensor = value.type.tensor_type
    name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    shape = [
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in tensor.shape.dim
    ]
    return {
        "name": value.name,
        "dtype": {"float": "float32", "double": "float64"}.get(name, name),
        "shape": shape if tensor.HasField("shape") else None,
    }
