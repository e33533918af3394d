"""Where a client's names and runs live: in its own home, or on a master."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Protocol

from holdfast.cluster.remote import RemoteAttestations, RemoteNames
from holdfast.cluster.remote_cache import RemoteCache
from holdfast.errors import HoldfastError, NotFound, Unavailable, error_from_json
from holdfast.http_client import HttpClient
from holdfast.registry.compute.training import known_training, remember_training, training_computation
from holdfast.registry.graph.lineage_graph import LineageGraph, lineage_graph
from holdfast.registry.graph.made_from import MadeFrom
from holdfast.registry.graph.training_sets import TrainingSet, training_sets
from holdfast.registry.measurements.run_measurements import MEASUREMENTS, measured_run
from holdfast.registry.names import Names, SqliteNames
from holdfast.registry.opening import open_compute_cache, open_database
from holdfast.registry.proof import Attestations, SqliteAttestations
from holdfast.registry.run_table import CACHED_FROM, RunSpec, RunState, RunStatus, RunTable
from holdfast.storage.block_store import bring_near
from holdfast.storage.cid import RAW
from holdfast.storage.formats.car import car_frames
from holdfast.storage.formats.dag import links_of
from holdfast.storage.opening import open_backing

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.config import Settings
    from holdfast.registry.compute.results import ResultCache
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
    cache: ResultCache
    """Results of work that was done before."""
    attestations: Attestations

    def publish(self, root: Cid, *, pin: bool = False) -> None:
        """Bring the DAG of a record to where the names are, before it is named there; pin it there if asked to."""
        ...

    def run(self, spec: RunSpec, on_event: OnEvent, *, use_cache: bool = True) -> RunStatus:
        """Run a training, and wait for its end; with ``use_cache``, one that was done before is not done again.

        Raises:
            HoldfastError: It failed.
        """
        ...

    def runs(self) -> list[RunStatus]:
        """All runs, newest first."""
        ...

    def events(self, run: str) -> tuple[RunStatus, list[dict[str, Any]]]:
        """A run as it stands, and what it has reported so far.

        Raises:
            NotFound: There is no such run.
        """
        ...

    def lineage(self, cid: Cid, **options: Any) -> LineageGraph:
        """What a CID is made of and what was made from it; options of :func:`~holdfast.registry.graph.lineage_graph.lineage_graph`."""
        ...

    def training_sets(self) -> list[TrainingSet]:
        """Every dataset version that models were made from, with those models."""
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
        self._made_from = MadeFrom(self._database, store)
        self.names: Names = SqliteNames(self._database, store)
        self.attestations: Attestations = SqliteAttestations(self._database, store)
        self.cache: ResultCache = open_compute_cache(settings, store, self._database, self.attestations)

    def publish(self, root: Cid, *, pin: bool = False) -> None:
        """Nothing but the pin: it is here already."""
        if pin and self._store.pins is not None:
            self._store.pins.pin(root)

    def run(self, spec: RunSpec, on_event: OnEvent, *, use_cache: bool = True) -> RunStatus:
        """Train in this process; see :class:`Backend`."""
        from holdfast.training.job import run_embedded

        run = self._runs.create(spec).id

        def report(event: dict[str, Any]) -> None:
            self._runs.add_event(run, event)
            on_event(event)

        self._runs.start(run)
        try:
            computation = training_computation(self._store, spec)
            known = known_training(self._store, self.cache, computation) if use_cache else None
            if known is None:
                record, model = run_embedded(spec, self._store, report)
                measured = measured_run(self._runs.events(run), run=run).store(self._store, pin=False)
                result = {"run": str(record), "model": str(model), MEASUREMENTS: str(measured)}
            else:
                result = known
                report({"type": "cached", "from": known[CACHED_FROM]})
        except BaseException as error:
            state = RunState.FAILED if isinstance(error, Exception) else RunState.CANCELLED
            self._runs.finish(run, state, error=str(error) or type(error).__name__)
            raise
        status = self._runs.finish(run, RunState.DONE, result=result)
        if known is None:
            remember_training(self._store, self.cache, computation, run, result)
        return status

    def runs(self) -> list[RunStatus]:
        """All runs of this home, newest first."""
        return self._runs.all()

    def events(self, run: str) -> tuple[RunStatus, list[dict[str, Any]]]:
        """A run as it stands, and what it has reported so far."""
        return self._runs.get(run), self._runs.events(run)

    def lineage(self, cid: Cid, **options: Any) -> LineageGraph:
        """What this home's registry knows of a CID's lineage."""
        return lineage_graph(self._store, cid, made_from=self._made_from, **options)

    def training_sets(self) -> list[TrainingSet]:
        """The dataset versions that models of this home were made from."""
        return training_sets(self._made_from)

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
        self.cache: ResultCache = RemoteCache(self._http, self.publish)
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

    def run(self, spec: RunSpec, on_event: OnEvent, *, use_cache: bool = True) -> RunStatus:
        """Have the cluster train, and follow it; see :class:`Backend`. Interrupted, it cancels the run."""
        for cid in (spec.code, spec.data):
            self.publish(cid)
        run: str = self._http.post("/api/v0/runs", spec.to_json() | {"use_cache": use_cache})["id"]
        failure = Unavailable.code.value

        def told(event: dict[str, Any]) -> None:
            nonlocal failure
            if event["type"] == "failed":
                failure = event["code"]
            on_event(event)

        try:
            status = self._follow(run, told)
        except BaseException:
            with contextlib.suppress(HoldfastError):
                self._http.post(f"/api/v0/runs/{run}/cancel")
            raise
        if status.state is not RunState.DONE:
            raise error_from_json(
                {"error": f"{run} {status.state}: {status.error}", "code": failure}, where=run
            )
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

    def events(self, run: str) -> tuple[RunStatus, list[dict[str, Any]]]:
        """A run as it stands, and what it has reported so far."""
        answer = self._http.get(f"/api/v0/runs/{run}/events", after=0, wait_s=0)
        return RunStatus.from_json(answer["run"]), answer["events"]

    def runs(self) -> list[RunStatus]:
        """All runs of the cluster, newest first."""
        return [RunStatus.from_json(body) for body in self._http.get("/api/v0/runs")]

    def lineage(self, cid: Cid, **options: Any) -> LineageGraph:
        """What the master's registry knows of a CID's lineage."""
        given = {name: int(value) for name, value in options.items()}
        return LineageGraph.from_json(self._http.get("/api/v0/lineage", cid=str(cid), **given))

    def training_sets(self) -> list[TrainingSet]:
        """The dataset versions that models of the cluster were made from."""
        return [TrainingSet.from_json(body) for body in self._http.get("/api/v0/lineage/training-sets")]

    def status(self) -> dict[str, Any]:
        """What the master says of itself."""
        answer: dict[str, Any] = self._http.get("/api/v0/status")
        return answer

    def close(self) -> None:
        """Nothing is held open."""
