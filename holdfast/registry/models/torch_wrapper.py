"""The base class of models that are not modules themselves, but have some in their attributes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["TorchModelWrapper"]


class TorchModelWrapper(ABC):
    """Turns values into vectors with torch modules that it keeps in its attributes, such as ``self.model``.

    The registry stores the weights of these modules, and makes the wrapper again by calling its class: with no arguments, or
    with those that it keeps as a dict in ``self.config``.

    Example:
        >>> import torch
        >>> class Doubled(TorchModelWrapper):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.model = torch.nn.Identity()
        ...     def encode(self, text):
        ...         return 2 * self.model(torch.tensor([float(len(each)) for each in text]))
        >>> Doubled().encode(["a", "abc"])
        tensor([2., 6.])
    """

    @abstractmethod
    def encode(self, text: Any) -> Any:
        """One vector for each value, shape (n, dim); for a single value, shape (dim,)."""

    def modules(self) -> dict[str, torch.nn.Module]:
        """The wrapped modules, by the attribute that each is in."""
        import torch

        return {name: value for name, value in vars(self).items() if isinstance(value, torch.nn.Module)}
