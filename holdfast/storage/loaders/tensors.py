"""A batch of NumPy arrays as torch tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["to_tensors"]


def to_tensors(batch: Mapping[str, Any], *, pin_memory: bool = False) -> dict[str, Any]:
    """Numbers as tensors; texts and bytes as lists, lists of different lengths as lists of tensors; dates and durations stay
    NumPy arrays.

    An array that may be written to becomes a tensor without a copy. One that is read-only is copied: it may be a map of the
    store, torch has no read-only tensors, and to write to such a map ends the process.

    Args:
        batch: One array or list a column, rows first.
        pin_memory: Into page-locked memory, from which a GPU copies while the program goes on.

    Raises:
        InvalidInput: ``pin_memory`` without CUDA.
    """
    if pin_memory:
        check_pin_memory()
    return {name: _tensor(values, pin_memory=pin_memory) for name, values in batch.items()}


def check_pin_memory() -> None:
    """Refuse to pin memory where nothing can copy from it.

    Raises:
        InvalidInput: There is no CUDA device.
    """
    import torch

    if not torch.cuda.is_available():
        raise InvalidInput("pin_memory=True is for copies to a CUDA device, and torch finds none here")


def _tensor(values: Any, *, pin_memory: bool) -> Any:
    import torch

    if isinstance(values, torch.Tensor):  # what a transform made
        return values.pin_memory() if pin_memory else values
    if isinstance(values, np.generic):
        values = np.asarray(values)
    if not isinstance(values, np.ndarray):
        return values
    if (
        values.dtype.kind in "mM"
    ):  # dates and durations have no tensor form, and lists of them lose their unit
        return values
    if values.dtype.kind not in "biufc" or values.dtype.itemsize > _MAX_ITEM_BYTES[values.dtype.kind]:
        return [_tensor(v, pin_memory=False) if isinstance(v, np.ndarray) else v for v in values.tolist()]
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    if pin_memory:
        pinned = torch.empty(values.shape, dtype=_torch_dtype(values.dtype), pin_memory=True)
        np.copyto(pinned.numpy(), values)
        return pinned
    if not values.flags.writeable or any(stride < 0 for stride in values.strides):
        values = values.copy()
    return torch.from_numpy(values)


_MAX_ITEM_BYTES = {"b": 1, "i": 8, "u": 8, "f": 8, "c": 16}


def _torch_dtype(dtype: np.dtype[Any]) -> Any:
    import torch

    return torch.from_numpy(np.empty(0, dtype)).dtype
