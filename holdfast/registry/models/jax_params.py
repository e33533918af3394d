"""Parameters of JAX and Flax: the arrays of a pytree as safetensors, its form in the manifest."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from holdfast.errors import InvalidInput, require
from holdfast.registry.models.model_format import SavedModel
from holdfast.registry.models.safetensors_files import TYPES, StoredTensors, Tensor, store_tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.registry.models.model_format import Trust
    from holdfast.registry.records import ModelRecord
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = ["JaxParams"]

_FILE = "params.safetensors"
_TREE = "tree"
_CODES = {name: code for code, name in TYPES.items()}
_PLAIN = (bool, int, float, str, type(None))


class JaxParams:
    """Dicts, lists and tuples in each other, with arrays of JAX at their ends; also Flax's ``FrozenDict`` and ``nnx.State``.

    What was a ``nnx.State`` is got back as the plain dict that ``nnx.replace_by_pure_dict`` takes; all else as it was. Only an
    array's mark that its type is weak (``jnp.full(3, 1.0)``) is not kept: JAX has no way to give it one.
    """

    framework: ClassVar[str] = "jax"
    name: ClassVar[str] = "safetensors"

    def accepts(self, model: Any) -> bool:
        """Whether it is a tree with an array of JAX in it."""
        jax = sys.modules.get("jax")  # who has an array has imported it
        return jax is not None and any(isinstance(leaf, jax.Array) for leaf in _leaves(_pure(model)))

    def save(self, store: ContentStore, model: Any) -> SavedModel:
        """The arrays by their paths, such as ``layers/0/kernel``."""
        tensors: dict[str, Tensor] = {}
        tree = _described(_pure(model), (), tensors)
        return SavedModel(files={_FILE: store_tensors(store, tensors)}, config={_TREE: tree})

    def load(self, store: ContentStore, cid: Cid, record: ModelRecord, trust: Trust) -> Any:
        """The tree, with its arrays on JAX's default device."""
        del trust  # arrays run nothing
        require("jax", extra="jax", why=f"model {cid}")
        stored = StoredTensors(store, store.resolve(f"{record.files}/{_FILE}"))
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for name in stored:
            dtype, shape = stored.form(name)
            arrays[name] = np.empty(shape, _dtype(TYPES[dtype]))
        memory = {name: array.reshape(-1).view(np.uint8) for name, array in arrays.items()}

        def fill(name: str, at: int, data: memoryview) -> None:
            memory[name][at : at + data.nbytes] = np.frombuffer(data, np.uint8)

        stored.read(fill, memory)
        try:
            return _made(record.config[_TREE], arrays)
        except (KeyError, RecursionError, TypeError) as error:
            raise InvalidInput(
                f"the manifest of model {cid} does not describe its arrays: {error}"
            ) from error


def _pure(model: Any) -> Any:
    nnx = sys.modules.get("flax.nnx")
    return nnx.to_pure_dict(model) if nnx is not None and isinstance(model, nnx.State) else model


def _leaves(node: Any) -> list[Any]:
    found, waiting = [], [node]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping):
            waiting.extend(each.values())
        elif type(each) in (list, tuple):
            waiting.extend(each)
        else:
            found.append(each)
    return found


def _described(node: Any, path: tuple[str, ...], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The form of a tree in plain values; its arrays are added to ``tensors``."""
    import jax

    frozen = sys.modules.get("flax.core.frozen_dict")
    where = "/".join(path) or "the tree"
    if type(node) is dict or (frozen is not None and type(node) is frozen.FrozenDict):
        if strange := [key for key in node if type(key) not in (str, int)]:
            raise InvalidInput(f"{where} has the key {strange[0]!r:.100}: keys are texts or whole numbers")
        kind = "dict" if type(node) is dict else "frozen"
        return {
            kind: [[key, _described(each, (*path, _escaped(key)), tensors)] for key, each in node.items()]
        }
    if type(node) in (list, tuple):
        parts = [_described(each, (*path, str(index)), tensors) for index, each in enumerate(node)]
        return {type(node).__name__: parts}
    if isinstance(node, (jax.Array, np.ndarray, np.generic)):
        if where in tensors:
            raise InvalidInput(f"two keys of the tree lead to {where}")
        tensors[where] = _tensor(node, where)
        return {"jax" if isinstance(node, jax.Array) else "numpy": where}
    if type(node) in _PLAIN and not (type(node) is float and not math.isfinite(node)):
        return {"value": node}
    raise InvalidInput(
        f"{where} is {type(node).__name__}: a tree of parameters consists of dicts, lists, tuples, arrays and plain values"
    )


def _tensor(array: Any, where: str) -> Tensor:
    name = str(array.dtype)
    if name not in _CODES:
        more = ": store jax.random.key_data() of it" if name.startswith("key<") else ""
        raise InvalidInput(f"{where} is of the type {name}, which safetensors files do not have{more}")
    if not getattr(array, "is_fully_addressable", True):
        raise InvalidInput(f"{where} is spread over several processes: gather it first")
    read: Callable[[], memoryview] = lambda: _flat(array).data  # noqa: E731 -- from the device when it is written
    return Tensor(_CODES[name], tuple(array.shape), read)


def _flat(array: Any) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(np.asarray(array)).reshape(-1).view(np.uint8)


def _made(node: Any, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    ((kind, value),) = node.items()
    if kind == "dict":
        return {key: _made(each, arrays) for key, each in value}
    if kind == "frozen":
        flax = require("flax.core", extra="jax", why="a FrozenDict")
        return flax.FrozenDict({key: _made(each, arrays) for key, each in value})
    if kind == "list":
        return [_made(each, arrays) for each in value]
    if kind == "tuple":
        return tuple(_made(each, arrays) for each in value)
    if kind == "value":
        return value
    if kind == "numpy":
        return arrays[value]
    if kind == "jax":
        return _on_device(arrays[value], value)
    raise KeyError(kind)


def _on_device(array: np.ndarray[Any, Any], name: str) -> Any:
    import jax

    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:  # JAX would narrow it unsaid
        raise InvalidInput(
            f"{name} is of {array.dtype}, which JAX has only after jax.config.update('jax_enable_x64', True)"
        )
    return jax.numpy.asarray(array)


def _escaped(key: str | int) -> str:
    return str(key).replace("~", "~0").replace("/", "~1")


def _dtype(name: str) -> np.dtype[Any]:
    import ml_dtypes  # comes with JAX

    return np.dtype(getattr(ml_dtypes, name, name))
