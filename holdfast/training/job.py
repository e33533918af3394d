"""One run, from its spec to the records that prove it.

:func:`run_worker` is what every worker does, in a Ray actor or in the caller's own process; :func:`record_run` turns what worker 0
brought into a run record and a model manifest.
"""

from __future__ import annotations

import random
import sysconfig
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import InvalidInput
from holdfast.registry.code import load_code
from holdfast.registry.models.formats import manifest_of
from holdfast.registry.models.made_again import draws_unseen
from holdfast.registry.records import EnvironmentRecord, ModelRecord, RunRecord, load_record
from holdfast.storage.cid import Cid
from holdfast.storage.datasets.dataset import open_dataset
from holdfast.training.context import TrainContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from holdfast.registry.run_table import RunSpec
    from holdfast.storage.content import ContentStore

__all__ = ["Outcome", "function_failure", "record_run", "run_embedded", "run_worker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What worker 0 made: the CIDs are in its own node's store."""

    model: Cid
    """The manifest, which does not name its run yet."""
    environment: Cid
    history: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Plain values; :meth:`from_json` reads them."""
        return {
            f.name: str(value) if isinstance(value := getattr(self, f.name), Cid) else value
            for f in fields(self)
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Outcome:
        """The outcome that :meth:`to_json` wrote."""
        return cls(**{**body, **{name: Cid.parse(body[name]) for name in ("model", "environment")}})


def run_worker(
    spec: RunSpec,
    store: ContentStore,
    *,
    rank: int,
    world_size: int,
    report: Callable[[dict[str, Any]], object],
) -> Outcome | None:
    """Train as one worker of a run; the outcome on worker 0, None on the others.

    The code runs as it was hashed, the data is pulled by CID, and torch is seeded and bound to the run's threads.

    Raises:
        InvalidInput: The training function does not return a torch module.
    """
    import numpy as np
    import torch

    torch.set_num_threads(spec.threads_per_worker)
    random.seed(spec.seed)
    np.random.seed(spec.seed % 2**32)  # noqa: NPY002 -- user code may draw from the global generator
    torch.manual_seed(spec.seed)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    function = load_code(store, spec.code, trust=True)  # whoever may submit runs may run code
    context = TrainContext(
        dataset=open_dataset(store, spec.data),
        config=spec.config,
        seed=spec.seed,
        rank=rank,
        world_size=world_size,
        threads=spec.threads_per_worker,
        report=report,
    )
    model = function(context)
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        model = model.module  # what prepare() gave, returned as it is
    if not isinstance(model, torch.nn.Module):
        raise InvalidInput(
            f"{function.__name__} must return the trained torch module, not {type(model).__name__}"
        )
    if rank != 0:
        return None
    return Outcome(
        model=manifest_of(store, model).store(store),
        environment=EnvironmentRecord.of_this_process().store(store),
        history=context.history,
    )


def function_failure(error: Exception) -> InvalidInput:
    """What a training function raised, as one line that says where."""
    installed = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    own = str(Path(__file__).parents[1])
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*installed, own, "<frozen "))
    ]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    first_line = (str(error).strip().splitlines() or ["no message"])[0]
    return InvalidInput(f"the training function failed: {type(error).__name__}: {first_line}{place}")


def record_run(store: ContentStore, spec: RunSpec, outcome: Outcome) -> tuple[Cid, Cid]:
    """Write the run record and the model manifest; gives their CIDs.

    Everything they link is pulled into ``store`` first, so the lineage is whole in one place.
    """
    metrics = outcome.history[-1] if outcome.history else {}
    for cid in (outcome.model, outcome.environment, spec.code, spec.data):
        for _ in store.walk(cid):
            pass
    made = load_record(store, outcome.model, ModelRecord)
    run = RunRecord(
        code=spec.code,
        data=spec.data,
        environment=outcome.environment,
        config=dict(spec.config),
        seed=spec.seed,
        workers=spec.workers,
        threads_per_worker=spec.threads_per_worker,
        metrics=metrics,
        history=tuple(outcome.history),
        outputs={"files": made.files},
    ).store(store)
    model = replace(made, run=run, data=(spec.data,), metrics=metrics).store(store)
    return run, model


def run_embedded(
    spec: RunSpec, store: ContentStore, report: Callable[[dict[str, Any]], object]
) -> tuple[Cid, Cid]:
    """Run in this process, with one worker; gives the CIDs of the run record and of the model.

    Raises:
        InvalidInput: The spec asks for several workers.
    """
    if spec.workers != 1:
        raise InvalidInput(
            f"{spec.workers} workers need a cluster: start one with 'holdfast up' and pass its address to connect()"
        )
    with _global_state_kept():
        outcome = run_worker(spec, store, rank=0, world_size=1, report=report)
    assert outcome is not None  # noqa: S101 -- worker 0 always brings one
    return record_run(store, spec, outcome)


@contextmanager
def _global_state_kept() -> Iterator[None]:
    """Afterwards the caller's threads, deterministic mode and random generators are as they were."""
    import torch

    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        with draws_unseen():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(mode=deterministic, warn_only=warn_only)
