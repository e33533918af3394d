"""scikit-learn's estimators and pipelines as skops files: no pickle, and no types but the ones that are known or allowed.

Estimators of LightGBM and XGBoost that follow scikit-learn's protocol are kept in the same way.
"""

from __future__ import annotations

import struct
import sys
import zipfile
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.errors import Corrupt, Denied, InvalidInput, require
from holdfast.registry.models.model_format import SavedModel
from holdfast.registry.models.sklearn_types import check_arrays, is_harmless
from holdfast.registry.models.skops_files import SkopsFile, canonical

if TYPE_CHECKING:
    from collections.abc import Mapping

    from holdfast.registry.models.model_format import Trust
    from holdfast.registry.records import ModelRecord
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = ["SklearnModels"]

_FILE = "model.skops"
_WHY = "keeping scikit-learn models"
_BROKEN = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)
"""What files that nobody's skops wrote end in."""


class SklearnModels:
    """An estimator as one skops file; equal estimators have equal bytes, where they hold no measured times (searches do)."""

    framework: ClassVar[str] = "sklearn"
    name: ClassVar[str] = "skops"

    def accepts(self, model: Any) -> bool:
        """Whether it is an estimator."""
        base = sys.modules.get("sklearn.base")  # who has an estimator has imported it
        return base is not None and isinstance(model, base.BaseEstimator)

    def save(self, store: ContentStore, model: Any) -> SavedModel:
        """An estimator as it was fitted; how many features it takes becomes its signature."""
        del store  # one file, small enough to be given as bytes
        skops = require("skops.io", extra="models", why=_WHY)
        try:
            data = canonical(skops.dumps(model))
        except (RecursionError, TypeError, ValueError) as error:
            raise InvalidInput(f"{type(model).__name__} can't be stored with skops: {error}") from error
        if lost := [name for name in SkopsFile(data).loaders() if not _found_again(name)]:
            raise InvalidInput(
                f"{type(model).__name__} could not be loaded again: {', '.join(sorted(lost))} must be at the top level of a "
                "module that can be imported"
            )
        return SavedModel(files={_FILE: data}, inputs=_signature(model))

    def load(self, store: ContentStore, cid: Cid, record: ModelRecord, trust: Trust) -> Any:
        """The fitted estimator."""
        skops = require("skops.io", extra="models", why=_WHY)
        data = bytes(store.open(store.resolve(f"{record.files}/{_FILE}")))
        try:
            file = SkopsFile(data)
            wanted = skops.get_untrusted_types(data=data)
            loaders = file.loaders()
            strange = [
                name
                for name in wanted
                if name not in trust.types and not is_harmless(name, loaders.get(name, ()))
            ]
            if not strange:
                check_arrays(file)
        except _BROKEN as error:
            raise _corrupt(cid, error) from error
        if strange:
            raise Denied(
                f"model {cid} is made of what is not known to be harmless: {', '.join(strange)}. If you trust that, "
                f"say trusted_types={strange!r}"
            )
        for package in {name.partition(".")[0] for name in wanted}:
            require(package, extra="models", why=f"model {cid}")
        try:
            return skops.loads(data, trusted=wanted)
        except _BROKEN as error:
            raise _corrupt(cid, error) from error
        except Exception as error:
            # Boosters have an error class of their own for what they can't read.
            if type(error).__name__ not in ("LightGBMError", "XGBoostError"):
                raise
            raise _corrupt(cid, error) from error


def _corrupt(cid: Cid, error: BaseException) -> Corrupt:
    return Corrupt(f"the file of model {cid} can't be read with skops: {error or type(error).__name__}")


def _signature(model: Any) -> tuple[Mapping[str, Any], ...]:
    features = getattr(model, "n_features_in_", None)
    if features is None:
        return ()
    return ({"name": "x", "dtype": "float64", "shape": [int(features)]},)


def _found_again(name: str) -> bool:
    module, _, kind = name.rpartition(".")
    if module == "__main__":
        return False
    # Plain values have no module; operator's classes are made by the module's functions.
    return module in ("None", "operator") or hasattr(sys.modules.get(module), kind)
