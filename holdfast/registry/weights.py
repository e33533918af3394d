"""Torch modules as safetensors bytes, and back. Never pickle: a CID from a stranger must not run code."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from holdfast.errors import Corrupt, InvalidInput

if TYPE_CHECKING:
    import torch

    from holdfast.storage.cid import Buffer

__all__ = ["constructor_config", "load_weights", "weights_to_bytes"]


def constructor_config(module: torch.nn.Module) -> dict[str, Any]:
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


def weights_to_bytes(module: torch.nn.Module) -> bytes:
    """The module's state as safetensors; equal tensors give equal bytes.

    Raises:
        InvalidInput: Two names share one tensor's memory, or the state holds something that is not a dense tensor.
    """
    from safetensors.torch import save

    try:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
        return bytes(save(state))
    except (AttributeError, KeyError, RuntimeError, ValueError) as error:
        raise InvalidInput(f"the weights of {type(module).__name__} can't be stored: {error}") from error


def load_weights(module: torch.nn.Module, data: Buffer) -> None:
    """Make safetensors bytes the state of ``module``, in the types they were stored in; names and shapes must match exactly.

    Raises:
        Corrupt: The bytes are not safetensors.
        InvalidInput: They are another class' weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        state: dict[str, Any] = load(bytes(data))
    except SafetensorError as error:
        raise Corrupt(f"the weights are not a safetensors file: {error}") from error
    try:
        module.load_state_dict(state, strict=True, assign=True)  # a copy would cast float64 to float32 unsaid
    except RuntimeError as error:
        raise InvalidInput(f"the weights do not fit {type(module).__name__}: {error}") from error
