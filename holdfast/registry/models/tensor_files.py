"""Bare tensors: state dicts of torch, and safetensors files from anywhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.errors import InvalidInput
from holdfast.registry.models.model_format import SavedModel
from holdfast.registry.models.safetensors_files import StoredTensors
from holdfast.registry.models.torch_modules import WEIGHTS, read_tensors, store_state
from holdfast.storage.formats.unixfs import profile_named

if TYPE_CHECKING:
    from holdfast.registry.models.model_format import Trust
    from holdfast.registry.records import ModelRecord
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = ["TensorFiles"]

_SUFFIX = ".safetensors"


class TensorFiles:
    """A mapping from names to torch tensors, or the path of a ``.safetensors`` file; got back as such a mapping."""

    framework: ClassVar[str] = "pytorch"
    name: ClassVar[str] = "state-dict"

    def accepts(self, model: Any) -> bool:
        """Whether it is a state dict, or a file of one."""
        if isinstance(model, Path):
            return model.suffix == _SUFFIX
        torch = sys.modules.get("torch")
        return (
            torch is not None
            and isinstance(model, Mapping)
            and bool(model)
            and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in model.items())
        )

    def save(self, store: ContentStore, model: Any) -> SavedModel:
        """The tensors; a file is stored as it is."""
        if not isinstance(model, Path):
            return SavedModel(files={WEIGHTS: store_state(store, model, what="a state dict")})
        profile = profile_named(store.profile.name, "safetensors", store.profile.hash)
        cid = store.add(model, profile=profile, pin=False)
        try:
            StoredTensors(store, cid)
        except ValueError as error:
            raise InvalidInput(f"{model} can't be registered: {error}") from error
        return SavedModel(files={WEIGHTS: cid})

    def load(self, store: ContentStore, cid: Cid, record: ModelRecord, trust: Trust) -> Any:
        """New torch tensors by name."""
        del cid, trust  # tensors run nothing
        return read_tensors(StoredTensors(store, store.resolve(f"{record.files}/{WEIGHTS}")))
