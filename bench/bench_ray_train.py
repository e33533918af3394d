"""Starting a run of two workers: our LeanTrainer against Ray's own TorchTrainer, in turn, on one Ray.

Prints wall and CPU seconds of each, as medians with their range, and the ratios. The function does nothing but one all-reduce.
"""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
import time
from typing import Any

import psutil

os.environ |= {
    "RAY_AUTH_MODE": "disabled",  # one process family on loopback, for as long as this script runs
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
ROUNDS = 3


def all_reduce() -> float:
    import torch

    value = torch.ones(1)
    torch.distributed.all_reduce(value)
    return float(value.item())


def lean_loop(_: dict[str, Any]) -> float:
    import ray.train

    from holdfast.training.ray_job import process_group

    place = ray.train.get_context()
    with process_group(place.get_world_rank(), place.get_world_size()):
        return all_reduce()


def torch_loop(_: dict[str, Any]) -> float:
    return all_reduce()


def cpu_seconds() -> float:
    """Of the whole machine: Ray's processes come and go, and take their own counts with them. Run it alone."""
    times = psutil.cpu_times()
    return float(times.user + times.system)


def measure(trainer: Any, loop: Any, **options: Any) -> tuple[float, float]:
    from ray.train import RunConfig, ScalingConfig

    with tempfile.TemporaryDirectory() as scratch:
        started, busy = time.perf_counter(), cpu_seconds()
        result = trainer(
            loop,
            train_loop_config={},
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(storage_path=scratch),
            **options,
        ).fit()
        assert result.return_value == 2.0
        return time.perf_counter() - started, cpu_seconds() - busy


def main() -> None:
    import ray
    from ray.train.torch import TorchConfig, TorchTrainer

    from holdfast.training._ray_trainer import LeanTrainer

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    sides: dict[str, list[tuple[float, float]]] = {"LeanTrainer": [], "TorchTrainer": []}
    for _ in range(ROUNDS):
        sides["LeanTrainer"].append(measure(LeanTrainer, lean_loop))
        sides["TorchTrainer"].append(
            measure(TorchTrainer, torch_loop, torch_config=TorchConfig(backend="gloo"))
        )
    ray.shutdown()
    medians = {}
    for name, samples in sides.items():
        wall, busy = ([sample[i] for sample in samples] for i in (0, 1))
        medians[name] = (statistics.median(wall), statistics.median(busy))
        print(
            f"{name:<13} wall {medians[name][0]:5.1f} s ({min(wall):.1f} to {max(wall):.1f})   "
            f"CPU {medians[name][1]:5.1f} s ({min(busy):.1f} to {max(busy):.1f})"
        )
    for index, what in enumerate(("wall", "CPU")):
        print(f"ratio {what:<5} {medians['LeanTrainer'][index] / medians['TorchTrainer'][index]:.2f}")


if __name__ == "__main__":
    main()
