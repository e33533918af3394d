"""What ONNXInferenceEngine.predict costs on top of onnxruntime's own session.run.

Both sides run one after the other in every round, so that a busy machine slows both, and the ratio is taken
within the round. Run: ``python bench/bench_onnx_engine.py [--rounds 15] [--json]``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from holdfast.inference import ONNXInferenceEngine

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = (128, 256, 256, 10)
SECONDS_PER_ARM = 0.08


def mlp() -> bytes:
    rng = np.random.default_rng(0)
    nodes, tensors, value = [], [], "x"
    for i, (width, height) in enumerate(pairwise(SIZES)):
        tensors += [
            numpy_helper.from_array(
                rng.normal(size=(width, height)).astype(np.float32) / width**0.5, f"w{i}"
            ),
            numpy_helper.from_array(np.zeros(height, np.float32), f"b{i}"),
        ]
        last = i == len(SIZES) - 2
        nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], ["y" if last else f"g{i}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"g{i}"], [f"r{i}"]))
            value = f"r{i}"
    start = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", SIZES[0]])
    end = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", SIZES[-1]])
    graph = helper.make_graph(nodes, "mlp", [start], [end], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def seconds_per_call(call: Callable[[], object]) -> float:
    calls = 0
    started = time.perf_counter()
    while (spent := time.perf_counter() - started) < SECONDS_PER_ARM:
        for _ in range(20):
            call()
        calls += 20
    return spent / calls


def compare(data: bytes, batch: int, rounds: int) -> dict[str, float]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    engine = ONNXInferenceEngine(data, threads=1)
    x = np.random.default_rng(batch).normal(size=(batch, SIZES[0])).astype(np.float32)
    plain: list[float] = []
    ours: list[float] = []
    for number in range(rounds + 1):
        arms = [(plain, lambda: session.run(None, {"x": x})), (ours, lambda: engine.predict(x))]
        for results, call in arms if number % 2 else reversed(arms):
            results.append(seconds_per_call(call))
    plain, ours = plain[1:], ours[1:]  # the first round warms up
    added = sorted((b - a) * 1e6 for a, b in zip(plain, ours, strict=True))
    ratio = sorted(a / b for a, b in zip(plain, ours, strict=True))
    return {
        "batch": batch,
        "session_run_us": statistics.median(plain) * 1e6,
        "predict_us": statistics.median(ours) * 1e6,
        "added_us": statistics.median(added),
        "added_us_p25": added[len(added) // 4],
        "added_us_p75": added[3 * len(added) // 4],
        "ratio": statistics.median(ratio),
        "ratio_p25": ratio[len(ratio) // 4],
        "ratio_p75": ratio[3 * len(ratio) // 4],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    data = mlp()
    results = [compare(data, batch, arguments.rounds) for batch in (1, 10, 100)]
    if arguments.json:
        print(json.dumps(results))
        return
    for r in results:
        print(
            f"batch {r['batch']:4.0f}: session.run {r['session_run_us']:7.1f} us, predict {r['predict_us']:7.1f} us, "
            f"added {r['added_us']:5.1f} us ({r['added_us_p25']:.1f} to {r['added_us_p75']:.1f}), "
            f"ratio {r['ratio']:.3f} ({r['ratio_p25']:.3f} to {r['ratio_p75']:.3f})"
        )


if __name__ == "__main__":
    main()
