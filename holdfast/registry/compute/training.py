"""The key of a training run, and what may be remembered under it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.registry.compute.computation import Computation
from holdfast.registry.compute.environment import imported_by, numeric_environment
from holdfast.registry.run_table import CACHED_FROM
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from holdfast.registry.compute.results import ResultCache
    from holdfast.registry.run_table import RunSpec
    from holdfast.storage.content import ContentStore

__all__ = ["known_training", "remember_training", "training_computation"]

_PACKAGES = ("numpy", "pyarrow", "torch")


def training_computation(store: ContentStore, spec: RunSpec) -> Computation:
    """The computation that a run is, as it would be done on this machine.

    What the code imports counts with its version; see :func:`~holdfast.registry.compute.environment.numeric_environment`.
    """
    return Computation(
        function="train",
        code=spec.code,
        inputs={"data": spec.data},
        config={
            "config": dict(spec.config),
            "seed": spec.seed,
            "workers": spec.workers,
            "threads_per_worker": spec.threads_per_worker,
        },
        environment=numeric_environment(_PACKAGES, modules=imported_by(store, spec.code)),
    )


def known_training(
    store: ContentStore, cache: ResultCache, computation: Computation
) -> dict[str, str] | None:
    """The result of a run that was done before, as a run table has it, with the run that did it; None if there is none."""
    found = cache.find(computation)
    if found is None:
        return None
    run = store.get_record(found.result)["run"]
    return {"run": str(run), "model": str(found.result), CACHED_FROM: found.made_by}


def remember_training(
    store: ContentStore, cache: ResultCache, computation: Computation, run: str, result: Mapping[str, str]
) -> bool:
    """Remember what a run made; whether it was done in the environment that the computation tells.

    The workers of a cluster may differ from its master, which asks the cache: what they did is remembered only where they don't.
    """
    if not _trained_here(store, computation, Cid.parse(result["run"])):
        return False
    cache.remember(computation, Cid.parse(result["model"]), made_by=run)
    return True


def _trained_here(store: ContentStore, computation: Computation, run: Cid) -> bool:
    """Whether a run's own record says that it was done in the environment of a computation, as far as both tell."""
    recorded = store.get_record(store.get_record(run)["environment"])
    here = computation.environment
    same = all(recorded.get(name) == here[name] for name in ("python", "system", "machine"))
    packages = recorded.get("packages", {})
    return same and all(
        packages[name] == here["packages"][name] for name in packages if name in here["packages"]
    )
