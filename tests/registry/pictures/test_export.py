"""Exported files are what they say they are, all or none, and where no library is installed that is said."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ET

import pytest

from holdfast.errors import InvalidInput, NotFound, Unsupported
from holdfast.registry import AIMLMetricsCollector, create_visualization
from holdfast.registry.pictures.backend import open_backend


@pytest.mark.parametrize("interactive", [True, False])
def test_every_format_is_a_real_file_of_it(run_of_20, tmp_path, interactive):
    viz = create_visualization(run_of_20, interactive=interactive)
    files = viz.export_visualizations(tmp_path / "out", formats=["png", "svg", "html", "json"])
    assert sorted(files) == sorted((tmp_path / "out").iterdir())
    names = {file.name for file in files}
    assert {
        "training.png",
        "training.svg",
        "dashboard.png",
        "memory.svg",
        "report.html",
        "metrics.json",
    } <= names
    for file in files:
        data = file.read_bytes()
        match file.suffix:
            case ".png":
                assert data.startswith(b"\x89PNG\r\n\x1a\n")
            case ".svg":
                assert ET.fromstring(data).tag.endswith("svg")
            case ".html":
                assert data.startswith(b"<!doctype html>")
            case ".json":
                body = json.loads(data)
                assert body["summary"] == run_of_20.get_summary()
                assert len(body["measurements"]) == len(run_of_20.measurements())


def test_equal_measurements_give_equal_files(run_of_20, tmp_path):
    viz = create_visualization(run_of_20)
    one, two = (viz.export_visualizations(tmp_path / name, formats=["svg", "png"]) for name in "ab")
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


def test_pictures_without_data_are_not_exported_and_that_is_said(tmp_path):
    with pytest.warns(UserWarning, match="nothing has been measured yet"):
        files = create_visualization(AIMLMetricsCollector()).export_visualizations(tmp_path, formats=["png"])
    assert files == []


@pytest.mark.parametrize("formats", [["png", "bmp2"], ["jsom"], []])
def test_an_unknown_format_is_refused_before_anything_is_written(run_of_20, tmp_path, formats):
    with pytest.raises(InvalidInput, match="export format"):
        create_visualization(run_of_20).export_visualizations(tmp_path / "out", formats=formats)
    assert not (tmp_path / "out").exists()


def test_a_failed_write_leaves_the_older_file_and_nothing_beside_it(run_of_20, tmp_path):
    report = tmp_path / "report.html"
    report.mkdir()  # a folder is in the place of the file
    with pytest.raises(OSError, match=r"report\.html"):
        create_visualization(run_of_20).generate_html_report(report)
    assert list(tmp_path.iterdir()) == [report]


def test_the_table_of_all_models_has_both_names_in_its_index(run_of_20):
    run_of_20.record_metric("other/epoch/4/loss", 1.0)
    frame = create_visualization(run_of_20).get_metrics_dataframe()
    assert frame.index.names == ["model", "epoch"]
    assert frame.loc[("other", 4), "loss"] == 1.0
    assert len(frame) == 21


def test_the_table_of_a_model_has_its_metrics_first_and_its_failures(run_of_20):
    frame = create_visualization(run_of_20).get_metrics_dataframe("digits-cnn")
    assert list(frame.columns)[:2] == ["train_loss", "val_loss"]
    assert frame.index.name == "epoch"
    assert not frame["failed"].any()
    run_of_20.record_metric("stepless/accuracy", 1.0)
    with pytest.raises(NotFound, match="none of an epoch"):
        create_visualization(run_of_20).get_metrics_dataframe("stepless")


@pytest.mark.parametrize("interactive", [None, True, False])
def test_without_libraries_there_is_text_or_a_clear_error(tmp_path, interactive):
    program = f"""
        import sys, json, warnings
        sys.modules["matplotlib"] = sys.modules["plotly"] = None
        from holdfast.errors import Unsupported
        from holdfast.registry import AIMLMetricsCollector, create_visualization
        metrics = AIMLMetricsCollector()
        for epoch, loss in enumerate([1.5, 0.875, 0.75]):
            metrics.record_metric(f"net/epoch/{{epoch}}/train_loss", loss)
        try:
            viz = create_visualization(metrics, interactive={interactive})
        except Unsupported as error:
            print(json.dumps({{"error": str(error)}}))
            sys.exit()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            files = viz.export_visualizations("out", formats=["png", "svg", "html", "json"])
        print(json.dumps({{
            "text": viz.plot_training_metrics("net"),
            "all": viz.plot_comprehensive_dashboard(),
            "files": sorted(f.name for f in files),
            "warned": [str(w.message) for w in seen],
        }}))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    told = json.loads(done.stdout)
    if interactive is not None:
        assert "pip install 'holdfast[plots]'" in told["error"]
        return
    assert "Training of net" in told["text"]
    assert "first 1.5, last 0.75, min 0.75, max 1.5" in told["text"]
    assert "first 1.5" in told["all"]
    assert told["files"] == ["metrics.json", "report.html"]
    assert len(told["warned"]) == 1
    assert "no png and no svg is exported" in told["warned"][0]


def test_backends_that_write_no_pictures_say_what_does():
    for name in ("plotly", "text"):
        with pytest.raises(Unsupported, match="needs Matplotlib"):
            open_backend(name).written(None, "png")


def test_pictures_are_made_of_a_collector_only():
    with pytest.raises(InvalidInput, match="AIMLMetricsCollector"):
        create_visualization({"loss": 1.0})  # type: ignore[arg-type]
