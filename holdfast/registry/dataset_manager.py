"""Datasets by name: versions that never change, each with a link to the one that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, overload

from holdfast.errors import InvalidInput
from holdfast.registry.names.references import Reference, checked_version
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import pandas as pd
    import pyarrow as pa

    from holdfast.config import Settings
    from holdfast.registry.names import NameEntry, Names
    from holdfast.storage.content import ContentStore
    from holdfast.storage.datasets.comparing.comparison import Difference
    from holdfast.storage.datasets.conditions import Where
    from holdfast.storage.datasets.dataset import Dataset
    from holdfast.storage.datasets.sources.opening import VerifyImages
    from holdfast.storage.datasets.versions import Edit

__all__ = ["DatasetManager", "Publish", "Shared", "Version"]

KIND = "dataset"
_MAX_HISTORY = 100_000


class Publish(Protocol):
    """Brings the blocks of a dataset to where the names are, and keeps them there if asked to."""

    def __call__(self, root: Cid, *, pin: bool = False) -> None:
        """Bring what is below ``root``; with ``pin``, keep it for as long as nobody unpins it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What to tell others, so that they get a dataset."""

    cid: Cid
    uri: str
    """``ipfs://<cid>``: opens in pandas, pyarrow, Ray Data and whatever else knows fsspec, or any IPFS program."""
    gateway_url: str | None
    """Where the dataset is served over HTTP; None if this home belongs to no cluster."""
    pin: str
    """The command that fetches and keeps it on another node."""

    def to_json(self) -> dict[str, str | None]:
        """Plain values."""
        return {
            "cid": str(self.cid),
            "uri": self.uri,
            "gateway_url": self.gateway_url,
            "pin": self.pin,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One step in the history of a dataset."""

    cid: Cid
    names: tuple[str, ...]
    """Each ``name:version`` that it has here."""
    rows: int
    provenance: Mapping[str, Any]
    """How it was made of its parent."""


class DatasetManager:
    """Datasets by name and by CID.

    Args:
        store: Where rows and manifests are; default: the store of the home.
        names: Where names are kept; default: the names of the home.
        publish: Called with the CID of each new dataset, to bring its blocks where the names are, and with ``pin=True`` for
            what gets no name; default: nothing to bring, and the pin is set here.
        home: The home that is opened by default, and asked for its cluster; default ``$HOLDFAST_HOME``, or
            ``~/.holdfast``.

    Example:
        >>> import pyarrow as pa
        >>> from holdfast.storage import DatasetManager
        >>> with DatasetManager(home=getfixture("tmp_path")) as datasets:
        ...     stored = datasets.store_dataset(pa.table({"x": [1, 2, 3]}), name="numbers")
        ...     datasets.load_dataset("numbers").to_arrow()["x"].to_pylist()
        [1, 2, 3]
    """

    def __init__(
        self,
        store: ContentStore | None = None,
        names: Names | None = None,
        *,
        publish: Publish | None = None,
        home: str | Path | Settings | None = None,
    ) -> None:
        self._opened = ExitStack()
        self._home = home
        if store is None or names is None:
            from holdfast.registry.opening import open_registry

            opened_store, opened_names = open_registry(home)
            self._opened.callback(opened_store.close)
            self._opened.callback(opened_names.close)
            store, names = store or opened_store, names or opened_names
        self._store = store
        self._names = names
        self._publish = publish or self._pin_here

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what this object opened itself; what it was given stays open."""
        self._opened.close()

    # ------------------------------------------------------------------------------------ storing, loading

    def store_dataset(  # noqa: PLR0917 -- as IPFS Kit has it
        self,
        dataset: Any = None,
        dataset_path: str | os.PathLike[str] | None = None,
        name: str | None = None,
        version: str | None = None,
        format: str | None = None,  # noqa: A002 -- what every library calls it
        chunk_size: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        convert_to: str | None = None,
        *,
        verify_images: VerifyImages = None,
        progress: Callable[[int], object] | None = None,
    ) -> Dataset:
        """Store rows, in constant memory, and name them if a name is given.

        The same rows give the same CID, whatever they came from.

        Args:
            dataset: Rows of any kind, or a mapping from split to rows; see
                :func:`~holdfast.storage.datasets.sources.open_sources`.
            dataset_path: A file or a folder instead.
            name: Words of letters, digits, dots, dashes and underscores.
            version: Like ``1.0.0``; default: the next minor version, or the one that the same data has.
            format: What the files are, where their names don't tell.
            chunk_size: Bytes of a row group, about; part of what decides the CID. Default: 4 MiB.
            metadata: Plain values for the manifest; part of what decides the CID.
            convert_to: What rows are stored as: ``parquet`` (the default), or ``arrow`` for shards that are read without
                decoding.
            verify_images: Decode each image once: ``"fail"`` raises at the first that can't be, ``"skip"`` leaves its row out,
                and the provenance says how many (``skipped_images``).
            progress: Told how many more rows were read.

        Raises:
            InvalidInput: Both or none of ``dataset`` and ``dataset_path``, no rows, or data that does not fit together.
            NotFound: There is no such file or folder.
            Conflict: The version is other data already.
        """
        from holdfast.storage.datasets.dataset import store_dataset

        if (dataset is None) == (dataset_path is None):
            raise InvalidInput("give either the rows (dataset) or a file or folder (dataset_path)")
        _check_metadata(metadata)
        return self._made(
            name,
            version,
            lambda: store_dataset(
                self._store,
                dataset,
                path=dataset_path,
                format="parquet" if convert_to is None else convert_to,
                source_format=format,
                verify_images=verify_images,
                chunk_size=chunk_size,
                metadata=metadata,
                progress=progress,
            ),
        )

    @overload
    def load_dataset(
        self,
        name: str | Cid | None = ...,
        version: str | None = ...,
        cid: str | Cid | None = ...,
        format: None = ...,
        *,
        return_metadata: Literal[False] = ...,
    ) -> Dataset: ...
    @overload
    def load_dataset(
        self,
        name: str | Cid | None = ...,
        version: str | None = ...,
        cid: str | Cid | None = ...,
        format: str | None = ...,
        return_metadata: bool = ...,  # noqa: FBT001
    ) -> Any: ...
    def load_dataset(
        self,
        name: str | Cid | None = None,
        version: str | None = None,
        cid: str | Cid | None = None,
        format: str | None = None,  # noqa: A002 -- what every library calls it
        return_metadata: bool = False,  # noqa: FBT001, FBT002 -- as IPFS Kit has it
    ) -> Dataset | pd.DataFrame | pa.Table | tuple[Any, dict[str, Any]]:
        """A dataset by name or CID. Only its manifest is read, unless ``format`` asks for the rows.

        Args:
            name: A name (then the newest version), ``name:1.0.0``, ``name@alias``, or a CID.
            version: A version of the name.
            cid: A CID instead of a name.
            format: None for the :class:`~holdfast.storage.datasets.dataset.Dataset`; ``pandas`` or ``arrow`` for all rows of
                its only split, or of ``train``.
            return_metadata: Give a pair: the dataset, and what is known of it as a dict.

        Raises:
            NotFound: No such name or version, or a block that nobody has.
            InvalidInput: Neither or both of name and CID, a CID with a version, the CID is of something else, or the
                format is unknown.
        """
        if format not in (None, "pandas", "arrow"):
            raise InvalidInput(f"a dataset is given as 'pandas' or 'arrow', not as {format!r}")
        if name is not None and cid is None:
            found = self.open(name, version)
        elif cid is not None and name is None:
            found = self.open(Cid.parse(cid), version)
        else:
            raise InvalidInput("give either a name or a CID")
        rows = found if format is None else found.to_pandas() if format == "pandas" else found.to_arrow()
        return (rows, self._metadata(found)) if return_metadata else rows

    def open(self, ref: str | Cid, version: str | None = None) -> Dataset:
        """The dataset of a reference, or of a CID.

        Raises:
            NotFound: No such name or version, or nobody has the manifest.
            InvalidInput: The CID is of something else.
        """
        from holdfast.storage.datasets.dataset import open_dataset

        return open_dataset(self._store, self.resolve(ref, version))

    def resolve(self, ref: str | Cid, version: str | None = None) -> Cid:
        """The CID of a reference, or of a CID's own text.

        Raises:
            NotFound: No such name or version.
            InvalidInput: A version of a CID is asked for.
        """
        if isinstance(ref, Cid):
            if version is not None:
                raise InvalidInput(
                    f"{ref} is one dataset, and has no version {version}: give a name, or no version"
                )
            return ref
        _check_text("a dataset's name or CID", ref)
        if version is None:
            try:
                return Cid.parse(ref)
            except InvalidInput:
                return self._names.resolve(KIND, ref).cid
        return self._names.resolve(KIND, f"{ref}:{version}").cid

    def list_datasets(self) -> list[NameEntry]:
        """All versions of all names, newest last within a name."""
        return self._names.entries(KIND)

    def get_dataset_cid(self, name: str, version: str | None = None) -> Cid:
        """The CID of a name's version; of the newest if none is given.

        Raises:
            NotFound: No such name or version.
        """
        return self.resolve(name, version)

    # -------------------------------------------------------------------------------------------- versions

    def append(
        self,
        dataset: str | Cid | Dataset,
        data: Any = None,
        *,
        dataset_path: str | os.PathLike[str] | None = None,
        format: str | None = None,  # noqa: A002 -- what every library calls it
        split: str | None = None,
        name: str | None = None,
        version: str | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Dataset:
        """A child with more rows; see :func:`holdfast.storage.datasets.versions.append`.

        Args:
            dataset: The parent: a dataset, a reference or a CID.
            data: Rows of any kind, or a mapping from split to rows.
            dataset_path: A file or a folder instead.
            format: What the files are, where their names don't tell.
            split: Where rows go whose source names no split.
            name: For the child; the parent's own name gives it the next version.
            version: Like ``1.0.0``.
            progress: Told how many more rows were read.
        """
        from holdfast.storage.datasets.versions import append

        return self._made(
            name,
            version,
            lambda: append(
                self._opened_one(dataset),
                data,
                path=dataset_path,
                source_format=format,
                split=split,
                progress=progress,
            ),
        )

    def filter(
        self,
        dataset: str | Cid | Dataset,
        where: Where,
        *,
        split: str | None = None,
        name: str | None = None,
        version: str | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Dataset:
        """A child with those rows only that ``where`` wants; see :func:`holdfast.storage.datasets.versions.filter_rows`."""
        from holdfast.storage.datasets.versions import filter_rows

        return self._made(
            name,
            version,
            lambda: filter_rows(self._opened_one(dataset), where, split=split, progress=progress),
        )

    def edit(
        self,
        dataset: str | Cid | Dataset,
        change: Edit,
        *,
        split: str | None = None,
        name: str | None = None,
        version: str | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Dataset:
        """A child with changed rows; see :func:`holdfast.storage.datasets.versions.edit`."""
        from holdfast.storage.datasets.versions import edit

        return self._made(
            name, version, lambda: edit(self._opened_one(dataset), change, split=split, progress=progress)
        )

    def create_train_test_split(  # noqa: PLR0917 -- as IPFS Kit has it
        self,
        dataset: Any,
        name: str | None = None,
        test_size: float = 0.2,
        random_state: int | None = None,
        stratify: str | None = None,
        split_column: str | None = None,
        format: str | None = None,  # noqa: A002 -- what every library calls it
        metadata: Mapping[str, Any] | None = None,
        *,
        version: str | None = None,
        split: str | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Dataset:
        """A dataset with the splits ``train`` and ``test``; see :func:`holdfast.storage.datasets.splits.train_test_split`.

        Args:
            dataset: A dataset, a reference, a CID, or rows of any kind, which are stored first.
            name: For the result.
            test_size: Part of the rows that go to ``test``, or how many if it is an integer.
            random_state: The seed; the same one gives the same split, and None is 0.
            stratify: A column whose values have the same proportions in both.
            split_column: A column that says to which split each row goes, instead of chance.
            format: What the result is stored as: ``parquet`` or ``arrow``; default: as the source.
            metadata: Plain values for the manifest.
            version: Like ``1.0.0``.
            split: The split of the source that is cut; default: its only one.
            progress: Told how many more rows were read.
        """
        from holdfast.storage.datasets.splits import train_test_split

        _check_metadata(metadata)
        return self._made(
            name,
            version,
            lambda: train_test_split(
                self._opened_or_stored(dataset),
                test_size=test_size,
                random_state=random_state,
                stratify=stratify,
                split_column=split_column,
                split=split,
                format=format,
                metadata=metadata,
                progress=progress,
            ),
        )

    def diff(
        self,
        a: str | Cid | Dataset,
        b: str | Cid | Dataset,
        *,
        key: str | Sequence[str] | None = None,
        split: str | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Difference:
        """What differs from ``a`` to ``b``; see :func:`holdfast.storage.datasets.comparing.comparison.diff`."""
        from holdfast.storage.datasets.comparing.comparison import diff

        return diff(self._opened_one(a), self._opened_one(b), key=key, split=split, progress=progress)

    def history(self, dataset: str | Cid) -> list[Version]:
        """The dataset and all that it was made from, newest first.

        Raises:
            NotFound: The name is unknown, or nobody has one of the manifests.
        """
        named: dict[Cid, list[str]] = {}
        for entry in self.list_datasets():
            named.setdefault(entry.cid, []).append(f"{entry.name}:{entry.version}")
        steps: list[Version] = []
        cid: Cid | None = self.resolve(dataset)
        while cid is not None and len(steps) < _MAX_HISTORY:
            found = self.open(cid)
            steps.append(
                Version(
                    cid=cid,
                    names=tuple(named.get(cid, ())),
                    rows=found.rows,
                    provenance=found.provenance,
                )
            )
            cid = found.parent
        return steps

    # --------------------------------------------------------------------------------- sharing, forgetting

    def share_dataset(self, name: str | Cid, version: str | None = None) -> Shared:
        """Publish a dataset, announce that it is here, and say how others get it.

        Raises:
            NotFound: No such name or version, or a block that nobody has.
            InvalidInput: The CID is of something else.
        """
        from holdfast.config import Settings, load_settings
        from holdfast.storage.opening import read_cluster

        cid = self.open(name, version).cid
        self._publish(cid, pin=True)
        home = self._home if isinstance(self._home, Settings) else load_settings(self._home)
        cluster = read_cluster(home.home)
        server = cluster.node_url or cluster.master
        return Shared(
            cid=cid,
            uri=f"ipfs://{cid}",
            gateway_url=f"{server}/ipfs/{cid}" if server else None,
            pin=f"holdfast pin add {cid}",
        )

    def delete_dataset(self, name: str, version: str | None = None) -> list[NameEntry]:
        """Remove a version of a name, or the whole name; gives what was removed.

        The rows go with the next ``holdfast gc --yes``, unless a pin, another name, a run, a model or a version made from
        them keeps them.

        Raises:
            NotFound: No such name or version.
            InvalidInput: ``name`` is a CID or an alias.
        """
        wanted = Reference.parse(name if version is None else f"{name}:{version}")
        wanted.kinds(KIND, ())
        if wanted.alias is not None:
            raise InvalidInput(f"{name!r} is an alias: name the version that is to be removed")
        return self._names.unregister(KIND, wanted.name, wanted.version)

    # --------------------------------------------------------------------------------------------- helpers

    def _pin_here(self, root: Cid, *, pin: bool = False) -> None:
        if pin and self._store.pins is not None:
            self._store.pins.pin(root)

    def _adding(self) -> AbstractContextManager[None]:
        """While this lasts, nothing that is stored can be collected: time to pin or name it."""
        return nullcontext() if self._store.pins is None else self._store.pins.adding()

    def _made(self, name: str | None, version: str | None, make: Callable[[], Dataset]) -> Dataset:
        """What ``make`` stores, published, and named if a name is given; nothing of it can be collected before."""
        self._check_name(name, version)
        with self._adding():
            dataset = make()
            self._publish(dataset.cid, pin=name is None)
            if name is not None:
                self._names.register(KIND, name, version, dataset.cid)
            return dataset

    def _check_name(self, name: str | None, version: str | None) -> None:
        """Fail before the work is done, and not after it."""
        if name is None:
            if version is not None:
                raise InvalidInput(f"the version {version} is of no name: give the name, too (name=, --name)")
            return
        _check_text("a dataset's name", name)
        if version is not None:
            _check_text("a dataset's version", version)
        wanted = Reference.parse(name if version is None else f"{name}:{version}")
        if wanted.alias or wanted.kind or (version is None and wanted.version is not None):
            raise InvalidInput(f"{name!r} is a reference: give the name, and the version by itself")
        if version is not None:
            checked_version(version)

    def _opened_one(self, dataset: str | Cid | Dataset) -> Dataset:
        from holdfast.storage.datasets.dataset import Dataset

        return dataset if isinstance(dataset, Dataset) else self.open(dataset)

    def _opened_or_stored(self, data: Any) -> Dataset:
        from holdfast.storage.datasets.dataset import Dataset, store_dataset

        if isinstance(data, (str, Cid)):
            return self.open(data)
        return data if isinstance(data, Dataset) else store_dataset(self._store, data)

    def _metadata(self, dataset: Dataset) -> dict[str, Any]:
        entries = self._names.search(KIND, cid=dataset.cid, limit=None)
        return {
            **dataset.metadata,
            "cid": str(dataset.cid),
            "names": [f"{entry.name}:{entry.version}" for entry in entries],
            "format": dataset.format,
            "columns": dict(dataset.columns),
            "rows": {split: dataset.rows_in(split) for split in dataset.splits},
            "parent": str(dataset.parent) if dataset.parent else None,
            "provenance": dict(dataset.provenance),
        }


def _check_text(what: str, value: Any) -> None:
    if not isinstance(value, str):
        raise InvalidInput(f"{what} is text, not {value!r:.80}")


def _check_metadata(metadata: Any) -> None:
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidInput(f"metadata is a mapping from text to plain values, not {metadata!r:.80}")
