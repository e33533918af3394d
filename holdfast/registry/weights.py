"""Torch modules as safetensors bytes, and back. Never pickle: a CID from a stranger must not run code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdfast.errors import Corrupt, InvalidInput

if TYPE_CHECKING:
    import torch

    from holdfast.storage.cid import Buffer

__all__ = ["load_weights", "weights_to_bytes"]


def weights_to_bytes(module: torch.nn.Module) -> bytes:
    """The module's state as safetensors; equal tensors give equal bytes.

    Raises:
        InvalidInput: Two names share one tensor's memory in a way that safetensors can't hold.
    """
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    try:
        return bytes(save(state))
    except RuntimeError as error:
        raise InvalidInput(f"the weights of {type(module).__name__} can't be stored: {error}") from error


def load_weights(module: torch.nn.Module, data: Buffer) -> None:
    """Load safetensors bytes into ``module``; names and shapes must match exactly.

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
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise InvalidInput(f"the weights do not fit {type(module).__name__}: {error}") from error
