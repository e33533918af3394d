from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from holdfast.errors import Corrupt, InvalidInput, NotFound, Unsupported
from holdfast.inference import ONNXInferenceEngine


@pytest.fixture
def engine(linear):
    return ONNXInferenceEngine(linear)


@pytest.fixture
def rows():
    return np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)


def test_importing_the_package_loads_no_heavy_library():
    code = (
        "import sys, holdfast.inference as i; heavy = {'torch', 'onnx', 'onnxruntime', 'faiss', 'numpy', 'aiohttp'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); assert i.__all__ == sorted(i.__all__);"
        "assert set(i.__all__) <= set(dir(i))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_can_be_imported():
    import holdfast.inference as package

    assert all(getattr(package, name).__name__ == name for name in package.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing


def test_outputs_are_named_and_equal_to_the_models_own(engine, rows, weights):
    result = engine.predict(rows)
    np.testing.assert_allclose(result.outputs["y"], rows @ weights, rtol=1e-5)
    assert (result.input_shape, result.output_shapes) == ((5, 4), {"y": (5, 3)})
    assert result.session_provider == engine.provider == "CPUExecutionProvider"
    assert result.inference_time_ms > 0


def test_a_file_a_path_and_any_buffer_give_the_same_engine(tmp_path, linear, rows):
    path = tmp_path / "m.onnx"
    path.write_bytes(linear)
    answers = [
        ONNXInferenceEngine(source).predict(rows).outputs["y"]
        for source in (path, str(path), linear, bytearray(linear), memoryview(linear))
    ]
    assert all(np.array_equal(answer, answers[0]) for answer in answers)


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.int8, ">f4", bool])
def test_types_that_fit_without_loss_are_converted(engine, rows, weights, kind):
    given = rows.astype(kind)
    np.testing.assert_allclose(
        engine.predict(given).outputs["y"], given.astype(np.float32) @ weights, rtol=1e-5
    )


def test_nested_lists_and_tensors_are_accepted(engine, rows, weights):
    torch = pytest.importorskip("torch")
    expected = rows @ weights
    for given in (rows.tolist(), torch.from_numpy(rows), np.asfortranarray(rows), rows[::-1][::-1]):
        np.testing.assert_allclose(engine.predict(given).outputs["y"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        engine.predict([[1, 2, 3, 4]]).outputs["y"], [[1, 2, 3, 4]] @ weights, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            np.zeros((2, 5), np.float32),
            "input 'x' must be float32 of shape [batch, 4], not float32 of shape [2, 5]",
        ),
        (np.zeros(4, np.float32), "not float32 of shape [4]"),
        (np.zeros((1, 4), np.int64), "not int64 of shape [1, 4]"),
        (np.zeros((1, 4), np.complex64), "not complex64"),
        (np.full((1, 4), 1e300), "too large"),
        ([["a", "b", "c", "d"]], "not string of shape [1, 4]"),
        ([[1.0], [1.0, 2.0]], "can't be made an array"),
        ({"z": np.zeros((1, 4), np.float32)}, "input 'x' is missing"),
        ({"x": np.zeros((1, 4), np.float32), "z": 1}, "no input 'z'; it takes 'x'"),
    ],
)
def test_a_wrong_input_is_named_with_what_was_expected_and_given(engine, given, words):
    with pytest.raises(InvalidInput) as caught:
        engine.predict(given)
    assert words in str(caught.value)


def test_whole_number_lists_never_wrap_around_or_lose_their_fraction(model_of):
    engine = ONNXInferenceEngine(
        model_of([("Identity", ["x"], ["y"])], {"x": ("UINT8", ["n"])}, {"y": ("UINT8", ["n"])})
    )
    assert engine.predict([1, 255]).outputs["y"].tolist() == [1, 255]
    for bad in ([256], [-1], [1.5], [True, "a"]):
        with pytest.raises(InvalidInput):
            engine.predict(bad)


def test_strings_pass_through_and_nothing_else_is_taken_for_one(model_of):
    engine = ONNXInferenceEngine(
        model_of([("Identity", ["x"], ["y"])], {"x": ("STRING", ["n"])}, {"y": ("STRING", ["n"])})
    )
    assert engine.predict(["a", "ü\0b"]).outputs["y"].tolist() == ["a", "ü\0b"]
    for bad in (np.array([b"a"]), np.array([1]), np.array(["a", 2], dtype=object)):
        with pytest.raises(InvalidInput, match="string"):
            engine.predict(bad)


def test_inputs_that_share_a_dimension_must_agree_on_it(model_of):
    engine = ONNXInferenceEngine(
        model_of(
            [("Add", ["a", "b"], ["y"])],
            {"a": ("FLOAT", ["n", 2]), "b": ("FLOAT", ["n", 2])},
            {"y": ("FLOAT", ["n", 2])},
        )
    )
    one, two = np.ones((1, 2), np.float32), np.ones((2, 2), np.float32)
    # ONNX Runtime would broadcast this quietly.
    with pytest.raises(InvalidInput, match="'a' and 'b' must agree on the dimension 'n', not have 1 and 2"):
        engine.predict({"a": one, "b": two})
    with pytest.raises(InvalidInput, match="takes 2 inputs"):
        engine.predict(one)
    assert engine.predict({"b": two, "a": two}).outputs["y"].tolist() == [[2, 2], [2, 2]]


def test_an_unknown_output_is_refused_and_a_subset_is_exact(model_of):
    engine = ONNXInferenceEngine(
        model_of(
            [("Neg", ["x"], ["y"]), ("Abs", ["x"], ["z"])],
            {"x": ("FLOAT", ["n"])},
            {"y": ("FLOAT", ["n"]), "z": ("FLOAT", ["n"])},
        )
    )
    x = np.array([-1, 2], np.float32)
    assert list(engine.predict(x).outputs) == ["y", "z"]
    assert list(engine.predict(x, ["z"]).outputs) == ["z"]
    assert list(engine.predict(x, outputs="y").outputs) == ["y"]
    with pytest.raises(InvalidInput, match="no output 'w'"):
        engine.predict(x, ["w"])


def test_values_that_the_model_refuses_are_the_callers_error(lookup, capfd):
    engine = ONNXInferenceEngine(lookup)
    assert engine.predict(np.array([3])).outputs["y"].tolist() == [[6, 7]]
    with pytest.raises(InvalidInput, match="out of data bounds"):
        engine.predict(np.array([4]))
    assert capfd.readouterr().err == ""


def test_missing_and_broken_models_say_so(tmp_path, linear, model_of):
    with pytest.raises(NotFound, match="there is no ONNX file"):
        ONNXInferenceEngine(tmp_path / "absent.onnx")
    with pytest.raises(InvalidInput, match="not a file"):
        ONNXInferenceEngine(tmp_path)
    broken = tmp_path / "broken.onnx"
    for data in (b"", b"zzz", linear[:60], linear[:-5]):
        broken.write_bytes(data)
        for source in (broken, data):
            with pytest.raises(Corrupt):
                ONNXInferenceEngine(source)
    with pytest.raises(Unsupported, match="bfloat16"):
        ONNXInferenceEngine(
            model_of([("Identity", ["x"], ["y"])], {"x": ("BFLOAT16", ["n"])}, {"y": ("BFLOAT16", ["n"])})
        )


def test_a_missing_gpu_is_logged_once_and_visible(linear, rows, caplog):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is a GPU")
    with caplog.at_level(logging.WARNING, logger="holdfast"):
        engine = ONNXInferenceEngine(linear, use_gpu=True)
        engine.predict(rows)
        engine.predict(rows)
    assert len(caplog.records) == 1
    assert engine.provider == "CPUExecutionProvider"
    with pytest.raises(Unsupported, match="no TeleportExecutionProvider"):
        ONNXInferenceEngine(linear, providers=["TeleportExecutionProvider"])


def test_given_session_options_are_used(linear, rows, tmp_path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    ONNXInferenceEngine(linear, session_options=options).predict(rows)
    assert (tmp_path / "optimized.onnx").exists()
    with pytest.raises(InvalidInput, match="threads"):
        ONNXInferenceEngine(linear, threads=-1)


def test_counters_lose_nothing_under_threads(engine, weights):
    inputs = [np.full((1 + i % 3, 4), i, np.float32) for i in range(600)]
    with ThreadPoolExecutor(8) as pool:
        for given, result in zip(inputs, pool.map(engine.predict, inputs), strict=True):
            np.testing.assert_allclose(result.outputs["y"], given @ weights, rtol=1e-4)
    stats = engine.get_performance_stats()
    assert (stats["total_inferences"], stats["total_samples"]) == (600, 1200)
    assert 0 < stats["p50_ms"] <= stats["p95_ms"] <= stats["p99_ms"]
    assert stats["average_time_ms"] == pytest.approx(stats["total_time_ms"] / 600)
    assert stats["throughput_per_second"] == pytest.approx(1200 / stats["total_time_ms"] * 1e3)
    assert stats["provider"] == "CPUExecutionProvider"
    engine.reset_stats()
    assert not any(value for name, value in engine.get_performance_stats().items() if name != "provider")


def test_a_failed_prediction_is_not_counted(engine):
    with pytest.raises(InvalidInput):
        engine.predict(np.zeros((1, 5), np.float32))
    assert engine.get_performance_stats()["total_inferences"] == 0


@pytest.mark.parametrize("batch_size", [None, 1, 2, 5, 99])
def test_pieces_are_joined_in_order(engine, rows, weights, batch_size):
    result = engine.predict_batch(rows, batch_size)
    np.testing.assert_allclose(result.outputs["y"], rows @ weights, rtol=1e-5)
    assert (result.input_shape, result.output_shapes) == ((5, 4), {"y": (5, 3)})


def test_pieces_that_cannot_be_joined_are_refused(model_of, engine, rows):
    total = ONNXInferenceEngine(
        model_of([("ReduceSum", ["x"], ["y"])], {"x": ("FLOAT", ["n", 2])}, {"y": ("FLOAT", [1, 1])})
    )
    with pytest.raises(Unsupported, match="no row per input row"):
        total.predict_batch(np.ones((4, 2), np.float32), 3)
    with pytest.raises(InvalidInput, match="batch_size"):
        engine.predict_batch(rows, 0)
    pair = np.zeros((2, 4), np.float32)
    with pytest.raises(InvalidInput, match="same number of rows"):
        engine.predict_batch({"x": pair, "z": rows}, 1)


def test_a_model_with_a_fixed_batch_is_fed_in_its_own_pieces(model_of):
    engine = ONNXInferenceEngine(
        model_of([("Neg", ["x"], ["y"])], {"x": ("FLOAT", [2, 1])}, {"y": ("FLOAT", [2, 1])})
    )
    x = np.arange(6, dtype=np.float32).reshape(6, 1)
    assert np.array_equal(engine.predict_batch(x).outputs["y"], -x)
    with pytest.raises(InvalidInput, match=r"\[2, 1\], not float32 of shape \[1, 1\]"):
        engine.predict_batch(x[:5])


def test_models_without_inputs_and_scalars_work(model_of):
    constant = ONNXInferenceEngine(
        model_of([("Identity", ["w"], ["y"])], {}, {"y": ("FLOAT", [2])}, {"w": np.ones(2, np.float32)})
    )
    assert constant.predict({}).outputs["y"].tolist() == [1, 1]
    scalar = ONNXInferenceEngine(
        model_of([("Neg", ["x"], ["y"])], {"x": ("FLOAT", [])}, {"y": ("FLOAT", [])})
    )
    assert scalar.predict(np.float32(3)).outputs["y"] == -3
    assert scalar.get_performance_stats()["total_samples"] == 1
