"""The loader that people hold in their hands: a dataset by CID, as batches for whatever trains on them."""

from __future__ import annotations

import importlib.util
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from holdfast.config import load_settings
from holdfast.errors import Conflict, InvalidInput
from holdfast.storage.cid import Cid
from holdfast.storage.loaders.batch_steps import BatchOptions
from holdfast.storage.loaders.feed import Feed, FeedOptions
from holdfast.storage.loaders.feed_counters import added_up, metrics_of
from holdfast.storage.loaders.place import DatasetPlace, worker_place

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    import ray.data

    from holdfast.storage.content import ContentStore
    from holdfast.storage.datasets.dataset import Dataset
    from holdfast.storage.loaders.batch_loader import Remainder
    from holdfast.storage.loaders.batch_steps import Transform
    from holdfast.storage.loaders.images import BadImages
    from holdfast.storage.loaders.text import Tokenize
    from holdfast.storage.loaders.torch_dataset import EpochLoader, TorchDataset

__all__ = ["BatchView", "IPFSDataLoader", "SupportsMetrics", "ipfs_data_loader_context"]


class SupportsMetrics(Protocol):
    """Something that keeps numbers by name."""

    def record_metric(self, name: str, value: float) -> object:
        """Keep one number."""
        ...


class BatchView:
    """Batches of a loader in another form. Every iteration is the next epoch."""

    def __init__(self, loader: IPFSDataLoader, convert: Callable[[dict[str, Any]], Any]) -> None:
        self._loader = loader
        self._convert = convert

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return self._loader._next_pass(self._convert)  # noqa: SLF001 -- the loader's other form


class IPFSDataLoader:
    """Feeds training from a dataset by CID: verified, read ahead, and fetched from peers where it is not here.

    Iterating gives dict batches, of torch tensors where torch is installed, else of NumPy arrays. Every iteration is the next
    epoch, shuffled anew; the order depends on dataset, seed and epoch only, whatever the number of workers. Text stays lists
    of text; images become uint8 arrays of shape [rows, 3, height, width].

    Args:
        store: Where the dataset is; default: the store of ``home``, opened when it is needed and closed by :meth:`close`.
        batch_size: Rows of a batch of this worker.
        shuffle: Mix the rows anew every epoch; else they come as they are stored.
        prefetch: Batches that are made before they are asked for.
        split: Which part of the dataset; default: the only one, or ``train``.
        seed: Decides the order together with the epoch.
        rank: This worker; default: as ``torch.distributed`` or Ray Train says when a pass begins, else 0.
        world_size: How many workers share the rows; given together with ``rank``.
        drop_last: Short for ``remainder="drop"``.
        remainder: Of rows that do not fill a batch on every worker: ``keep`` gives every row exactly once; ``drop`` leaves them
            out; ``pad`` gives the epoch's first rows again. Default: ``keep``.
        columns: Which ones, in this order; default all. Of others nothing is read.
        transform: Takes a batch of NumPy arrays, after images and text; what it gives takes the batch's place. Several
            threads may call it.
        image_size: Height and width that all images are resized to. Without it those of a batch must have one size.
        bad_images: ``fail``, or ``skip`` rows with an image that can't be decoded, counted in the metrics.
        tokenize: For each text column, what takes a list of texts and gives arrays or lists by name, such as a Hugging Face
            tokeniser; lists are padded to the batch's longest.
        keep_text: Keep the text beside its tokens.
        pin_memory: Tensors in page-locked memory, for copies to a CUDA device.
        memory_bytes: What a pass may hold in memory.
        max_cache_size: Bytes that may be fetched from peers before they are read.
        threads: How many threads hash, decode and gather.
        timeout: Seconds to wait for a block of a peer; default: the home's setting.
        home: The folder that is opened if no store is given; default: ``$HOLDFAST_HOME``. Beside a store: what worker
            processes open, if that is not the store's own folder.
        metrics: Told the metrics as ``data_loader/<name>`` after every pass.

    Raises:
        InvalidInput: An option is impossible.

    Example:
        >>> import pyarrow as pa
        >>> from holdfast.storage import IPFSDataLoader, open_store
        >>> from holdfast.storage.datasets.dataset import store_dataset
        >>> with open_store(getfixture("tmp_path")) as store:
        ...     data = store_dataset(store, pa.table({"x": range(5)}))
        ...     loader = IPFSDataLoader(store, batch_size=2, shuffle=False).load_dataset(data.cid)
        ...     [batch["x"].tolist() for batch in loader]
        [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        store: ContentStore | None = None,
        batch_size: int = 32,
        shuffle: bool = True,  # noqa: FBT001, FBT002 -- in this place it is widely known
        prefetch: int = 2,
        *,
        split: str | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
        remainder: Remainder | None = None,
        columns: Sequence[str] | None = None,
        transform: Transform | None = None,
        image_size: tuple[int, int] | None = None,
        bad_images: BadImages = "fail",
        tokenize: Mapping[str, Tokenize] | None = None,
        keep_text: bool = False,
        pin_memory: bool = False,
        memory_bytes: int = 512 << 20,
        max_cache_size: int | None = None,
        threads: int = 2,
        timeout: float | None = None,
        home: str | os.PathLike[str] | None = None,
        metrics: SupportsMetrics | None = None,
    ) -> None:
        if drop_last and remainder not in (None, "drop"):
            raise InvalidInput(f"drop_last=True and remainder={remainder!r} contradict each other")
        if isinstance(columns, str):
            raise InvalidInput(f"columns is a list of names: [{columns!r}]")
        if timeout is not None and store is not None:
            raise InvalidInput(
                "timeout is for the home that the loader opens itself; an open store has its own"
            )
        if pin_memory:
            from holdfast.storage.loaders.tensors import check_pin_memory

            check_pin_memory()
        self._options = FeedOptions(
            split=split,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            remainder=remainder or ("drop" if drop_last else "keep"),
            columns=None if columns is None else tuple(columns),
            prefetch=prefetch,
            memory_bytes=memory_bytes,
            disk_bytes=256 << 20 if max_cache_size is None else max_cache_size,
            threads=threads,
            steps=BatchOptions(
                image_size=image_size,
                bad_images=bad_images,
                tokenize=tokenize,
                keep_text=keep_text,
                transform=transform,
            ),
        )
        self._worker = (rank, world_size)
        if self._worker != (None, None):
            worker_place(*self._worker)
        self._pin_memory = pin_memory
        self._store = store
        self._opened: ContentStore | None = None
        self._home, self._timeout = home, timeout
        self._metrics = metrics
        self._feed: Feed | None = None
        self._begun = False
        self._torch_datasets: list[TorchDataset] = []
        self._passes: list[Generator[Any, None, None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -------------------------------------------------------------------------------------------- dataset

    def load_dataset(self, dataset: Cid | str | Dataset) -> Self:
        """Say which dataset to read; only its manifest is fetched. Passes begin at epoch 0 again.

        Args:
            dataset: A CID, its text, or an open dataset.

        Raises:
            NotFound: Nobody has it, or it has no such split.
            InvalidInput: It is something else than a dataset, or has no such column; or an option is impossible.
        """
        from holdfast.storage.datasets.dataset import Dataset, open_dataset

        found = (
            dataset
            if isinstance(dataset, Dataset)
            else open_dataset(self._content(), Cid.parse(dataset) if isinstance(dataset, str) else dataset)
        )
        feed = self._new_feed(DatasetPlace(found, self._home, timeout_s=self._timeout))
        feed.check()
        self._stop()
        self._feed, self._begun = feed, False
        return self

    def _content(self) -> ContentStore:
        if self._store is not None:
            return self._store
        if self._opened is None:
            from holdfast.storage.opening import open_store

            home = None if self._home is None else Path(self._home)
            self._opened = open_store(load_settings(home, fetch__timeout_s=self._timeout))
        return self._opened

    def _new_feed(self, place: DatasetPlace) -> Feed:
        rank, world_size = self._worker
        return Feed(place, self._options, rank=rank, world_size=world_size)

    @property
    def _loaded(self) -> Feed:
        if self._feed is None:
            raise InvalidInput("no dataset is loaded: call load_dataset(cid) first")
        return self._feed

    @property
    def dataset(self) -> Dataset:
        """The dataset that is loaded.

        Raises:
            InvalidInput: There is none.
        """
        return self._loaded.place.opened()

    # --------------------------------------------------------------------------------------------- passes

    def __len__(self) -> int:
        """How many batches of this worker the next pass has."""
        return self._loaded.coming

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._next_pass(self._as_tensors() if _has_torch() else dict)

    def _as_tensors(self) -> Callable[[dict[str, Any]], dict[str, Any]]:
        from holdfast.storage.loaders.tensors import to_tensors

        return (lambda batch: to_tensors(batch, pin_memory=True)) if self._pin_memory else to_tensors

    def _next_pass(self, convert: Callable[[dict[str, Any]], Any]) -> Iterator[Any]:
        feed = self._loaded
        if self._begun or feed.finished:
            feed.set_epoch(feed.epoch + 1)
        self._begun = True
        batches = feed.begin(convert)
        self._passes.append(batches)
        return self._told(batches)

    def _told(self, batches: Generator[Any, None, None]) -> Iterator[Any]:
        try:
            yield from batches
            if batches not in self._passes:
                raise Conflict("this pass was closed before its end: begin a new one")
        finally:
            if batches in self._passes:
                self._passes.remove(batches)
        if self._metrics is not None:
            for name, value in self.get_performance_metrics().items():
                self._metrics.record_metric(f"data_loader/{name}", value)

    def set_epoch(self, epoch: int) -> None:
        """The next pass is this epoch, from its beginning; a loaded position stays if it is of this epoch.

        Raises:
            InvalidInput: The epoch is no whole number from 0, or no dataset is loaded.
        """
        self._loaded.set_epoch(epoch)
        self._begun = False

    def state_dict(self) -> dict[str, Any]:
        """Plain values that say where the pass is: behind the last batch that was given, whatever was read ahead.

        It holds for any number of workers and any batch size, as long as all workers saved theirs after the same number of
        batches.
        """
        return self._loaded.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next pass begin where ``state`` was saved; at the next epoch, if that one was over.

        Raises:
            InvalidInput: It was saved over another dataset or split, or is no loader's state.
        """
        self._loaded.load_state_dict(state)
        self._begun = False

    # --------------------------------------------------------------------------------------------- doors

    def to_pytorch(self, num_workers: int = 0, **options: Any) -> EpochLoader:
        """A ``torch.utils.data.DataLoader`` over the same batches; every iteration is the next epoch.

        Args:
            num_workers: Processes that do the steps (images, text, transform); the order is the same for any number.
            options: Others of DataLoader, such as ``persistent_workers`` and ``multiprocessing_context``.

        Raises:
            InvalidInput: No dataset is loaded, ``pin_memory`` without CUDA, or an option that is the loader's own.
        """
        from holdfast.storage.loaders.torch_dataset import torch_loader

        options.setdefault("pin_memory", self._pin_memory)
        return torch_loader(self.to_pytorch_dataset(), num_workers=num_workers, **options)

    def to_pytorch_dataset(self) -> TorchDataset:
        """The same batches as torch's ``IterableDataset``, for a DataLoader of your own with ``batch_size=None``.

        It begins where this loader's next pass would, and has a state and epochs of its own from then on.
        """
        from holdfast.storage.loaders.torch_dataset import TorchDataset

        feed = self._loaded
        made = TorchDataset.of(feed, epoch=feed.epoch + 1 if self._begun else feed.epoch)
        self._torch_datasets.append(made)
        return made

    def to_numpy(self) -> BatchView:
        """The batches as dicts of NumPy arrays, which may be read-only. Every iteration is the next epoch."""
        self._loaded  # noqa: B018 -- says so here if there is none
        return BatchView(self, dict)

    def to_jax(self) -> BatchView:
        """The batches as dicts of JAX arrays on the default device; text stays lists. Every iteration is the next epoch.

        Raises:
            InvalidInput: No dataset is loaded. While iterating: a number has no place in JAX's 32 bits.
            Unsupported: JAX is not installed.
        """
        from holdfast.storage.loaders.frameworks import jax_converter

        self._loaded  # noqa: B018 -- says so here if there is none
        return BatchView(self, jax_converter())

    def to_tensorflow(self) -> Any:
        """The batches as a ``tf.data.Dataset`` of dicts of tensors. Every iteration is the next epoch.

        Raises:
            InvalidInput: No dataset is loaded.
            Unsupported: TensorFlow is not installed.
        """
        from holdfast.storage.loaders.frameworks import tensorflow_dataset

        return tensorflow_dataset(self.to_numpy(), self._first_batch)

    def _first_batch(self) -> dict[str, Any]:
        """The first batch of the next pass, which goes on to be the next one."""
        feed = self._new_feed(self._loaded.place)
        feed.set_epoch(self._loaded.epoch)
        batches = feed.begin()
        try:
            first: dict[str, Any] | None = next(batches, None)
        finally:
            batches.close()
        if first is None:
            raise InvalidInput(
                f"split {feed.split!r} of dataset {feed.place.cid} gives no batch of this size"
            )
        return first

    def to_ray(self) -> ray.data.Dataset:
        """The split as a ``ray.data.Dataset``, in the dataset's order, with this loader's columns and steps.

        Raises:
            InvalidInput: No dataset is loaded, or other processes can't open its store.
        """
        from holdfast.storage.loaders.ray_source import read_with_steps

        place = self._loaded.place
        return read_with_steps(place.opened(), self._options, home=place.home)

    # -------------------------------------------------------------------------------------------- counters

    def get_performance_metrics(self) -> dict[str, float | int]:
        """What all passes did so far, also those in DataLoader's worker processes.

        ``rows``, ``batches``, ``padded_rows``, ``skipped_images``; ``rows_per_second``; ``bytes_from_memory`` (read
        shortly before), ``bytes_from_disk``, ``bytes_from_peers`` and the share of the first two, ``cache_hit_rate``;
        ``elapsed_seconds``, and of it ``wait_seconds`` for batches; summed over threads ``fetch_seconds``,
        ``decode_seconds`` (with hashing), ``gather_seconds``, ``transform_seconds`` (all steps, and the conversion) and of it
        ``image_decode_seconds``; ``peak_memory_bytes``, ``peak_fetched_ahead_bytes``.
        """
        feeds = [] if self._feed is None else [self._feed.counters.values()]
        return metrics_of(added_up([*feeds, *(dataset.counters() for dataset in self._torch_datasets)]))

    def clear(self) -> None:
        """Stop all passes and forget the dataset and the counters; the store stays open."""
        self._stop()
        self._feed = None
        self._torch_datasets.clear()

    def _stop(self) -> None:
        while self._passes:
            self._passes.pop().close()

    def close(self) -> None:
        """Stop everything, and close the store if the loader opened it. Closing twice is fine."""
        self._stop()
        self._feed = None
        if self._opened is not None:
            self._opened.close()
            self._opened = None


@contextmanager
def ipfs_data_loader_context(store: ContentStore | None = None, **options: Any) -> Iterator[IPFSDataLoader]:
    """An :class:`IPFSDataLoader` that is closed behind the block.

    Args:
        store: As there.
        options: As there.
    """
    with IPFSDataLoader(store, **options) as loader:
        yield loader


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None
