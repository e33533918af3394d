"""A worker: a node of Ray, and the block server of its own home."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from holdfast.cluster.membership import HEARTBEAT_S
from holdfast.cluster.ray_node import RayNode
from holdfast.errors import HoldfastError, NotFound, Unavailable
from holdfast.http_client import HttpClient
from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.exchange.peer_id import peer_id_of
from holdfast.storage.gateway.web_gateway import add_gateway_routes
from holdfast.storage.opening import open_backing, open_blocks, write_peers
from holdfast.telemetry import get_logger
from holdfast.web import bearer_token, errors_as_json, listen, metrics

if TYPE_CHECKING:
    from holdfast.config import Settings

__all__ = ["Worker"]

log = get_logger(__name__)

RENEWED_AT_ONCE = 10_000
"""Roots in one request."""


class Worker:
    """One worker node.

    Args:
        settings: Its home and address.
        master_url: The master's API.
        token: The cluster's.
        wait_s: How long to wait for a master that does not answer yet.
    """

    def __init__(self, settings: Settings, *, master_url: str, token: str, wait_s: float = 10.0) -> None:
        self._wait_s = wait_s
        self.settings = settings
        self.id = f"worker-{secrets.token_hex(4)}"
        self.url = ""
        self._token = token
        self.num_cpus = settings.worker.num_cpus or os.cpu_count() or 1
        self._master = HttpClient(master_url, token, timeout_s=10.0)
        self._local = open_backing(settings)
        self._blocks = open_blocks(settings)
        self._runner: web.AppRunner | None = None
        self._ray: RayNode | None = None
        self._heard = True
        self._renew_at = 0.0

    @property
    def node_ip(self) -> str:
        """The node's address in Ray; empty before it has joined."""
        return self._ray.node_ip if self._ray else ""

    async def start(self) -> None:
        """Serve blocks, join the master, and start Ray; returns when it has joined Ray's cluster.

        Raises:
            Unavailable: The port is in use, the master does not answer, or Ray does not start.
            Denied: The token is not the cluster's.
        """
        app = web.Application(middlewares=[errors_as_json, bearer_token(self._token, free=("/healthz",))])
        add_gateway_routes(app, ContentStore(self._blocks))
        app.router.add_get("/metrics", metrics)
        app.router.add_get("/healthz", _health)
        self._runner, self.url = await listen(app, self.settings.worker.host, self.settings.worker.port)
        answer = await self._join_when_up()
        self._ray = RayNode(
            self.settings.home, node_ip=answer["node_ip"], num_cpus=self.num_cpus, head=answer["ray_address"]
        )
        await self._ray.wait_for_head()
        self._ray.start()
        starting = asyncio.create_task(asyncio.to_thread(self._ray.wait_ready))
        while not starting.done():  # heartbeats go on: starting may take longer than a node may be silent
            await self._beat()
            await asyncio.wait({starting}, timeout=HEARTBEAT_S)
        starting.result()

    async def watch(self, stopping: asyncio.Event) -> None:
        """Send heartbeats until ``stopping`` is set.

        Raises:
            Unavailable: Ray ended on this node, because the master is gone for good, for example.
        """
        while not stopping.is_set():
            if self._ray is not None:
                try:
                    self._ray.check()
                except Unavailable as error:
                    if self._heard:
                        raise
                    raise Unavailable(
                        f"the master {self._master.url} is gone, and Ray on this node ended with it: "
                        "start the master again, and then this worker"
                    ) from error
            await self._beat()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), HEARTBEAT_S)

    async def aclose(self) -> None:
        """Leave the cluster, stop Ray, close everything."""
        if self._runner is not None:
            with contextlib.suppress(HoldfastError):
                await asyncio.to_thread(self._master.delete, f"/api/v0/nodes/{self.id}")
        if self._ray is not None:
            await asyncio.to_thread(self._ray.stop)
        if self._runner is not None:
            await self._runner.cleanup()
        write_peers(self.settings.home, [])
        self._blocks.close()
        self._local.close()

    async def _join_when_up(self) -> dict[str, Any]:
        deadline = asyncio.get_running_loop().time() + self._wait_s
        told = ""
        while True:
            try:
                return await self._join()
            except Unavailable as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                if str(error) != told:
                    told = str(error)
                    log.info("waiting for the master: %s", error)
                await asyncio.sleep(0.25)

    async def _join(self) -> dict[str, Any]:
        body = {
            "id": self.id,
            "url": self.url,
            "host": self.settings.worker.host,
            "num_cpus": self.num_cpus,
            "peer_id": peer_id_of(self.settings.home),
        }
        answer: dict[str, Any] = await asyncio.to_thread(self._master.post, "/api/v0/nodes", body)
        self._note_peers(answer["peers"])
        return answer

    def _note_peers(self, urls: list[str]) -> None:
        write_peers(self.settings.home, urls, master=self._master.url, node_id=self.id, node_url=self.url)

    def _renew(self) -> float:
        """Announce again what this node announced and still has; how many seconds that holds."""
        path = "/api/v0/providers"
        answer = self._master.get(path, node=self.id)
        held = [text for text in answer["cids"] if self._local.has(Cid.parse(text))]
        for at in range(0, len(held), RENEWED_AT_ONCE):
            self._master.post(path, {"node": self.id, "cids": held[at : at + RENEWED_AT_ONCE]})
        return float(answer["ttl_s"])

    async def _beat(self) -> None:
        held = await asyncio.to_thread(self._local.statistics)
        body = {"blocks": held["blocks"], "bytes": held["bytes"]}
        try:
            answer = await asyncio.to_thread(self._master.post, f"/api/v0/nodes/{self.id}/heartbeat", body)
            self._note_peers(answer["peers"])
            self._heard = True
            if time.monotonic() >= self._renew_at:
                self._renew_at = time.monotonic() + await asyncio.to_thread(self._renew) / 3
        except NotFound:
            await self._join()
        except Unavailable as error:
            if self._heard:
                log.warning("no heartbeat: %s", error)
            self._heard = False

    def facts(self) -> dict[str, Any]:
        """Where it is."""
        return {
            "role": "worker",
            "id": self.id,
            "url": self.url,
            "node_ip": self.node_ip,
            "master_url": self._master.url,
        }


async def _health(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})
