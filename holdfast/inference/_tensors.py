"""What a model takes and gives: names, types and shapes, and how arrays are made to fit them.

One table ties the three vocabularies together: NumPy's dtypes, ONNX Runtime's type names and the
datatypes of the Open Inference Protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Array", "Engine", "InferenceResult", "Inputs", "TensorInfo", "fit_inputs", "rows_can_be_batched"]

Array = NDArray[Any]
Inputs = Any
"""An array (or nested list) for a model with one input, or a mapping from input names to arrays."""

_TEXT = np.dtype(object)
_TABLE: tuple[tuple[str, str, np.dtype[Any]], ...] = (
    ("BOOL", "tensor(bool)", np.dtype(np.bool_)),
    ("UINT8", "tensor(uint8)", np.dtype(np.uint8)),
    ("UINT16", "tensor(uint16)", np.dtype(np.uint16)),
    ("UINT32", "tensor(uint32)", np.dtype(np.uint32)),
    ("UINT64", "tensor(uint64)", np.dtype(np.uint64)),
    ("INT8", "tensor(int8)", np.dtype(np.int8)),
    ("INT16", "tensor(int16)", np.dtype(np.int16)),
    ("INT32", "tensor(int32)", np.dtype(np.int32)),
    ("INT64", "tensor(int64)", np.dtype(np.int64)),
    ("FP16", "tensor(float16)", np.dtype(np.float16)),
    ("FP32", "tensor(float)", np.dtype(np.float32)),
    ("FP64", "tensor(double)", np.dtype(np.float64)),
    ("BYTES", "tensor(string)", _TEXT),
)
DTYPE_OF_DATATYPE = {datatype: dtype for datatype, _, dtype in _TABLE}
DATATYPE_OF_DTYPE = {dtype: datatype for datatype, _, dtype in _TABLE}
DTYPE_OF_ONNX_TYPE = {onnx_type: dtype for _, onnx_type, dtype in _TABLE}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Name, type and shape of one input or output of a model."""

    name: str
    dtype: np.dtype[Any]
    """``object`` means strings."""
    shape: tuple[int | str | None, ...]
    """A string or ``None`` is a dynamic dimension, with or without a name."""
    fixed: tuple[tuple[int, int], ...] = field(init=False, repr=False, compare=False)
    """``(axis, size)`` of the dimensions that don't vary."""

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "fixed", tuple((i, n) for i, n in enumerate(self.shape) if isinstance(n, int))
        )

    @property
    def datatype(self) -> str:
        """The Open Inference Protocol's name of the type, such as ``FP32``."""
        return DATATYPE_OF_DTYPE[self.dtype]

    def __str__(self) -> str:
        return _described(self.dtype, ["?" if n is None else n for n in self.shape])


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """The outputs of one prediction by name, and how long the model took."""

    outputs: dict[str, Array]
    inference_time_ms: float
    input_shape: tuple[int, ...]
    """Shape of the first input."""
    session_provider: str
    """Who computed it, such as ``CPUExecutionProvider``."""

    @property
    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each output by name."""
        return {name: output.shape for name, output in self.outputs.items()}


class Engine(Protocol):
    """What a server needs from a model; :class:`~holdfast.inference.ONNXInferenceEngine` is one."""

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """What the model takes, in its own order."""

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """What the model gives, in its own order."""

    def prepare(self, inputs: Inputs, /) -> dict[str, Array]:
        """The inputs by name in the model's types, or an ``InvalidInput`` that says what is wrong."""

    def predict(self, inputs: Inputs, /, outputs: Sequence[str] | None = None) -> InferenceResult:
        """The outputs for these inputs."""


def fit_inputs(infos: Sequence[TensorInfo], inputs: Inputs) -> dict[str, Array]:
    """The inputs by name, in the model's types and checked against its shapes.

    Raises:
        InvalidInput: A missing or unknown input, a type that would lose information, or another shape.
    """
    if not isinstance(inputs, Mapping):
        if len(infos) != 1:
            raise InvalidInput(f"the model takes {len(infos)} inputs: pass a mapping with {_names(infos)}")
        return {infos[0].name: _fit(infos[0], inputs)}
    try:
        feeds = {info.name: _fit(info, inputs[info.name]) for info in infos}
    except KeyError as error:
        raise InvalidInput(f"input {error.args[0]!r} is missing: the model takes {_names(infos)}") from None
    if len(inputs) != len(feeds):
        raise InvalidInput(
            f"the model has no input {min(set(inputs) - set(feeds), key=str)!r}; it takes {_names(infos)}"
        )
    if len(feeds) > 1:
        _check_shared_dimensions(infos, feeds)
    return feeds


def rows_can_be_batched(inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> bool:
    """Whether the shapes allow rows of several requests to go through the model together.

    The first dimension of every input and output must be one and the same dynamic dimension, and no other
    dimension may depend on it (as in a square matrix of pairs). Several inputs must name it: without a name
    nothing says that their rows belong together.
    """
    shapes = [info.shape for info in (*inputs, *outputs)]
    if not inputs or not all(shapes):
        return False
    firsts = {shape[0] for shape in shapes}
    name = firsts.pop()
    if firsts or isinstance(name, int):
        return False
    if name is None:
        return len(inputs) == 1
    return not any(name in shape[1:] for shape in shapes)


def _fit(info: TensorInfo, value: Any) -> Array:
    # The exact type comes first: this runs once per prediction and a match costs less than a microsecond.
    array: Array = value if type(value) is np.ndarray and value.dtype is info.dtype else _cast(info, value)
    if info.dtype is _TEXT and not set(map(type, array.flat)) <= {str}:
        raise InvalidInput(f"input {info.name!r} must hold strings only")
    shape = array.shape
    if info.shape and len(shape) != len(info.shape):
        raise _refusal(info, array)
    for axis, size in info.fixed:
        if shape[axis] != size:
            raise _refusal(info, array)
    return array


def _cast(info: TensorInfo, value: Any) -> Array:
    target = info.dtype
    try:
        array: Array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(
            f"input {info.name!r} must be {info}, and can't be made an array: {error}"
        ) from error
    if target is _TEXT:
        if array.dtype.kind in "OU" or not array.size:
            return array.astype(object)
    elif np.can_cast(array.dtype, target, "safe") or (array.dtype == np.float64 and target == np.float32):
        try:
            with np.errstate(over="raise"):
                return array.astype(target)
        except FloatingPointError:
            raise InvalidInput(f"input {info.name!r} holds numbers that are too large for {target}") from None
    elif not hasattr(value, "dtype") and (literal := _cast_literal(array, target)) is not None:
        return literal
    raise _refusal(info, array)


def _cast_literal(array: Array, target: np.dtype[Any]) -> Array | None:
    """Numbers written as Python lists have no type of their own: they take the model's where they fit."""
    kinds = array.dtype.kind + target.kind
    if not array.size or kinds in ("if", "uf"):
        return array.astype(target)
    if kinds in ("ii", "iu", "ui", "uu"):
        cast: Array = array.astype(target)
        return cast if np.array_equal(cast, array) else None
    if kinds == "ff":
        with np.errstate(over="ignore"):
            return array.astype(target)
    return None


def _refusal(info: TensorInfo, array: Array) -> InvalidInput:
    return InvalidInput(f"input {info.name!r} must be {info}, not {_described(array.dtype, array.shape)}")


def _described(dtype: np.dtype[Any], shape: Iterable[object]) -> str:
    name = "string" if dtype.kind in "OU" else dtype.name
    return f"{name} of shape [{', '.join(map(str, shape))}]"


def _names(infos: Iterable[TensorInfo]) -> str:
    return ", ".join(repr(info.name) for info in infos)


def _check_shared_dimensions(infos: Sequence[TensorInfo], feeds: Mapping[str, Array]) -> None:
    seen: dict[str, tuple[int, str]] = {}
    for info in infos:
        for wanted, given in zip(info.shape, feeds[info.name].shape, strict=False):
            if isinstance(wanted, str):
                size, other = seen.setdefault(wanted, (given, info.name))
                if size != given:
                    raise InvalidInput(
                        f"inputs {other!r} and {info.name!r} must agree on the dimension {wanted!r}, "
                        f"not have {size} and {given}"
                    )
