"""All formats of models, and which one a model is kept in."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, cast

from holdfast.errors import InvalidInput, Unsupported
from holdfast.registry.records import ModelRecord
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from holdfast.registry.models.model_format import ModelFormat
    from holdfast.storage.content import ContentStore

__all__ = ["format_for", "format_of", "manifest_of"]

_FORMATS = (
    ("transformers", "folder", "transformers_models:TransformersModels"),
    ("keras", "keras", "keras_models:KerasModels"),
    ("pytorch", "safetensors", "torch_modules:TorchModules"),
    ("pytorch", "state-dict", "tensor_files:TensorFiles"),
    ("pytorch", "exported-program", "exported_programs:ExportedPrograms"),
    ("xgboost", "ubjson", "boosters:XgboostBoosters"),
    ("xgboost", "skops", "boosters:XgboostEstimators"),
    ("lightgbm", "text", "boosters:LightgbmBoosters"),
    ("lightgbm", "skops", "boosters:LightgbmEstimators"),
    ("sklearn", "skops", "sklearn_models:SklearnModels"),
    ("onnx", "onnx", "onnx_models:OnnxModels"),
    ("jax", "safetensors", "jax_params:JaxParams"),
    ("mlflow", "folder", "mlflow_models:MlflowModels"),
    ("pickle", "pickle", "pickled_models:PickledModels"),
)
"""Framework, format, and the class that reads and writes it; the first that accepts a model keeps it.

Models of transformers and Keras may be torch modules as well, and estimators of boosters scikit-learn's: these come last.
"""


def format_for(model: Any, framework: str | None = None) -> ModelFormat:
    """The format that a model is kept in.

    Args:
        model: What is to be stored.
        framework: The only one to ask; ``pickle`` is never taken unless it is asked for.

    Raises:
        Unsupported: None takes it.
        InvalidInput: There is no such framework.
    """
    known = sorted({name for name, _, _ in _FORMATS})
    if framework is not None and framework not in known:
        raise InvalidInput(f"there is no framework {framework!r}; there is {', '.join(known)}")
    for found in _all(framework):
        if (framework is not None or found.framework != "pickle") and found.accepts(model):
            return found
    asked = f" of {framework}" if framework else ""
    raise Unsupported(
        f"{model!r:.100} ({type(model).__name__}) is no model{asked} that can be stored: give a torch module, state dict or exported program, a "
        "scikit-learn estimator, a booster of XGBoost or LightGBM, an ONNX graph, a Keras or transformers model, a tree of JAX "
        "arrays, or the Path of a .safetensors, .pt2, .onnx or .keras file or of a transformers folder"
    )


def manifest_of(store: ContentStore, model: Any, framework: str | None = None) -> ModelRecord:
    """The manifest of a model, whose files are stored; it does not say yet where the model came from.

    Raises:
        InvalidInput: The model could not be loaded again, or there is no such framework.
        Unsupported: No format takes it.
    """
    chosen = format_for(model, framework)
    saved = chosen.save(store, model)
    files = saved.files if isinstance(saved.files, Cid) else store.add_files(saved.files, pin=False)
    return ModelRecord(
        framework=chosen.framework,
        format=chosen.name,
        files=files,
        code=saved.code,
        config=saved.config,
        inputs=saved.inputs,
        outputs=saved.outputs,
    )


def format_of(cid: Cid, record: ModelRecord) -> ModelFormat:
    """The format that a manifest names.

    Raises:
        Unsupported: This release has no such format.
    """
    for framework, name, place in _FORMATS:
        if (framework, name) == (record.framework, record.format):
            return _made(place)
    raise Unsupported(
        f"model {cid} is of {record.framework} in the format {record.format!r}, which this holdfast does not read; "
        "its files are there all the same: 'holdfast get' writes them out"
    )


def _all(framework: str | None) -> Iterator[ModelFormat]:
    return (_made(place) for name, _, place in _FORMATS if framework in (None, name))


def _made(place: str) -> ModelFormat:
    module, _, name = place.partition(":")
    made = getattr(importlib.import_module(f"holdfast.registry.models.{module}"), name)()
    return cast("ModelFormat", made)
