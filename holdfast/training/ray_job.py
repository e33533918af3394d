"""A run on a cluster: one Ray Train worker a rank, each on its own node, with that node's own block store.

``python -m holdfast.training.ray_job`` is the driver process that the master starts for each run. It reads the run as JSON from
standard input, and writes one line of JSON, the outcome or the error, to standard output.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import traceback
from dataclasses import dataclass
from typing import Any

from holdfast.config import load_settings, read_token
from holdfast.errors import HoldfastError, Unavailable, error_from_json
from holdfast.http_client import HttpClient
from holdfast.registry.run_table import RunSpec
from holdfast.storage.opening import open_store
from holdfast.training.job import Outcome, function_failure, record_run, run_worker

__all__ = ["RayJob", "answer_of", "train_on_ray"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RayJob:
    """What the driver needs to know."""

    run_id: str
    spec: RunSpec
    ray_address: str
    """Of the cluster's GCS, ``host:port``."""
    node_ip: str
    """Of the Ray node on the driver's machine."""
    master_url: str
    """Where workers report."""
    scratch: str
    """A folder on the driver's machine; who started the driver removes it, however the driver ends."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; :meth:`from_json` reads them."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "spec"} | {
            "spec": self.spec.to_json()
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> RayJob:
        """The job that :meth:`to_json` wrote."""
        return cls(**{**body, "spec": RunSpec.from_json(body["spec"])})


def _worker_loop(job: dict[str, Any]) -> dict[str, Any] | None:
    """What Ray Train calls on each worker. The node's home comes from the environment of its raylet."""
    import ray.train

    parsed = RayJob.from_json(job)
    settings = load_settings()
    master = HttpClient(parsed.master_url, read_token(settings.home / "token"), timeout_s=10.0)

    def report(event: dict[str, Any]) -> None:
        # A report that does not reach the master, or that it refuses, does not stop the training.
        with contextlib.suppress(HoldfastError):
            master.post(f"/api/v0/runs/{parsed.run_id}/events", event)

    place = ray.train.get_context()
    rank, world_size = place.get_world_rank(), place.get_world_size()
    with open_store(settings) as store:
        report({"type": "worker_started", "rank": rank, "home": str(settings.home)})
        try:
            outcome = run_worker(parsed.spec, store, rank=rank, world_size=world_size, report=report)
        except HoldfastError:
            raise
        except Exception as error:
            raise function_failure(error) from error
        moved = store.blocks.statistics()  # type: ignore[attr-defined]  # open_store gives a FetchingStore
        report({"type": "worker_done", "rank": rank, "fetched": moved})
    return None if outcome is None else outcome.to_json()


def train_on_ray(job: RayJob) -> Outcome:
    """Run the job's workers on the cluster; gives what worker 0 made.

    Raises:
        Unavailable: The cluster is gone, or a worker failed; the message is the worker's own error.
    """
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.init(
        address=job.ray_address,
        _node_ip_address=job.node_ip,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=False,
    )
    trainer = TorchTrainer(
        _worker_loop,  # type: ignore[arg-type]  # Ray's hint forgets that the value is returned
        train_loop_config=job.to_json(),
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(
            num_workers=job.spec.workers,
            resources_per_worker={"CPU": job.spec.threads_per_worker},
            placement_strategy="SPREAD",
        ),
        # Ray keeps its bookkeeping here; checkpoints are CIDs in the nodes' stores.
        run_config=RunConfig(name=job.run_id, storage_path=job.scratch),
    )
    try:
        result = trainer.fit()
    finally:
        ray.shutdown()
    returned = getattr(result, "return_value", None)  # what worker 0's function returned
    if not isinstance(returned, dict):
        raise Unavailable(f"{job.run_id}: worker 0 brought no result, but {returned!r}")
    return Outcome.from_json(returned)


def _cause(error: BaseException) -> HoldfastError:
    """The worker's own error, out of Ray's wrapping."""
    failures = getattr(error, "worker_failures", None) or {}
    inner: BaseException = next(iter(failures.values()), error)
    while getattr(inner, "cause", None) is not None and inner.cause is not inner:  # type: ignore[attr-defined]
        inner = inner.cause  # type: ignore[attr-defined]
    if isinstance(inner, HoldfastError):
        return inner
    last_line = (str(inner).strip().splitlines() or ["no message"])[-1]
    return Unavailable(f"training failed: {type(inner).__name__}: {last_line}")


def main() -> int:
    """The driver process; see the module."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever Ray prints goes to standard error: standard output is the answer
    job = RayJob.from_json(json.loads(sys.stdin.read()))
    try:
        outcome = train_on_ray(job)
        with open_store() as store:
            run, model = record_run(store, job.spec, outcome)
        body: dict[str, Any] = {"run": str(run), "model": str(model)}
    except HoldfastError as error:
        body = error.to_json()
    except Exception as error:  # noqa: BLE001 -- the master must hear of every failure
        traceback.print_exc()  # with the workers' own tracebacks, into the run's log
        body = _cause(error).to_json()
    print(json.dumps(body), file=answer, flush=True)
    return 0 if "model" in body else 1


def answer_of(line: str) -> dict[str, str]:
    """The driver's answer: ``run`` and ``model``.

    Raises:
        HoldfastError: What the driver reported.
    """
    try:
        body = json.loads(line)
    except ValueError:
        body = line
    if not isinstance(body, dict) or "model" not in body:
        raise error_from_json(body, where="the training driver")
    return {"run": body["run"], "model": body["model"]}


if __name__ == "__main__":
    sys.exit(main())
