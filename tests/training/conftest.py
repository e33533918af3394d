"""A store with the digits in it, and training functions that live in files of their own."""

from __future__ import annotations

import importlib
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from holdfast.registry import RunSpec, bundle_code
from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.content import ContentStore
from holdfast.storage.datasets.dataset import store_dataset
from holdfast.storage.local.local_store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from holdfast.storage.datasets.dataset import Dataset

PREAMBLE = """\
import random

import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    input_column = "x"
    input_shape = (3,)

    def __init__(self):
        super().__init__()
        self.config = {}
        self.line = nn.Linear(3, 1)

    def forward(self, x):
        return self.line(x)


"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ContentStore]:
    with closing(LocalStore(tmp_path / "home" / "blocks")) as blocks:
        yield ContentStore(VerifyingStore(blocks, source="the disk"))


def small_rows() -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """64 rows to fit a line to, and 16 to test it on."""
    generator = np.random.default_rng(5)
    x = generator.normal(size=(80, 3)).astype(np.float32)
    y = (x @ np.array([[1.0], [-2.0], [0.5]], dtype=np.float32) + 0.25).astype(np.float32)
    return {"train": {"x": x[:64], "y": y[:64]}, "test": {"x": x[64:], "y": y[64:]}}


@pytest.fixture
def dataset(store: ContentStore) -> Dataset:
    return store_dataset(store, small_rows(), chunk_size=256)


@pytest.fixture
def spec_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: ContentStore, dataset: Dataset
) -> Iterator[Callable[..., RunSpec]]:
    """Writes a module with ``Net`` and the given function ``train``, and makes a run of it."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    made: list[str] = []

    def make(body: str, config: dict[str, Any] | None = None, **numbers: int) -> RunSpec:
        name = f"training_code_{tmp_path.name}_{len(made)}"
        (folder / f"{name}.py").write_text(PREAMBLE + body, encoding="utf-8")
        importlib.invalidate_caches()
        made.append(name)
        module = importlib.import_module(name)
        code = bundle_code(store, module.train)
        return RunSpec(code=code, data=dataset.cid, config=config or {}, **numbers)

    yield make
    for name in list(sys.modules):
        if name in made or name.startswith("holdfast_code_"):
            del sys.modules[name]
