"""ONNX Runtime sessions, with its many exception classes turned into holdfast's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

from holdfast.errors import Corrupt, HoldfastError, InvalidInput, NotFound, Unavailable, Unsupported
from holdfast.inference._tensors import DTYPE_OF_ONNX_TYPE, TensorInfo
from holdfast.telemetry import get_logger

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

__all__ = [
    "NO_OPTIMIZATION",
    "ORT_ERRORS",
    "choose_providers",
    "default_options",
    "open_session",
    "run_error",
    "tensor_infos",
]

_log = get_logger(__name__)

# None of these has a base class of its own, they all derive from Exception.
ORT_ERRORS: tuple[type[Exception], ...] = (
    state.EPFail,
    state.EngineError,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoModel,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
)
NO_OPTIMIZATION = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
_SILENT = 4
"""ONNX Runtime's level "fatal": errors are raised already and need no second copy on standard error."""


def default_options(threads: int) -> Any:
    """Session options for ``threads`` threads (0 takes all cores)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT
    return options


def choose_providers(providers: Sequence[str] | None, *, use_gpu: bool) -> list[str]:
    """The execution providers to ask for, best first.

    Raises:
        Unsupported: A provider was named that this build of ONNX Runtime lacks.
    """
    available = onnxruntime.get_available_providers()
    if providers is not None:
        missing = [name for name in providers if name not in available]
        if missing:
            raise Unsupported(f"this ONNX Runtime has no {missing[0]}; it has {', '.join(available)}")
        return list(providers)
    if use_gpu:
        if "CUDAExecutionProvider" in available:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]
        _log.warning("use_gpu=True, but this ONNX Runtime has no CUDA provider: the CPU is used")
    return ["CPUExecutionProvider"]


def open_session(
    model: str | os.PathLike[str] | bytes | bytearray | memoryview, options: Any, providers: list[str]
) -> Any:
    """A session for an ONNX file, or for the bytes of one.

    Raises:
        NotFound: There is no such file, or the weights that it refers to are missing.
        Corrupt: This is no ONNX model, or only a part of one.
        Unsupported: This ONNX Runtime is too old for the model, or lacks an operator.
    """
    source: str | bytes
    if isinstance(model, (bytes, bytearray, memoryview)):
        source = bytes(model)  # ONNX Runtime takes nothing else from memory
        label = f"the model of {len(source)} bytes"
    else:
        path = Path(model)
        if not path.exists():
            raise NotFound(f"there is no ONNX file {path}")
        if not path.is_file():
            raise InvalidInput(f"{path} is not a file")
        source = str(path)
        label = str(path)
    try:
        return onnxruntime.InferenceSession(source, options, providers=providers)
    except ORT_ERRORS as error:
        raise _load_error(error, label) from error


def _load_error(error: Exception, label: str) -> HoldfastError:
    text = str(error)
    if isinstance(error, state.NoSuchFile):
        return NotFound(f"{label} refers to a file that is not there: {text}")
    if (
        isinstance(error, state.NotImplemented)
        or "Unsupported model IR version" in text
        or "only *guarantees*" in text
    ):
        return Unsupported(f"this ONNX Runtime ({onnxruntime.__version__}) can't run {label}: {text}")
    return Corrupt(f"{label} is not a complete and valid ONNX model: {text}")


def run_error(error: Exception) -> HoldfastError:
    """The holdfast error for a failed run."""
    text = str(error)
    if "bad_alloc" in text or "Failed to allocate" in text:
        return Unavailable(f"there is not enough memory for this input: {text}")
    return InvalidInput(f"the model can't run on this input: {text}")


def tensor_infos(arguments: Sequence[Any], *, what: str) -> tuple[TensorInfo, ...]:
    """Those of a session's inputs or outputs that NumPy arrays can hold.

    Raises:
        Unsupported: An input of another kind (bfloat16, float8, sequence, map). Such outputs are left out.
    """
    infos = []
    for argument in arguments:
        dtype = DTYPE_OF_ONNX_TYPE.get(argument.type)
        if dtype is not None:
            infos.append(TensorInfo(name=argument.name, dtype=dtype, shape=tuple(argument.shape)))
        elif what == "input":
            raise Unsupported(
                f"input {argument.name!r} is a {argument.type}, which has no counterpart in NumPy"
            )
    return tuple(infos)
