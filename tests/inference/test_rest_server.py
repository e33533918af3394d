from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np
import pytest

from holdfast.errors import Conflict, InvalidInput, Unavailable
from holdfast.inference import InferenceServer, ONNXInferenceEngine, ServedModel
from holdfast.inference._batcher import Batcher

CID = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"


@asynccontextmanager
async def serving(models, **options):
    before = set(threading.enumerate())
    server = InferenceServer(models, **options)
    url = await server.start("127.0.0.1", 0)
    try:
        async with aiohttp.ClientSession(url) as client:
            yield server, client
    finally:
        await server.aclose()
        left = {thread.name for thread in set(threading.enumerate()) - before}
        assert not {name for name in left if name.startswith("holdfast")}


class Slowly:
    """A real engine that takes a while, so that requests pile up behind it."""

    def __init__(self, engine, seconds=0.02):
        self.engine, self.seconds, self.batches = engine, seconds, []
        self.inputs, self.outputs, self.prepare = engine.inputs, engine.outputs, engine.prepare

    def predict(self, inputs, /, outputs=None):
        assert threading.current_thread().name.startswith("holdfast-infer-")
        time.sleep(self.seconds)
        self.batches.append({name: array.shape for name, array in inputs.items()})
        return self.engine.predict(inputs, outputs)


def asked(rows, datatype="FP32", name="x", **extra):
    rows = np.asarray(rows)
    item = {"name": name, "shape": list(rows.shape), "datatype": datatype, "data": rows.ravel().tolist()}
    return {"inputs": [item], **extra}


async def post(client, path, message, status=200, **options):
    async with client.post(path, json=message, **options) as response:
        body = await response.json()
        assert response.status == status, body
        return body


async def get(client, path, status=200, **options):
    async with client.get(path, **options) as response:
        assert response.status == status
        return await response.json()


@pytest.fixture
def models(linear):
    return {"m": ServedModel(ONNXInferenceEngine(linear), "3", CID, {"task": "test"})}


def test_a_client_finds_out_what_is_served(models):
    async def scenario():
        async with serving(models) as (server, client):
            about = await get(client, "/v2")
            assert (about["name"], about["extensions"]) == ("holdfast", ["binary_tensor_data"])
            assert await get(client, "/v2/health/live") == {"live": True}
            assert await get(client, "/v2/health/ready") == {"ready": True}
            for path in ("/v2/models/m", "/v2/models/m/versions/3"):
                assert await get(client, path) == {
                    "name": "m",
                    "versions": ["3"],
                    "platform": "onnx_onnxv1",
                    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
                    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
                    "parameters": {"task": "test", "model_cid": CID},
                }
                assert (await get(client, f"{path}/ready"))["ready"] is True
            assert server.ready
        assert not server.ready
        with pytest.raises(Unavailable):
            _ = server.url

    asyncio.run(scenario())


def test_an_answer_is_the_models_with_its_receipt(models, weights):
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)

    async def scenario():
        async with serving(models) as (_, client):
            for path in ("/v2/models/m/infer", "/v2/models/m/versions/3/infer"):
                body = await post(client, path, asked(x, id="abc", outputs=[{"name": "y"}]))
                (output,) = body.pop("outputs")
                assert body == {
                    "model_name": "m",
                    "model_version": "3",
                    "id": "abc",
                    "parameters": {"model_cid": CID},
                }
                assert (output["name"], output["datatype"], output["shape"]) == ("y", "FP32", [2, 3])
                np.testing.assert_allclose(np.reshape(output["data"], (2, 3)), x @ weights, rtol=1e-5)

    asyncio.run(scenario())


def test_binary_tensors_go_both_ways(models, weights):
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    item = {"name": "x", "shape": [3, 4], "datatype": "FP32", "parameters": {"binary_data_size": 48}}
    head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()

    async def scenario():
        async with serving(models) as (_, client):
            headers = {"Inference-Header-Content-Length": str(len(head))}
            async with client.post(
                "/v2/models/m/infer", data=head + x.tobytes(), headers=headers
            ) as response:
                body = await response.read()
                length = int(response.headers["Inference-Header-Content-Length"])
                assert response.content_type == "application/octet-stream"
            message = json.loads(body[:length])
            assert message["outputs"][0]["parameters"] == {"binary_data_size": 36}
            np.testing.assert_allclose(
                np.frombuffer(body[length:], np.float32).reshape(3, 3), x @ weights, rtol=1e-5
            )
            for wrong in ("x", "-1", "1e3", "9" * 30, "٣"):
                body = await post(
                    client, "/v2/models/m/infer", {}, 400, headers={"Inference-Header-Content-Length": wrong}
                )
                assert "Inference-Header-Content-Length" in body["error"]

    asyncio.run(scenario())


def test_every_datatype_of_onnx_passes_through(model_of):
    kinds = {
        "BOOL": ("BOOL", [True, False]),
        "BYTES": ("STRING", ["a", "ü"]),
        "FP16": ("FLOAT16", [0.5, -2.0]),
        "FP64": ("DOUBLE", [0.1, 1e300]),
        "FP32": ("FLOAT", [0.5, 3.0]),
        "INT64": ("INT64", [-(2**63), 2**63 - 1]),
        "UINT64": ("UINT64", [0, 2**64 - 1]),
    }
    kinds |= {f"{u}INT{bits}": (f"{u}INT{bits}", [0, 100]) for u in ("", "U") for bits in (8, 16, 32)}
    models = {
        datatype: ServedModel(
            ONNXInferenceEngine(
                model_of([("Identity", ["x"], ["y"])], {"x": (kind, ["n"])}, {"y": (kind, ["n"])})
            )
        )
        for datatype, (kind, _) in kinds.items()
    }

    async def scenario():
        async with serving(models) as (_, client):
            for datatype, (_, values) in kinds.items():
                item = {"name": "x", "shape": [2], "datatype": datatype, "data": values}
                body = await post(client, f"/v2/models/{datatype}/infer", {"inputs": [item]})
                assert (body["outputs"][0]["datatype"], body["outputs"][0]["data"]) == (datatype, values)
                assert "parameters" not in body

    asyncio.run(scenario())


def test_each_mistake_has_its_status_and_one_clear_message(models):
    good = np.zeros((1, 4))

    async def scenario():
        async with serving(models, max_body_bytes=2000) as (_, client):
            infer = "/v2/models/m/infer"
            for path, message, status, words in [
                ("/v2/models/other/infer", asked(good), 404, "no model 'other'; served are 'm'"),
                ("/v2/models/m/versions/9/infer", asked(good), 404, "no version '9' of 'm'; served is '3'"),
                ("/v2/nothing", asked(good), 404, "Not Found"),
                ("/v2/health/live", asked(good), 405, "Not Allowed"),
                (infer, asked(good, "FP64"), 400, "must have datatype FP32, not 'FP64'"),
                (infer, asked(good, name="z"), 400, "no input 'z'"),
                (infer, {"inputs": []}, 400, "input 'x' is missing"),
                (
                    infer,
                    asked(np.zeros((1, 5))),
                    400,
                    "must be float32 of shape [batch, 4], not float32 of shape [1, 5]",
                ),
                (infer, asked(good, outputs=[{"name": "w"}]), 400, "no output 'w'"),
                (infer, asked(np.zeros((200, 4))), 413, "larger than 2000 bytes"),
            ]:
                body = await post(client, path, message, status)
                assert words in body["error"], body
            async with client.post(infer, data=b"{") as response:
                assert (response.status, "not valid JSON" in (await response.json())["error"]) == (400, True)
            async with client.post(infer, data=b"zz", headers={"Content-Encoding": "gzip"}) as response:
                assert response.status == 400
                assert "error" in await response.json()
            await post(client, infer, asked(good))  # and it still works

    asyncio.run(scenario())


def test_a_compressed_bomb_is_refused(models):
    import gzip

    bomb = gzip.compress(b" " * 10_000_000)

    async def scenario():
        async with serving(models, max_body_bytes=100_000) as (_, client):
            headers = {"Content-Encoding": "gzip"}
            async with client.post("/v2/models/m/infer", data=bomb, headers=headers) as response:
                assert response.status in (400, 413)

    asyncio.run(scenario())


def test_nothing_but_health_is_answered_without_the_token(models):
    async def scenario():
        async with serving(models, token="s" * 32) as (_, client):
            for path in ("/v2/health/live", "/v2/health/ready"):
                await get(client, path)
            for value in (None, "s" * 32, "Bearer " + "s" * 31, "Basic " + "s" * 32, "Bearer ü"):
                headers = {} if value is None else {"Authorization": value}
                for path in ("/v2", "/v2/models/m", "/metrics", "/v2/models/m/ready", "/nothing"):
                    body = await get(client, path, 401, headers=headers)
                    assert "s" * 31 not in body["error"]
                await post(client, "/v2/models/m/infer", asked(np.zeros((1, 4))), 401, headers=headers)
            headers = {"Authorization": "Bearer " + "s" * 32}
            await post(client, "/v2/models/m/infer", asked(np.zeros((1, 4))), headers=headers)

    asyncio.run(scenario())


def test_metrics_count_requests_rows_and_failures(linear):
    async def scenario():
        async with serving({"counted": ServedModel(ONNXInferenceEngine(linear))}) as (_, client):
            for _ in range(3):
                await post(client, "/v2/models/counted/infer", asked(np.zeros((2, 4))))
            await post(client, "/v2/models/counted/infer", {}, 400)
            async with client.get("/metrics") as response:
                assert response.content_type == "text/plain"
                text = await response.text()
        assert 'holdfast_inference_requests_total{model="counted",status="200"} 3.0' in text
        assert 'holdfast_inference_requests_total{model="counted",status="400"} 1.0' in text
        assert 'holdfast_inference_rows_total{model="counted"} 6.0' in text
        assert 'holdfast_inference_request_seconds_count{model="counted"} 4.0' in text

    asyncio.run(scenario())


def test_sixty_clients_each_get_exactly_their_own_rows(linear, weights):
    engine = Slowly(ONNXInferenceEngine(linear), 0.005)

    async def client_of(url, number):
        rng = np.random.default_rng(number)
        async with aiohttp.ClientSession(url) as client:
            for _ in range(5):
                x = rng.normal(size=(1 + number % 4, 4)).astype(np.float32)
                body = await post(client, "/v2/models/m/infer", asked(x, id=str(number)))
                assert body["id"] == str(number)
                got = np.reshape(body["outputs"][0]["data"], body["outputs"][0]["shape"])
                np.testing.assert_allclose(got, x @ weights, rtol=1e-4, atol=1e-5)

    async def scenario():
        async with serving({"m": ServedModel(engine, max_batch_size=32)}) as (server, _):
            await asyncio.gather(*(client_of(server.url, number) for number in range(60)))
            seen = server.statistics()["m"]
            assert (seen.requests, seen.failures, seen.queued) == (300, 0, 0)
            assert seen.rows == 5 * 15 * (1 + 2 + 3 + 4)
            assert seen.batches == len(engine.batches) < 150
            assert 4 < seen.largest_batch_rows <= 32

    asyncio.run(scenario())


def test_one_bad_request_fails_alone(lookup):
    engine = Slowly(ONNXInferenceEngine(lookup))

    async def scenario():
        async with serving({"m": ServedModel(engine)}) as (server, client):
            indexes = [0, 1, 99, 2, 3, 99, 1, 0]
            answers = await asyncio.gather(
                *(
                    post(client, "/v2/models/m/infer", asked([i], "INT64", "i"), 400 if i == 99 else 200)
                    for i in indexes
                )
            )
            for i, body in zip(indexes, answers, strict=True):
                if i == 99:
                    assert "out of data bounds" in body["error"]
                else:
                    assert body["outputs"][0]["data"] == [2 * i, 2 * i + 1]
            seen = server.statistics()["m"]
            assert (seen.requests, seen.failures) == (8, 2)
            assert seen.batches < 8

    asyncio.run(scenario())


def submit_all(engine, feeds, *, outputs=None, **options):
    """What a batcher answers to requests that all arrive while the first one is running."""

    async def scenario():
        batcher = Batcher(engine, name="m", **options)
        batcher.start()
        try:
            wanted = outputs or [None] * len(feeds)
            return await asyncio.gather(
                *(batcher.submit(feed, names) for feed, names in zip(feeds, wanted, strict=True)),
                return_exceptions=True,
            ), batcher.statistics()
        finally:
            await batcher.aclose()

    return asyncio.run(scenario())


def test_only_rows_of_one_shape_share_a_batch(model_of):
    engine = Slowly(
        ONNXInferenceEngine(
            model_of([("Neg", ["x"], ["y"])], {"x": ("FLOAT", ["n", "m"])}, {"y": ("FLOAT", ["n", "m"])})
        )
    )
    feeds = [{"x": np.full((1, 1 + i % 2), i, np.float32)} for i in range(9)]
    answers, seen = submit_all(engine, feeds)
    for feed, answer in zip(feeds, answers, strict=True):
        assert np.array_equal(answer["y"], -feed["x"])
    assert engine.batches == [{"x": (5, 1)}, {"x": (4, 2)}]
    assert seen.batches == 2


def test_requests_for_different_outputs_share_a_batch_and_get_only_theirs(model_of):
    ends = {"y": ("FLOAT", ["n"]), "z": ("FLOAT", ["n"])}
    engine = Slowly(
        ONNXInferenceEngine(
            model_of([("Neg", ["x"], ["y"]), ("Abs", ["x"], ["z"])], {"x": ("FLOAT", ["n"])}, ends)
        )
    )
    feeds = [{"x": np.array([-i], np.float32)} for i in range(4)]
    answers, _ = submit_all(engine, feeds, outputs=[None, ("y",), ("z",), ("z", "y")])
    assert [list(answer) for answer in answers] == [["y", "z"], ["y"], ["z"], ["z", "y"]]
    assert [answer.get("z", [None])[0] for answer in answers] == [0, None, 2, 3]
    assert len(engine.batches) == 1


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({"x": ("FLOAT", [1, 2])}, {"y": ("FLOAT", [1, 2])}),
        ({"x": ("FLOAT", ["n", 2])}, {"y": ("FLOAT", ["k", 2])}),
        ({"x": ("FLOAT", ["n", "n"])}, {"y": ("FLOAT", ["n", "n"])}),
    ],
)
def test_models_whose_shapes_tie_rows_together_are_never_batched(model_of, inputs, outputs):
    engine = Slowly(ONNXInferenceEngine(model_of([("Neg", ["x"], ["y"])], inputs, outputs)), 0.005)
    feeds = [{"x": np.full((1, 2), i, np.float32)} for i in range(4)]
    answers, seen = submit_all(engine, feeds)
    assert [answer["y"][0, 0] for answer in answers] == [0, -1, -2, -3]
    assert (seen.batches, seen.largest_batch_rows) == (4, 1)


def test_rows_of_inputs_without_a_common_name_never_slip_to_a_neighbour(model_of):
    free = ("FLOAT", [None])
    engine = Slowly(
        ONNXInferenceEngine(model_of([("Add", ["a", "b"], ["y"])], {"a": free, "b": free}, {"y": free})),
        0.005,
    )
    one, two = np.array([1], np.float32), np.array([10, 20], np.float32)
    # Both broadcast; joined, they would be three rows plus three rows.
    answers, _ = submit_all(engine, [{"a": one, "b": two}, {"a": two, "b": one}])
    assert [answer["y"].tolist() for answer in answers] == [[11, 21], [11, 21]]


def test_a_model_that_breaks_its_declared_shape_falls_back_to_single_runs(model_of):
    # Both dimensions are unnamed, so only the answer shows that the output does not follow the rows.
    engine = Slowly(
        ONNXInferenceEngine(
            model_of(
                [("NonZero", ["x"], ["t"]), ("Squeeze", ["t", "axis"], ["y"])],
                {"x": ("FLOAT", [None])},
                {"y": ("INT64", [None])},
                {"axis": np.array([0])},
            )
        ),
        0.005,
    )
    feeds = [{"x": np.array([i % 2], np.float32)} for i in range(6)]
    answers, _ = submit_all(engine, feeds)
    assert [answer["y"].tolist() for answer in answers] == [[], [0], [], [0], [], [0]]


def test_batching_can_be_switched_off_and_large_requests_run_alone(linear):
    x = {"x": np.ones((1, 4), np.float32)}
    cases: list[tuple[dict[str, Any], int]] = [
        ({"batching": False}, 1),
        ({"max_batch_size": 1}, 1),
        ({"max_batch_size": 3}, 3),
    ]
    for options, largest in cases:
        _, seen = submit_all(Slowly(ONNXInferenceEngine(linear), 0.005), [x] * 7, **options)
        assert seen.largest_batch_rows == largest
    _, seen = submit_all(
        Slowly(ONNXInferenceEngine(linear), 0.005),
        [x, {"x": np.ones((9, 4), np.float32)}, x],
        max_batch_size=3,
    )
    assert (seen.largest_batch_rows, seen.batches) == (9, 3)


def test_a_full_queue_refuses_instead_of_growing(linear):
    x = {"x": np.ones((1, 4), np.float32)}
    answers, seen = submit_all(Slowly(ONNXInferenceEngine(linear)), [x] * 10, max_queue=4)
    refused = [answer for answer in answers if isinstance(answer, Unavailable)]
    assert len(refused) == 6
    assert "4 requests for 'm' are waiting" in str(refused[0])
    assert seen.requests == 4


def test_an_engine_that_raises_anything_does_not_stop_the_queue(linear):
    class Failing(Slowly):
        def predict(self, inputs, /, outputs=None):
            if np.isnan(inputs["x"]).any():
                raise ZeroDivisionError("broken engine")
            return super().predict(inputs, outputs)

    engine = Failing(ONNXInferenceEngine(linear))
    feeds = [{"x": np.full((1, 4), value, np.float32)} for value in (1, np.nan, 2, 3)]
    answers, seen = submit_all(engine, feeds)
    assert isinstance(answers[1], ZeroDivisionError)
    assert [list(answer) for answer in (answers[0], *answers[2:])] == [["y"]] * 3
    assert seen.failures == 1

    async def scenario():
        async with serving({"m": ServedModel(engine)}) as (_, client):
            item = {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
            head = json.dumps({"inputs": [item]}).encode()
            body = head + np.full((1, 4), np.nan, np.float32).tobytes()
            headers = {"Inference-Header-Content-Length": str(len(head))}
            async with client.post("/v2/models/m/infer", data=body, headers=headers) as response:
                assert response.status == 500
                assert "broken" not in (await response.json())["error"]  # details stay in the log
            await post(client, "/v2/models/m/infer", asked(np.zeros((1, 4))))

    asyncio.run(scenario())


def test_tiny_batches_may_run_inline_and_slow_ones_never_do(linear, weights):
    threads: list[str] = []

    class Noting(Slowly):
        def predict(self, inputs, /, outputs=None):
            threads.append(threading.current_thread().name)
            time.sleep(self.seconds)
            return self.engine.predict(inputs, outputs)

    async def scenario():
        engine = Noting(ONNXInferenceEngine(linear), 0)
        batcher = Batcher(engine, name="m", inline_below_s=0.01)
        batcher.start()
        x = {"x": np.ones((1, 4), np.float32)}
        for seconds in (0, 0, 0.05, 0, 0):
            engine.seconds = seconds
            answers = await asyncio.gather(*(batcher.submit(x) for _ in range(3)))
            for answer in answers:
                np.testing.assert_allclose(answer["y"], x["x"] @ weights, rtol=1e-5)
        await batcher.aclose()
        inline = [not name.startswith("holdfast") for name in threads]
        # The first is unknown, the one that suddenly took long is the last to run inline.
        assert inline == [False, True, True, False, False]
        assert batcher.statistics().batches == 5

    asyncio.run(scenario())


def test_the_event_loop_stays_free_while_the_model_computes(linear):
    async def scenario():
        async with serving({"m": ServedModel(Slowly(ONNXInferenceEngine(linear), 0.5))}) as (_, client):
            infer = asyncio.create_task(post(client, "/v2/models/m/infer", asked(np.zeros((1, 4)))))
            await asyncio.sleep(0.1)
            await get(client, "/v2/health/live")
            assert not infer.done()
            await infer

    asyncio.run(scenario())


def test_a_client_that_left_costs_its_neighbours_nothing(linear):
    async def scenario():
        batcher = Batcher(Slowly(ONNXInferenceEngine(linear)), name="m")
        batcher.start()
        x = {"x": np.ones((1, 4), np.float32)}
        tasks = [asyncio.create_task(batcher.submit(x)) for _ in range(6)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[3].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(answer, dict) for answer in answers] == [False, True, True, False, True, True]
        await batcher.aclose()
        assert batcher.statistics().queued == 0

    asyncio.run(scenario())


def test_closing_finishes_what_was_accepted_and_leaves_no_thread_or_port(linear):
    before = threading.active_count()

    async def scenario():
        server = InferenceServer({"m": ServedModel(Slowly(ONNXInferenceEngine(linear), 0.1))})
        url = await server.start()
        async with aiohttp.ClientSession(url) as client:
            tasks = [
                asyncio.create_task(post(client, "/v2/models/m/infer", asked(np.zeros((1, 4)))))
                for _ in range(8)
            ]
            await asyncio.sleep(0.05)
            await asyncio.gather(server.aclose(), server.aclose())
            for body in await asyncio.gather(*tasks):
                assert body["outputs"][0]["shape"] == [1, 3]
            with pytest.raises(aiohttp.ClientError):
                await client.get("/v2/health/live")
        await server.aclose()
        with pytest.raises(Conflict):
            await server.start()
        # A server that was never started can be closed as well.
        await InferenceServer({"m": ServedModel(ONNXInferenceEngine(linear))}).aclose()

    asyncio.run(scenario())
    assert threading.active_count() == before


def test_a_taken_port_is_reported_and_leaves_no_thread(models):
    before = threading.active_count()

    async def scenario():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(Unavailable, match=r"can't listen on 127\.0\.0\.1"):
                await InferenceServer(models).start("127.0.0.1", taken.getsockname()[1])

    asyncio.run(scenario())
    assert threading.active_count() == before


def test_settings_that_cannot_work_are_refused(linear):
    engine = ONNXInferenceEngine(linear)
    cases: list[tuple[dict[str, ServedModel], dict[str, Any]]] = [
        ({}, {}),
        ({"": ServedModel(engine)}, {}),
        ({"m": ServedModel(engine, "")}, {}),
        ({"m": ServedModel(engine, max_batch_size=0)}, {}),
        ({"m": ServedModel(engine)}, {"token": ""}),
        ({"m": ServedModel(engine)}, {"max_body_bytes": 0}),
        ({"m": ServedModel(engine)}, {"max_queue": 0}),
    ]
    for models, options in cases:
        with pytest.raises(InvalidInput):
            InferenceServer(models, **options)
