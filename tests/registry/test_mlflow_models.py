"""MLflow's folders as models, as far as it goes without MLflow; the rest is in test_mlflow.py."""

from __future__ import annotations

import importlib.util

import pytest

from holdfast.errors import Corrupt, Denied, InvalidInput, Unsupported

MLMODEL = """\
flavors:
  python_function: {loader_module: mlflow.sklearn}
  sklearn: {code: null}
signature:
  inputs: '[{"type": "double", "name": "x", "required": true}, {"type": "array", "items": {"type": "long"}, "name": "many"}]'
  outputs: '[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 3]}}]'
  params: null
"""


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    (path / "data").mkdir(parents=True)
    (path / "MLmodel").write_text(MLMODEL)
    (path / "data" / "model.pkl").write_bytes(b"pickled")
    return path


def test_a_folder_comes_back_byte_for_byte(registry, store, folder, tmp_path):
    cid = registry.store_model(folder, framework="mlflow")
    record = registry.record(str(cid))
    assert (record.framework, record.format, record.files) == ("mlflow", "folder", store.add(folder))
    registry.save_files(cid, tmp_path / "again")
    assert (tmp_path / "again" / "MLmodel").read_text() == MLMODEL
    assert (tmp_path / "again" / "data" / "model.pkl").read_bytes() == b"pickled"


def test_a_folder_is_known_for_mlflow_s_without_being_told(registry, folder):
    assert registry.record(str(registry.store_model(folder))).framework == "mlflow"


def test_the_signature_is_mlflow_s_own(registry, folder):
    record = registry.record(str(registry.store_model(folder)))
    assert record.inputs == (
        {"name": "x", "dtype": "float64", "shape": []},
        {"name": "many", "dtype": "object", "shape": []},
    )
    assert record.outputs == ({"name": "0", "dtype": "float32", "shape": [3]},)


def test_nothing_of_a_folder_is_run_unless_its_maker_is_trusted(registry, folder):
    cid = registry.store_model(folder)
    with pytest.raises(Denied, match="allow_pickle=True"):
        registry.load(cid)


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is not None, reason="mlflow is installed")
def test_loading_without_mlflow_says_which_extra_brings_it(registry, signatures, folder):
    cid = registry.store_model(folder)
    signatures.sign(cid)
    with pytest.raises(Unsupported, match=r"holdfast\[mlflow\]"):
        registry.load(cid, allow_pickle=True)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "", "a: 2020-99-99"])
def test_a_broken_mlmodel_file_is_refused_before_it_is_stored(registry, folder, text):
    (folder / "MLmodel").write_text(text)
    with pytest.raises(Corrupt, match="not what MLflow writes"):
        registry.store_model(folder)


@pytest.mark.parametrize("inputs", ["'{'", "'[1]'", "'[{}]'", '\'[{"type": "tensor"}]\'', "5", "'7'"])
def test_a_signature_that_nobody_can_read_is_refused(registry, folder, inputs):
    (folder / "MLmodel").write_text(f"signature:\n  inputs: {inputs}\n")
    with pytest.raises(InvalidInput, match="signature"):
        registry.store_model(folder)


def test_any_other_folder_is_not_taken_for_one(registry, tmp_path):
    with pytest.raises(Unsupported):
        registry.store_model(tmp_path, framework="mlflow")
