"""Where a client's names and runs live: in its own home, or on a master."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Protocol

from holdfast.cluster.remote import RemoteAttestations, RemoteNames
from holdfast.errors import HoldfastError, NotFound, Unavailable
from holdfast.http_client import HttpClient
from holdfast.registry.names import Names, SqliteNames
from holdfast.registry.opening import open_database
from holdfast.registry.proof import Attestations, SqliteAttestations
from holdfast.registry.run_table import RunSpec, RunState, RunStatus, RunTable
from holdfast.storage.block_store import bring_near
from holdfast.storage.cid import RAW
from holdfast.storage.formats.car import car_frames
from holdfast.storage.formats.dag import links_of
from holdfast.storage.opening import open_backing

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.config import Settings
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

    OnEvent = Callable[[dict[str, Any]], object]

__all__ = ["Backend", "EmbeddedBackend", "MasterBackend", "registry_status"]

_ASK_AT_ONCE = 4096
RUNS_SHOWN = 50
"""A status tells the newest runs; the client's ``runs()`` gives all."""


class Backend(Protocol):
    """What a :class:`~holdfast.Client` needs from where it is connected to."""

    names: Names
    attestations: Attestations

    def publish(self, root: Cid, *, pin: bool = False) -> None:
        """Bring the DAG of a record to where the names are, before it is named there; pin it there if asked to."""
        ...

    def run(self, spec: RunSpec, on_event: OnEvent) -> RunStatus:
        """Run a training, and wait for its end.

        Raises:
            HoldfastError: It failed.
        """
        ...

    def runs(self) -> list[RunStatus]:
        """All runs, newest first."""
        ...

    def status(self) -> dict[str, Any]:
        """Nodes, names and runs."""
        ...

    def close(self) -> None:
        """Close what this object opened."""
        ...


def registry_status(names: Names, runs: list[RunStatus]) -> dict[str, Any]:
    """The part of a status that a home's registry tells: ``names``, the newest ``runs``, and ``runs_total``."""
    return {
        "names": [entry.to_json() for entry in names.entries() if entry.kind != "conversion"],
        "runs": [status.to_json() for status in runs[:RUNS_SHOWN]],
        "runs_total": len(runs),
    }


class EmbeddedBackend:
    """Everything in this process and its home: no daemon, no port."""

    def __init__(self, settings: Settings, store: ContentStore) -> None:
        self._settings = settings
        self._store = store
        self._database = open_database(settings)
        self._runs = RunTable(self._database, store)
        self.names: Names = SqliteNames(self._database, store)
        self.attestations: Attestations = SqliteAttestations(self._database, store)

    def publish(self, root: Cid, *, pin: bool = False) -> None:
        """Nothing but the pin: it is here already."""
        if pin and self._store.pins is not None:
            self._store.pins.pin(root)

    def run(self, spec: RunSpec, on_event: OnEvent) -> RunStatus:
        """Train in this process; see :class:`Backend`."""
        from holdfast.training.job import run_embedded

        run = self._runs.create(spec).id

        def report(event: dict[str, Any]) -> None:
            self._runs.add_event(run, event)
            on_event(event)

        self._runs.start(run)
        try:
            record, model = run_embedded(spec, self._store, report)
        except BaseException as error:
            state = RunState.FAILED if isinstance(error, Exception) else RunState.CANCELLED
            self._runs.finish(run, state, error=str(error) or type(error).__name__)
            raise
        return self._runs.finish(run, RunState.DONE, result={"run": str(record), "model": str(model)})

    def runs(self) -> list[RunStatus]:
        """All runs of this home, newest first."""
        return self._runs.all()

    def status(self) -> dict[str, Any]:
        """The same fields as a master's, with this process as the only node."""
        from holdfast import __version__

        with open_backing(self._settings) as local:
            held = local.statistics()
        node = {"id": "embedded", "role": "embedded", "url": "", "alive": True, **held}
        return {
            "version": __version__,
            "url": None,
            "nodes": [node],
            **registry_status(self.names, self.runs()),
        }

    def close(self) -> None:
        """Close the registry."""
        self._database.close()


class MasterBackend:
    """Names and runs of a cluster."""

    def __init__(self, url: str, token: str, store: ContentStore) -> None:
        self._http = HttpClient(url, token, timeout_s=60.0)
        self._store = store
        self.url = self._http.url
        self.names: Names = RemoteNames(self._http)
        self.attestations: Attestations = RemoteAttestations(self._http, store)

    def publish(self, root: Cid, *, pin: bool = False) -> None:
        """Send the master those blocks of a DAG that it lacks, and have it pin the DAG if asked to."""
        self._send(root)
        if pin:
            self._http.post("/api/v0/pins", {"cid": str(root)})

    def _send(self, root: Cid) -> None:
        wanted = self._lacking(root)
        if wanted:
            get = self._store.blocks.get
            self._http.post("/api/v0/car", car_frames([root], ((cid, get(cid)) for cid in wanted)))

    def _lacking(self, root: Cid) -> list[Cid]:
        """The blocks of a DAG that the master lacks. What it has and this node has not is not fetched to look below it."""
        blocks = self._store.blocks
        wanted: list[Cid] = []
        seen = {root}
        level = [root]
        while level:
            missing: set[str] = set()
            for at in range(0, len(level), _ASK_AT_ONCE):
                asked = [str(cid) for cid in level[at : at + _ASK_AT_ONCE]]
                missing.update(self._http.post("/api/v0/blocks/missing", {"cids": asked})["missing"])
            lacking = [cid for cid in level if str(cid) in missing]
            wanted += lacking
            bring_near(blocks, [cid for cid in lacking if not blocks.has(cid)], root)
            below: list[Cid] = []
            for cid in level:
                if cid.codec != RAW and (str(cid) in missing or blocks.has(cid)):
                    below += [link for link in links_of(cid, blocks.get(cid)) if link not in seen]
                    seen.update(below)
            level = list(dict.fromkeys(below))
        return wanted

    def run(self, spec: RunSpec, on_event: OnEvent) -> RunStatus:
        """Have the cluster train, and follow it; see :class:`Backend`. Interrupted, it cancels the run."""
        for cid in (spec.code, spec.data):
            self.publish(cid)
        run: str = self._http.post("/api/v0/runs", spec.to_json())["id"]
        try:
            status = self._follow(run, on_event)
        except BaseException:
            with contextlib.suppress(HoldfastError):
                self._http.post(f"/api/v0/runs/{run}/cancel")
            raise
        if status.state is not RunState.DONE:
            raise Unavailable(f"{run} {status.state}: {status.error}")
        return status

    def _follow(self, run: str, on_event: OnEvent) -> RunStatus:
        seen = 0
        failures = 0
        while True:
            try:
                answer = self._http.get(f"/api/v0/runs/{run}/events", after=seen, wait_s=20)
                failures = 0
            except NotFound:
                raise
            except Unavailable:
                failures += 1  # the master may be busy for a moment; it holds the events
                if failures == 5:
                    raise
                time.sleep(0.5)
                continue
            for event in answer["events"]:
                seen = event["seq"]
                on_event(event)
            status = RunStatus.from_json(answer["run"])
            if status.state.final and not answer["events"]:
                return status

    def runs(self) -> list[RunStatus]:
        """All runs of the cluster, newest first."""
        return [RunStatus.from_json(body) for body in self._http.get("/api/v0/runs")]

    def status(self) -> dict[str, Any]:
        """What the master says of itself."""
        answer: dict[str, Any] = self._http.get("/api/v0/status")
        return answer

    def close(self) -> None:
        """Nothing is held open."""
