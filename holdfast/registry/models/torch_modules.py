"""Torch modules: their state as safetensors, their class as code by CID. Never pickle: a CID from a stranger must not run code."""

from __future__ import annotations

import inspect
import sys
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.errors import InvalidInput
from holdfast.registry.code import bundle_code, load_code
from holdfast.registry.models.made_again import check_made_again, constructor_config, misfit, module_of
from holdfast.registry.models.model_format import SavedModel
from holdfast.registry.models.safetensors_files import TYPES, StoredTensors, Tensor, store_tensors
from holdfast.registry.models.torch_wrapper import TorchModelWrapper

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import torch

    from holdfast.registry.models.model_format import Trust
    from holdfast.registry.records import ModelRecord
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = [
    "WEIGHTS",
    "TorchModules",
    "fill_tensors",
    "load_weights",
    "read_tensors",
    "signature_of",
    "store_state",
    "store_weights",
]

WEIGHTS = "model.safetensors"
_CODES = {f"torch.{name}": code for code, name in TYPES.items()}


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
        code, config = bundle_code(store, type(model)), constructor_config(model)
        weights = store_weights(store, module_of(model))
        check_made_again(model, config)
        return SavedModel(
            code=code,
            config=config,
            files={WEIGHTS: weights},
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
        try:
            inspect.signature(cls).bind(**record.config)
        except TypeError as error:
            raise InvalidInput(
                f"the manifest of model {cid} does not fit the constructor of {cls.__name__}: {error}"
            ) from error
        model = cls(**record.config)
        module = module_of(model)
        load_weights(module, store, store.resolve(f"{record.files}/{WEIGHTS}"))
        module.eval()
        return model


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
            isinstance(value, torch.Tensor)
            and not torch.nn.parameter.is_lazy(value)
            and value.layout == torch.strided
            and not value.is_meta
            and str(value.dtype) in _CODES
        )
        if not dense:
            kind = (
                f"{value.dtype}, {value.layout}, on the device {value.device.type}"
                if isinstance(value, torch.Tensor) and not torch.nn.parameter.is_lazy(value)
                else type(value).__name__
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
        tensors[name] = torch.empty(shape, dtype=getattr(torch, TYPES[dtype]))
    fill_tensors(stored, {name: [tensor] for name, tensor in tensors.items()})
    return {name: tensors[kept] for name, kept in stored.ties.items()} | tensors


def fill_tensors(stored: StoredTensors, targets: Mapping[str, list[torch.Tensor]]) -> None:
    """Copy each of these stored tensors into contiguous tensors of its own type and shape.

    Raises:
        Corrupt: A block is not what its CID says.
        NotFound: Nobody has one of the blocks.
    """
    import numpy as np

    memory = {name: [_bytes_of(tensor) for tensor in tensors] for name, tensors in targets.items()}

    def fill(name: str, at: int, data: memoryview) -> None:
        for target in memory[name]:
            target[at : at + data.nbytes] = np.frombuffer(data, np.uint8)

    stored.read(fill, memory)


def _bytes(tensor: torch.Tensor) -> memoryview:
    return _bytes_of(tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()).data


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
    names = {**stored.ties, **{name: name for name in stored}}
    state = module.state_dict()
    forms = {
        name: (getattr(torch, TYPES[dtype]), shape)
        for name, source in names.items()
        for dtype, shape in (stored.form(source),)
    }
    kind = type(module).__name__
    shapes = {name: shape for name, (_, shape) in forms.items()}
    if wrong := misfit(state, shapes, one="they", other="it"):
        raise InvalidInput(f"the weights {cid} do not fit {kind}: {wrong}")
    own = {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    # What shares memory in the constructor, and not in the file, must come apart.
    if all(_fillable(tensor, forms[name][0], own) for name, tensor in state.items()) and _apart(state, names):
        targets: dict[str, list[torch.Tensor]] = {}
        for name, tensor in state.items():
            targets.setdefault(names[name], []).append(tensor)
        fill_tensors(stored, targets)
    else:
        # A copy would cast float64 to float32 unsaid.
        read = read_tensors(stored)
        module.load_state_dict({name: read[name] for name in state}, strict=True, assign=True)


def _apart(state: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> bool:
    """Whether no part of the memory of a state, all contiguous, belongs to two stored tensors."""
    spans = {
        (tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes, names[name])
        for name, tensor in state.items()
        if tensor.numel()
    }
    return all(end <= start for (_, end, _), (start, _, _) in pairwise(sorted(spans)))


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

    # Contiguous as it is, a tensor of one element or none may still have any stride.
    return tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()
