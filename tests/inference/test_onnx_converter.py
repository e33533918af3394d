from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from holdfast.errors import Corrupt, InvalidInput, NotFound, Unsupported
from holdfast.inference import ONNXConverter, ONNXInferenceEngine

NET = textwrap.dedent("""
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)
            self.norm = torch.nn.BatchNorm2d(4)
            self.drop = torch.nn.Dropout(0.5)
            self.head = torch.nn.Linear(4, 5)

        def forward(self, x):
            return self.head(self.drop(torch.relu(self.norm(self.conv(x)))).mean((2, 3)))

    def make():
        torch.manual_seed(0)
        return Net()
""")


def make_net():
    scope: dict[str, Any] = {"__name__": "net"}
    exec(NET, scope)
    return scope["make"]()


@pytest.fixture(scope="module")
def other_process(tmp_path_factory):
    """The same conversion by another process, from another folder, while the first tests run."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "convert.py").write_text(
        NET + "from holdfast.inference import ONNXConverter\n"
        "ONNXConverter().convert_pytorch_model(make(), 'again.onnx', (1, 3, 8, 8))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "convert.py"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    yield process, folder / "again.onnx"
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def converted(tmp_path_factory, other_process):  # noqa: ARG001 - starts it while this one converts
    net = make_net()
    path = tmp_path_factory.mktemp("converted") / "deep" / "net.onnx"
    assert ONNXConverter().convert_pytorch_model(net, str(path), (1, 3, 8, 8)) is True
    return net, path


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(7, 3, 8, 8)).astype(np.float32)


def test_any_batch_size_gives_what_torch_gives(converted, images):
    net, path = converted
    engine = ONNXInferenceEngine(path)
    net.eval()
    for n in (1, 2, 7):
        with torch.no_grad():
            expected = net(torch.from_numpy(images[:n])).numpy()
        np.testing.assert_allclose(engine.predict(images[:n]).outputs["output"], expected, atol=1e-5)
    net.train()


def test_modes_and_the_callers_logging_and_warnings_are_left_alone(tmp_path, capfd):
    net = make_net()
    net.conv.eval()  # a mixture, as in fine-tuning with frozen layers
    before = {name: module.training for name, module in net.named_modules()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ONNXConverter(optimize=False).convert_pytorch_model(net, tmp_path / "m.onnx", (1, 3, 8, 8))
    assert {name: module.training for name, module in net.named_modules()} == before
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
    printed = capfd.readouterr()
    assert (printed.out, printed.err, [str(w.message) for w in caught]) == ("", "", [])
    assert ONNXConverter().validate_onnx_model(tmp_path / "m.onnx")


def test_another_process_in_another_folder_writes_the_same_bytes(converted, other_process):
    _, path = converted
    process, again = other_process
    said, _ = process.communicate(timeout=100)
    assert (process.returncode, said) == (0, b"")
    assert again.read_bytes() == path.read_bytes()


def test_the_file_names_no_path_of_this_machine(converted):
    data = converted[1].read_bytes()
    assert not re.search(rb"\.py|stack_trace|site-packages|pkg\.|/root|/home|/tmp", data)


def test_info_describes_the_file(converted):
    _, path = converted
    info = ONNXConverter().get_model_info(path)
    assert info["file_size_mb"] == pytest.approx(path.stat().st_size / 1e6)
    assert (info["opset"], info["producer"].split()[0]) == (20, "pytorch")
    assert info["inputs"] == [{"name": "input", "dtype": "float32", "shape": ["batch", 3, 8, 8]}]
    assert info["outputs"] == [{"name": "output", "dtype": "float32", "shape": ["batch", 5]}]
    assert info["node_count"] > 2


def test_missing_cut_and_foreign_files_are_not_valid(converted, tmp_path):
    converter = ONNXConverter()
    data = converted[1].read_bytes()
    assert converter.validate_onnx_model(converted[1]) is True
    assert converter.validate_onnx_model(tmp_path / "absent.onnx") is False
    assert converter.validate_onnx_model(tmp_path) is False
    broken = tmp_path / "broken.onnx"
    for part in (b"", b"no model", data[: len(data) // 2], data[:-1], data[:500]):
        broken.write_bytes(part)
        assert converter.validate_onnx_model(broken) is False
        with pytest.raises(Corrupt):
            converter.get_model_info(broken)
    with pytest.raises(NotFound):
        converter.get_model_info(tmp_path / "absent.onnx")
    with pytest.raises(Corrupt):
        converter.get_model_info(tmp_path)


def test_several_inputs_and_outputs_keep_their_names_and_order(tmp_path):
    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(10, 3)

        def forward(self, ids, scale):
            vectors = self.table(ids) * scale[:, None, None]
            return vectors, vectors.sum((1, 2))

    net = Pair()
    path = tmp_path / "pair.onnx"
    ONNXConverter().convert_pytorch_model(
        net, path, example_input=(np.array([[1, 2, 3, 4]]), torch.ones(1)), input_names=("ids", "scale")
    )
    engine = ONNXInferenceEngine(path)
    assert [str(info) for info in engine.inputs] == ["int64 of shape [batch, 4]", "float32 of shape [batch]"]
    assert [info.name for info in engine.outputs] == ["output_0", "output_1"]
    inputs = {"ids": np.arange(8).reshape(2, 4), "scale": np.array([1, -2], np.float32)}
    report = ONNXConverter().compare_models(net, path, inputs)
    assert (report.passed, report.samples, report.top1_agreement) == (True, 2, None)


def test_a_refused_model_leaves_nothing_behind(tmp_path):
    class Fixed(torch.nn.Module):
        def forward(self, x):
            if x.sum() > 0:  # depends on the data, which no graph can express
                return x
            return -x

    class Words(torch.nn.Module):
        def forward(self, _):
            return "text"

    convert = ONNXConverter().convert_pytorch_model
    out = tmp_path / "new" / "m.onnx"
    net = make_net()
    for model, arguments, kind, words in [
        (object(), {"input_shape": (1, 3)}, InvalidInput, "torch.nn.Module, not object"),
        (net, {}, InvalidInput, "input_shape"),
        (net, {"input_shape": (1, 3, 8, 8), "example_input": torch.ones(1)}, InvalidInput, "either"),
        (net, {"input_shape": (1, None)}, InvalidInput, "positive whole numbers"),
        (net, {"input_shape": ()}, InvalidInput, "positive whole numbers"),
        (net, {"input_shape": (1, 9, 8, 8)}, InvalidInput, r"can't run on an input of shape \[2, 9, 8, 8\]"),
        (net, {"example_input": "text"}, InvalidInput, "tensor or array"),
        (net, {"example_input": torch.tensor(1.0)}, InvalidInput, "first dimension"),
        (net, {"input_shape": (1, 3, 8, 8), "input_names": ("a", "b")}, InvalidInput, "2 input names"),
        (net, {"input_shape": (1, 3, 8, 8), "output_names": ("a", "b")}, InvalidInput, "2 output names"),
        (Words(), {"input_shape": (1, 3)}, Unsupported, "not str"),
        (Fixed(), {"input_shape": (1, 3)}, Unsupported, "can't export"),
    ]:
        with pytest.raises(kind, match=words):
            convert(model, out, **arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    assert net.training


def test_a_folder_in_the_way_is_refused_without_litter(tmp_path, converted, monkeypatch):
    from holdfast.inference import _torch_export

    monkeypatch.setattr(_torch_export, "export", lambda *_, **__: b"bytes")  # the disk is what matters here
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(InvalidInput, match="is a folder"):
        ONNXConverter().convert_pytorch_model(converted[0], tmp_path / "m.onnx", (1, 3, 8, 8))
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_the_comparison_tells_a_good_conversion_from_a_wrong_one(converted, images):
    net, path = converted
    converter = ONNXConverter()
    good = converter.compare_models(net, path, images, batch_size=3)
    assert good.passed
    assert (good.samples, good.top1_agreement, good.problem) == (7, 1.0, None)
    assert 0 <= good.max_difference < 1e-4
    assert net.training

    wrong = make_net()
    with torch.no_grad():
        wrong.head.bias[2] -= 5  # every image's largest column
    bad = converter.compare_models(wrong, path, images)
    assert not bad.passed
    assert bad.max_difference == pytest.approx(5, abs=0.01)
    assert bad.max_relative_difference > 0.5
    assert bad.top1_agreement is not None
    assert bad.top1_agreement < 1
    assert "tolerance" in str(bad.problem)


def test_functions_and_predictors_are_originals_too(linear, weights, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(linear)
    x = np.random.default_rng(0).normal(size=(40, 4))

    class Predictor:
        def predict(self, rows):
            return {"y": rows @ weights}

    compare = ONNXConverter().compare_models
    assert compare(Predictor(), path, x).passed
    assert compare(lambda rows: [rows @ weights], path, x).passed
    tight = compare(lambda rows: rows @ weights + 0.5, path, x, rtol=0, atol=0.6)
    assert tight.passed
    assert tight.max_difference == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda y: y * np.nan,
        lambda y: np.where(y > 0, np.inf, y),
        lambda y: y[:, :2],
        lambda y: y[:1],
        lambda y: y.astype(str),
    ],
)
def test_nan_infinity_and_other_shapes_never_pass(linear, weights, tmp_path, spoil):
    path = tmp_path / "m.onnx"
    path.write_bytes(linear)
    x = np.random.default_rng(0).normal(size=(5, 4))
    report = ONNXConverter().compare_models(lambda rows: spoil(rows @ weights), path, x, rtol=1e9, atol=1e9)
    assert not report.passed
    assert report.problem


def test_a_nan_in_both_models_does_not_pass_either(linear, weights, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(linear)
    x = np.full((2, 4), np.nan)
    assert not ONNXConverter().compare_models(lambda rows: rows @ weights, path, x).passed


def test_a_comparison_on_nothing_is_refused(linear, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(linear)
    compare = ONNXConverter().compare_models
    for inputs, words in [
        (np.empty((0, 4)), "no inputs"),
        ([], "no inputs"),
        (np.float32(1), "first dimension"),
        ({}, "first dimension"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            compare(lambda rows: rows, path, inputs)
    with pytest.raises(InvalidInput, match="rtol"):
        compare(lambda rows: rows, path, np.ones((1, 4)), rtol=float("nan"))
    with pytest.raises(InvalidInput, match="2 outputs, the ONNX model 1"):
        compare(lambda rows: (rows, rows), path, np.ones((1, 4)))
    with pytest.raises(NotFound):
        compare(lambda rows: rows, tmp_path / "absent.onnx", np.ones((1, 4)))
    with pytest.raises(InvalidInput, match="callable"):
        compare(3, path, np.ones((1, 4)))
