"""Hugging Face transformers: a folder in, the same folder out, byte for byte."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.errors import Denied, InvalidInput, require
from holdfast.registry.models.model_format import SavedModel
from holdfast.storage.formats.unixfs import profile_named

if TYPE_CHECKING:
    from holdfast.registry.models.model_format import Trust
    from holdfast.registry.records import ModelRecord
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = ["TransformersModels"]

_CONFIG = "config.json"
_WHY = "loading transformers models"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5")


class TransformersModels:
    """A folder that transformers' ``save_pretrained`` wrote, or a model of that library; got back as a model."""

    framework: ClassVar[str] = "transformers"
    name: ClassVar[str] = "folder"

    def accepts(self, model: Any) -> bool:
        """Whether it is such a folder, or such a model."""
        if isinstance(model, Path):
            return (model / _CONFIG).is_file()
        library = sys.modules.get("transformers")
        return library is not None and isinstance(model, library.PreTrainedModel)

    def save(self, store: ContentStore, model: Any) -> SavedModel:
        """All files of the folder, with weights cut at the borders of their tensors."""
        profile = profile_named(store.profile.name, "safetensors", store.profile.hash)
        if isinstance(model, Path):
            folder = store.add(model, profile=profile, pin=False)
        else:
            with tempfile.TemporaryDirectory(prefix="holdfast-model-") as written:
                model.save_pretrained(written)
                folder = store.add(written, profile=profile, pin=False)
        return SavedModel(files=folder)

    def load(self, store: ContentStore, cid: Cid, record: ModelRecord, trust: Trust) -> Any:
        """The model, with its weights, by the class that its own config names.

        Weights are read from safetensors; those that are pickled are opened only where pickles are allowed.
        """
        library = require("transformers", extra="hf", why=_WHY)
        names = [entry.name for entry in store.ls(record.files)]
        if _CONFIG not in names:
            raise InvalidInput(f"the files of model {cid} are no transformers folder: there is no {_CONFIG}")
        pickled = [name for name in names if name.endswith(_PICKLES)]
        if pickled and not any(name.endswith(".safetensors") for name in names) and not trust.pickle:
            raise Denied(
                f"the weights of model {cid} are pickled ({', '.join(pickled)}), and opening them may run code: convert them to "
                "safetensors, or say allow_pickle=True if somebody whose key you trust has signed them"
            )
        with tempfile.TemporaryDirectory(prefix="holdfast-model-") as folder:
            written = Path(folder) / "model"
            store.get(record.files, written)
            config = library.AutoConfig.from_pretrained(
                written, trust_remote_code=trust.code, local_files_only=True
            )
            architectures = getattr(config, "architectures", None) or ["AutoModel"]
            cls = getattr(library, architectures[0], library.AutoModel)
            model = cls.from_pretrained(
                written,
                trust_remote_code=trust.code,
                local_files_only=True,
                use_safetensors=None if trust.pickle else True,
            )
        return model.eval()
