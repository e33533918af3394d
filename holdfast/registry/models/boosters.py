"""Boosters of XGBoost and LightGBM in their libraries' own formats, and their estimators for scikit-learn."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.errors import Corrupt, InvalidInput, require
from holdfast.registry.models.boosted_trees import check_lightgbm, check_xgboost
from holdfast.registry.models.model_format import SavedModel
from holdfast.registry.models.sklearn_models import SklearnModels

if TYPE_CHECKING:
    from holdfast.registry.models.model_format import Trust
    from holdfast.registry.records import ModelRecord
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = ["LightgbmBoosters", "LightgbmEstimators", "XgboostBoosters", "XgboostEstimators"]

_XGBOOST_FILE = "model.ubj"
_LIGHTGBM_FILE = "model.txt"
_BEST = "best_iteration"


class XgboostBoosters:
    """An ``xgboost.Booster`` in XGBoost's UBJSON."""

    framework: ClassVar[str] = "xgboost"
    name: ClassVar[str] = "ubjson"

    def accepts(self, model: Any) -> bool:
        """Whether it is a booster of XGBoost."""
        library = sys.modules.get("xgboost.core")
        return library is not None and isinstance(model, library.Booster)

    def save(self, store: ContentStore, model: Any) -> SavedModel:
        """A booster with its attributes and feature names; how many features it takes becomes its signature."""
        del store  # one file, small enough to be given as bytes
        try:
            data = bytes(model.save_raw("ubj"))
            check_xgboost(data)
        except ValueError as error:
            raise InvalidInput(f"this XGBoost model can't be stored; is it trained? {error}") from error
        inputs = ({"name": "x", "dtype": "float32", "shape": [int(model.num_features())]},)
        return SavedModel(files={_XGBOOST_FILE: data}, inputs=inputs)

    def load(self, store: ContentStore, cid: Cid, record: ModelRecord, trust: Trust) -> Any:
        """The booster."""
        del trust  # trees run nothing
        library = require("xgboost", extra="models", why=f"model {cid}")
        data = bytes(store.open(store.resolve(f"{record.files}/{_XGBOOST_FILE}")))
        booster = library.Booster()
        try:
            check_xgboost(data)
            booster.load_model(bytearray(data))
        except ValueError as error:  # XGBoost's own errors are such
            raise Corrupt(f"the file of model {cid} is no XGBoost model: {error}") from error
        return booster


class LightgbmBoosters:
    """A ``lightgbm.Booster`` in LightGBM's text."""

    framework: ClassVar[str] = "lightgbm"
    name: ClassVar[str] = "text"

    def accepts(self, model: Any) -> bool:
        """Whether it is a booster of LightGBM."""
        library = sys.modules.get("lightgbm.basic")
        return library is not None and isinstance(model, library.Booster)

    def save(self, store: ContentStore, model: Any) -> SavedModel:
        """A booster with all its trees, and which of them was the best."""
        del store  # one file, small enough to be given as bytes
        text = model.model_to_string(num_iteration=-1)
        try:
            check_lightgbm(text)
        except ValueError as error:
            raise InvalidInput(f"this LightGBM model can't be stored: {error}") from error
        return SavedModel(
            files={_LIGHTGBM_FILE: text.encode()},
            config={_BEST: int(model.best_iteration)},
            inputs=({"name": "x", "dtype": "float64", "shape": [int(model.num_feature())]},),
        )

    def load(self, store: ContentStore, cid: Cid, record: ModelRecord, trust: Trust) -> Any:
        """The booster, which predicts; LightGBM goes on with its training through ``init_model``."""
        del trust  # trees run nothing
        library = require("lightgbm", extra="models", why=f"model {cid}")
        best = record.config.get(_BEST)
        if type(best) is not int:
            raise InvalidInput(f"the manifest of model {cid} does not say which iteration was the best")
        data = bytes(store.open(store.resolve(f"{record.files}/{_LIGHTGBM_FILE}")))
        try:
            text = data.decode()
            check_lightgbm(text)
            booster = library.Booster(model_str=text)
        except (ValueError, library.basic.LightGBMError) as error:
            raise Corrupt(f"the file of model {cid} is no LightGBM model: {error}") from error
        booster.best_iteration = best
        return booster


class XgboostEstimators(SklearnModels):
    """``XGBClassifier`` and the like, with their parameters, as skops files: XGBoost's own leave the parameters out."""

    framework: ClassVar[str] = "xgboost"

    def accepts(self, model: Any) -> bool:
        """Whether it is an estimator of XGBoost."""
        library = sys.modules.get("xgboost.sklearn")
        return library is not None and isinstance(model, library.XGBModel)


class LightgbmEstimators(SklearnModels):
    """``LGBMClassifier`` and the like, with their parameters, as skops files: LightGBM's own leave the parameters out."""

    framework: ClassVar[str] = "lightgbm"

    def accepts(self, model: Any) -> bool:
        """Whether it is an estimator of LightGBM."""
        library = sys.modules.get("lightgbm.sklearn")
        return library is not None and isinstance(model, library.LGBMModel)
