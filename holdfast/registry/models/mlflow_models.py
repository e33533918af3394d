"""MLflow's model folders: one comes in and goes out byte for byte, and is loaded by MLflow itself."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.errors import Corrupt, Denied, InvalidInput, require
from holdfast.registry.models.model_format import SavedModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from holdfast.registry.models.model_format import Trust
    from holdfast.registry.records import ModelRecord
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = ["MlflowModels", "read_mlmodel"]

MLMODEL = "MLmodel"
_TYPES = {
    "boolean": "bool",
    "integer": "int32",
    "long": "int64",
    "float": "float32",
    "double": "float64",
    "string": "str",
    "binary": "bytes",
    "datetime": "datetime64[ns]",
}
"""NumPy's names of MLflow's column types; what has none, such as a list of objects, is ``object``."""


class MlflowModels:
    """A folder with a file ``MLmodel``, of any of MLflow's flavours; got back as ``mlflow.pyfunc`` gives it."""

    framework: ClassVar[str] = "mlflow"
    name: ClassVar[str] = "folder"

    def accepts(self, model: Any) -> bool:
        """Whether it is the path of such a folder."""
        return isinstance(model, Path) and (model / MLMODEL).is_file()

    def save(self, store: ContentStore, model: Any) -> SavedModel:
        """All files of the folder as they are; the signature is MLflow's own."""
        signature = (
            read_mlmodel((model / MLMODEL).read_bytes(), where=str(model / MLMODEL)).get("signature") or {}
        )
        try:
            inputs, outputs = (_sides(signature.get(side)) for side in ("inputs", "outputs"))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidInput(
                f"the signature in {model / MLMODEL} is not one of MLflow's: {error!r}"
            ) from error
        return SavedModel(files=store.add(model, pin=False), inputs=inputs, outputs=outputs)

    def load(self, store: ContentStore, cid: Cid, record: ModelRecord, trust: Trust) -> Any:
        """The model with MLflow's ``predict``; its files stay in a temporary folder for as long as it is in use."""
        if not trust.pickle:
            raise Denied(
                f"model {cid} is an MLflow folder, and MLflow runs what is in it (pickles, code) to load it. If somebody whose "
                "key you trust has signed it, say allow_pickle=True"
            )
        pyfunc = require("mlflow.pyfunc", extra="mlflow", why="loading MLflow models")
        if MLMODEL not in [entry.name for entry in store.ls(record.files)]:
            raise InvalidInput(f"the files of model {cid} are no MLflow folder: there is no {MLMODEL}")
        folder = tempfile.mkdtemp(prefix="holdfast-model-")
        try:
            store.get(record.files, Path(folder) / "model")
            model = pyfunc.load_model(str(Path(folder) / "model"))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        # Some flavours read files when they predict.
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
        return model


def read_mlmodel(data: bytes, *, where: str) -> dict[str, Any]:
    """What an ``MLmodel`` file says.

    Raises:
        Corrupt: It is not YAML with fields.
    """
    import yaml

    try:
        found = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise Corrupt(f"{where} is not what MLflow writes: {error}") from error
    if not isinstance(found, dict):
        raise Corrupt(f"{where} is not what MLflow writes: it has no fields")
    return found


def _sides(written: str | None) -> tuple[Mapping[str, Any], ...]:
    """Inputs or outputs of a signature, which MLflow keeps as JSON inside of YAML."""
    return tuple(_side(at, each) for at, each in enumerate(json.loads(written) if written else []))


def _side(at: int, column: dict[str, Any]) -> Mapping[str, Any]:
    name = str(column.get("name", at))  # where MLflow has no name, it goes by position
    if column["type"] != "tensor":
        return {"name": name, "dtype": _TYPES.get(column["type"], "object"), "shape": []}
    spec = column["tensor-spec"]
    shape = [int(size) for size in spec["shape"]]
    # A first size of -1 is the batch, which is no part of a sample.
    return {"name": name, "dtype": str(spec["dtype"]), "shape": shape[1:] if shape[:1] == [-1] else shape}
