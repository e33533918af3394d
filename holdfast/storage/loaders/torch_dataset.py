"""A dataset as torch's ``IterableDataset``: for ``DataLoader`` with any number of workers, and for resuming."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

# Everybody else imports torch when it is needed. This class has to be one of torch's, so who asks for it wants torch.
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from holdfast.errors import InvalidInput
from holdfast.storage.loaders.batch_steps import BatchOptions
from holdfast.storage.loaders.feed import Feed, FeedOptions
from holdfast.storage.loaders.feed_counters import COUNTERS, FeedCounters, added_up
from holdfast.storage.loaders.place import DatasetPlace
from holdfast.storage.loaders.tensors import check_pin_memory, to_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from holdfast.storage.datasets.dataset import Dataset
    from holdfast.storage.loaders.batch_loader import Remainder
    from holdfast.storage.loaders.batch_steps import Transform
    from holdfast.storage.loaders.images import BadImages
    from holdfast.storage.loaders.text import Tokenize

__all__ = ["EpochLoader", "TorchDataset", "torch_loader"]

_MOST_WORKERS = 256
"""Worker processes of one DataLoader whose counters are collected."""


class TorchDataset(IterableDataset[dict[str, Any]]):
    """Batches of one worker's share of a dataset, as tensors.

    Give it to ``DataLoader(dataset, batch_size=None, num_workers=n)``: the order is the same for every ``n``. Batches are made here,
    so DataLoader must not make any: its own ``batch_size`` is None. Each of its worker processes opens the home and reads all of
    this worker's row groups, but does the steps (images, text, transform) for its own batches only: more of them help
    where these steps take the time, and not where reading does, for reading has threads.

    ``set_epoch`` before each pass, as with torch's DistributedSampler. ``state_dict`` and ``load_state_dict`` are what torchdata's
    StatefulDataLoader calls; with a plain DataLoader they tell the truth for ``num_workers=0`` only.

    Args:
        dataset: What to read.
        split: Which part; None for the only one, or ``train``.
        batch_size: Rows of a batch of this worker; None gives single rows, without the first dimension.
        shuffle: Mix the rows anew every epoch.
        seed: Decides the order together with the epoch.
        epoch: The first pass.
        rank: This worker; default: as ``torch.distributed`` or Ray Train says when a pass begins, else 0.
        world_size: How many workers share the rows; given together with ``rank``.
        remainder: Of rows that do not fill a batch on every worker: ``keep``, ``drop`` or ``pad``.
        columns: Which ones, in this order; None for all.
        transform: Takes a batch of NumPy arrays, after images and text; what it gives becomes tensors.
        image_size: Height and width that all images are resized to; see :class:`ImageDecoder`.
        bad_images: ``fail``, or ``skip`` rows with an image that can't be decoded.
        tokenize: For each text column, what turns a list of texts into arrays; see :class:`TextTokenizer`.
        keep_text: Keep the text beside its tokens.
        prefetch: Batches that are made before they are asked for.
        memory_bytes: What a pass may hold in memory, in each process.
        disk_bytes: How much may be fetched from other nodes before it is read.
        threads: How many threads hash, decode and gather; DataLoader's worker processes share them.
        home: Folder of the home that worker processes open; default: the one that the dataset was opened from.

    Raises:
        InvalidInput: An option is impossible.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str | None = None,
        *,
        batch_size: int | None = 32,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        remainder: Remainder = "keep",
        columns: Sequence[str] | None = None,
        transform: Transform | None = None,
        image_size: tuple[int, int] | None = None,
        bad_images: BadImages = "fail",
        tokenize: Mapping[str, Tokenize] | None = None,
        keep_text: bool = False,
        prefetch: int = 2,
        memory_bytes: int = 512 << 20,
        disk_bytes: int = 256 << 20,
        threads: int = 2,
        home: str | os.PathLike[str] | None = None,
    ) -> None:
        steps = BatchOptions(
            image_size=image_size,
            bad_images=bad_images,
            tokenize=tokenize,
            keep_text=keep_text,
            transform=transform,
        )
        options = FeedOptions(
            split=split,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            remainder=remainder,
            columns=None if columns is None else tuple(columns),
            prefetch=prefetch,
            memory_bytes=memory_bytes,
            disk_bytes=disk_bytes,
            threads=threads,
            steps=steps,
        )
        self._begin(DatasetPlace(dataset, home), options, rank, world_size, epoch)

    @classmethod
    def of(cls, feed: Feed, *, epoch: int) -> TorchDataset:
        """One with the same options and worker as a feed's, which begins where the feed's loaded state stands.

        Args:
            feed: Anything of it may go on while this is used.
            epoch: The first pass, where no state was loaded.
        """
        made = cls.__new__(cls)
        made._begin(feed.place, feed.options, *feed.given_worker, epoch)  # noqa: SLF001 -- its own
        if feed.resume_state is not None:
            made.load_state_dict(feed.resume_state)
        return made

    def _begin(
        self, place: DatasetPlace, options: FeedOptions, rank: int | None, world_size: int | None, epoch: int
    ) -> None:
        self._feed = Feed(place, options, rank=rank, world_size=world_size, epoch=epoch)
        # Shared memory: worker processes that live on hear of a new epoch, and their counters are seen here.
        self._epoch = torch.tensor(self._feed.epoch, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._board = torch.zeros((_MOST_WORKERS, len(COUNTERS)), dtype=torch.float64).share_memory_()  # type: ignore[no-untyped-call]
        self._before = torch.zeros(len(COUNTERS), dtype=torch.float64)
        self._counted_in = -1
        self._begun = False

    @property
    def epoch(self) -> int:
        """The number of the pass that the next iteration makes."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """The next pass is this one, from its beginning; a loaded position stays if it is of this epoch.

        Raises:
            InvalidInput: The epoch is no whole number from 0.
        """
        self._feed.set_epoch(epoch)
        self._epoch.fill_(self._feed.epoch)
        self._begun = False

    def next_epoch(self) -> None:
        """Go on to the following epoch, unless the present one was set or loaded and not begun yet."""
        if self._begun or self._feed.finished:
            self.set_epoch(self.epoch + 1)
        self._begun = True

    def __len__(self) -> int:
        """How many batches the next pass has; rows, if ``batch_size`` is None."""
        return len(self._feed)

    @property
    def coming(self) -> int:
        """The same for the pass that follows :meth:`next_epoch`."""
        return self._feed.coming

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        feed = self._feed
        if self.epoch != feed.epoch:  # told by the main process
            feed.set_epoch(self.epoch)
        finish = to_tensors if feed.options.batch_size is not None else _row
        if info is None:
            return feed.begin(finish)
        place = self._board[info.id % _MOST_WORKERS]
        if self._counted_in != os.getpid():
            # What a forked worker inherits was counted by its parent; what is on the board, by earlier workers.
            self._counted_in, self._before = os.getpid(), place.clone()
            feed.counters = FeedCounters()
        return self._in_worker(feed.begin(finish, part=info.id, parts=info.num_workers), place)

    def _in_worker(self, batches: Iterator[dict[str, Any]], place: torch.Tensor) -> Iterator[dict[str, Any]]:
        """The same, with this process's counters written where the main process sees them."""
        for batch in batches:
            self._report(place)
            yield batch
        self._report(place)

    def _report(self, place: torch.Tensor) -> None:
        values = self._feed.counters.values()
        place.copy_(self._before + torch.tensor([values[name] for name in COUNTERS], dtype=torch.float64))

    def counters(self) -> dict[str, float]:
        """What all passes did so far, in this process and in DataLoader's workers together."""
        rows = self._board[self._board.any(dim=1)].tolist()
        return added_up(
            [self._feed.counters.values(), *(dict(zip(COUNTERS, row, strict=True)) for row in rows)]
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values that say where the pass of this process is: behind what was given last."""
        return self._feed.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next pass begin where ``state`` was saved; seed, epoch, order and remainder become the state's.

        Raises:
            InvalidInput: It was saved over another dataset or split, or is no loader's state.
        """
        self._feed.load_state_dict(state)
        self._epoch.fill_(self._feed.epoch)
        self._begun = False

    def __getstate__(self) -> dict[str, Any]:
        rank, world_size = self._feed.worker()  # known here, and perhaps not in the process that is sent to
        return {
            "place": self._feed.place,
            "options": self._feed.options,
            "worker": (rank, world_size),
            "epoch": self._epoch,
            "board": self._board,
            "state": self._feed.resume_state,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        rank, world_size = state["worker"]
        self._epoch, self._board = state["epoch"], state["board"]
        self._before, self._counted_in, self._begun = torch.zeros_like(self._board[0]), -1, False
        self._feed = Feed(
            state["place"], state["options"], rank=rank, world_size=world_size, epoch=self.epoch
        )
        if state["state"] is not None:
            self._feed.load_state_dict(state["state"])


class EpochLoader(DataLoader[dict[str, Any]]):
    """A DataLoader over a :class:`TorchDataset` whose every iteration is the next epoch, shuffled anew.

    ``dataset.set_epoch(n)`` makes the next iteration epoch ``n``.
    """

    def __iter__(self) -> Any:
        cast("TorchDataset", self.dataset).next_epoch()
        super().__len__()  # DataLoader remembers what it said last, and warns of every pass that is longer
        return super().__iter__()

    def __len__(self) -> int:
        return cast("TorchDataset", self.dataset).coming


def torch_loader(dataset: TorchDataset, *, num_workers: int = 0, **options: Any) -> EpochLoader:
    """A DataLoader whose batches are those of the dataset.

    Args:
        dataset: Makes the batches.
        num_workers: Worker processes.
        options: Others of ``torch.utils.data.DataLoader``, such as ``pin_memory``, ``persistent_workers``,
            ``prefetch_factor`` and ``multiprocessing_context``.

    Raises:
        InvalidInput: ``pin_memory`` without CUDA, or an option that the dataset has already decided about.
    """
    for name in ("batch_size", "shuffle", "drop_last"):
        if options.get(name):
            raise InvalidInput(f"{name} is the loader's own: IPFSDataLoader({name}={options[name]!r})")
    if options.get("pin_memory"):
        check_pin_memory()
    return EpochLoader(
        dataset, **{"batch_size": None, "collate_fn": _as_it_is, **options, "num_workers": num_workers}
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _row(batch: dict[str, Any]) -> dict[str, Any] | None:
    """The one row of a batch, or None if a step left it out."""
    tensors = to_tensors(batch)
    if any(len(values) == 0 for values in tensors.values()):
        return None
    return {name: values[0] for name, values in tensors.items()}
