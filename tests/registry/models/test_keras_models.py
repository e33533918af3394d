"""Keras: equal outputs, repeatable files, and no program in them that runs."""

from __future__ import annotations

import io
import json
import os
import zipfile
from importlib.util import find_spec

import pytest

from holdfast.errors import Corrupt, Denied
from holdfast.registry import ModelRecord
from tests.registry.models.conformance import FormatConformance

if find_spec("tensorflow") is None:
    os.environ.setdefault("KERAS_BACKEND", "torch")  # what Keras takes unasked is TensorFlow


class TestKerasModels(FormatConformance):
    framework, format, file = "keras", "keras", "model.keras"
    packages, extra = ("keras", "h5py"), "tensorflow"
    program = """
        import numpy as np

        def make():
            import keras
            keras.utils.clear_session()
            keras.utils.set_random_seed(0)
            x = keras.Input((4,))
            h = keras.layers.Dense(3, activation="relu")(x)
            h = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(h)) + 1.0
            model = keras.Model(x, keras.layers.Dense(1)(h))
            model.compile("adam", "mse")
            model.optimizer.build(model.trainable_variables)  # else Keras warns at loading that it has no state
            return model

        def outputs(model):
            return [np.asarray(model.predict(np.arange(8, dtype="float32").reshape(2, 4), verbose=0))]
    """


def stored(registry, config, weights=b""):
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as file:
        file.writestr("metadata.json", "{}")
        file.writestr("config.json", json.dumps(config))
        file.writestr("model.weights.h5", weights)
    store = registry._store
    files = store.add_files({"model.keras": written.getvalue()})
    return ModelRecord(framework="keras", format="keras", files=files).store(store)


@pytest.mark.parametrize(
    "layer",
    [
        {"module": "keras.layers", "class_name": "Lambda", "config": {}},
        {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "/tmp"}},
        {"module": "keras.layers", "class_name": "TorchModuleWrapper", "config": {}},
        {"class_name": "__lambda__", "config": {"value": "4wAA"}},
        {"module": "os", "class_name": "system", "config": {}},
        {"module": "builtins", "class_name": "function", "config": "eval"},
        {"module": "keras.utils", "class_name": "function", "config": "get_file"},
        {"module": "keras.utils", "class_name": "get_file", "config": {}},
        {"module": "keras.layersx", "class_name": "Dense", "config": {}},
        {"module": "keras", "class_name": "config", "config": {}},
        {"module": None, "class_name": "Dense", "config": {}},
        {"module": "keras.layers", "class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}},
    ],
    ids=lambda layer: str(layer["class_name"]),
)
def test_what_a_config_names_is_not_run(registry, layer):
    pytest.importorskip("keras", reason="the package keras is not installed")
    whole = {"module": "keras", "class_name": "Sequential", "config": {"layers": [layer]}}
    for config in (layer, whole):
        with pytest.raises(Denied, match="may run something"):
            registry.load(stored(registry, config))


def test_weights_that_point_into_other_files_are_refused(registry, tmp_path):
    h5py = pytest.importorskip("h5py", reason="the package h5py is not installed")
    pytest.importorskip("keras", reason="the package keras is not installed")
    (tmp_path / "secret").write_bytes(b"\0" * 64)

    def link(file):
        file["w"] = h5py.ExternalLink("/etc/passwd", "/")

    def soft(file):
        file["w"] = h5py.SoftLink("/elsewhere")

    def outside(file):
        file.create_dataset("w", (8,), "f8", external=[(str(tmp_path / "secret"), 0, 64)])

    config = {"module": "keras", "class_name": "Sequential", "config": {"layers": []}}
    for change in (link, soft, outside):
        data = io.BytesIO()
        with h5py.File(data, "w") as file:
            change(file.create_group("layers"))
        with pytest.raises(Corrupt, match=r"link|another file"):
            registry.load(stored(registry, config, data.getvalue()))
