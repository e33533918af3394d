"""Keras models as ``.keras`` files: layers by name, weights as HDF5, and no code of their own."""

from __future__ import annotations

import io
import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.errors import Corrupt, Denied, InvalidInput, require
from holdfast.registry.models.canonical import dicts_in, timeless_zip
from holdfast.registry.models.model_format import SavedModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from holdfast.registry.models.model_format import Trust
    from holdfast.registry.records import ModelRecord
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = ["KerasModels"]

_FILE = "model.keras"
_SUFFIX = ".keras"
_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_WHY = "Keras models"
_HOMES = (
    "keras.constraints",
    "keras.dtype_policies",
    "keras.initializers",
    "keras.layers",
    "keras.losses",
    "keras.metrics",
    "keras.models",
    "keras.ops",
    "keras.optimizers",
    "keras.quantizers",
    "keras.random",
    "keras.regularizers",
    "keras.src.backend.jax.optimizers",
    "keras.src.backend.tensorflow.optimizers",
    "keras.src.backend.torch.optimizers",
    "keras.src.models",
    "keras.src.ops",
)
"""Where Keras keeps what models are made of."""
_TOP = frozenset({"DTypePolicy", "FloatDTypePolicy", "Functional", "Model", "Sequential", "SeedGenerator"})
_FUNCTIONS = ("keras.activations", "keras.losses", "keras.metrics")
_PLAIN = frozenset({"__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__", "__tensor__", "__tuple__"})
_RUNNING = frozenset({"FlaxLayer", "JaxLayer", "Lambda", "TFSMLayer", "TorchModuleWrapper", "__lambda__"})
"""Layers that bring a program with them, or a file's path."""


class KerasModels:
    """A ``keras.Model``, or the path of a ``.keras`` file, which is kept as it is; equal models have equal bytes."""

    framework: ClassVar[str] = "keras"
    name: ClassVar[str] = "keras"

    def accepts(self, model: Any) -> bool:
        """Whether it is a model, or a file of one."""
        if isinstance(model, Path):
            return model.suffix == _SUFFIX
        keras = sys.modules.get("keras")  # who has a model has imported it
        kind = getattr(keras, "Model", None)
        return kind is not None and isinstance(model, kind)

    def save(self, store: ContentStore, model: Any) -> SavedModel:
        """A model with its weights, and its optimizer's if it is compiled."""
        if isinstance(model, Path):
            try:
                _Archive(model.read_bytes())
            except (KeyError, OSError, RecursionError, ValueError, zipfile.BadZipFile) as error:
                raise InvalidInput(f"{model} is no file of Keras 3: {error}") from error
            return SavedModel(files={_FILE: store.add(model, pin=False)})
        with tempfile.TemporaryDirectory(prefix="holdfast-model-") as folder:
            file = Path(folder) / _FILE
            try:
                model.save(file)
            except (NotImplementedError, TypeError, ValueError) as error:
                raise InvalidInput(f"{type(model).__name__} can't be stored by Keras: {error}") from error
            data = _canonical(file.read_bytes())
        return SavedModel(
            files={_FILE: data}, inputs=_signature(model, "inputs"), outputs=_signature(model, "outputs")
        )

    def load(self, store: ContentStore, cid: Cid, record: ModelRecord, trust: Trust) -> Any:
        """The model, compiled if it was."""
        keras = require("keras", extra="tensorflow", why=_WHY)
        data = bytes(store.open(store.resolve(f"{record.files}/{_FILE}")))
        try:
            archive = _Archive(data)
            strange = sorted(set(archive.strange()) - set(trust.types))
            if not strange or trust.pickle:
                archive.check_weights()
        except (
            AttributeError,
            KeyError,
            OSError,
            RecursionError,
            TypeError,
            ValueError,
            zipfile.BadZipFile,
        ) as error:
            raise Corrupt(f"the file of model {cid} is no Keras model: {error}") from error
        if strange and not trust.pickle:
            raise Denied(
                f"model {cid} has layers that may run something: {', '.join(strange)}. If they are yours, and imported, say "
                f"trusted_types={strange!r}; programs in the file itself run for trusted signers only, with allow_pickle=True"
            )
        with tempfile.TemporaryDirectory(prefix="holdfast-model-") as folder:
            file = Path(folder) / _FILE
            file.write_bytes(data)
            try:
                return keras.saving.load_model(file, safe_mode=not trust.pickle)
            except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
                raise Corrupt(f"the file of model {cid} can't be read by Keras: {error}") from error


class _Archive:
    """A ``.keras`` file, opened; nothing in it is made."""

    def __init__(self, data: bytes) -> None:
        self._zip = zipfile.ZipFile(io.BytesIO(data))
        parts = self._zip.infolist()
        names = [part.filename for part in parts]
        if len(set(names)) < len(names) or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError("its parts are compressed, or there are two of one name")
        self.config = json.loads(self._zip.read(_CONFIG))
        self._zip.read(_METADATA)
        if not isinstance(self.config, dict) or _WEIGHTS not in names:
            raise ValueError("it has no config, or no weights")

    def strange(self) -> Iterator[str]:
        """Full names of what is not Keras' own, or runs what the file says."""
        for node in dicts_in(self.config):
            if isinstance(node.get("vocabulary"), str):
                yield f"{node.get('name')}.vocabulary"  # a path
            if "class_name" in node and not _is_known(node):
                kind = node.get("config") if node["class_name"] == "function" else node["class_name"]
                yield f"{node.get('module')}.{kind}"

    def check_weights(self) -> None:
        """Refuse HDF5 that reads other files.

        Raises:
            OSError: It is no HDF5.
            ValueError: It does.
        """
        import h5py  # comes with Keras

        with h5py.File(io.BytesIO(self._zip.read(_WEIGHTS)), "r") as file:
            waiting = [file]
            while waiting:
                group = waiting.pop()
                for name in group:
                    link = group.get(name, getlink=True)
                    if not isinstance(link, h5py.HardLink):
                        raise ValueError(f"its weights have a link in {name!r:.100}")  # noqa: TRY004 -- the file is wrong
                    each = group[name]
                    if isinstance(each, h5py.Group):
                        waiting.append(each)
                    elif each.is_virtual or each.external:
                        raise ValueError(f"its weights keep {name!r:.100} in another file")


def _is_known(node: Mapping[str, Any]) -> bool:
    module, name = node.get("module"), str(node["class_name"])
    if name in _RUNNING:
        return False
    if module is None:
        return name in _PLAIN
    if name == "function":
        return module in _FUNCTIONS
    return (module == "keras" and name in _TOP) or any(f"{module}.".startswith(f"{home}.") for home in _HOMES)


def _canonical(data: bytes) -> bytes:
    """The same file without its date, and without addresses."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    metadata = json.loads(parts[_METADATA])
    metadata.pop("date_saved", None)
    parts[_METADATA] = json.dumps(metadata).encode()
    config = json.loads(parts[_CONFIG])
    numbers: dict[Any, int] = {}
    for node in dicts_in(config):
        if "shared_object_id" in node:
            node["shared_object_id"] = numbers.setdefault(node["shared_object_id"], len(numbers) + 1)
    parts[_CONFIG] = json.dumps(config).encode()
    return timeless_zip(parts.items())


def _signature(model: Any, side: str) -> tuple[Mapping[str, Any], ...]:
    tensors = getattr(model, side, None)  # models that are classes of their own may not know
    if not isinstance(tensors, list):
        return ()
    return tuple(
        {
            "name": str(each.name),
            "dtype": str(each.dtype),
            "shape": [-1 if size is None else int(size) for size in each.shape[1:]],
        }
        for each in tensors
    )
