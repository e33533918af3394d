"""Bytes, files, directories and records by CID, over any block store."""

from __future__ import annotations

import errno
import io
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from holdfast.errors import Conflict, Corrupt, Denied, InvalidInput, NotFound, Unsupported, disk_errors
from holdfast.storage import dag_cbor
from holdfast.storage.block_store import MAX_BLOCK_BYTES, SupportsPrefetch, SupportsView
from holdfast.storage.cid import DAG_CBOR, DAG_PB, RAW, Buffer, Cid
from holdfast.storage.dag_pb import UnixFsType, decode_node
from holdfast.storage.unixfs import (
    DirectoryEntry,
    Node,
    Profile,
    directory_blocks,
    directory_entries,
    file_blocks,
    file_leaves,
    file_name,
    profile_named,
    symlink_blocks,
    unixfs_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from holdfast.storage.block_store import BlockStore

__all__ = ["ContentStore", "Stat", "links_of"]

MAX_TREE_DEPTH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """What a CID is: ``kind`` is file, directory, symlink or record; sizes in bytes."""

    cid: Cid
    kind: str
    size: int
    """Of the file; of the block for a record; of everything below for a directory."""


def links_of(cid: Cid, data: Buffer) -> list[Cid]:
    """The CIDs that a block links to, in order.

    Raises:
        Corrupt: The block is not what its codec says.
        Unsupported: The codec is not one that holdfast reads.
    """
    if cid.codec == RAW:
        return []
    if cid.codec == DAG_PB:
        return [link.cid for link in decode_node(bytes(data)).links]
    if cid.codec == DAG_CBOR:
        found: list[Cid] = []
        pending = [dag_cbor.decode(data)]
        while pending:
            value = pending.pop()
            if isinstance(value, Cid):
                found.append(value)
            elif isinstance(value, dict):
                pending.extend(reversed(value.values()))
            elif isinstance(value, list):
                pending.extend(reversed(value))
        return found
    raise Unsupported(f"{cid} has the codec 0x{cid.codec:x}, which holdfast does not read")


class ContentStore:
    """What people store, over what blocks are.

    Args:
        blocks: Where the blocks are; closed together with this object.
        profile: Decides chunking and layout, and so the CIDs, of what is added.

    Example:
        >>> from holdfast.storage import open_store
        >>> with open_store(getfixture("tmp_path")) as store:
        ...     cid = store.add_bytes(b"hello")
        ...     bytes(store.open(cid))
        b'hello'
    """

    def __init__(self, blocks: BlockStore, *, profile: str = "unixfs-v1-2025") -> None:
        self.blocks = blocks
        self.profile: Profile = profile_named(profile)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the block store."""
        self.blocks.close()

    # -------------------------------------------------------------------------------------------- adding

    def add(self, path: str | os.PathLike[str], *, progress: Callable[[int], object] | None = None) -> Cid:
        """Add a file or a directory with all that is in it; durable when it returns.

        Args:
            path: The file or directory. Symbolic links inside a directory are stored as links.
            progress: Told how many more bytes were read, now and then.

        Raises:
            NotFound: There is no such path.
            InvalidInput: It is neither a file nor a directory, has a name that is not valid Unicode, or is
                nested too deep to be written out again.
            Denied: A file in it can't be read.
            Unavailable: The disk is full; nothing was stored.
        """
        source = Path(path)
        if not source.exists():
            raise NotFound(f"there is no file or directory {source}")
        return self._put(_path_blocks(source, self.profile, progress, 0)).cid

    def add_bytes(self, data: Buffer) -> Cid:
        """Add ``data`` as a file."""
        return self.add_stream(io.BytesIO(data))

    def add_stream(self, stream: BinaryIO, *, progress: Callable[[int], object] | None = None) -> Cid:
        """Add what a binary stream gives, as a file, in constant memory."""
        return self._put(file_blocks(stream, self.profile, progress)).cid

    def add_files(self, files: Mapping[str, Buffer]) -> Cid:
        """Add a directory made of relative paths and their bytes: ``{"a/b.py": b"..."}``.

        Raises:
            InvalidInput: A path is absolute, empty, or leaves the directory.
        """
        tree: dict[str, Any] = {}
        for path, data in files.items():
            parts = path.split("/")
            try:
                for part in parts:
                    file_name(part)
            except InvalidInput as error:
                raise InvalidInput(f"{path!r} is not a relative path inside a directory: {error}") from error
            if len(parts) > MAX_TREE_DEPTH:
                raise InvalidInput(f"{path[:80]!r}... is nested deeper than {MAX_TREE_DEPTH}")
            folder = tree
            for part in parts[:-1]:
                folder = folder.setdefault(part, {})
                if not isinstance(folder, dict):
                    raise InvalidInput(f"{path!r}: {part!r} is a file, not a folder")
            if isinstance(folder.get(parts[-1]), dict):
                raise InvalidInput(f"{path!r} is a folder and a file at once")
            folder[parts[-1]] = data
        return self._put(_tree_blocks(tree, self.profile)).cid

    def put_record(self, value: Any) -> Cid:
        """Store a DAG-CBOR record; its links are Cids.

        Raises:
            InvalidInput: The value can't be encoded, or is larger than a block.
        """
        data = dag_cbor.encode(value)
        if len(data) > MAX_BLOCK_BYTES:
            raise InvalidInput(f"a record of {len(data)} bytes is larger than a block ({MAX_BLOCK_BYTES})")
        cid = Cid.of(data, DAG_CBOR)
        self.blocks.put_many([(cid, data)])
        return cid

    def _put(self, blocks: Generator[tuple[Cid, Buffer], None, Node]) -> Node:
        root: list[Node] = []

        def remember() -> Iterator[tuple[Cid, Buffer]]:
            root.append((yield from blocks))

        self.blocks.put_many(remember())
        return root[0]

    # ------------------------------------------------------------------------------------------- reading

    def get_record(self, cid: Cid) -> Any:
        """The value of a DAG-CBOR record.

        Raises:
            NotFound: Nobody has it.
            InvalidInput: The CID is not a record's.
        """
        if cid.codec != DAG_CBOR:
            raise InvalidInput(f"{cid} is not a record: its codec is not dag-cbor")
        return dag_cbor.decode(self.blocks.get(cid))

    def stream(self, cid: Cid, start: int = 0, end: int | None = None) -> Iterator[memoryview]:
        """Yield a file's bytes in order, block by block; of other blocks only those on the way are read.

        Args:
            cid: The file.
            start: First byte.
            end: Byte behind the last one; None, or more than there is, for the file's end.

        Raises:
            NotFound: A block is missing and nobody has it.
            InvalidInput: The CID is a directory or a record, or a bound is negative.
        """
        if start < 0 or (end is not None and end < 0):
            raise InvalidInput(f"bytes {start} to {end} of {cid}: offsets can't be negative")
        for leaf in file_leaves(cid, self.blocks.get, self._near(cid), start, end):
            data = memoryview(leaf.data if leaf.data is not None else self.blocks.get(leaf.cid))
            if leaf.size is not None and data.nbytes != leaf.size:
                raise Corrupt(f"{leaf.cid} has {data.nbytes} bytes where its parent states {leaf.size}")
            piece = data[max(0, start - leaf.offset) : None if end is None else max(0, end - leaf.offset)]
            if piece:
                yield piece

    def open(self, cid: Cid) -> memoryview:
        """A whole file as read-only memory: a map of the store with no copy where it lies in one piece.

        Raises:
            NotFound: A block is missing and nobody has it.
            InvalidInput: The CID is a directory or a record.
        """
        leaves = list(file_leaves(cid, self.blocks.get, self._near(cid)))
        if isinstance(self.blocks, SupportsView) and all(leaf.data is None for leaf in leaves):
            joined = self.blocks.view([leaf.cid for leaf in leaves])
            stated = sum(leaf.size or 0 for leaf in leaves)
            if joined is not None and (leaves[0].size is None or joined.nbytes == stated):
                return joined
        return memoryview(b"".join(self.stream(cid)))

    def get(
        self,
        cid: Cid,
        destination: str | os.PathLike[str],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> int:
        """Write a file or a directory to ``destination``, which must not exist; returns the bytes written.

        It appears under its final name only when it is complete.

        Raises:
            Conflict: ``destination`` exists.
            NotFound: A block is missing and nobody has it.
            Corrupt: A name in a directory would leave it.
            InvalidInput: The file system of ``destination`` can't hold one of the names.
        """
        target = Path(destination)
        _must_not_exist(target)
        if not target.parent.is_dir():
            raise NotFound(f"there is no folder {target.parent} to write {target.name} to")
        partial = target.with_name(f".holdfast-{secrets.token_hex(8)}.part")
        try:
            with disk_errors(target.parent):
                written = self._write(cid, partial, progress, 0)
                _must_not_exist(target)  # it may have come into being meanwhile
                partial.rename(target)
        except BaseException as error:
            if partial.is_dir() and not partial.is_symlink():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
                raise InvalidInput(
                    f"the file system of {target} can't hold a name in {cid}: it is too long"
                ) from error
            raise
        return written

    def _write(self, cid: Cid, target: Path, progress: Callable[[int], object] | None, depth: int) -> int:
        if depth > MAX_TREE_DEPTH:
            raise Corrupt(f"the directory {cid} is nested deeper than {MAX_TREE_DEPTH}")
        kind = self._unixfs_type(cid)
        if kind == UnixFsType.SYMLINK:
            _, message = unixfs_of(cid, self.blocks.get)
            goal = os.fsdecode(message.data or b"")
            if not goal or "\0" in goal:
                raise Corrupt(f"the symbolic link {cid} leads to {goal!r}, which is no path")
            target.symlink_to(goal)
            return 0
        if kind in (UnixFsType.DIRECTORY, UnixFsType.HAMT_SHARD):
            target.mkdir()
            return sum(
                self._write(entry.cid, target / entry.name, progress, depth + 1) for entry in self.ls(cid)
            )
        written = 0
        with target.open("xb") as file:
            for piece in self.stream(cid):
                file.write(piece)
                written += len(piece)
                if progress is not None:
                    progress(len(piece))
        return written

    def ls(self, cid: Cid) -> list[DirectoryEntry]:
        """The entries of a directory, sorted by name.

        Raises:
            InvalidInput: It is not a directory.
        """
        return directory_entries(cid, self.blocks.get, self._near(cid))

    def resolve(self, path: str) -> Cid:
        """The CID at ``<cid>/a/b``, with or without ``ipfs://`` in front.

        Raises:
            NotFound: A name on the way is not there.
        """
        first, *names = path.removeprefix("ipfs://").removeprefix("/ipfs/").strip("/").split("/")
        cid = Cid.parse(first)
        for name in names:
            found = next((entry.cid for entry in self.ls(cid) if entry.name == name), None)
            if found is None:
                raise NotFound(f"the directory {cid} has no entry {name!r}")
            cid = found
        return cid

    def stat(self, cid: Cid) -> Stat:
        """What ``cid`` is and how large."""
        data = self.blocks.get(cid)
        if cid.codec == RAW:
            return Stat(cid=cid, kind="file", size=len(data))
        if cid.codec == DAG_CBOR:
            return Stat(cid=cid, kind="record", size=len(data))
        node, message = unixfs_of(cid, self.blocks.get)
        if message.type == UnixFsType.SYMLINK:
            return Stat(cid=cid, kind="symlink", size=len(message.data or b""))
        if message.type in (UnixFsType.DIRECTORY, UnixFsType.HAMT_SHARD):
            total = len(data) + sum(link.tsize or 0 for link in node.links)
            return Stat(cid=cid, kind="directory", size=total)
        return Stat(cid=cid, kind="file", size=message.file_size or 0)

    def walk(self, root: Cid) -> Iterator[tuple[Cid, Buffer]]:
        """Yield each block of the DAG below ``root`` once, the root first; missing ones are fetched.

        Raises:
            NotFound: A block is missing and nobody has it.
        """
        seen = {root}
        level = [root]
        near = self._near(root)
        while level:
            near(level)
            below: list[Cid] = []
            for cid in level:
                data = self.blocks.get(cid)
                yield cid, data
                for link in links_of(cid, data):
                    if link not in seen:
                        seen.add(link)
                        below.append(link)
            level = below

    def _unixfs_type(self, cid: Cid) -> UnixFsType:
        if cid.codec == RAW:
            return UnixFsType.RAW
        return unixfs_of(cid, self.blocks.get)[1].type

    def _near(self, root: Cid) -> Callable[[list[Cid]], None]:
        """What brings blocks of ``root`` near, before they are read one by one."""
        blocks = self.blocks
        if not isinstance(blocks, SupportsPrefetch):
            return lambda _: None
        return lambda cids: blocks.prefetch(cids, root=root)


def _must_not_exist(target: Path) -> None:
    if os.path.lexists(target):
        raise Conflict(f"{target} exists: choose another name, or remove it first")


def _path_blocks(
    path: Path, profile: Profile, progress: Callable[[int], object] | None, depth: int
) -> Generator[tuple[Cid, Buffer], None, Node]:
    if depth > MAX_TREE_DEPTH:
        raise InvalidInput(f"{str(path)[:80]}... is nested deeper than {MAX_TREE_DEPTH}")
    if depth and path.is_symlink():  # the path that the caller named is followed
        goal = os.readlink(path)  # noqa: PTH115 -- Path.readlink would tidy the text, and so change the CID
        return (yield from symlink_blocks(goal, profile))
    try:
        if path.is_dir():
            children = []
            for child in sorted(path.iterdir()):
                file_name(child.name)
                children.append((child.name, (yield from _path_blocks(child, profile, progress, depth + 1))))
            return (yield from directory_blocks(children, profile))
        if not path.is_file():
            raise InvalidInput(f"{path} is neither a file nor a directory")
        with path.open("rb") as file:
            return (yield from file_blocks(file, profile, progress))
    except PermissionError as error:
        if isinstance(error, Denied):
            raise
        raise Denied(f"no permission to read {path}") from error


def _tree_blocks(tree: Mapping[str, Any], profile: Profile) -> Generator[tuple[Cid, Buffer], None, Node]:
    children = []
    for name, value in sorted(tree.items()):
        if isinstance(value, dict):
            node = yield from _tree_blocks(value, profile)
        else:
            node = yield from file_blocks(io.BytesIO(value), profile)
        children.append((name, node))
    return (yield from directory_blocks(children, profile))
