"""Base classes for models of one's own; they are the registry's, which stores them."""

from __future__ import annotations

from holdfast.registry.models.torch_wrapper import TorchModelWrapper

__all__ = ["TorchModelWrapper"]
