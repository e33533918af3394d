"""The HTTP side of :class:`~holdfast.inference.InferenceServer`: routes, the token, errors, metrics."""

from __future__ import annotations

import hmac
import importlib.metadata
from time import perf_counter
from typing import TYPE_CHECKING, Any

from aiohttp import ClientPayloadError, web
from aiohttp.http import HttpProcessingError

from holdfast.errors import Denied, HoldfastError, InvalidInput, Unavailable
from holdfast.inference._oip_codec import decode_request, encode_response
from holdfast.telemetry import counter, exposition, get_logger, histogram

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from holdfast.inference._tensors import TensorInfo
    from holdfast.inference.rest_server import InferenceServer

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

__all__ = ["application"]

_log = get_logger(__name__)
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
    routes = _Routes(server, token=token, max_body_bytes=max_body_bytes)
    app = web.Application(middlewares=[routes.guard], client_max_size=max_body_bytes)
    app.router.add_get("/v2", routes.describe_server)
    app.router.add_get("/v2/health/live", routes.live)
    app.router.add_get("/v2/health/ready", routes.ready)
    app.router.add_get("/metrics", routes.metrics)
    for prefix in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        app.router.add_get(prefix, routes.describe_model)
        app.router.add_get(f"{prefix}/ready", routes.model_ready)
        app.router.add_post(f"{prefix}/infer", routes.infer)
    return app


class _Routes:
    def __init__(self, server: InferenceServer, *, token: str | None, max_body_bytes: int) -> None:
        self._server = server
        self._token = None if token is None else token.encode()
        self._max_body_bytes = max_body_bytes

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Ask for the token, and turn every failure into one JSON object."""
        try:
            self._check_token(request)
            return await handler(request)
        except HoldfastError as error:
            return _failure(error.http_status, error.to_json())
        except web.HTTPRequestEntityTooLarge:
            text = f"the body is larger than {self._max_body_bytes} bytes"
            return _failure(413, {"error": text, "code": InvalidInput.code.value})
        except web.HTTPException as error:
            text = f"{request.method} {request.path}: {error.reason}"
            return _failure(
                error.status, {"error": text, "code": InvalidInput.code.value}, error.headers.get("Allow")
            )
        except (HttpProcessingError, ClientPayloadError, web.RequestPayloadError) as error:
            text = f"the body can't be read: {str(error).splitlines()[-1].strip()}"
            response = _failure(400, {"error": text, "code": InvalidInput.code.value})
            response.force_close()
            # aiohttp would read on in the broken body, fail again and drop the answer with the connection.
            await response.prepare(request)
            await response.write_eof()
            request.protocol.force_close()
            return response
        except Exception:  # noqa: BLE001 - logged, and the client must get an answer
            _log.exception("%s %s failed", request.method, request.path)
            return _failure(500, {"error": "internal error; the server's log says more", "code": "internal"})

    def _check_token(self, request: web.Request) -> None:
        if self._token is None or request.path in _FREE:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        # Headers may hold bytes that are no text, which aiohttp hands on as surrogates.
        same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token)
        if not same or scheme.lower() != "bearer":
            raise Denied("this server needs the header 'Authorization: Bearer TOKEN' with its token")

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

    async def metrics(self, _: web.Request) -> web.Response:
        body, content_type = exposition()
        return web.Response(body=body, content_type=content_type, charset="utf-8")

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


def _failure(status: int, body: dict[str, str], allow: str | None = None) -> web.Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == Denied.http_status else {}
    if allow:
        headers["Allow"] = allow
    return web.json_response(body, status=status, headers=headers)


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
