"""``holdfast://name@version/path`` for fsspec: datasets, models and indexes by name, as folders.

=============================================== ======================================================
``holdfast://digits/train/00000.parquet``        the newest version of the dataset ``digits``
``holdfast://digits:1.0.0/train``                a version, which never changes
``holdfast://digits@champion/model.safetensors`` what an alias means at the moment of the call
``holdfast://model/digits:1.0.0``                the model, where a dataset has the same name
``holdfast://bafyrei…/train``                    by CID: no name is asked for
=============================================== ======================================================

A dataset is a folder of its splits with their Parquet or Arrow shards; a model has its files, such as ``model.safetensors``, and ``code/``, an
index ``index.faiss``, a model's ONNX form ``model.onnx``. Each has its record as DAG-JSON in ``_manifest.json``, a name that readers of
Parquet folders pass over.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.cluster.client import Client, connect
from holdfast.config import default_home
from holdfast.errors import InvalidInput, NotFound, Unsupported
from holdfast.registry.names import Reference
from holdfast.registry.records import CodeRecord, ConversionRecord, IndexRecord, ModelRecord, load_record
from holdfast.storage.cid import Cid
from holdfast.storage.filesystem.content_filesystem import ContentFileSystem
from holdfast.storage.filesystem.content_tree import FileMissing, Node, Remembered
from holdfast.storage.filesystem.shared import Shared, shared
from holdfast.storage.formats import dag_json
from holdfast.storage.formats.dag import RECORD_CODECS

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from holdfast.storage.content import ContentStore
    from holdfast.storage.datasets.shards.shard import Shard

__all__ = ["HoldfastFileSystem"]

KINDS = ("dataset", "model", "index")
"""In this order a name is looked for."""

NEWEST = "latest"
"""The alias that means the newest version where nobody has set it."""

_MANIFEST = "_manifest.json"
_REMEMBERED_FILES = 100_000


class HoldfastFileSystem(ContentFileSystem):
    """Datasets, models and indexes by name, of a home or of a cluster.

    ``name`` and ``name@latest`` are the newest version, ``name:1.0.0`` a version, ``name@alias`` what the alias means. A
    name is looked for among datasets, then models, then indexes; ``holdfast://model/name`` says which is meant. Names
    are looked up at each call: read through a version, or a CID, what must not change between two calls.

    Args:
        home: The home's folder; default ``$HOLDFAST_HOME``, looked up at each use.
        address: The master's URL; None for the names of the home itself.
        token: The cluster's token; default: the one in ``<home>/token``.
        options: fsspec's own, such as ``use_listings_cache`` and ``skip_instance_cache``.
    """

    protocol: ClassVar[str] = "holdfast"

    def __init__(
        self,
        home: str | os.PathLike[str] | None = None,
        address: str | None = None,
        token: str | None = None,
        **options: Any,
    ) -> None:
        self._names = _Names(home, address, token, remember=options.get("use_listings_cache", True))
        super().__init__(self._names, **options)

    @property
    def fsid(self) -> str:
        """Names differ from cluster to cluster, and from home to home."""
        return f"holdfast:{self._names.place}"

    def close(self) -> None:
        """Close the client for this process, if it is open; the next use opens it again."""
        self._names.close()

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget every listing, which saves memory only: content never changes, and names are not kept."""
        super().invalidate_cache(path)
        if path is None:
            self._names.forget()


class _Names:
    """Where ``holdfast://`` paths begin: the names that a client knows."""

    def __init__(
        self,
        home: str | os.PathLike[str] | None,
        address: str | None,
        token: str | None,
        *,
        remember: bool,
    ) -> None:
        self._home = home
        self._address = address
        self._token = token
        self._shared: tuple[Path, Shared[Client]] | None = None
        self._folders: Remembered[Mapping[str, Node]] = Remembered(_REMEMBERED_FILES if remember else 0)

    @property
    def place(self) -> str:
        """Whose names they are."""
        return self._address or str(self._folder())

    def opened(self) -> ContentStore:
        return self._client().store

    def reopen(self, store: ContentStore) -> bool:
        client = self._client()
        if client.store is store and self._shared is not None:
            self._shared[1].close(client)
        return True

    def close(self) -> None:
        if self._shared is not None:
            self._shared[1].close()

    def forget(self) -> None:
        self._folders.clear()

    def start(self, store: ContentStore, path: str) -> tuple[Node, Sequence[str]]:
        """The folder of the record that a path names, or of the names of a kind, or of the kinds."""
        first, *names = path.split("/")
        if not first:
            return Node(children=lambda: {kind: self._all_of(store, kind) for kind in KINDS}), ()
        if first not in KINDS:
            return self._content(store, self._resolve(KINDS, first)), names
        if not names:
            return self._all_of(store, first), ()
        return self._content(store, self._resolve((first,), names[0])), names[1:]

    def _folder(self) -> Path:
        return default_home() if self._home is None else Path(self._home).expanduser().absolute()

    def _client(self) -> Client:
        home, address, token = self._folder(), self._address, self._token
        known = self._shared
        if known is None or known[0] != home:
            key = ("client", home, address, token)
            known = self._shared = home, shared(key, lambda: connect(address, home=home, token=token))
        return known[1].get()

    def _resolve(self, kinds: Sequence[str], ref: str) -> Cid:
        try:
            return Cid.parse(ref)
        except InvalidInput:
            wanted = Reference.parse(ref)
        names = self._client().names
        reasons = []
        for kind in kinds:
            try:
                return names.resolve(kind, ref).cid
            except NotFound as error:
                if wanted.alias != NEWEST:
                    reasons.append(str(error))
                    continue
            try:  # nobody has set an alias called so
                return names.resolve(kind, wanted.name).cid
            except NotFound as error:
                reasons.append(str(error))
        raise FileMissing("; ".join(reasons))

    def _all_of(self, store: ContentStore, kind: str) -> Node:
        """The folder of all versions of all names of a kind."""

        def children() -> dict[str, Node]:
            return {
                f"{entry.name}:{entry.version}": self._content(store, entry.cid, lazily=True)
                for entry in self._client().names.entries(kind)
            }

        return Node(children=children)

    def _content(self, store: ContentStore, cid: Cid, *, lazily: bool = False) -> Node:
        """A record as a folder; files and directories as they are."""
        if cid.codec not in RECORD_CODECS:
            return Node(cid=cid)
        if lazily:
            return Node(cid=cid, children=lambda: self._files(store, cid))
        files = self._files(store, cid)
        return Node(cid=cid, children=lambda: files)

    def _files(self, store: ContentStore, cid: Cid) -> Mapping[str, Node]:
        known = self._folders.get(cid)
        if known is None:
            known = _files_of(store, cid)
            self._folders.put(cid, known, _weight(known))
        return known


def _weight(files: Mapping[str, Node]) -> int:
    return sum(_weight(node.children()) if node.children else 1 for node in files.values())


def _files_of(store: ContentStore, cid: Cid) -> dict[str, Node]:
    """What a record's folder has in it.

    Raises:
        Unsupported: It is a record of another kind.
        NotFound: Nobody has it.
    """
    record = store.get_record(cid)
    kind = record.get("kind") if isinstance(record, dict) else None
    if kind == "dataset":
        files = _dataset(store, cid)
    elif kind == "model":
        model = load_record(store, cid, ModelRecord)
        files = {entry.name: Node(cid=entry.cid) for entry in store.ls(model.files)}
        if model.code is not None:
            files |= {"code": Node(cid=load_record(store, model.code, CodeRecord).files)}
    elif kind == "index":
        files = {"index.faiss": Node(cid=load_record(store, cid, IndexRecord).index)}
    elif kind == "conversion":
        files = {"model.onnx": Node(cid=load_record(store, cid, ConversionRecord).onnx)}
    else:
        raise Unsupported(
            f"{cid} is {f'a {kind}' if kind else 'a record of no known kind'}: "
            "only datasets, models, their ONNX forms and indexes are folders"
        )
    return {_MANIFEST: Node(data=dag_json.encode(record))} | files


def _dataset(store: ContentStore, cid: Cid) -> dict[str, Node]:
    from holdfast.storage.datasets.dataset import open_dataset
    from holdfast.storage.datasets.shards.shard_format import ARROW

    dataset = open_dataset(store, cid)
    suffix = "arrow" if dataset.format == ARROW else "parquet"
    return {_folder_name(split): _split(shards, suffix) for split, shards in dataset.splits.items()}


def _split(shards: Sequence[Shard], suffix: str) -> Node:
    digits = max(5, len(str(len(shards) - 1)))
    files = {
        f"{number:0{digits}}.{suffix}": Node(cid=shard.cid, size=shard.size_bytes)
        for number, shard in enumerate(shards)
    }
    return Node(children=lambda: files)


def _folder_name(split: str) -> str:
    """A split may be called what no folder can: then it is written as in URLs."""
    quoted = split.replace("%", "%25").replace("/", "%2F").replace("\0", "%00")
    return {"": "%", ".": "%2E", "..": "%2E%2E"}.get(quoted, quoted)
