"""Which of how many workers this process is, and how a worker process opens a dataset of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.config import load_settings
from holdfast.errors import InvalidInput
from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.cid import Cid
from holdfast.storage.local.local_store import LocalStore
from holdfast.whole_numbers import whole_number

if TYPE_CHECKING:
    from holdfast.storage.content import ContentStore
    from holdfast.storage.datasets.dataset import Dataset
    from holdfast.storage.filesystem.shared import Shared

__all__ = ["DatasetPlace", "home_of", "worker_place"]


def worker_place(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """The rank of this process and the number of workers: as given, else as torch or Ray knows it, else (0, 1).

    Args:
        rank: Given together with ``world_size``, or not at all.
        world_size: How many workers share the rows.

    Raises:
        InvalidInput: Only one of the two is given, or they can't be.
    """
    if (rank is None) != (world_size is None):
        raise InvalidInput(f"rank={rank}, world_size={world_size}: give both, or neither")
    if rank is not None and world_size is not None:
        rank, world_size = whole_number("rank", rank), whole_number("world_size", world_size)
        if world_size < 1 or not 0 <= rank < world_size:
            raise InvalidInput(f"rank={rank}, world_size={world_size} can't be")
        return rank, world_size
    return _torch_place() or _ray_place() or (0, 1)


def _torch_place() -> tuple[int, int] | None:
    distributed = sys.modules.get("torch.distributed")  # who never imported it has not initialised it
    if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
        return None
    return distributed.get_rank(), distributed.get_world_size()


def _ray_place() -> tuple[int, int] | None:
    train = sys.modules.get("ray.train")
    if train is None:
        return None
    try:
        context = train.get_context()
        return context.get_world_rank(), context.get_world_size()
    except RuntimeError:  # not one of Ray Train's workers
        return None


def home_of(store: ContentStore) -> Path | None:
    """The home whose blocks a store reads, if it is one that another process can open."""
    blocks: Any = store.blocks
    while not isinstance(blocks, LocalStore):
        inner = blocks.inner if isinstance(blocks, VerifyingStore) else getattr(blocks, "local", None)
        if inner is None:
            return None
        blocks = inner
    folder = blocks.folder
    return folder.parent if folder.name == "blocks" else None


def _lasting(home: str) -> str:
    """A folder's name that means the same to a process in another folder."""
    return home if "$" in home else str(Path(home).expanduser().absolute())


class DatasetPlace:
    """A dataset, and where every other process finds it: pickled, it is a home's folder and a CID.

    Args:
        dataset: An open dataset.
        home: Folder of the home that worker processes open; default: the one that the dataset's store belongs to, if it does.
            Variables in it, such as ``$HOLDFAST_HOME``, count where it is opened.
        timeout_s: How long these processes wait for a block; default: the home's setting.
    """

    def __init__(
        self,
        dataset: Dataset,
        home: str | os.PathLike[str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> None:
        self.cid = dataset.cid
        known = home_of(dataset.store) if home is None else home
        self.home = None if known is None else _lasting(os.fspath(known))
        self.timeout_s = timeout_s
        self._dataset: Dataset | None = dataset
        self._process = os.getpid()
        self._shared: Shared[ContentStore] | None = None

    def opened(self) -> Dataset:
        """The dataset, opened by this process.

        Raises:
            NotFound: The home has no such dataset, and neither has a peer.
        """
        if self._dataset is not None and (self._process == os.getpid() or self.home is None):
            return self._dataset  # without a home: stores open their files anew in a forked child
        from holdfast.storage.datasets.dataset import open_dataset
        from holdfast.storage.filesystem.shared import shared
        from holdfast.storage.opening import open_store

        assert self.home is not None  # noqa: S101 -- it would not have been pickled
        home = Path(os.path.expandvars(self.home)).expanduser().absolute()
        settings = load_settings(home, fetch__timeout_s=self.timeout_s)
        self._shared = shared(("store", home, self.timeout_s), lambda: open_store(settings))
        self._dataset, self._process = open_dataset(self._shared.get(), self.cid), os.getpid()
        return self._dataset

    def __getstate__(self) -> dict[str, Any]:
        if self.home is None:
            raise InvalidInput(
                f"dataset {self.cid} can't be opened in another process: its store is not that of a home's folder; "
                "give home=, or read in this process (num_workers=0)"
            )
        return {"cid": str(self.cid), "home": self.home, "timeout_s": self.timeout_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.cid, self.home, self.timeout_s = Cid.parse(state["cid"]), state["home"], state["timeout_s"]
        self._dataset, self._process, self._shared = None, -1, None
