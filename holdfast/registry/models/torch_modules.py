"""Torch modules: their state as safetensors, their class as code by CID. Never pickle: a CID from a stranger must not run code."""

from __future__ import annotations

import inspect
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from holdfast.errors import InvalidInput
from holdfast.registry.code import bundle_code, load_code
from holdfast.registry.models.model_format import SavedModel
from holdfast.registry.models.safetensors_files import StoredTensors, Tensor, store_tensors
from holdfast.registry.models.torch_wrapper import TorchModelWrapper

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from holdfast.registry.models.model_format import Trust
    from holdfast.registry.records import ModelRecord
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = [
    "WEIGHTS",
    "TorchModules",
    "constructor_config",
    "load_weights",
    "read_tensors",
    "signature_of",
    "store_state",
    "store_weights",
]

WEIGHTS = "model.safetensors"
_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "BOOL": "bool",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
}
_SHOWN = 5
_CODES = {f"torch.{name}": code for code, name in _TYPES.items()}


class TorchModules:
    """A module's state, its class, and the arguments of its constructor."""

    framework: ClassVar[str] = "pytorch"
    name: ClassVar[str] = "safetensors"

    def accepts(self, model: Any) -> bool:
        """Whether it is a torch module, or wraps some."""
        torch = sys.modules.get("torch")  # who has a module has imported it
        return torch is not None and isinstance(model, (torch.nn.Module, TorchModelWrapper))

    def save(self, store: ContentStore, model: Any) -> SavedModel:
        """A module's weights and code; its attributes ``input_shape`` and ``input_column`` become its signature."""
        return SavedModel(
            code=bundle_code(store, type(model)),
            config=constructor_config(model),
            files={WEIGHTS: store_weights(store, _module_of(model))},
            inputs=signature_of(model),
        )

    def load(self, store: ContentStore, cid: Cid, record: ModelRecord, trust: Trust) -> Any:
        """The module, made again by its class, in evaluation mode."""
        import torch

        if record.code is None:
            raise InvalidInput(f"the manifest of model {cid} names no class")
        cls = load_code(store, record.code, trust=trust.code)
        # Anything else would be a way to call any installed function with a stranger's arguments.
        if not (isinstance(cls, type) and issubclass(cls, (torch.nn.Module, TorchModelWrapper))):
            raise InvalidInput(f"the code of model {cid} is {cls!r:.100}, not the class of a torch module")
        model = cls(**record.config)
        module = _module_of(model)
        load_weights(module, store, store.resolve(f"{record.files}/{WEIGHTS}"))
        module.eval()
        return model


def _module_of(model: torch.nn.Module | TorchModelWrapper) -> torch.nn.Module:
    """A module itself; one that has a wrapper's modules as its own."""
    import torch

    if isinstance(model, torch.nn.Module):
        return model
    joined = torch.nn.Module()
    for name, module in model.modules().items():
        joined.add_module(name, module)
    return joined


def constructor_config(module: torch.nn.Module | TorchModelWrapper) -> dict[str, Any]:
    """The keyword arguments that make such a module again: its attribute ``config``, or none.

    Raises:
        InvalidInput: Its class can't be called with them: it could be stored, but never loaded.
    """
    cls, config = type(module), getattr(module, "config", {})
    try:
        inspect.signature(cls).bind(**config)
    except TypeError as error:
        raise InvalidInput(
            f"{cls.__name__} can't be made again from its config {config!r:.100}: {error}. Keep the arguments of its "
            "constructor as a dict in the attribute 'config'"
        ) from error
    return dict(config)


def signature_of(module: torch.nn.Module | TorchModelWrapper) -> tuple[Mapping[str, Any], ...]:
    """The input that a module says it takes, in its attributes ``input_shape`` and ``input_column``; empty where it says nothing."""
    shape, column = getattr(module, "input_shape", None), getattr(module, "input_column", None)
    if shape is None or not column:
        return ()
    return ({"name": str(column), "dtype": "float32", "shape": [int(size) for size in shape]},)


def store_weights(store: ContentStore, module: torch.nn.Module) -> Cid:
    """The CID of a module's state as a safetensors file; see :func:`store_state`."""
    return store_state(store, module.state_dict(), what=f"the state of {type(module).__name__}")


def store_state(store: ContentStore, state: Mapping[str, Any], *, what: str) -> Cid:
    """The CID of a safetensors file with these torch tensors; equal tensors give equal bytes.

    Names that share one tensor (tied weights) are stored once; the header's metadata says which name stands for which, as the
    safetensors library's ``save_model`` writes it.

    Args:
        store: Where to.
        state: Tensors by name.
        what: For messages: the subject of a sentence.

    Raises:
        InvalidInput: The state holds something that is not a dense tensor.
    """
    import torch

    tensors: dict[str, Tensor] = {}
    kept: dict[Any, str] = {}
    tied: dict[str, str] = {}
    for name, value in sorted(state.items()):
        dense = (
            isinstance(value, torch.Tensor) and value.layout == torch.strided and str(value.dtype) in _CODES
        )
        if not dense:
            kind = (
                f"{value.dtype}, {value.layout}" if isinstance(value, torch.Tensor) else type(value).__name__
            )
            raise InvalidInput(
                f"{what} can't be stored: {name!r} is {kind}, and not a dense tensor of numbers"
            )
        place = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and kept.setdefault(place, name) != name:
            tied[name] = kept[place]
        else:
            tensors[name] = Tensor(_CODES[str(value.dtype)], tuple(value.shape), partial(_bytes, value))
    return store_tensors(store, tensors, tied)


def read_tensors(stored: StoredTensors) -> dict[str, torch.Tensor]:
    """New tensors with what is stored, by name; names that were one tensor are one again.

    Raises:
        Corrupt: A block is not what its CID says.
        InvalidInput: A tensor is of a type that torch does not have.
        NotFound: Nobody has one of the blocks.
    """
    import torch

    tensors = {}
    for name in stored:
        dtype, shape = stored.form(name)
        tensors[name] = torch.empty(shape, dtype=getattr(torch, _TYPES[dtype]))
    _fill(stored, {name: [tensor] for name, tensor in tensors.items()})
    return {name: tensors[kept] for name, kept in stored.metadata.items() if kept in tensors} | tensors


def _fill(stored: StoredTensors, targets: Mapping[str, list[torch.Tensor]]) -> None:
    """Copy each stored tensor into contiguous tensors of its own type."""
    memory = {name: [_bytes_of(tensor) for tensor in tensors] for name, tensors in targets.items()}

    def fill(name: str, at: int, data: memoryview) -> None:
        for target in memory[name]:
            target[at : at + data.nbytes] = np.frombuffer(data, np.uint8)

    stored.read(fill, memory)


def _bytes(tensor: torch.Tensor) -> memoryview:
    return _bytes_of(tensor.detach().cpu().contiguous()).data


def load_weights(module: torch.nn.Module, store: ContentStore, cid: Cid) -> None:
    """Make a stored safetensors file the state of ``module``, in the types it was stored in; names and shapes must match exactly.

    The bytes are copied from the store into the module's own tensors, tensor by tensor; only one whose type differs is
    replaced by a new one.

    Raises:
        Corrupt: The file is not safetensors.
        InvalidInput: They are another class' weights.
        NotFound: Nobody has one of the blocks.
    """
    import torch

    stored = StoredTensors(store, cid)
    names = {**stored.metadata, **{name: name for name in stored}}
    state = module.state_dict()
    forms = {
        name: (getattr(torch, _TYPES[dtype]), shape)
        for name, source in names.items()
        if source in stored
        for dtype, shape in (stored.form(source),)
    }
    _check_fit(module, cid, state, forms)
    own = {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    places = {(tensor.data_ptr(), names[name]) for name, tensor in state.items() if tensor.numel()}
    # What the constructor ties, and the file does not, must come apart.
    in_place = len(places) == len({place for place, _ in places}) and all(
        _fillable(tensor, forms[name][0], own) for name, tensor in state.items()
    )
    if in_place:
        targets: dict[str, list[torch.Tensor]] = {}
        for name, tensor in state.items():
            targets.setdefault(names[name], []).append(tensor)
        _fill(stored, targets)
    else:
        # A copy would cast float64 to float32 unsaid.
        read = read_tensors(stored)
        module.load_state_dict({name: read[name] for name in state}, strict=True, assign=True)


def _check_fit(
    module: torch.nn.Module,
    cid: Cid,
    state: Mapping[str, torch.Tensor],
    forms: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
) -> None:
    def few(names: set[str]) -> str:
        return ", ".join(sorted(names)[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")

    kind = type(module).__name__
    if missing := state.keys() - forms.keys():
        raise InvalidInput(f"the weights {cid} do not fit {kind}: they lack {few(missing)}")
    if more := forms.keys() - state.keys():
        raise InvalidInput(f"the weights {cid} do not fit {kind}: it has no {few(more)}")
    for name, tensor in state.items():
        if tuple(tensor.shape) != forms[name][1]:
            raise InvalidInput(
                f"the weights {cid} do not fit {kind}: {name} is of shape {forms[name][1]}, and not {tuple(tensor.shape)}"
            )


def _fillable(tensor: torch.Tensor, dtype: torch.dtype, own: set[int]) -> bool:
    """Whether what is written into an entry of the state is written into the module."""
    return (
        tensor.dtype == dtype
        and tensor.device.type == "cpu"
        and tensor.is_contiguous()
        and (tensor.data_ptr() in own or not tensor.numel())
    )


def _bytes_of(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    import torch

    return tensor.detach().reshape(-1).view(torch.uint8).numpy()
