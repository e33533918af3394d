"""The part of the master's API that tells of lineage and of what was computed before."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import TYPE_CHECKING, Any

from aiohttp import web

from holdfast.errors import InvalidInput
from holdfast.registry.compute.computation import Computation
from holdfast.registry.graph.lineage_graph import lineage_graph
from holdfast.registry.graph.training_sets import training_sets
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    from holdfast.cluster.master import Master

__all__ = ["add_registry_routes"]

_LIMITS = ("max_depth", "max_nodes")
_MOST_NODES = 5000


def add_registry_routes(app: web.Application, master: Master) -> None:
    """Serve these routes from ``app``."""
    api = _RegistryApi(master)
    app.router.add_get("/api/v0/lineage", api.lineage)
    app.router.add_get("/api/v0/lineage/training-sets", api.training_sets)
    app.router.add_get("/api/v0/computed", api.computed)
    app.router.add_post("/api/v0/computed", api.remember)
    app.router.add_delete("/api/v0/computed", api.clear)
    app.router.add_post("/api/v0/computed/find", api.find)
    app.router.add_post("/api/v0/computed/explain", api.explain)


async def _json(request: web.Request, *wanted: str) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise InvalidInput(f"{request.path}: the body is not JSON: {error}") from error
    if not isinstance(body, dict) or any(not isinstance(body.get(name), str) for name in wanted):
        raise InvalidInput(
            f"{request.path}: the body must be a JSON object with the texts {', '.join(wanted)}"
        )
    return body


def _computation(body: dict[str, Any]) -> Computation:
    try:
        return Computation.decode(base64.b64decode(body["fields"], validate=True))
    except binascii.Error as error:
        raise InvalidInput(f"the fields are not base64: {error}") from error


class _RegistryApi:
    def __init__(self, master: Master) -> None:
        self._master = master

    async def lineage(self, request: web.Request) -> web.Response:
        query = request.query
        cid = Cid.parse(query.get("cid", ""))
        try:
            numbers = {
                name: int(query[name]) for name in (*_LIMITS, "upstream", "downstream") if name in query
            }
        except ValueError as error:
            raise InvalidInput(f"{request.path}: limits are whole numbers: {error}") from error
        options: dict[str, Any] = {
            name: min(value, _MOST_NODES) if name in _LIMITS else bool(value)
            for name, value in numbers.items()
        }
        graph = await asyncio.to_thread(
            lineage_graph, self._master.store, cid, made_from=self._master.made_from, **options
        )
        return web.json_response(graph.to_json())

    async def training_sets(self, _: web.Request) -> web.Response:
        found = await asyncio.to_thread(training_sets, self._master.made_from)
        return web.json_response([one.to_json() for one in found])

    async def computed(self, request: web.Request) -> web.Response:
        entries = await asyncio.to_thread(self._master.cache.entries, function=request.query.get("function"))
        return web.json_response([entry.to_json() for entry in entries])

    async def find(self, request: web.Request) -> web.Response:
        computation = _computation(await _json(request, "fields"))
        found = await asyncio.to_thread(self._master.cache.find, computation)
        return web.json_response({"found": found.to_json() if found is not None else None})

    async def remember(self, request: web.Request) -> web.Response:
        body = await _json(request, "fields", "result", "made_by")
        computation, result = _computation(body), Cid.parse(body["result"])
        entry = await asyncio.to_thread(
            self._master.cache.remember, computation, result, made_by=body["made_by"]
        )
        return web.json_response(entry.to_json())

    async def explain(self, request: web.Request) -> web.Response:
        body = await _json(request)
        if isinstance(body.get("ref"), str):
            found = await asyncio.to_thread(self._master.cache.explain_entry, body["ref"])
        elif isinstance(body.get("fields"), str):
            found = await asyncio.to_thread(self._master.cache.explain, _computation(body))
        else:
            raise InvalidInput(f"{request.path}: the body must be a JSON object with fields or ref")
        return web.json_response(found.to_json())

    async def clear(self, request: web.Request) -> web.Response:
        key = request.query.get("key")
        gone = await asyncio.to_thread(
            self._master.cache.clear,
            function=request.query.get("function"),
            key=Cid.parse(key) if key is not None else None,
        )
        return web.json_response({"gone": gone})
