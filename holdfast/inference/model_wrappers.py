"""Base classes for models of one's own that encode: what they wrap is trained, stored and moved like any module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

__all__ = ["TorchModelWrapper"]


class TorchModelWrapper(torch.nn.Module, ABC):
    """A torch module that turns values into vectors by its method :meth:`encode`.

    Keep the wrapped module in an attribute, such as ``self.model``, in ``__init__``: it is then a part of this one, and the
    registry stores its weights. A constructor with arguments keeps them in ``self.config``, so that the registry can make the
    model again.

    Example:
        >>> class Lengths(TorchModelWrapper):
        ...     def encode(self, text):
        ...         return torch.tensor([float(len(each)) for each in text])
        >>> Lengths()(["a", "abc"])
        tensor([1., 3.])
    """

    @abstractmethod
    def encode(self, text: Any) -> Any:
        """One vector for each value, shape (n, dim); for a single value, shape (dim,)."""

    def forward(self, text: Any) -> Any:
        """What :meth:`encode` gives."""
        return self.encode(text)
