"""The HTTP side of :class:`~holdfast.inference.InferenceServer`."""

from __future__ import annotations

import importlib.metadata
from time import perf_counter
from typing import TYPE_CHECKING, Any

from aiohttp import web

from holdfast.errors import HoldfastError, InvalidInput, Unavailable
from holdfast.inference._oip_codec import decode_request, encode_response
from holdfast.telemetry import counter, histogram
from holdfast.web import bearer_token, errors_as_json, metrics

if TYPE_CHECKING:
    from holdfast.inference._tensors import TensorInfo
    from holdfast.inference.rest_server import InferenceServer

__all__ = ["application"]

_HEADER_LENGTH = "Inference-Header-Content-Length"
_FREE = frozenset({"/v2/health/live", "/v2/health/ready"})
_REQUESTS = (
    "holdfast_inference_requests_total",
    "Inference requests by model and HTTP status",
    ("model", "status"),
)
_SECONDS = ("holdfast_inference_request_seconds", "Duration of inference requests by model", ("model",))
_ROWS = ("holdfast_inference_rows_total", "Rows of inference answers by model", ("model",))


def application(server: InferenceServer, *, token: str | None, max_body_bytes: int) -> web.Application:
    """The aiohttp application of a server."""
    routes = _Routes(server)
    guards = [errors_as_json] if token is None else [errors_as_json, bearer_token(token, free=_FREE)]
    app = web.Application(middlewares=guards, client_max_size=max_body_bytes)
    app.router.add_get("/v2", routes.describe_server)
    app.router.add_get("/v2/health/live", routes.live)
    app.router.add_get("/v2/health/ready", routes.ready)
    app.router.add_get("/metrics", metrics)
    for prefix in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        app.router.add_get(prefix, routes.describe_model)
        app.router.add_get(f"{prefix}/ready", routes.model_ready)
        app.router.add_post(f"{prefix}/infer", routes.infer)
    return app


class _Routes:
    def __init__(self, server: InferenceServer) -> None:
        self._server = server

    async def describe_server(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "name": "holdfast",
                "version": importlib.metadata.version("holdfast"),
                "extensions": ["binary_tensor_data"],
            }
        )

    async def live(self, _: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def ready(self, _: web.Request) -> web.Response:
        ready = self._server.ready
        return web.json_response({"ready": ready}, status=200 if ready else Unavailable.http_status)

    async def describe_model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        model, _ = self._server.served(name, request.match_info.get("version"))
        description = {
            "name": name,
            "versions": [model.version],
            "platform": "onnx_onnxv1",
            "inputs": [_described(info) for info in model.engine.inputs],
            "outputs": [_described(info) for info in model.engine.outputs],
        }
        parameters = {**model.metadata, **_receipt(model.cid)}
        return web.json_response(description | ({"parameters": parameters} if parameters else {}))

    async def model_ready(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        self._server.served(name, request.match_info.get("version"))
        ready = self._server.ready
        return web.json_response(
            {"name": name, "ready": ready}, status=200 if ready else Unavailable.http_status
        )

    async def infer(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        model, batcher = self._server.served(name, request.match_info.get("version"))
        started = perf_counter()
        status = 500
        try:
            length = _header_length(request.headers.get(_HEADER_LENGTH))
            body = await request.read()
            asked = decode_request(
                body, header_length=length, inputs=model.engine.inputs, outputs=model.engine.outputs
            )
            outputs = await batcher.submit(asked.inputs, asked.outputs)
            answer, length = encode_response(
                outputs,
                model_name=name,
                model_version=model.version,
                request=asked,
                parameters=_receipt(model.cid),
            )
            status = 200
            shape = next(iter(outputs.values())).shape
            counter(*_ROWS).labels(name).inc(shape[0] if shape else 1)
        except HoldfastError as error:
            status = error.http_status
            raise
        except web.HTTPException as error:
            status = error.status
            raise
        finally:
            counter(*_REQUESTS).labels(name, str(status)).inc()
            histogram(*_SECONDS).labels(name).observe(perf_counter() - started)
        if length is None:
            return web.Response(body=answer, content_type="application/json")
        return web.Response(
            body=answer, content_type="application/octet-stream", headers={_HEADER_LENGTH: str(length)}
        )


def _receipt(cid: str | None) -> dict[str, str]:
    return {} if cid is None else {"model_cid": cid}


def _described(info: TensorInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "datatype": info.datatype,
        "shape": [size if isinstance(size, int) else -1 for size in info.shape],
    }


def _header_length(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise InvalidInput(f"{_HEADER_LENGTH} must be a number of bytes, not {text[:40]!r}")
    return int(text)
