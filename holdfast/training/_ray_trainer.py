"""Ray Train without the helpers that a holdfast run does not need.

Ray Train starts actors beside the workers: one that talks to an autoscaler (there is none here), one for datasets (ours come by CID), one
for placement groups that outlive a driver (each run is a Ray job of its own, whose end frees them). Each is a process that
imports pandas and pyarrow for seconds, and ``TorchTrainer`` makes the driver and the controller import torch as well. Without
them a run starts sooner: ``bench/bench_ray_train.py`` measures both. This module is the one place that knows Ray Train's inner
names.
"""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

__all__ = ["LeanTrainer"]

_UNUSED = {"DatasetsCallback", "PlacementGroupCleanerCallback", "WorkingDirectorySetupCallback"}


class _NoAutoscaler(FixedScalingPolicy):
    """So many workers as asked for, on the nodes that are there."""

    def _send_resource_request(self) -> None: ...

    def _maybe_send_resource_request(self) -> None: ...

    def _cancel_resource_request(self) -> None: ...


class LeanTrainer(DataParallelTrainer):
    """Runs one function on every worker; what it returns on worker 0 is the result's ``return_value``."""

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if type(c).__name__ not in _UNUSED]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        return super()._initialize_and_run_controller(
            **{**arguments, "scaling_policy": _NoAutoscaler(self.scaling_config)}  # type: ignore[arg-type]  # two generations of one class
        )
