"""What every HTTP server of holdfast shares: errors as JSON, the token, and metrics."""

from __future__ import annotations

import asyncio
import errno
import hmac
from typing import TYPE_CHECKING

from aiohttp import ClientPayloadError, web
from aiohttp.http import HttpProcessingError

from holdfast.errors import Denied, ErrorCode, HoldfastError, Unavailable
from holdfast.telemetry import counter, exposition, get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from aiohttp import StreamReader
    from aiohttp.typedefs import Handler, Middleware


__all__ = ["bearer_token", "errors_as_json", "listen", "metrics", "stream_reader", "token_cookie"]

log = get_logger(__name__)


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Middleware: every failure is one JSON object, ``{"error": ..., "code": ...}``, with the status that fits.

    A :class:`HoldfastError` has its own status; what nobody foresaw is a 500 without details, and in the log.
    """
    try:
        response = await handler(request)
    except Exception as error:
        if request.writer.output_size or (isinstance(error, web.HTTPException) and error.status < 400):
            raise  # the answer has begun: breaking off is all that is left to tell of it
        response = await _told(request, error)
    route = request.match_info.route.resource
    counter("holdfast_http_requests_total", "HTTP requests answered.", ("method", "route", "status")).labels(
        request.method, route.canonical if route else "unknown", response.status
    ).inc()
    return response


async def _told(request: web.Request, error: Exception) -> web.Response:
    if isinstance(error, HoldfastError):
        headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Denied) else {}
        return web.json_response(error.to_json(), status=error.http_status, headers=headers)
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return _refused(413, f"the body is larger than {request.client_max_size} bytes")
    if isinstance(error, web.HTTPException):
        allow = error.headers.get("Allow")
        text = f"{request.method} {request.path}: {error.reason}"
        return _refused(error.status, text, {"Allow": allow} if allow else None)
    if isinstance(error, (HttpProcessingError, ClientPayloadError, web.RequestPayloadError)):
        response = _refused(400, f"the body can't be read: {str(error).splitlines()[-1].strip()}")
        response.force_close()
        # aiohttp would read on in the broken body, fail again and drop the answer with the connection.
        await response.prepare(request)
        await response.write_eof()
        request.protocol.force_close()
        return response
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    body = {
        "error": "an unforeseen failure; the server's log has the details",
        "code": ErrorCode.INTERNAL.value,
    }
    return web.json_response(body, status=500)


def _refused(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    code = ErrorCode.NOT_FOUND if status == 404 else ErrorCode.INVALID_INPUT
    return web.json_response({"error": text, "code": code.value}, status=status, headers=headers)


def token_cookie(request: web.Request) -> str:
    """The name of the cookie that holds the token: cookies ignore ports, and a host may have several clusters."""
    return f"holdfast_token_{request.url.port}"


def bearer_token(token: str, *, free: Collection[str] = ()) -> Middleware:
    """Middleware that asks for ``Authorization: Bearer <token>``, compared in constant time.

    Args:
        token: The secret. A browser may read (GET) with it in the cookie :func:`token_cookie` instead; a cookie
            never changes anything, so no other site can make it do so.
        free: Paths that need no token.
    """
    wanted = _bytes(token)

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = (
                request.cookies.get(token_cookie(request), "") if request.method in ("GET", "HEAD") else ""
            )
        if request.path not in free and not hmac.compare_digest(_bytes(given.strip()), wanted):
            raise Denied("the token is missing or wrong: send it as 'Authorization: Bearer <token>'")
        return await handler(request)

    return check


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")  # aiohttp reads bytes that are not UTF-8 as surrogates


async def metrics(_: web.Request) -> web.Response:
    """Handler: this process' metrics as Prometheus text."""
    body, content_type = exposition()
    return web.Response(body=body, content_type=content_type)


async def listen(
    app: web.Application, host: str, port: int, *, shutdown_timeout_s: float = 2.0
) -> tuple[web.AppRunner, str]:
    """Start ``app``; returns its runner, to clean up, and its URL.

    Args:
        app: What to serve.
        host: Address to listen on.
        port: 0 takes a free one.
        shutdown_timeout_s: How long the clean-up waits for requests that are being answered.

    Raises:
        Unavailable: The port is in use, or the address is not this machine's.
    """
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=shutdown_timeout_s)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
    except (OSError, OverflowError) as error:
        await runner.cleanup()
        hint = "another program uses the port; choose another one"
        if not isinstance(error, OSError) or error.errno != errno.EADDRINUSE:
            hint = "choose an address of this machine and a port from 1024 to 65535"
        raise Unavailable(f"can't listen on {host}:{port}: {hint} ({error})") from error
    actual = runner.addresses[0][1]
    return runner, f"http://{f'[{host}]' if ':' in host else host}:{actual}"


def stream_reader(content: StreamReader) -> Callable[[int], Awaitable[bytes]]:
    """A function that reads exactly so many bytes of a request's body, fewer only at its end."""

    async def read(size: int) -> bytes:
        try:
            return await content.readexactly(size)
        except asyncio.IncompleteReadError as error:
            return error.partial

    return read
