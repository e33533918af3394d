"""scikit-learn's estimators and pipelines as skops files: no pickle, and no types but the ones that are known or allowed.

Estimators of LightGBM and XGBoost that follow scikit-learn's protocol are kept in the same way.
"""

from __future__ import annotations

import importlib
import io
import json
import sys
import zipfile
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.errors import Corrupt, Denied, InvalidInput, require
from holdfast.registry.models.model_format import SavedModel

if TYPE_CHECKING:
    from holdfast.registry.models.model_format import Trust
    from holdfast.registry.records import ModelRecord
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = ["SklearnModels"]

_FILE = "model.skops"
_SCHEMA = "schema.json"
_WHY = "keeping scikit-learn models"
_LIBRARIES = ("sklearn", "lightgbm", "xgboost")
"""Their estimators do nothing but compute when they are made again."""
_PARTS = frozenset(
    {
        "collections.OrderedDict",
        "lightgbm.basic.Booster",
        "sklearn.tree._tree.Tree",
        "xgboost.core.Booster",
    }
)
"""What estimators consist of, and skops by itself does not trust."""
_TIME = (1980, 1, 1, 0, 0, 0)
"""The earliest that a zip file can say."""


class SklearnModels:
    """An estimator as one skops file; equal estimators have equal bytes."""

    framework: ClassVar[str] = "sklearn"
    name: ClassVar[str] = "skops"

    def accepts(self, model: Any) -> bool:
        """Whether it is an estimator."""
        base = sys.modules.get("sklearn.base")  # who has an estimator has imported it
        return base is not None and isinstance(model, base.BaseEstimator)

    def save(self, store: ContentStore, model: Any) -> SavedModel:
        """An estimator as it was fitted; how many features it takes becomes its signature."""
        skops = require("skops.io", extra="models", why=_WHY)
        try:
            data = _canonical(skops.dumps(model))
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"{type(model).__name__} can't be stored with skops: {error}") from error
        features = getattr(model, "n_features_in_", None)
        inputs = (
            ({"name": "x", "dtype": "float64", "shape": [int(features)]},) if features is not None else ()
        )
        del store  # one file, small enough to be given as bytes
        return SavedModel(files={_FILE: data}, inputs=inputs)

    def load(self, store: ContentStore, cid: Cid, record: ModelRecord, trust: Trust) -> Any:
        """The fitted estimator."""
        skops = require("skops.io", extra="models", why=_WHY)
        data = bytes(store.open(store.resolve(f"{record.files}/{_FILE}")))
        try:
            wanted = skops.get_untrusted_types(data=data)
            strange = [name for name in wanted if name not in trust.types and not _is_known(name)]
            if strange:
                raise Denied(
                    f"model {cid} is made of types that are not known to be harmless: {', '.join(strange)}. If you trust them, "
                    f"say trusted_types={strange!r}"
                )
            return skops.loads(data, trusted=wanted)
        except (KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
            if isinstance(error, Denied):
                raise
            raise Corrupt(f"the file of model {cid} can't be read with skops: {error}") from error


def _is_known(name: str) -> bool:
    module, _, kind = name.rpartition(".")
    if name in _PARTS:
        return True
    if module.partition(".")[0] not in _LIBRARIES:
        return False
    from sklearn.base import BaseEstimator

    try:
        found = getattr(importlib.import_module(module), kind, None)
    except ImportError:
        return False
    return isinstance(found, type) and issubclass(found, BaseEstimator)


def _canonical(data: bytes) -> bytes:
    """The same skops file without the addresses and times that differ from one writing to the next."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        schema = json.loads(old.read(_SCHEMA))
        numbers: dict[Any, int] = {}
        files: dict[str, str] = {}
        _number(schema, numbers, files, [0])
        written = io.BytesIO()
        with zipfile.ZipFile(written, "w") as new:
            for name, numbered in files.items():
                new.writestr(zipfile.ZipInfo(numbered, _TIME), old.read(name))
            text = json.dumps(schema, indent=2)
            new.writestr(zipfile.ZipInfo(_SCHEMA, _TIME), text)
    return written.getvalue()


def _number(node: Any, numbers: dict[Any, int], files: dict[str, str], last: list[int]) -> None:
    """Number the objects of a schema, and the files that hold them, in the order in which they come."""
    if isinstance(node, list):
        for each in node:
            _number(each, numbers, files, last)
    elif isinstance(node, dict):
        if "__id__" in node:
            # Plain values are shared or not as the interpreter likes: each has a number of its own.
            key = object() if node.get("__loader__") == "JsonNode" else node["__id__"]
            if key not in numbers:
                last[0] += 1
                numbers[key] = last[0]
            node["__id__"] = numbers[key]
        if isinstance(node.get("file"), str):
            old = node["file"]
            _, dot, suffix = old.rpartition(".")
            node["file"] = files.setdefault(old, f"{len(files)}{dot}{suffix}")
        for each in node.values():
            _number(each, numbers, files, last)
