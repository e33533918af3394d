"""A small convolutional network for scikit-learn's handwritten digits, and the function that trains it.

The file is also what holdfast bundles as the run's code: it imports installed packages only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from holdfast.training import TrainContext

__all__ = ["DigitsCNN", "load_digits", "train"]


def load_digits() -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """The 1,797 digits as columns: ``image`` (uint8, 1 x 8 x 8, values 0 to 16) and ``label``; every fifth is for testing."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    columns = {
        "image": bunch.images.astype(np.uint8).reshape(-1, 1, 8, 8),
        "label": bunch.target.astype(np.int64),
    }
    test = np.arange(len(bunch.target)) % 5 == 4
    return {
        "train": {name: values[~test] for name, values in columns.items()},
        "test": {name: values[test] for name, values in columns.items()},
    }


class DigitsCNN(nn.Module):
    """Two convolutions and two linear layers; takes pixels from 0 to 16, gives ten logits and an embedding.

    Args:
        width: Channels of the first convolution.
        embedding_dim: Size of the penultimate layer.
    """

    input_column = "image"
    input_shape = (1, 8, 8)
    output_names = ("logits", "embedding")

    def __init__(self, *, width: int = 16, embedding_dim: int = 64) -> None:
        super().__init__()
        self.config = {"width": width, "embedding_dim": embedding_dim}
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.embedding = nn.Linear(2 * width * 16, embedding_dim)
        self.classify = nn.Linear(embedding_dim, 10)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, 10) and embeddings (N, embedding_dim) of images (N, 1, 8, 8)."""
        vector = functional.relu(self.embedding(self.features(image / 16.0)))
        return self.classify(vector), vector


def train(context: TrainContext) -> nn.Module:
    """Train a :class:`DigitsCNN`; reports ``loss`` and ``test_accuracy`` after each epoch."""
    config = {"epochs": 12, "batch_size": 32, "lr": 3e-3, "width": 16} | dict(context.config)
    model = DigitsCNN(width=config["width"])
    parallel = context.prepare(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    for epoch in range(config["epochs"]):
        model.train()
        losses = []
        for batch in context.batches("train", batch_size=config["batch_size"], epoch=epoch):
            logits, _ = parallel(batch["image"].float())
            loss = functional.cross_entropy(logits, batch["label"])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            optimizer.step()
            losses.append(loss.item())
        right, seen = _count_right(model, context)
        context.report(
            epoch=epoch,
            loss=context.mean(sum(losses) / len(losses)),
            test_accuracy=context.sum(right) / context.sum(seen),
            model=model,
        )
    return model


@torch.no_grad()
def _count_right(model: DigitsCNN, context: TrainContext) -> tuple[int, int]:
    model.eval()
    right = seen = 0
    for batch in context.batches("test", batch_size=256):
        guesses = model(batch["image"].float())[0].argmax(1)
        right += int((guesses == batch["label"]).sum())
        seen += len(guesses)
    return right, seen
