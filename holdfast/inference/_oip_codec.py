"""The Open Inference Protocol v2 between bytes and NumPy arrays: JSON, and the binary tensor data extension.

A body is a JSON object. With the header ``Inference-Header-Content-Length: n`` only its first ``n`` bytes are
JSON, and the raw tensors whose ``parameters`` hold ``binary_data_size`` follow, in the order of the JSON.
Nothing here knows about sockets; see https://kserve.github.io/website for the protocol.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.errors import InvalidInput, Unsupported
from holdfast.inference._tensors import DATATYPE_OF_DTYPE, DTYPE_OF_DATATYPE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from holdfast.inference._tensors import Array, TensorInfo

__all__ = [
    "InferRequest",
    "decode_request",
    "encode_response",
    "from_binary",
    "from_json",
    "to_binary",
    "to_json",
]

_LENGTH = struct.Struct("<I")
_LARGEST_ARRAY = 1 << 48
"""NumPy refuses some larger shapes even if one of their dimensions is 0."""
_REFUSED_PARAMETERS = ("classification", "shared_memory_region")
"""Extensions of the protocol whose silent omission would give the client something that it did not ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """One decoded request."""

    id: str | None
    inputs: dict[str, Array]
    outputs: tuple[str, ...] | None
    """Names of the outputs asked for; ``None`` means all."""
    binary: Mapping[str, bool]
    """Outputs that were asked for in binary, or expressly not."""
    binary_default: bool
    """How all the others are wanted."""


def decode_request(
    body: bytes, *, header_length: int | None, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]
) -> InferRequest:
    """The request in ``body``, for a model with these inputs and outputs.

    Raises:
        InvalidInput: The body breaks the protocol, or does not fit the model.
        Unsupported: It asks for an extension that is not offered.
    """
    if header_length is not None and not 0 <= header_length <= len(body):
        raise InvalidInput(
            f"Inference-Header-Content-Length is {header_length}, and the body has {len(body)} bytes"
        )
    end = len(body) if header_length is None else header_length
    message = _object(_parsed(body[:end]), "the request")
    identifier = message.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise InvalidInput("'id' must be a string")
    blob = memoryview(body)[end:]
    tensors, rest = _decode_inputs(_array(message, "inputs"), blob, {info.name: info for info in inputs})
    if rest:
        raise InvalidInput(f"{rest} bytes of binary data belong to no input")
    names, binary = _decode_outputs(_array(message, "outputs") if "outputs" in message else [], outputs)
    return InferRequest(
        id=identifier,
        inputs=tensors,
        outputs=names or None,
        binary=binary,
        binary_default=_flag(_parameters(message, "the request"), "binary_data_output") or False,
    )


def encode_response(
    outputs: Mapping[str, Array],
    *,
    model_name: str,
    model_version: str,
    request: InferRequest,
    parameters: Mapping[str, Any],
) -> tuple[bytes, int | None]:
    """The body of the answer, and the length of its JSON part if binary data follows.

    Raises:
        Unsupported: NaN or infinity was asked for in JSON, which can't express it.
    """
    tensors: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, array in outputs.items():
        tensor: dict[str, Any] = {
            "name": name,
            "datatype": DATATYPE_OF_DTYPE[array.dtype],
            "shape": list(array.shape),
        }
        if request.binary.get(name, request.binary_default):
            blobs.append(to_binary(array))
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = to_json(array, name=name)
        tensors.append(tensor)
    message: dict[str, Any] = {"model_name": model_name, "model_version": model_version}
    if request.id is not None:
        message["id"] = request.id
    if parameters:
        message["parameters"] = dict(parameters)
    message["outputs"] = tensors
    head = json.dumps(message, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    return (b"".join((head, *blobs)), len(head)) if blobs else (head, None)


def to_json(array: Array, *, name: str) -> list[Any]:
    """The numbers of an array in row-major order, for JSON.

    Raises:
        Unsupported: There is a NaN or an infinity among them.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Unsupported(
            f"output {name!r} holds NaN or infinity, which JSON can't express: ask for it with "
            f'"parameters": {{"binary_data": true}}'
        )
    values: list[Any] = array.ravel().tolist()
    return values


def from_json(data: Any, *, name: str, datatype: str, shape: tuple[int, ...]) -> Array:
    """The array that ``data`` writes out, either flat or nested in the form of ``shape``.

    Raises:
        InvalidInput: The number of elements, their types or their size don't fit.
    """
    dtype = DTYPE_OF_DATATYPE[datatype]
    if not isinstance(data, list):
        raise InvalidInput(f"input {name!r}: 'data' must be an array")
    flat = _flattened(data, shape)
    size = math.prod(shape)
    if len(flat) != size:
        raise InvalidInput(
            f"input {name!r} of shape {list(shape)} needs {size} elements, and 'data' has {len(flat)}"
        )
    wrong = set(map(type, flat)) - _JSON_TYPES[dtype.kind]
    if wrong:
        raise InvalidInput(f"input {name!r} of datatype {datatype} holds a {wrong.pop().__name__}")
    try:
        with np.errstate(over="ignore"):
            array: Array = np.array(flat, dtype=dtype)
    except OverflowError as error:
        raise InvalidInput(f"input {name!r} holds a number outside the range of {datatype}") from error
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidInput(f"input {name!r} holds a number outside the range of {datatype}")
    return array.reshape(shape)


def to_binary(array: Array) -> bytes:
    """The elements of an array in row-major order, little-endian; strings are preceded by their length."""
    if array.dtype.kind != "O":
        return array.astype(_little_endian(array.dtype), copy=False).tobytes()
    texts = [text.encode() for text in array.flat]
    return b"".join(chain.from_iterable((_LENGTH.pack(len(text)), text) for text in texts))


def from_binary(blob: memoryview, *, name: str, datatype: str, shape: tuple[int, ...]) -> Array:
    """The array in ``blob``, read-only and with no copy where its place in memory allows that.

    Raises:
        InvalidInput: Too few or too many bytes, or strings that are not UTF-8.
    """
    dtype = DTYPE_OF_DATATYPE[datatype]
    size = math.prod(shape)
    if dtype.kind == "O":
        texts = _strings(blob, name)
        if len(texts) != size:
            raise InvalidInput(
                f"input {name!r} of shape {list(shape)} needs {size} strings, and {len(texts)} came"
            )
        array: Array = np.empty(size, dtype=object)
        array[:] = texts
        return array.reshape(shape)
    if len(blob) != size * dtype.itemsize:
        raise InvalidInput(
            f"input {name!r} of datatype {datatype} and shape {list(shape)} needs {size * dtype.itemsize} bytes, "
            f"and {len(blob)} came"
        )
    numbers: Array = np.frombuffer(blob, dtype=_little_endian(dtype), count=size)
    if dtype.kind == "b" and blob.nbytes and numbers.view(np.uint8).max() > 1:
        raise InvalidInput(f"input {name!r} of datatype BOOL must hold the bytes 0 and 1 only")
    # Kernels may assume aligned memory, and the tensors of a body start wherever the JSON before them ends.
    return np.require(numbers, dtype=dtype, requirements="A").reshape(shape)


def _little_endian(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype if sys.byteorder == "little" else dtype.newbyteorder("<")


_JSON_TYPES: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}, "O": {str}}


def _flattened(data: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """``data`` without nesting if it is nested exactly as ``shape`` says, else as it is."""
    if len(shape) < 2 or not data or not isinstance(data[0], list) or len(data) != shape[0]:
        return data
    flat = data
    for size in shape[1:]:
        if set(map(type, flat)) - {list} or set(map(len, flat)) - {size}:
            return data
        flat = list(chain.from_iterable(flat))
    return flat


def _strings(blob: memoryview, name: str) -> list[str]:
    texts = []
    at = 0
    try:
        while at < len(blob):
            (length,) = _LENGTH.unpack_from(blob, at)
            at += _LENGTH.size
            if at + length > len(blob):
                raise InvalidInput(f"input {name!r}: the last string is cut off")
            texts.append(str(blob[at : at + length], "utf-8"))
            at += length
    except struct.error:
        raise InvalidInput(f"input {name!r}: the last string is cut off") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"input {name!r} holds bytes that are not UTF-8, and the model takes text"
        ) from error
    return texts


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} must be a JSON object")
    return value


def _array(message: Mapping[str, Any], key: str) -> list[Any]:
    value = message.get(key)
    if not isinstance(value, list):
        raise InvalidInput(f"{key!r} must be an array of objects")
    return value


def _parameters(message: Mapping[str, Any], what: str) -> dict[str, Any]:
    parameters = _object(message.get("parameters", {}), f"'parameters' of {what}")
    for name in _REFUSED_PARAMETERS:
        if name in parameters:
            raise Unsupported(
                f"the parameter {name!r} of {what} asks for an extension that this server lacks"
            )
    return parameters


def _flag(parameters: Mapping[str, Any], name: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidInput(f"the parameter {name!r} must be true or false")
    return value


def _decode_inputs(
    tensors: list[Any], blob: memoryview, infos: Mapping[str, TensorInfo]
) -> tuple[dict[str, Array], int]:
    arrays: dict[str, Array] = {}
    for item in tensors:
        tensor = _object(item, "each input")
        name, datatype = tensor.get("name"), tensor.get("datatype")
        info = infos.get(name) if isinstance(name, str) else None
        if info is None or not isinstance(name, str):
            raise InvalidInput(f"the model has no input {name!r}; it takes {', '.join(map(repr, infos))}")
        if name in arrays:
            raise InvalidInput(f"input {name!r} is there twice")
        if datatype != info.datatype:
            raise InvalidInput(f"input {name!r} must have datatype {info.datatype}, not {datatype!r}")
        shape = _shape(tensor.get("shape"), name)
        size = _parameters(tensor, f"input {name!r}").get("binary_data_size")
        if size is None:
            arrays[name] = from_json(tensor.get("data"), name=name, datatype=info.datatype, shape=shape)
            continue
        if type(size) is not int or not 0 <= size <= len(blob):
            raise InvalidInput(
                f"input {name!r}: {size!r} bytes of binary data are announced, {len(blob)} are left"
            )
        if "data" in tensor:
            raise InvalidInput(f"input {name!r} has both 'data' and 'binary_data_size'")
        arrays[name] = from_binary(blob[:size], name=name, datatype=info.datatype, shape=shape)
        blob = blob[size:]
    return arrays, len(blob)


def _shape(value: Any, name: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
        raise InvalidInput(f"input {name!r}: 'shape' must be an array of whole numbers")
    if len(value) > 32 or math.prod(max(n, 1) for n in value) > _LARGEST_ARRAY:
        raise InvalidInput(f"input {name!r}: no array can have this shape")
    return tuple(value)


def _decode_outputs(
    wanted: list[Any], infos: Sequence[TensorInfo]
) -> tuple[tuple[str, ...], dict[str, bool]]:
    known = [info.name for info in infos]
    names: dict[str, None] = {}
    binary: dict[str, bool] = {}
    for item in wanted:
        output = _object(item, "each output")
        name = output.get("name")
        if name not in known:
            raise InvalidInput(f"the model has no output {name!r}; it gives {', '.join(map(repr, known))}")
        names[name] = None
        flag = _flag(_parameters(output, f"output {name!r}"), "binary_data")
        if flag is not None:
            binary[name] = flag
    return tuple(names), binary
