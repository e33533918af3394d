"""The part of the master's JSON API that is about names: what :class:`~holdfast.cluster.remote.RemoteNames` asks."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import web

from holdfast.cluster.api import json_body
from holdfast.errors import InvalidInput
from holdfast.registry.names import UNCHECKED
from holdfast.registry.names.searching import Search
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from holdfast.cluster.master import Master
    from holdfast.registry.names import NameEntry, SqliteNames
    from holdfast.registry.names.name_table import NameTable

__all__ = ["add_names_routes"]

Found = TypeVar("Found")


def add_names_routes(app: web.Application, master: Master) -> None:
    """Serve the names from ``app``."""
    api = _NamesApi(master)
    routes: list[tuple[str, str, Callable[[web.Request], Awaitable[web.Response]]]] = [
        ("GET", "/api/v0/names", api.names),
        ("POST", "/api/v0/names", api.register),
        ("DELETE", "/api/v0/names", api.unregister),
        ("GET", "/api/v0/names/resolve", api.resolve),
        ("POST", "/api/v0/names/search", api.search),
        ("POST", "/api/v0/names/rename", api.rename),
        ("GET", "/api/v0/names/history", api.history),
        ("GET", "/api/v0/names/verify", api.verify),
        ("POST", "/api/v0/aliases", api.set_alias),
        ("DELETE", "/api/v0/aliases", api.delete_alias),
        ("POST", "/api/v0/tags", api.set_tag),
    ]
    for method, path, handler in routes:
        app.router.add_route(method, path, handler)


class _NamesApi:
    def __init__(self, master: Master) -> None:
        self._master = master

    # ------------------------------------------------------------------------------------------- reading

    async def names(self, request: web.Request) -> web.Response:
        kind = request.query.get("kind")
        return _answer(await self._read(request.query.get("at"), lambda names: names.entries(kind)))

    async def resolve(self, request: web.Request) -> web.Response:
        kind, (ref,) = request.query.get("kind"), _asked(request, "ref")
        entry = await self._read(request.query.get("at"), lambda names: names.resolve(kind, ref))
        return web.json_response(entry.to_json())

    async def search(self, request: web.Request) -> web.Response:
        body = await json_body(request)
        at = body.pop("at", None)
        search = Search.from_json(body)
        return _answer(await self._read(at, lambda names: names.find(search)))

    async def history(self, request: web.Request) -> web.Response:
        kind, name = request.query.get("kind"), request.query.get("name")
        commits = await asyncio.to_thread(self._master.names.history, kind, name)
        return web.json_response([commit.to_json() for commit in commits])

    async def verify(self, _: web.Request) -> web.Response:
        found = await asyncio.to_thread(self._master.names.verify_history)
        return web.json_response(found.to_json())

    # ------------------------------------------------------------------------------------------ changing

    async def register(self, request: web.Request) -> web.Response:
        body = await _texts(request, "kind", "name", "version", "cid")
        cid, facts = Cid.parse(body["cid"]), body.get("facts")
        if facts is not None and not isinstance(facts, dict):
            raise InvalidInput(f"{request.path}: facts must be a JSON object, or null")

        def register() -> dict[str, Any]:
            # A name must never point to nothing: the record is here, or is fetched now.
            record = self._master.store.get_record(cid)
            if not isinstance(record, dict) or record.get("kind") != body["kind"]:
                raise InvalidInput(f"{cid} is no {body['kind']}")
            entry = self._by(body).register(body["kind"], body["name"], body["version"], cid, facts)
            return entry.to_json()

        return web.json_response(await asyncio.to_thread(register))

    async def unregister(self, request: web.Request) -> web.Response:
        kind, name = _asked(request, "kind", "name")
        names = self._by(request.query)
        return _answer(await asyncio.to_thread(names.unregister, kind, name, request.query.get("version")))

    async def rename(self, request: web.Request) -> web.Response:
        body = await _texts(request, "kind", "old", "new")
        names = self._by(body)
        return _answer(await asyncio.to_thread(names.rename, body["kind"], body["old"], body["new"]))

    async def set_alias(self, request: web.Request) -> web.Response:
        body = await _texts(request, "kind", "name", "alias", "version")
        entry = await asyncio.to_thread(
            self._by(body).set_alias,
            body["kind"],
            body["name"],
            body["alias"],
            body["version"],
            expected=body.get("expected", UNCHECKED),
        )
        return web.json_response(entry.to_json())

    async def delete_alias(self, request: web.Request) -> web.Response:
        kind, name, alias = _asked(request, "kind", "name", "alias")
        expected = request.query.get("expected", UNCHECKED) or None
        entry = await asyncio.to_thread(
            self._by(request.query).delete_alias, kind, name, alias, expected=expected
        )
        return web.json_response(entry.to_json())

    async def set_tag(self, request: web.Request) -> web.Response:
        body = await _texts(request, "kind", "name", "version", "key", "value")
        entry = await asyncio.to_thread(
            self._by(body).set_tag,
            body["kind"],
            body["name"],
            body["version"],
            body["key"],
            body["value"],
            expected=body.get("expected", UNCHECKED),
        )
        return web.json_response(entry.to_json())

    # ------------------------------------------------------------------------------------------- helpers

    def _by(self, asked: Any) -> SqliteNames:
        """The names, changed by whom the request names."""
        return self._master.names.by(f"{asked.get('who') or 'somebody'} over HTTP")

    async def _read(self, at: Any, ask: Callable[[NameTable], Found]) -> Found:
        """What the names of now, or of the moment that a request asks for, answer."""

        def read() -> Found:
            if at is None:
                return ask(self._master.names)
            with closing(self._master.names.at(moment_of(at))) as then:
                return ask(then)

        return await asyncio.to_thread(read)


def moment_of(asked: Any) -> float | Cid:
    """The time, in seconds since 1970, or the commit that a request means.

    Raises:
        InvalidInput: It is neither.
    """
    try:
        return float(asked)
    except (TypeError, ValueError):
        return Cid.parse(asked)


def _answer(entries: Iterable[NameEntry]) -> web.Response:
    return web.json_response([entry.to_json() for entry in entries])


def _asked(request: web.Request, *wanted: str) -> list[str]:
    """The query arguments that a request must have."""
    for name in wanted:
        if name not in request.query:
            raise InvalidInput(
                f"{request.path} needs the query arguments {' and '.join(wanted)}; {name!r} is missing"
            )
    return [request.query[name] for name in wanted]


async def _texts(request: web.Request, *wanted: str) -> dict[str, Any]:
    """The JSON object of a request, whose fields are texts or null; the first two are texts."""
    body = await json_body(request, *wanted)
    for name in {*wanted, "expected", "who"} & set(body):
        if not isinstance(body[name], str) and (body[name] is not None or name in wanted[:2]):
            raise InvalidInput(f"{request.path}: {name} must be a text, not {body[name]!r:.60}")
    return body
