"""Registered models as ONNX: converted once, compared with the original on real rows, and a record by itself."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.errors import Corrupt, InvalidInput, NotFound
from holdfast.inference.onnx_converter import ONNXConverter
from holdfast.inference.onnx_engine import ONNXInferenceEngine
from holdfast.registry.compute.computation import Computation
from holdfast.registry.compute.environment import numeric_environment
from holdfast.registry.models.model_registry import ModelRegistry
from holdfast.registry.records import ConversionRecord, ModelRecord, RunRecord, load_record
from holdfast.storage.datasets.dataset import Dataset, open_dataset
from holdfast.storage.loaders.collation import column_to_numpy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from holdfast.registry.names import Names
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = [
    "ModelInput",
    "conversion_computation",
    "convert_model",
    "input_of",
    "known_conversion",
    "model_input",
    "open_engine",
    "remember_conversion",
]

KIND = "conversion"
OPSET = 20
_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxscript", "torch")
"""What decides the numbers of a conversion, and of its comparison."""
MAX_SAMPLES = 2048
"""Rows that the comparison runs on at most: differences show early, and large splits take long."""


def model_input(dataset: Dataset, split: str, column: str) -> NDArray[np.float32]:
    """One column of a split as the float32 array, rows first, that a model takes.

    Raises:
        InvalidInput: The dataset has no such column.
    """
    if column not in dataset.columns:
        raise InvalidInput(
            f"the model takes the column {column!r}, which dataset {dataset.cid} does not have; "
            f"it has {', '.join(dataset.columns)}"
        )
    pieces = [
        column_to_numpy(column, batch.column(0)).astype(np.float32)
        for batch in dataset.batches(split, [column])
    ]
    return np.concatenate(pieces)


@dataclass(frozen=True, slots=True)
class ModelInput:
    """The one input of a model: a column of its data, and the shape of a sample."""

    name: str
    shape: tuple[int, ...]


def input_of(cid: Cid, manifest: ModelRecord) -> ModelInput:
    """The input of a model that has one.

    Raises:
        InvalidInput: The manifest says nothing about it, or has several.
    """
    if len(manifest.inputs) != 1:
        raise InvalidInput(
            f"model {cid} has {len(manifest.inputs)} described inputs, and has to have one: keep the column that it takes, and the "
            "shape of a sample, in the module's attributes input_column and input_shape"
        )
    (given,) = manifest.inputs
    return ModelInput(str(given["name"]), tuple(int(size) for size in given["shape"]))


def conversion_computation(model: Cid, *, split: str = "test") -> Computation:
    """The computation that a conversion is, as it would be done in this process: the key under which it is remembered."""
    return Computation(
        function="convert",
        inputs={"model": model},
        config={"split": split, "opset": OPSET, "samples": MAX_SAMPLES},
        environment=numeric_environment(_PACKAGES),
    )


def known_conversion(store: ContentStore, names: Names, model: Cid) -> tuple[Cid, ConversionRecord] | None:
    """The newest ONNX form of a model that was compared with it, wherever that was; None if there is none.

    Raises:
        Corrupt: What the names say is its ONNX form is another model's.
    """
    try:
        known = names.resolve(KIND, str(model)).cid
    except NotFound:
        return None
    record = load_record(store, known, ConversionRecord)
    if record.model != model:
        raise Corrupt(f"the conversion {known} is known as one of {model}, but it is one of {record.model}")
    return known, record


def convert_model(
    store: ContentStore,
    names: Names,
    model: Cid,
    *,
    split: str = "test",
    trust_code: bool = False,
) -> tuple[Cid, ConversionRecord]:
    """A new ONNX form of a model.

    It counts only after its answers were compared with the original's on rows of the data that the model was trained on.

    Args:
        store: Where models, data and the result are.
        names: Of the model registry.
        model: The model's manifest.
        split: Which rows to compare on.
        trust_code: Run the model's recorded source where it is not installed here.
        again: Make it here and now, whatever is known.

    Raises:
        Corrupt: The ONNX model's answers differ too much; nothing was recorded.
        InvalidInput: The model says nothing about its input, or was not trained by a recorded run.
    """
    manifest = load_record(store, model, ModelRecord)
    if manifest.run is None:
        raise InvalidInput(
            f"model {model} was not trained by a recorded run: there is nothing to compare an ONNX form on"
        )
    taken = input_of(model, manifest)
    dataset = open_dataset(store, load_record(store, manifest.run, RunRecord).data)
    module = ModelRegistry(store, names).load(model, trust_code=trust_code)
    samples = model_input(dataset, split, taken.name)[:MAX_SAMPLES]
    converter = ONNXConverter()
    with tempfile.TemporaryDirectory(prefix="holdfast-onnx-") as folder:
        path = Path(folder) / "model.onnx"
        converter.convert_pytorch_model(
            module,
            path,
            (1, *taken.shape),
            input_names=(taken.name,),
            output_names=getattr(module, "output_names", None),
            opset_version=OPSET,
        )
        comparison = converter.compare_models(module, path, samples)
        if not comparison.passed:
            raise Corrupt(
                f"the ONNX form of {model} answers differently: max difference {comparison.max_difference:.3g} on "
                f"{comparison.samples} rows of {dataset.cid}; it was not kept"
            )
        onnx = store.add(path, pin=False)  # the name of the conversion keeps it
    record = ConversionRecord(
        model=model,
        onnx=onnx,
        opset=OPSET,
        data=dataset.cid,
        split=split,
        comparison={
            "max_difference": comparison.max_difference,
            "max_relative_difference": comparison.max_relative_difference,
            "atol": comparison.atol,
            "rtol": comparison.rtol,
            "samples": comparison.samples,
            "top1_agreement": comparison.top1_agreement,
        },
    )
    return record.store(store), record


def remember_conversion(names: Names, model: Cid, conversion: Cid) -> None:
    """Note a conversion, so that it is kept, and :func:`known_conversion` finds it."""
    names.register(KIND, str(model), None, conversion)


def open_engine(store: ContentStore, record: ConversionRecord, **options: Any) -> ONNXInferenceEngine:
    """The engine that runs a converted model, straight from its verified bytes.

    Args:
        store: Gives the bytes.
        record: The conversion.
        options: Of :class:`ONNXInferenceEngine`.
    """
    return ONNXInferenceEngine(store.open(record.onnx), **options)
