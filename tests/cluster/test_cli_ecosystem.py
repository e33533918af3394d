"""``holdfast model-card`` and ``holdfast import-mlflow``: what they print, and how they fail."""

from __future__ import annotations

import importlib.util
import json

import pytest

from holdfast.cluster.cli import main
from holdfast.registry import ModelRecord, ModelRegistry, open_registry


@pytest.fixture
def model(own_home):
    """The CID of a model named ``line`` in the home."""
    store, names = open_registry(own_home)
    with store:
        files = store.add_files({"model.onnx": b"not looked at", "README.txt": b"plain"})
        record = ModelRecord(framework="onnx", format="onnx", files=files, metrics={"accuracy": 0.9})
        cid = record.store(store)
        ModelRegistry(store, names).register("line", cid)
        names.close()
    return cid


def test_a_card_is_printed_for_people_and_for_programs(model, capsys):
    assert main(["model-card", "line"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("---\nlibrary_name: onnx\n")
    assert f"holdfast verify {model}" in text
    assert main(["model-card", "line:1.0.0", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["model"] == str(model)
    assert value["card"] == text
    assert value["fields"]["metrics"] == ["accuracy"]


def test_dates_in_a_card_that_somebody_wrote_do_not_stop_the_json(own_home, capsys):
    store, names = open_registry(own_home)
    with store:
        card = store.add_bytes(b"---\nreleased: 2026-01-31\nwhen: [2026-01-31 10:00:00]\n---\n# Mine")
        record = ModelRecord(framework="onnx", format="onnx", files=store.add_files({"a": b"a"}), card=card)
        cid = record.store(store)
        names.close()
    assert main(["model-card", str(cid), "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)["fields"]
    assert fields == {"released": "2026-01-31", "when": ["2026-01-31 10:00:00"]}


def test_a_folder_is_written_once_and_never_over_another(model, tmp_path, capsys):
    out = tmp_path / "folder"
    assert main(["model-card", "line", "-o", str(out), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert {path.name for path in out.iterdir()} == {"README.md", "model.onnx", "README.txt"}
    assert value == {
        "model": str(model),
        "folder": str(out),
        "bytes": sum(path.stat().st_size for path in out.iterdir()),
    }
    assert main(["model-card", "line", "-o", str(out)]) == 4


@pytest.mark.usefixtures("model")
def test_a_card_of_nothing_is_an_error(capsys):
    assert main(["model-card", "nobody", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["code"] == "not_found"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["models:/a/1", "--all"],
        ["--all", "--name", "x"],
        ["models:/a/1", "--version", "1.0.0"],
        ["models:/a/1", "--rename", "a=b"],
        ["--all", "--rename", "a"],
    ],
    ids=" ".join,
)
def test_arguments_that_contradict_each_other_are_refused(arguments, capsys):
    assert main(["import-mlflow", *arguments]) == 2
    assert capsys.readouterr().err.startswith("holdfast: ")


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is not None, reason="mlflow is installed")
def test_an_import_without_mlflow_says_which_extra_brings_it(capsys):
    assert main(["import-mlflow", "models:/a/1"]) == 8
    assert "holdfast[mlflow]" in capsys.readouterr().err
