"""The master: Ray's head, the registry, the JSON API, the dashboard, and a node like the others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from holdfast import __version__
from holdfast.cluster.api import add_api_routes
from holdfast.cluster.backend import registry_status
from holdfast.cluster.dashboard import add_dashboard_routes
from holdfast.cluster.membership import (
    HEARTBEAT_S,
    Member,
    Membership,
    is_loopback,
    join_commands,
    loopback_network,
)
from holdfast.cluster.names_api import add_names_routes
from holdfast.cluster.processes import spawn, stop, tail
from holdfast.cluster.ray_node import RayNode, ray_environment
from holdfast.cluster.registry_api import add_registry_routes
from holdfast.config import Settings, token_for
from holdfast.errors import Conflict, HoldfastError, InvalidInput, Unavailable
from holdfast.registry.compute.training import known_training, remember_training, training_computation
from holdfast.registry.graph.made_from import MadeFrom
from holdfast.registry.measurements.run_measurements import MEASUREMENTS, measured_run
from holdfast.registry.names import SqliteNames
from holdfast.registry.opening import open_compute_cache, open_database
from holdfast.registry.proof import SqliteAttestations
from holdfast.registry.run_table import CACHED_FROM, RunSpec, RunState, RunStatus, RunTable
from holdfast.storage.content import ContentStore
from holdfast.storage.exchange.peer_id import peer_id_of
from holdfast.storage.exchange.routing import ProviderTable, peer_record
from holdfast.storage.gateway.web_gateway import add_gateway_routes
from holdfast.storage.opening import open_backing, open_blocks, open_store, write_peers
from holdfast.telemetry import get_logger
from holdfast.training.ray_job import RayJob, answer_of
from holdfast.web import bearer_token, errors_as_json, listen, metrics

if TYPE_CHECKING:
    from holdfast.registry.compute.computation import Computation
    from holdfast.storage.cid import Cid

__all__ = ["Master"]

log = get_logger(__name__)

MASTER_ID = "master"
MAX_RUNNING = 2
"""Runs at a time; each has a driver process of its own. The others wait in order."""


class Master:
    """Everything that the master holds. The API's handlers are in ``api.py``; this is what they act on."""

    def __init__(self, settings: Settings) -> None:
        host = settings.master.host
        if host in ("0.0.0.0", "::", ""):  # noqa: S104 -- refused, not bound
            raise InvalidInput(
                f"host {host!r}: give the one address at which the other machines reach this one"
            )
        self.settings = settings
        self.token = token_for(settings.home)
        self.started = time.time()
        self.local = open_backing(settings)
        self.blocks = open_blocks(settings)
        self.store = open_store(settings)
        self.database = open_database(settings)
        self.names = SqliteNames(self.database, self.store)
        self.attestations = SqliteAttestations(self.database, self.store)
        self.runs = RunTable(self.database, self.store)
        self.made_from = MadeFrom(self.database, self.store)
        self.cache = open_compute_cache(settings, self.store, self.database, self.attestations)
        self.changed = asyncio.Condition()
        """Notified when a run gets an event or ends."""
        network = loopback_network()
        node_ip = f"{network}.1" if is_loopback(host) else host
        self.ray = RayNode(settings.home, node_ip=node_ip, num_cpus=settings.master.num_cpus)
        self.url = ""
        self.members = Membership(
            Member(
                id=MASTER_ID,
                role="master",
                url="",
                node_ip=node_ip,
                num_cpus=settings.master.num_cpus,
                peer_id=peer_id_of(settings.home),
            ),
            network,
        )
        self.providers = ProviderTable()
        """Which nodes announced which roots."""
        self._renewed = time.monotonic()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(MAX_RUNNING)
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen, and start Ray's head; returns when both answer.

        Raises:
            Unavailable: The port is in use, or Ray does not start.
        """
        await self.listen()
        self.ray.start()
        await asyncio.to_thread(self.ray.wait_ready)

    async def listen(self) -> None:
        """Answer HTTP: blocks, API and dashboard. Without Ray, runs can't start yet.

        Raises:
            Unavailable: The port is in use.
        """
        app = web.Application(
            middlewares=[
                errors_as_json,
                bearer_token(
                    self.token, free=("/healthz", "/", "/login", "/assets/style.css", "/assets/icon.svg")
                ),
            ],
            client_max_size=8 << 20,
        )
        add_gateway_routes(app, ContentStore(self.blocks))
        add_api_routes(app, self)
        add_names_routes(app, self)
        add_registry_routes(app, self)
        add_dashboard_routes(app, self.token)
        app.router.add_get("/metrics", metrics)
        self._runner, self.url = await listen(app, self.settings.master.host, self.settings.master.port)
        self.members.all()[0].url = self.url
        self.update_peers()

    async def watch(self, stopping: asyncio.Event) -> None:
        """Return when ``stopping`` is set.

        Raises:
            Unavailable: Ray's head ended.
        """
        while not stopping.is_set():
            self.ray.check()
            self.members.heartbeat(MASTER_ID, **await asyncio.to_thread(self.holdings))
            self.update_peers()
            if self._renewed + self.providers.ttl_s / 3 < time.monotonic():
                self._renewed = time.monotonic()
                await asyncio.to_thread(self.renew)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), HEARTBEAT_S)

    async def aclose(self) -> None:
        """Cancel runs, stop Ray, close everything."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, asyncio.to_thread(self.ray.stop), return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()
        write_peers(self.settings.home, [])
        self.store.close()
        self.blocks.close()
        self.local.close()
        self.database.close()

    def holdings(self) -> dict[str, int]:
        """What the master's own store holds."""
        held = self.local.statistics()
        return {"blocks": held["blocks"], "size_bytes": held["bytes"]}

    def update_peers(self) -> None:
        """Tell every process that uses the master's home whom to ask for blocks."""
        write_peers(
            self.settings.home,
            self.members.peers_of(MASTER_ID),
            master=self.url,
            node_id=MASTER_ID,
            node_url=self.url,
        )

    def renew(self) -> None:
        """Announce again what the master itself announced and still has."""
        roots = self.providers.roots_of(MASTER_ID)
        self.providers.announce(MASTER_ID, [root for root in roots if self.local.has(root)])

    def providers_of(self, root: Cid) -> list[dict[str, Any]]:
        """The routing records of the living nodes that announced a root; those that are still fetching it come last."""
        partial = self.providers.find(root)
        return [
            peer_record(member.peer_id, member.url, partial=partial[member.id])
            for member in sorted(self.members.alive(), key=lambda member: partial.get(member.id, False))
            if member.id in partial and member.peer_id
        ]

    # --------------------------------------------------------------------------------------------- runs

    async def submit(self, spec: RunSpec, *, use_cache: bool = True) -> RunStatus:
        """Queue a run; with ``use_cache``, one that was done before is done already, with the same result.

        Raises:
            Unavailable: The living nodes have fewer CPUs than it needs: it could never start.
        """
        known = computation = None
        with contextlib.suppress(HoldfastError):  # what is wrong with its code, the run itself will tell
            computation = await asyncio.to_thread(training_computation, self.store, spec)
        if use_cache and computation is not None:
            known = await asyncio.to_thread(known_training, self.store, self.cache, computation)
        if known is not None:
            run = self.runs.create(spec).id
            self.runs.start(run)
            await self.note(run, {"type": "cached", "from": known[CACHED_FROM]})
            return self.runs.finish(run, RunState.DONE, result=known)
        self._check_room(spec)
        status = self.runs.create(spec)
        task = asyncio.create_task(self._run(status.id, spec, computation), name=status.id)
        self._running[status.id] = task
        task.add_done_callback(lambda _: self._running.pop(status.id, None))
        return status

    def _check_room(self, spec: RunSpec) -> None:
        cpus = [member.num_cpus for member in self.members.alive()]
        places = sum(count // spec.threads_per_worker for count in cpus)
        if spec.workers > places:
            raise Unavailable(
                f"the run wants {spec.workers} workers of {spec.threads_per_worker} CPU each, but the living nodes have "
                f"room for {places} ({sum(cpus)} CPUs on {len(cpus)} nodes): start more with 'holdfast worker --join {self.url}'"
            )

    async def cancel(self, run: str) -> RunStatus:
        """End a run that waits or runs.

        Raises:
            Conflict: It has ended.
        """
        self.runs.get(run)
        task = self._running.get(run)
        if task is None:
            raise Conflict(f"{run} has ended already")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return self.runs.get(run)

    async def note(self, run: str, event: dict[str, Any]) -> int:
        """Add an event to a run, and wake who waits for it."""
        seq = self.runs.add_event(run, event)
        async with self.changed:
            self.changed.notify_all()
        return seq

    async def _run(self, run: str, spec: RunSpec, computation: Computation | None) -> None:
        try:
            async with self._slots:
                self.runs.start(run)
                result = await self._drive(run, spec)
            result |= {MEASUREMENTS: await asyncio.to_thread(self._measured, run)}
            self.runs.finish(run, RunState.DONE, result=result)
            if computation is not None:
                await asyncio.to_thread(self._remember, computation, run, result)
        except asyncio.CancelledError:
            self._end(run, RunState.CANCELLED, "cancelled")
        except Exception as error:
            if isinstance(error, HoldfastError):
                await self.note(run, {"type": "failed", **error.to_json()})
            else:
                log.exception("%s failed", run)
            self._end(run, RunState.FAILED, str(error) or type(error).__name__)
        finally:
            async with self.changed:
                self.changed.notify_all()

    def _measured(self, run: str) -> str:
        return str(measured_run(self.runs.events(run), run=run).store(self.store, pin=False))

    def _remember(self, computation: Computation, run: str, result: dict[str, str]) -> None:
        if not remember_training(self.store, self.cache, computation, run, result):
            log.info("%s ran in another environment than the master's, and is not remembered", run)

    def _end(self, run: str, state: RunState, error: str) -> None:
        """Note how a run ended, unless it is done: what comes after that changes nothing of it."""
        if self.runs.get(run).state.final:
            log.warning("%s is done, but was not remembered: %s", run, error)
        else:
            self.runs.finish(run, state, error=error)

    async def _drive(self, run: str, spec: RunSpec) -> dict[str, str]:
        logfile = self.settings.home / "logs" / f"{run}.log"
        scratch = self.settings.home / "scratch" / run
        scratch.mkdir(parents=True)
        job = RayJob(
            run_id=run,
            spec=spec,
            ray_address=self.ray.address,
            node_ip=self.ray.node_ip,
            master_url=self.url,
            scratch=str(scratch),
        )
        process = spawn(
            [sys.executable, "-m", "holdfast.training.ray_job"],
            log=logfile,
            environment=ray_environment(self.settings.home, self.ray.node_ip),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            line, _ = await asyncio.to_thread(process.communicate, json.dumps(job.to_json()).encode())
        except asyncio.CancelledError:
            await asyncio.to_thread(stop, [process], grace_s=0.5)
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if not line.strip():
            raise Unavailable(f"the driver of {run} ended without an answer: {tail(logfile)}")
        return answer_of(line.decode())

    def describe(self) -> dict[str, Any]:
        """What ``GET /api/v0/status`` answers."""
        return {
            "version": __version__,
            "url": self.url,
            "token_file": str(self.settings.home / "token"),
            "join": join_commands(self.url, self.settings.home),
            "uptime_s": round(time.time() - self.started, 1),
            "ray_address": self.ray.address,
            "nodes": [member.to_json() for member in self.members.all()],
            **registry_status(self.names, self.runs.all()),
        }

    def facts(self) -> dict[str, Any]:
        """Where it is."""
        return {"role": "master", "url": self.url, "ray_address": self.ray.address}
