"""The dashboard: one page that shows nodes, datasets, models, indexes and runs, live."""

from __future__ import annotations

import hmac
from importlib import resources

from aiohttp import web

from holdfast.web import token_cookie

__all__ = ["add_dashboard_routes"]

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_dashboard_routes(app: web.Application, token: str) -> None:
    """Serve the dashboard from ``app``: the page at ``/``, its parts under ``/assets/``, and the log-in at ``/login``.

    The middleware must leave ``/`` and ``/login`` free: a browser without the token gets the log-in page there.
    """

    def known(given: str) -> bool:
        # aiohttp reads bytes that are not UTF-8 as surrogates
        return hmac.compare_digest(given.strip().encode(errors="surrogateescape"), token.encode())

    async def index(request: web.Request) -> web.Response:
        if "token" in request.query:
            # The link that 'holdfast up' prints: keep the token in a cookie, and out of the address bar.
            if not known(request.query["token"]):
                return _refused()
            return _logged_in(request, token)
        return _file("index.html" if known(request.cookies.get(token_cookie(request), "")) else "login.html")

    async def login(request: web.Request) -> web.Response:
        if not known(str((await request.post()).get("token", ""))):
            return _refused()
        return _logged_in(request, token)

    async def asset(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in ("app.js", "style.css", "icon.svg"):
            raise web.HTTPNotFound
        return _file(name)

    app.router.add_get("/", index)
    app.router.add_post("/login", login)
    app.router.add_get("/assets/{name}", asset)


def _refused() -> web.Response:
    """The log-in page, with the line that says that the token is wrong."""
    response = _file("login.html", status=401)
    response.body = _read("login.html").replace(b' role="alert" hidden>', b' role="alert">')
    return response


def _logged_in(request: web.Request, token: str) -> web.Response:
    response = web.Response(status=303, headers={"Location": "/"} | _SECURITY)
    response.set_cookie(token_cookie(request), token, httponly=True, samesite="Strict")
    return response


def _file(name: str, *, status: int = 200) -> web.Response:
    return web.Response(
        body=_read(name),
        status=status,
        content_type=_TYPES[name.rpartition(".")[2]],
        charset="utf-8",
        headers=_SECURITY,
    )


def _read(name: str) -> bytes:
    return resources.files(__package__ or __name__).joinpath(name).read_bytes()
