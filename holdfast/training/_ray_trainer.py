"""Ray Train without the helpers that a holdfast run does not need.

Ray Train starts actors beside the workers: for datasets (ours come by CID), for placement groups that outlive a driver (each run
is a Ray job of its own, whose end frees them), for preemption notices of clouds, for its metrics. Each is a process that imports
pandas and pyarrow for seconds, and ``TorchTrainer`` makes the driver and the controller import torch as well: measured on two
cores, 25 of the 70 CPU seconds of a short run. This module is the one place that knows Ray Train's inner names.
"""

from __future__ import annotations

from typing import Any

from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

__all__ = ["LeanTrainer"]

_UNUSED = {"DatasetsCallback", "PlacementGroupCleanerCallback", "WorkingDirectorySetupCallback"}


class LeanTrainer(DataParallelTrainer):  # type: ignore[misc]  # Ray's decorator hides the class' type
    """Runs one function on every worker; what it returns on worker 0 is the result's ``return_value``."""

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if type(c).__name__ not in _UNUSED]
