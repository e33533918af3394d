"""What a training function is given: its share of the data, its place among the workers, and where to report."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

from holdfast.errors import InvalidInput
from holdfast.registry.models.torch_modules import store_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch

    from holdfast.storage.datasets.dataset import Dataset

__all__ = ["TrainContext", "TrainFunction"]


class TrainFunction(Protocol):
    """A training function: plain PyTorch, the same on one CPU and on many workers. Returns the trained model."""

    def __call__(self, context: TrainContext) -> torch.nn.Module:
        """Train, and return the model."""
        ...


class TrainContext:
    """One worker's view of a run.

    Attributes:
        config: The run's settings.
        dataset: The run's data.
        rank: This worker's number, from 0.
        world_size: How many workers there are.
        seed: The run's seed; torch is seeded with it already, the same on every worker.
        threads: How many threads may read ahead: as many as the worker has CPUs.
    """

    def __init__(
        self,
        *,
        dataset: Dataset,
        config: Mapping[str, Any],
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 1,
        report: Callable[[dict[str, Any]], object] = lambda _: None,
    ) -> None:
        self.dataset = dataset
        self.config = config
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.threads = threads
        self.history: list[dict[str, Any]] = []
        self._report = report

    def batches(
        self, split: str, *, batch_size: int, epoch: int | None = None, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """This worker's share of a split: in each batch one tensor a column, or a list where it is text.

        Args:
            split: Such as ``train``.
            batch_size: Rows of each batch, on each worker.
            epoch: Shuffle for this pass, and give every worker the same number of whole batches; rows that don't fill one
                on every worker are left out. Without it the order is the dataset's, and every row comes exactly once.
            options: Others of :class:`~holdfast.storage.loaders.torch_dataset.TorchDataset`, such as ``columns``, ``transform``,
                ``image_size`` and ``tokenize``.

        Raises:
            NotFound: The dataset has no such split.
            InvalidInput: An option is impossible, or there are too few rows for one batch on every worker.
        """
        from holdfast.storage.loaders.torch_dataset import TorchDataset

        loader = TorchDataset(
            self.dataset,
            split,
            batch_size=batch_size,
            shuffle=epoch is not None,
            seed=self.seed,
            epoch=epoch or 0,
            rank=self.rank,
            world_size=self.world_size,
            remainder="keep" if epoch is None else "drop",
            threads=self.threads,
            **options,
        )
        if epoch is not None and len(loader) == 0:
            raise InvalidInput(
                f"split {split!r} has {self.dataset.rows_in(split)} rows: too few to give each of {self.world_size} workers a "
                f"batch of {batch_size}"
            )
        return iter(loader)

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model to call in training: it averages gradients over all workers (DDP) where there are several."""
        if self.world_size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model)

    def sum(self, value: float) -> float:
        """The sum of every worker's ``value``, the same on each; all of them must call it."""
        if self.world_size == 1:
            return value
        import torch

        total = torch.tensor([float(value)], dtype=torch.float64)
        torch.distributed.all_reduce(total)
        return float(total.item())

    def mean(self, value: float) -> float:
        """The mean of every worker's ``value``; all of them must call it."""
        return self.sum(value) / self.world_size

    def report(self, *, model: torch.nn.Module | None = None, **metrics: float) -> None:
        """Tell the run's progress; the last report's numbers become the model's metrics.

        Args:
            model: Stored as a checkpoint by CID, if given.
            metrics: Finite numbers, the same on every worker.

        Raises:
            InvalidInput: A metric is no finite number: a diverged run should stop, not be registered.
        """
        for name, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise InvalidInput(f"metric {name!r} must be a finite number, not {value!r}")
        if self.rank != 0:
            return
        self.history.append(dict(metrics))
        event: dict[str, Any] = {"type": "report", "metrics": dict(metrics)}
        if model is not None:
            event["checkpoint"] = str(store_weights(self.dataset.store, model))
        self._report(event)
