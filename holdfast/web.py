"""What every HTTP server of holdfast shares: errors as JSON, the token, and metrics."""

from __future__ import annotations

import asyncio
import errno
import hmac
from typing import TYPE_CHECKING

from aiohttp import web

from holdfast.errors import Denied, HoldfastError, Unavailable
from holdfast.telemetry import counter, exposition, get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from aiohttp import StreamReader
    from aiohttp.typedefs import Handler, Middleware


__all__ = ["TOKEN_COOKIE", "bearer_token", "errors_as_json", "listen", "metrics", "stream_reader"]

TOKEN_COOKIE = "holdfast_token"  # noqa: S105 -- the cookie's name

log = get_logger(__name__)


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Middleware: a :class:`HoldfastError` becomes its status and JSON body, anything unforeseen a plain 500."""
    try:
        response = await handler(request)
    except HoldfastError as error:
        if request.writer.output_size:
            raise  # the answer has begun: breaking off is all that is left to tell of it
        response = web.json_response(error.to_json(), status=error.http_status)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        body = {"error": f"{request.method} {request.path}: {error.reason}", "code": "http"}
        response = web.json_response(body, status=error.status)
    except Exception:
        if request.writer.output_size:
            raise
        log.exception("%s %s failed", request.method, request.path)
        body = {"error": "an unforeseen failure; the server's log has the details", "code": "internal"}
        response = web.json_response(body, status=500)
    route = request.match_info.route.resource
    counter("holdfast_http_requests_total", "HTTP requests answered.", ("method", "route", "status")).labels(
        request.method, route.canonical if route else "unknown", response.status
    ).inc()
    return response


def bearer_token(token: str, *, free: Collection[str] = ()) -> Middleware:
    """Middleware that asks for ``Authorization: Bearer <token>``, compared in constant time.

    Args:
        token: The secret. A browser may read (GET) with it in the cookie :data:`TOKEN_COOKIE` instead; a cookie
            never changes anything, so no other site can make it do so.
        free: Paths that need no token.
    """
    wanted = _bytes(token)

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = request.cookies.get(TOKEN_COOKIE, "") if request.method in ("GET", "HEAD") else ""
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


async def listen(app: web.Application, host: str, port: int) -> tuple[web.AppRunner, str]:
    """Start ``app``; returns its runner, to clean up, and its URL.

    Raises:
        Unavailable: The port is in use, or the address is not this machine's.
    """
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2.0)
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
