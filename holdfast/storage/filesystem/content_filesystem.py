"""A content tree as a read-only file system of fsspec, whatever its paths begin with."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.spec import AbstractFileSystem
from fsspec.utils import isfilelike, stringify_path

from holdfast.errors import Conflict, HoldfastError, InvalidInput, NotFound, Unsupported, disk_errors
from holdfast.storage.cid import Cid
from holdfast.storage.filesystem.content_file import ContentFile
from holdfast.storage.filesystem.content_tree import ContentMissing, ContentTree, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from holdfast.storage.content import ContentStore
    from holdfast.storage.filesystem.content_tree import Node

__all__ = ["ContentFileSystem"]

T = TypeVar("T")

_FSSPEC_OPTIONS = frozenset(
    {"asynchronous", "batch_size", "listings_expiry_time", "loop", "max_paths", "use_listings_cache"}
)
_COPIED_BYTES = 8 << 20
_BELOW = "_on_error_below"


class ContentFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no type information
    """What file systems over a content store have in common.

    Missing paths are :class:`~holdfast.storage.filesystem.content_tree.FileMissing`, folders that are opened
    :class:`~holdfast.storage.filesystem.content_tree.IsFolder`; a peer that does not answer is
    ``Unavailable``, and never looks like an empty folder.
    """

    root_marker = ""

    def __init__(self, source: Source, **options: Any) -> None:
        unknown = sorted(set(options) - _FSSPEC_OPTIONS)
        if unknown:
            raise InvalidInput(f"{self._scheme()}:// has no storage option {', '.join(map(repr, unknown))}")
        super().__init__(**options)
        self._source = source
        self._read_from: ContentStore | None = None
        self._tree = ContentTree(self._scheme(), source, remember=options.get("use_listings_cache", True))

    # ------------------------------------------------------------------------------------------- names

    @classmethod
    def _scheme(cls) -> str:
        return cls.protocol if isinstance(cls.protocol, str) else cls.protocol[0]

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        text: str = stringify_path(path)
        for mark in ("://", "::"):
            text = text.removeprefix(cls._scheme() + mark)
        return "/".join(name for name in text.split("/") if name)

    # ------------------------------------------------------------------------------------- what is there

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """``name``, ``size``, ``type`` (file, directory, link, other) and ``cid`` of a path.

        Raises:
            FileMissing: Nothing is there, or nobody has it.
        """
        name: str = self._strip_protocol(path)
        found: dict[str, Any] = self.reading(
            lambda store: self._tree.info(store, name, self._tree.find(store, name))
        )
        return found

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:  # noqa: FBT001, FBT002 -- fsspec's signature
        """The entries of a folder, or a file's own entry: paths, or what :meth:`info` gives for each.

        Raises:
            FileMissing: Nothing is there, or nobody has it.
        """
        name: str = self._strip_protocol(path)

        def work(store: ContentStore) -> list[Any]:
            node = self._tree.find(store, name)
            children = self._tree.children(store, node)
            if children is None:
                return [self._tree.info(store, name, node) if detail else name]
            inside = {f"{name}/{child}" if name else child: below for child, below in children.items()}
            if not detail:
                return list(inside)
            self._tree.bring_infos_near(store, node, children)
            return [self._tree.info(store, child, below) for child, below in inside.items()]

        entries: list[Any] = self.reading(work)
        return entries

    def walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,  # noqa: FBT001, FBT002 -- fsspec's signature
        on_error: Any = "omit",
        **kwargs: Any,
    ) -> Iterator[Any]:
        """As fsspec has it, but only a path that does not exist is omitted: a folder that can't be read is an error.

        Else whoever reads all files of a folder would not notice that a peer did not answer.
        """
        if _BELOW in kwargs:  # fsspec's own recursion forgets on_error, but hands these on
            on_error = kwargs[_BELOW]
        elif on_error == "omit":
            on_error, kwargs[_BELOW] = _only_missing_path, "raise"
        else:
            kwargs[_BELOW] = on_error
        yield from super().walk(path, maxdepth, topdown, on_error, **kwargs)

    def exists(self, path: str, **_: Any) -> bool:
        """Whether something is at a path.

        Raises:
            Unavailable: Somebody who might have it does not answer.
        """
        return self._type_of(path) is not None

    def lexists(self, path: str, **_: Any) -> bool:
        """Whether something is at a path, if only a link that leads nowhere."""
        return self.exists(path)

    def isdir(self, path: str) -> bool:
        """Whether a folder is at a path."""
        return self._type_of(path) == "directory"

    def isfile(self, path: str) -> bool:
        """Whether a file is at a path."""
        return self._type_of(path) == "file"

    def _type_of(self, path: str) -> str | None:
        try:
            return str(self.info(path)["type"])
        except (FileNotFoundError, InvalidInput):  # a text that is no CID leads nowhere, either
            return None

    def checksum(self, path: str) -> int:
        """A number that two paths share if, and only if, they have the same content, as far as 64 bits tell."""
        return int.from_bytes(self.ukey(path).encode()[-8:], "big")

    def ukey(self, path: str) -> str:
        """The CID at a path: what caches of fsspec know content by."""
        info = self.info(path)
        return str(info.get("cid") or Cid.of(self.cat_file(path)))

    def created(self, path: str) -> NoReturn:
        """Not known: a CID depends on no clock.

        Raises:
            Unsupported: Always.
        """
        raise Unsupported(f"{path} has no time: what a CID names was not made at one")

    modified = created

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget every listing, which saves memory only: content never changes."""
        super().invalidate_cache(path)
        if path is None:
            self._tree.forget()

    # ------------------------------------------------------------------------------------------ reading

    def _open(self, path: str, mode: str = "rb", **_: Any) -> ContentFile:
        if mode != "rb":
            self._read_only(path)

        def work(store: ContentStore) -> tuple[Node, int]:
            node, size = self._tree.file(store, path)
            if node.cid is not None:
                store.used(node.cid)
            return node, size

        node, size = self.reading(work)
        return ContentFile(self, path, node.cid, size, data=node.data)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """A file's bytes, from ``start`` to ``end``, which count from its end where they are negative.

        Raises:
            FileMissing: Nothing is there, or nobody has a block of it.
            IsFolder: It is no file.
        """
        name: str = self._strip_protocol(path)

        def work(store: ContentStore) -> bytes:
            node, size = self._tree.file(store, name)
            first, behind, _ = slice(start, end).indices(size)
            if node.cid is None or node.data is not None:
                return (node.data or b"")[first:behind]
            return b"".join(store.stream(node.cid, first, behind)) if first < behind else b""

        data: bytes = self.reading(work)
        return data

    def cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,  # noqa: ARG002 -- fsspec's; what is fetched are whole blocks anyhow
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        """Pieces of files, as :meth:`cat_file` gives them; the blocks of all pieces, and no others, are fetched together.

        Args:
            paths: One for each piece.
            starts: Where each begins; one number, or None, stands for all.
            ends: Where each ends.
            max_gap: Has no effect.
            on_error: ``return`` puts an error in the place of its piece.
        """
        starts, ends = (each if isinstance(each, list) else [each] * len(paths) for each in (starts, ends))
        if not len(paths) == len(starts) == len(ends):
            raise InvalidInput(f"{len(paths)} paths don't go with {len(starts)} starts and {len(ends)} ends")
        names: list[str] = self._strip_protocol(paths)
        ranges = list(zip(names, starts, ends, strict=True))
        with suppress(HoldfastError):  # the piece that lacks a block says so itself
            self.reading(lambda store: self._tree.bring_ranges_near(store, ranges))
        pieces: list[Any] = []
        for path, start, end in ranges:
            try:
                pieces.append(self.cat_file(path, start, end))
            except HoldfastError as error:
                if on_error != "return":
                    raise
                pieces.append(error)
        return pieces

    def get_file(
        self, rpath: str, lpath: Any = None, callback: Any = DEFAULT_CALLBACK, outfile: Any = None, **_: Any
    ) -> None:
        """Write a file to ``lpath``, where it appears when it is complete, or to an open file; a folder is made empty.

        Raises:
            FileMissing: Nothing is there, or nobody has a block of it.
            Unavailable: The disk is full.
        """
        name: str = self._strip_protocol(rpath)
        target = lpath if outfile is None and isfilelike(lpath) else outfile
        if target is None and self.isdir(name):
            os.makedirs(lpath, exist_ok=True)  # noqa: PTH103 -- fsspec's local paths are text
            return
        source = self._open(name)
        callback.set_size(source.size)
        if target is not None:
            _copy(source, target, callback)
            return
        path = Path(lpath)
        partial = path.with_name(f".holdfast-{secrets.token_hex(8)}.part")
        try:
            with disk_errors(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
                with partial.open("xb") as file:
                    _copy(source, file, callback)
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _read_only(self, *_: Any, **__: Any) -> NoReturn:
        """Not possible: what a CID names can't change.

        Raises:
            Unsupported: Always.
        """
        raise Unsupported(
            f"{self._scheme()}:// is read-only: a CID's content never changes; add with client.store.add(), or holdfast add"
        )

    cp_file = makedirs = mkdir = mv = pipe_file = put_file = rm = rm_file = _rm = rmdir = touch = _read_only

    def reading(self, work: Callable[[ContentStore], T]) -> T:
        """What ``work`` gives, done with the open store; its errors are those of a file system.

        Where the store was closed meanwhile it is opened again, if it is this object's to open.
        """
        store = self._opened()
        try:
            try:
                return work(store)
            except Conflict:
                if not self._source.reopen(store):
                    raise
            return work(self._opened())
        except FileNotFoundError:
            raise
        except NotFound as error:
            raise ContentMissing(str(error)) from error

    def _opened(self) -> ContentStore:
        store = self._source.opened()
        if self._read_from is not store:
            if self._read_from is not None:
                self._tree.forget()  # perhaps another home's: what is there need not be here
            self._read_from = store
        return store


def _copy(source: ContentFile, target: Any, callback: Any) -> None:
    with source:
        while piece := source.read(_COPIED_BYTES):
            target.write(piece)
            callback.relative_update(len(piece))


def _only_missing_path(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError) or isinstance(error, ContentMissing):
        raise error
