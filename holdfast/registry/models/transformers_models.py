"""Hugging Face transformers: a folder in, the same folder out, byte for byte."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.errors import Corrupt, Denied, InvalidInput, Unsupported, require
from holdfast.registry.models.model_format import SavedModel
from holdfast.registry.models.safetensors_files import TYPES, StoredTensors
from holdfast.registry.models.torch_modules import fill_tensors
from holdfast.storage.formats.unixfs import profile_named

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

    from holdfast.registry.models.model_format import Trust
    from holdfast.registry.records import ModelRecord
    from holdfast.storage.cid import Buffer, Cid
    from holdfast.storage.content import ContentStore

__all__ = ["TransformersModels"]

_CONFIG = "config.json"
_WHOLE = "model.safetensors"
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
"""What transformers reads; variants in other types may stand beside them."""
_WHY = "loading transformers models"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack")
_LARGEST_CONFIG_BYTES = 8 << 20
_DTYPE_SINCE = 5
"""The release that calls its argument ``dtype``; before, it was ``torch_dtype``."""


class TransformersModels:
    """A folder that transformers' ``save_pretrained`` wrote, or a model of that library; got back as a model.

    A tokenizer is one of the folder's files: ``ModelRegistry.save_files`` writes them out again.
    """

    framework: ClassVar[str] = "transformers"
    name: ClassVar[str] = "folder"

    def accepts(self, model: Any) -> bool:
        """Whether it is such a folder, or such a model."""
        if isinstance(model, Path):
            return (model / _CONFIG).is_file()
        library = sys.modules.get("transformers.modeling_utils")  # who has a model has imported it
        return library is not None and isinstance(model, library.PreTrainedModel)

    def save(self, store: ContentStore, model: Any) -> SavedModel:
        """All files of the folder, with weights cut at the borders of their tensors."""
        if isinstance(model, Path):
            return SavedModel(files=_files_of(store, model))
        kind = type(model).__name__
        own = getattr(require("transformers", extra="hf", why=_WHY), kind, None)
        if own is not type(model) and not getattr(
            model.config, "auto_map", None
        ):  # else the folder brings its code
            raise InvalidInput(
                f"{kind} is no class of transformers, which could not load it again: call its register_for_auto_class() first, so "
                "that its code goes along, or store its state_dict()"
            )
        with tempfile.TemporaryDirectory(prefix="holdfast-model-") as written:
            model.save_pretrained(written)
            return SavedModel(files=_files_of(store, Path(written)))

    def load(self, store: ContentStore, cid: Cid, record: ModelRecord, trust: Trust) -> Any:
        """The model, with its weights in the types they were stored in, by the class that its own config names.

        Weights are read from safetensors; those that are pickled are opened only where pickles are allowed.
        """
        names = [entry.name for entry in store.ls(record.files)]
        if _CONFIG not in names:
            raise InvalidInput(f"the files of model {cid} are no transformers folder: there is no {_CONFIG}")
        config = _config_of(store, cid, record)
        _check_code(cid, config, trust)
        pickled = [name for name in names if name.endswith(_PICKLES)]
        if not any(name.endswith(".safetensors") for name in names) and not trust.pickle:
            if not pickled:
                raise InvalidInput(f"the folder of model {cid} has no weights: {', '.join(names)}")
            raise Denied(
                f"the weights of model {cid} are pickled ({', '.join(pickled)}), and opening them may run code: convert them to "
                "safetensors, or say allow_pickle=True if somebody whose key you trust has signed them"
            )
        library = require("transformers", extra="hf", why=_WHY)
        cls = _class_of(library, cid, config, trust)
        old = int(library.__version__.partition(".")[0]) < _DTYPE_SINCE
        with tempfile.TemporaryDirectory(prefix="holdfast-model-") as folder:
            written = Path(folder) / "model"
            store.get(record.files, written)
            try:
                model, info = cls.from_pretrained(
                    written,
                    local_files_only=True,
                    output_loading_info=True,
                    use_safetensors=None if trust.pickle else True,
                    **{"torch_dtype" if old else "dtype": "auto"},
                    **({"trust_remote_code": True} if trust.code else {}),
                )
            except ImportError as error:  # of what its config asks for, such as a way to quantize
                raise Unsupported(f"model {cid} needs a package that is not installed: {error}") from error
            except Exception as error:
                # safetensors' own error is no ValueError.
                if not isinstance(error, (KeyError, OSError, RuntimeError, TypeError, ValueError)) and (
                    type(error).__name__ != "SafetensorError"
                ):
                    raise
                raise Corrupt(f"the folder of model {cid} can't be read by transformers: {error}") from error
        # What is not in the file would be random.
        if lost := sorted(str(name) for name in (*info["missing_keys"], *info["mismatched_keys"])):
            raise Corrupt(
                f"the weights of model {cid} do not fit {cls.__name__}: they lack {', '.join(lost[:5])}"
            )
        _give_stored_types(store, record, model)
        return model.eval()


def _give_stored_types(store: ContentStore, record: ModelRecord, model: Any) -> None:
    """Read again what transformers has brought to the one type that it gives all weights."""
    import torch

    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    prefix = f"{model.base_model_prefix}."
    weights = {entry.name: entry.cid for entry in store.ls(record.files) if _WEIGHTS.fullmatch(entry.name)}
    for cid in [weights[_WHOLE]] if _WHOLE in weights else weights.values():
        stored, again = StoredTensors(store, cid), {}
        for name in stored:
            dtype, shape = stored.form(name)
            kept = getattr(torch, TYPES[dtype])
            names = (name, prefix + name, name.removeprefix(prefix))
            tensor = next((own[each] for each in names if each in own), None)
            if tensor is None or tuple(tensor.shape) != shape or tensor.dtype == kept:
                continue
            if kept.is_floating_point and tensor.is_floating_point():  # else it was quantized
                tensor.data = torch.empty(shape, dtype=kept)
                again[name] = [tensor.data]
        fill_tensors(stored, again)


def _files_of(store: ContentStore, folder: Path) -> Cid | Mapping[str, Buffer | Cid]:
    profile = profile_named(store.profile.name, "safetensors", store.profile.hash)
    if not any(path.is_symlink() for path in folder.rglob("*")):
        return store.add(folder, profile=profile, pin=False)
    # The hub's own folders consist of links to files elsewhere.
    return {
        str(path.relative_to(folder)): store.add(
            path, profile=profile if path.suffix == ".safetensors" else None, pin=False
        )
        for path in _followed(folder, ())
    }


def _followed(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """All files of a folder, and of the folders that links in it lead to."""
    real = folder.resolve()
    if real in above:
        raise InvalidInput(f"{folder} is a link to a folder around it, so its files have no end: remove it")
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _followed(path, (*above, real))
        elif path.is_file():
            yield path
        else:
            raise InvalidInput(f"{path} is a link that leads to no file: mend or remove it")


def _config_of(store: ContentStore, cid: Cid, record: ModelRecord) -> dict[str, Any]:
    cid_of_file = store.resolve(f"{record.files}/{_CONFIG}")
    if (size := store.stat(cid_of_file).size) > _LARGEST_CONFIG_BYTES:
        raise Corrupt(f"{_CONFIG} of model {cid} is {size} bytes long")
    try:
        config = json.loads(bytes(store.open(cid_of_file)))
    except (RecursionError, ValueError) as error:
        raise Corrupt(f"{_CONFIG} of model {cid} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise Corrupt(f"{_CONFIG} of model {cid} is no JSON object")
    return config


def _check_code(cid: Cid, config: dict[str, Any], trust: Trust) -> None:
    """Refuse configs that name code: of the folder, or of the hub, from where transformers would fetch it."""
    foreign = [
        f"{key}={value!r:.100}"
        for key, value in _entries(config)
        if key == "auto_map" or (key.endswith("_implementation") and "/" in str(value))
    ]
    if foreign and not trust.code:
        raise Denied(
            f"model {cid} brings code of its own ({', '.join(foreign)}): look at it with 'holdfast get', then say trust_code=True"
        )


def _class_of(library: ModuleType, cid: Cid, config: dict[str, Any], trust: Trust) -> Any:
    named = config.get("architectures") or ["AutoModel"]
    name = named[0] if isinstance(named, list) else named
    if trust.code and "auto_map" in config:
        return library.AutoModel
    cls = getattr(library, name, None) if isinstance(name, str) else None
    # Anything else would be a way to call whatever the library has under that name.
    known = isinstance(cls, type) and (cls is library.AutoModel or issubclass(cls, library.PreTrainedModel))
    if not known:
        raise InvalidInput(
            f"model {cid} is of the class {name!r:.100}, which transformers {library.__version__} does not have"
        )
    return cls


def _entries(node: Any) -> Iterator[tuple[str, Any]]:
    waiting = [node]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield from each.items()
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)
