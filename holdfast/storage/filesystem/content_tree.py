"""Paths over content: what is at ``<start>/a/b``, with folders that are stored and folders that are made from records."""

from __future__ import annotations

import errno
import threading
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from holdfast.errors import Corrupt, HoldfastError, InvalidInput, NotFound, Unsupported
from holdfast.storage.block_store import bring_near
from holdfast.storage.cid import RAW, Cid
from holdfast.storage.formats.unixfs import file_leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from holdfast.storage.content import ContentStore, Stat

__all__ = ["ContentMissing", "ContentTree", "FileMissing", "IsFolder", "Node", "Source"]

T = TypeVar("T")

_LISTED_ENTRIES = 200_000
_KNOWN_STATS = 50_000


class FileMissing(NotFound, FileNotFoundError):  # noqa: N818 -- named as in holdfast.errors
    """There is nothing at a path; also Python's own error for that, which everybody who uses fsspec expects."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.errno = errno.ENOENT


class ContentMissing(FileMissing):
    """Nobody has a block that is needed: there may be something at the path, but not here and now."""


class IsFolder(InvalidInput, IsADirectoryError):  # noqa: N818 -- named as in holdfast.errors
    """A folder is at a path where a file is needed."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.errno = errno.EISDIR


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Something in a tree: content by its CID, a file made of ``data``, or a folder made of ``children``."""

    cid: Cid | None = None
    size: int | None = None
    """Of content that is known to be a file, from what links it."""
    data: bytes | None = None
    children: Callable[[], Mapping[str, Node]] | None = None


class Source(Protocol):
    """Where a tree is read from, and where its paths begin."""

    def opened(self) -> ContentStore:
        """The store to read from."""
        ...

    def reopen(self, store: ContentStore) -> bool:
        """Forget a store that turned out to be closed; whether :meth:`opened` will give another one."""
        ...

    def start(self, store: ContentStore, path: str) -> tuple[Node, Sequence[str]]:
        """The node that a path begins at, and the names to follow from there."""
        ...


class Remembered(Generic[T]):
    """The values used latest, as long as their weights add up to no more than a limit; the very latest stays anyhow."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[Cid, tuple[T, int]] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()

    def get(self, cid: Cid) -> T | None:
        """The value of a CID, if it is still remembered."""
        with self._lock:
            if cid not in self._values:
                return None
            self._values.move_to_end(cid)
            return self._values[cid][0]

    def put(self, cid: Cid, value: T, weight: int = 1) -> T:
        """Remember a value; gives it back."""
        with self._lock:
            if cid not in self._values and self._limit:
                self._values[cid] = value, weight
                self._total += weight
                while self._total > self._limit and len(self._values) > 1:
                    self._total -= self._values.popitem(last=False)[1][1]
        return value

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._values.clear()
            self._total = 0


class ContentTree:
    """The tree of one source. Safe to use from several threads.

    Args:
        scheme: What its paths begin with, for messages: ``ipfs``.
        source: Where it begins.
        remember: Keep what was learned of CIDs, within bounds: it is good for ever.
    """

    def __init__(self, scheme: str, source: Source, *, remember: bool = True) -> None:
        self._scheme = scheme
        self._source = source
        self._folders: Remembered[Mapping[str, Node]] = Remembered(_LISTED_ENTRIES if remember else 0)
        self._stats: Remembered[Stat] = Remembered(_KNOWN_STATS if remember else 0)

    def forget(self) -> None:
        """Forget what was learned, which saves memory only."""
        self._folders.clear()
        self._stats.clear()

    def find(self, store: ContentStore, path: str) -> Node:
        """What is at a path.

        Raises:
            FileMissing: Nothing.
            NotFound: A block on the way is missing and nobody has it.
            InvalidInput: The path begins with something that can't begin one.
        """
        node, names = self._source.start(store, path)
        for name in names:
            below = (self.children(store, node) or {}).get(name)
            if below is None:
                raise FileMissing(f"there is no {self._scheme}://{path}: nothing is named {name!r} there")
            node = below
        return node

    def children(self, store: ContentStore, node: Node) -> Mapping[str, Node] | None:
        """What is in a folder; None for everything else."""
        if node.children is not None:
            return node.children()
        if node.cid is None or node.size is not None:
            return None
        known = self._folders.get(node.cid)
        if known is not None:
            return known
        if self._stat(store, node.cid).kind != "directory":
            return None
        # A raw block has no more blocks below it, so the size that its folder states is the file's.
        inside = {
            entry.name: Node(cid=entry.cid, size=entry.total_size or None if entry.cid.codec == RAW else None)
            for entry in store.ls(node.cid)
        }
        return self._folders.put(node.cid, inside, len(inside))

    def file(self, store: ContentStore, path: str) -> tuple[Node, int]:
        """A file, and its true size.

        Raises:
            IsFolder: It is a folder.
            Unsupported: It is a link, or a record.
            Corrupt: Its size is not what links it states.
        """
        node = self.find(store, path)
        if node.data is not None:
            return node, len(node.data)
        place = f"{self._scheme}://{path}"
        stat = self._stat(store, node.cid) if node.children is None and node.cid is not None else None
        if stat is None or stat.kind == "directory":
            raise IsFolder(f"{place} is a folder, not a file")
        if stat.kind == "record":
            hint = f"holdfast://{node.cid} shows a dataset, a model or an index as a folder"
            raise Unsupported(f"{place} is a record, not a file: {hint}")
        if stat.kind != "file":
            raise Unsupported(f"{place} ({node.cid}) is a {stat.kind}, not a file")
        if node.size not in (None, stat.size):
            raise Corrupt(
                f"{node.cid} has {stat.size} bytes where what links it at {place} states {node.size}"
            )
        return node, stat.size

    def info(self, store: ContentStore, path: str, node: Node) -> dict[str, Any]:
        """``name``, ``size``, ``type`` and ``cid`` of a node, as fsspec wants them."""
        facts: dict[str, Any] = {"name": path, "size": 0, "type": "directory"}
        if node.data is not None:
            facts |= {"size": len(node.data), "type": "file"}
        elif node.children is None and node.size is not None:
            facts |= {"size": node.size, "type": "file"}
        elif node.children is None and node.cid is not None:
            stat = self._stat(store, node.cid)
            if stat.kind != "directory":  # what is inside is not a folder's own size, as fsspec counts
                facts |= {"size": stat.size, "type": _TYPES.get(stat.kind, "other")}
        if node.cid is not None:
            # Caches look for an ETag to tell whether what they keep of a path is still right.
            facts |= {"cid": str(node.cid), "ETag": str(node.cid)}
        return facts

    def bring_infos_near(self, store: ContentStore, node: Node, children: Mapping[str, Node]) -> None:
        """Fetch together what must be read to say what the children are."""
        unknown = [
            child.cid
            for child in children.values()
            if child.cid is not None
            and (child.size, child.data, child.children) == (None, None, None)
            and self._stats.get(child.cid) is None
        ]
        bring_near(store.blocks, unknown, node.cid)

    def bring_ranges_near(
        self, store: ContentStore, ranges: Sequence[tuple[str, int | None, int | None]]
    ) -> None:
        """Fetch together the blocks of ranges of files; those of a range that can't be read are left out."""
        needed: list[Cid] = []
        for path, start, end in ranges:
            with suppress(HoldfastError):
                node, size = self.file(store, path)
                first, behind, _ = slice(start, end).indices(size)
                if node.cid is not None and first < behind:
                    leaves = file_leaves(node.cid, store.blocks.get, _nodes_near(store), first, behind)
                    needed += [leaf.cid for leaf in leaves if leaf.data is None]
        bring_near(store.blocks, needed)

    def _stat(self, store: ContentStore, cid: Cid) -> Stat:
        return self._stats.get(cid) or self._stats.put(cid, store.stat(cid))


_TYPES = {"file": "file", "symlink": "link"}


def _nodes_near(store: ContentStore) -> Callable[[list[Cid]], None]:
    """Brings those blocks near that must be read to know which raw blocks a range has."""
    return lambda cids: bring_near(store.blocks, [cid for cid in cids if cid.codec != RAW])
