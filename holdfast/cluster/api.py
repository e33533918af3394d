"""The master's JSON API, ``/api/v0``. Handlers read the request, act on the :class:`Master`, and write the answer.

What is about names is in ``names_api.py``.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from aiohttp import web

from holdfast.errors import InvalidInput, NotFound
from holdfast.registry.proof.attestations import MAX_FIND
from holdfast.registry.run_table import RunSpec
from holdfast.storage.cid import Buffer, Cid
from holdfast.storage.exchange.routing import MAX_RECORDS
from holdfast.storage.formats.car import read_car
from holdfast.web import stream_reader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from holdfast.cluster.master import Master

__all__ = ["add_api_routes", "json_body"]

MAX_WAIT_S = 25.0
ROUTING_MAX_AGE_S = 2
"""An answer about providers may be used again for so long: nodes come and go, and a fetch asks again every few seconds."""
_IMPORT_BATCH_BYTES = 32 << 20


async def json_body(request: web.Request, *wanted: str) -> dict[str, Any]:
    """The JSON object of a request, with the fields it must have."""
    try:
        body = json.loads(await request.text(), parse_constant=_no_constant)
    except ValueError as error:
        raise InvalidInput(f"{request.path}: the body is not JSON: {error}") from error
    if not isinstance(body, dict) or any(name not in body for name in wanted):
        raise InvalidInput(f"{request.path}: the body must be a JSON object with {', '.join(wanted)}")
    return body


def _no_constant(name: str) -> None:
    raise ValueError(
        f"{name} is no JSON number"
    )  # Python would take it, and write it where browsers can't read it


def add_api_routes(app: web.Application, master: Master) -> None:
    """Serve the API from ``app``."""
    api = _Api(master)
    routes: list[tuple[str, str, Callable[[web.Request], Awaitable[web.Response]]]] = [
        ("GET", "/healthz", api.health),
        ("GET", "/api/v0/status", api.status),
        ("POST", "/api/v0/nodes", api.join),
        ("POST", "/api/v0/nodes/{id}/heartbeat", api.heartbeat),
        ("DELETE", "/api/v0/nodes/{id}", api.leave),
        ("POST", "/api/v0/attestations", api.attest),
        ("POST", "/api/v0/attestations/find", api.attestations),
        ("POST", "/api/v0/blocks/missing", api.missing),
        ("POST", "/api/v0/car", api.import_car),
        ("POST", "/api/v0/pins", api.pin),
        ("GET", "/api/v0/providers", api.announced),
        ("POST", "/api/v0/providers", api.announce),
        ("GET", "/routing/v1/providers/{cid}", api.providers),
        ("GET", "/api/v0/runs", api.runs),
        ("POST", "/api/v0/runs", api.submit),
        ("GET", "/api/v0/runs/{run}", api.run),
        ("GET", "/api/v0/runs/{run}/events", api.events),
        ("POST", "/api/v0/runs/{run}/events", api.add_event),
        ("POST", "/api/v0/runs/{run}/cancel", api.cancel),
    ]
    for method, path, handler in routes:
        app.router.add_route(method, path, handler)


def _routed_cid(text: str) -> Cid:
    """The CID of a routing request; the specification wants 422 for what is none."""
    try:
        return Cid.parse(text)
    except InvalidInput as error:
        raise web.HTTPUnprocessableEntity(reason=str(error).splitlines()[0]) from error


class _Api:
    def __init__(self, master: Master) -> None:
        self._master = master

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def status(self, _: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(self._master.describe))

    # ---------------------------------------------------------------------------------------- membership

    async def join(self, request: web.Request) -> web.Response:
        body = await json_body(request, "id", "url", "host", "num_cpus")
        member = self._master.members.join(
            id=body["id"],
            url=body["url"],
            host=body["host"],
            num_cpus=body["num_cpus"],
            peer_id=body.get("peer_id", ""),
        )
        self._master.update_peers()
        return web.json_response(
            {
                "node_ip": member.node_ip,
                "ray_address": self._master.ray.address,
                "peers": self._master.members.peers_of(member.id),
            }
        )

    async def heartbeat(self, request: web.Request) -> web.Response:
        body = await json_body(request, "blocks", "bytes")
        member = self._master.members.heartbeat(
            request.match_info["id"], blocks=body["blocks"], size_bytes=body["bytes"]
        )
        return web.json_response({"peers": self._master.members.peers_of(member.id)})

    async def leave(self, request: web.Request) -> web.Response:
        self._master.members.leave(request.match_info["id"])
        self._master.providers.forget(request.match_info["id"])
        self._master.update_peers()
        return web.json_response({})

    # -------------------------------------------------------------------------------------- attestations

    async def attest(self, request: web.Request) -> web.Response:
        """Note and keep an attestation whose block was sent before; its signatures are checked."""
        cid = Cid.parse((await json_body(request, "cid"))["cid"])
        entries = await asyncio.to_thread(self._master.attestations.add, cid)
        return web.json_response([entry.to_json() for entry in entries])

    async def attestations(self, request: web.Request) -> web.Response:
        """The attestations that are about any of some CIDs."""
        subjects = (await json_body(request, "subjects"))["subjects"]
        if not isinstance(subjects, list) or len(subjects) > MAX_FIND:
            raise InvalidInput(f"subjects must be a list of at most {MAX_FIND} CIDs")
        cids = [Cid.parse(text) for text in subjects]
        entries = await asyncio.to_thread(self._master.attestations.find, cids)
        return web.json_response([entry.to_json() for entry in entries])

    # -------------------------------------------------------------------------------------------- blocks

    async def missing(self, request: web.Request) -> web.Response:
        body = await json_body(request, "cids")
        if not isinstance(body["cids"], list):
            raise InvalidInput("cids must be a list")
        cids = [Cid.parse(text) for text in body["cids"]]
        has = self._master.blocks.has
        found = await asyncio.to_thread(lambda: [str(cid) for cid in cids if not has(cid)])
        return web.json_response({"missing": found})

    async def import_car(self, request: web.Request) -> web.Response:
        batch: list[tuple[Cid, Buffer]] = []
        waiting = blocks = new = 0
        async for cid, data in read_car(stream_reader(request.content)):
            batch.append((cid, data))
            blocks += 1
            waiting += len(data)
            if waiting >= _IMPORT_BATCH_BYTES:
                new += await asyncio.to_thread(self._master.blocks.put_many, batch)
                batch, waiting = [], 0
        new += await asyncio.to_thread(self._master.blocks.put_many, batch)
        return web.json_response({"blocks": blocks, "new_bytes": new})

    async def pin(self, request: web.Request) -> web.Response:
        cid = Cid.parse((await json_body(request, "cid"))["cid"])
        await asyncio.to_thread(self._master.store.pin, cid)
        return web.json_response({"cid": str(cid)})

    # ------------------------------------------------------------------------------------------- routing

    async def announce(self, request: web.Request) -> web.Response:
        """A node has some roots, or begins to fetch them; also how it renews what it announced before."""
        body = await json_body(request, "node", "cids")
        if not isinstance(body["cids"], list) or not isinstance(body["node"], str):
            raise InvalidInput("node must be the id of a node, and cids a list")
        member = self._master.members.get(body["node"])
        cids = [Cid.parse(text) for text in body["cids"]]
        self._master.providers.announce(member.id, cids, partial=body.get("partial") is True)
        return web.json_response({"ttl_s": self._master.providers.ttl_s})

    async def announced(self, request: web.Request) -> web.Response:
        """What a node has announced and should renew, as far as it still has it."""
        member = self._master.members.get(request.query.get("node", ""))
        roots = self._master.providers.roots_of(member.id)
        return web.json_response({"cids": [str(cid) for cid in roots], "ttl_s": self._master.providers.ttl_s})

    async def providers(self, request: web.Request) -> web.Response:
        """Delegated Routing V1: the living nodes that announced a root; a list, which may be empty."""
        records = self._master.providers_of(_routed_cid(request.match_info["cid"]))
        headers = {"Cache-Control": f"public, max-age={ROUTING_MAX_AGE_S}", "Vary": "Accept"}
        if "application/x-ndjson" in request.headers.get("Accept", ""):
            text = "".join(json.dumps(record) + "\n" for record in records)
            return web.Response(text=text, content_type="application/x-ndjson", headers=headers)
        return web.json_response({"Providers": records[:MAX_RECORDS]}, headers=headers)

    # ---------------------------------------------------------------------------------------------- runs

    async def runs(self, _: web.Request) -> web.Response:
        found = await asyncio.to_thread(self._master.runs.all)
        return web.json_response([status.to_json() for status in found])

    async def submit(self, request: web.Request) -> web.Response:
        body = await json_body(request, "code", "data", "config")
        try:
            spec = RunSpec.from_json(body)
        except TypeError as error:
            raise InvalidInput(f"the run can't be read: {error}") from error
        for cid in (spec.code, spec.data):
            if not await asyncio.to_thread(self._master.blocks.has, cid):
                raise NotFound(f"{cid} is not on the master; send it first (POST /api/v0/car)")
        return web.json_response(self._master.submit(spec).to_json())

    async def run(self, request: web.Request) -> web.Response:
        return web.json_response(self._master.runs.get(request.match_info["run"]).to_json())

    async def events(self, request: web.Request) -> web.Response:
        """The events after ``after``; waits up to ``wait_s`` for one, or for the run's end."""
        run = request.match_info["run"]
        try:
            after = int(request.query.get("after", "0"))
            wait_s = min(MAX_WAIT_S, max(0.0, float(request.query.get("wait_s", "0"))))
        except ValueError as error:
            raise InvalidInput(f"after and wait_s are numbers: {error}") from error
        deadline = asyncio.get_running_loop().time() + wait_s
        while True:
            status = self._master.runs.get(run)
            events = self._master.runs.events(run, after=after)
            left = deadline - asyncio.get_running_loop().time()
            if events or status.state.final or left <= 0:
                return web.json_response({"events": events, "run": status.to_json()})
            async with self._master.changed:
                try:
                    await asyncio.wait_for(self._master.changed.wait(), min(left, 1.0))
                except TimeoutError:
                    continue

    async def add_event(self, request: web.Request) -> web.Response:
        seq = await self._master.note(request.match_info["run"], await json_body(request, "type"))
        return web.json_response({"seq": seq})

    async def cancel(self, request: web.Request) -> web.Response:
        return web.json_response((await self._master.cancel(request.match_info["run"])).to_json())
