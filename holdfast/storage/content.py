"""Bytes, files, directories and records by CID, over any block store."""

from __future__ import annotations

import errno
import io
import os
import secrets
import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from holdfast.errors import Conflict, Corrupt, InvalidInput, NotFound, Unsupported, disk_errors
from holdfast.storage.adding import MAX_TREE_DEPTH, path_blocks, tree_blocks
from holdfast.storage.block_store import MAX_BLOCK_BYTES, SupportsExtent, SupportsView, bring_near
from holdfast.storage.cid import DAG_CBOR, RAW, Buffer, Cid
from holdfast.storage.disk_io import (
    COPY_FROM_BYTES,
    WRITE_BACK_BYTES,
    copy_range,
    preallocate,
    start_write_back,
)
from holdfast.storage.formats import dag_cbor
from holdfast.storage.formats.dag import RECORD_CODECS, decode_record, links_of
from holdfast.storage.formats.dag_pb import UnixFsType
from holdfast.storage.formats.unixfs import (
    DirectoryEntry,
    Leaf,
    Node,
    Profile,
    directory_entries,
    file_blocks,
    file_leaves,
    profile_named,
    unixfs_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from holdfast.storage.block_store import BlockStore, Payload, SupportsPins
    from holdfast.storage.local.sources import SourceCache

__all__ = ["ContentStore", "Stat"]

_READERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """What a CID is: ``kind`` is file, directory, symlink or record; sizes in bytes."""

    cid: Cid
    kind: str
    size: int
    """Of the file; of the block for a record; of everything below for a directory."""


class ContentStore:
    """What people store, over what blocks are.

    What is added is pinned, so that garbage collection and a quota leave it alone; ``pin=False`` is for what a name,
    or another pin, will keep.

    Args:
        blocks: Where the blocks are; closed together with this object.
        profile: Decides chunking and layout, and so the CIDs, of what is added.
        pins: What is kept, in the same place as the blocks; None if nothing is ever collected there.
        sources: Remembers which files are stored already, so that adding them again is nearly free.

    Example:
        >>> from holdfast.storage import open_store
        >>> with open_store(getfixture("tmp_path")) as store:
        ...     cid = store.add_bytes(b"hello")
        ...     bytes(store.open(cid))
        b'hello'
    """

    def __init__(
        self,
        blocks: BlockStore,
        *,
        profile: str | Profile = "unixfs-v1-2025",
        pins: SupportsPins | None = None,
        sources: SourceCache | None = None,
    ) -> None:
        self.blocks = blocks
        self.profile: Profile = profile if isinstance(profile, Profile) else profile_named(profile)
        self.pins = pins
        self._sources = sources

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the block store."""
        self.blocks.close()

    # -------------------------------------------------------------------------------------------- adding

    def add(
        self,
        path: str | os.PathLike[str],
        *,
        profile: Profile | None = None,
        by_reference: bool = False,
        pin: bool = True,
        progress: Callable[[int], object] | None = None,
    ) -> Cid:
        """Add a file or a directory with all that is in it; durable when it returns.

        An add that was interrupted goes on where it stopped when it is called again. A file that has not changed since
        it was added, as far as its status tells, is not read again.

        Args:
            path: The file or directory. Symbolic links inside a directory are stored as links.
            profile: Decides the CID; default: the store's.
            by_reference: Leave the bytes where they are, and note where that is. The files must then stay as they are.
            pin: Keep it.
            progress: Told how many more bytes were read, now and then.

        Raises:
            NotFound: There is no such path.
            InvalidInput: It is neither a file nor a directory, has a name that is not valid Unicode, or is
                nested too deep to be written out again; or the profile or the store can't refer to files.
            Denied: A file in it can't be read.
            Conflict: A file changed while it was read.
            Unavailable: The disk, or the store's quota, is full; nothing was stored.
        """
        chosen = profile or self.profile
        real = Path(path)
        sources = self._sources.of(chosen) if self._sources is not None else None
        blocks = path_blocks(real, chosen, progress=progress, sources=sources, by_reference=by_reference)
        root = self._put(
            blocks, pin=pin, resume=f"{real.absolute()}\0{chosen}".encode(errors="surrogateescape")
        )
        if sources is not None:
            sources.save()
        return root

    def add_bytes(self, data: Buffer, *, pin: bool = True) -> Cid:
        """Add ``data`` as a file."""
        return self.add_stream(io.BytesIO(data), pin=pin)

    def add_stream(
        self,
        stream: BinaryIO,
        *,
        profile: Profile | None = None,
        pin: bool = True,
        progress: Callable[[int], object] | None = None,
    ) -> Cid:
        """Add what a binary stream gives, as a file, in constant memory."""
        return self._put(file_blocks(stream, profile or self.profile, progress), pin=pin)

    def add_files(self, files: Mapping[str, Buffer | Cid], *, pin: bool = True) -> Cid:
        """Add a directory made of relative paths and their bytes, or the CIDs of files and directories: ``{"a/b.py": b"..."}``.

        Raises:
            InvalidInput: A path is absolute, empty, or leaves the directory; or a CID is a record's.
            NotFound: Nobody has what a CID stands for.
        """
        tree = {path: self._node(value) if isinstance(value, Cid) else value for path, value in files.items()}
        return self._put(tree_blocks(tree, self.profile), pin=pin)

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

    def _node(self, cid: Cid) -> Node:
        """What is stored, as a directory refers to it."""
        size = memoryview(self.blocks.get(cid)).nbytes
        if cid.codec == RAW:
            return Node(cid, size, size)
        node, message = unixfs_of(cid, self.blocks.get)
        return Node(cid, message.file_size or 0, size + sum(link.tsize or 0 for link in node.links))

    def _put(
        self,
        blocks: Generator[tuple[Cid, Payload], None, Node],
        *,
        pin: bool,
        resume: bytes | None = None,
    ) -> Cid:
        root: list[Node] = []

        def remember() -> Iterator[tuple[Cid, Payload]]:
            root.append((yield from blocks))

        with self.pins.adding() if pin and self.pins is not None else nullcontext():
            self.blocks.put_many(remember(), resume=resume)
            if pin and self.pins is not None:
                self.pins.pin(root[0].cid)
        return root[0].cid

    # ------------------------------------------------------------------------------------------- reading

    def get_record(self, cid: Cid) -> Any:
        """The value of a DAG-CBOR or DAG-JSON record.

        Raises:
            NotFound: Nobody has it.
            InvalidInput: The CID is not a record's.
        """
        if cid.codec not in RECORD_CODECS:
            raise InvalidInput(f"{cid} is not a record: its codec is neither dag-cbor nor dag-json")
        return decode_record(cid, self.blocks.get(cid))

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
        for leaf, data in self._loaded(file_leaves(cid, self.blocks.get, self._near(cid), start, end)):
            piece = data[max(0, start - leaf.offset) : None if end is None else max(0, end - leaf.offset)]
            if piece:
                yield piece

    def _loaded(self, leaves: Iterator[Leaf]) -> Iterator[tuple[Leaf, memoryview]]:
        """Each piece with its bytes, in order; of a longer file the next ones are read, and hashed, meanwhile."""
        for leaf in islice(leaves, 2):
            yield leaf, self._load(leaf)
        third = next(leaves, None)
        if third is None:
            return
        pending: deque[tuple[Leaf, Future[memoryview]]] = deque()
        pool = ThreadPoolExecutor(_READERS, thread_name_prefix="holdfast-read")
        try:
            for leaf in chain((third,), leaves):
                pending.append((leaf, pool.submit(self._load, leaf)))
                if len(pending) > 2 * _READERS:
                    before, data = pending.popleft()
                    yield before, data.result()
            while pending:
                before, data = pending.popleft()
                yield before, data.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _load(self, leaf: Leaf) -> memoryview:
        data = memoryview(leaf.data if leaf.data is not None else self.blocks.get(leaf.cid))
        if leaf.size is not None and data.nbytes != leaf.size:
            raise Corrupt(f"{leaf.cid} has {data.nbytes} bytes where its parent states {leaf.size}")
        return data

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
        return self._write_file(cid, target, progress)

    def _write_file(self, cid: Cid, target: Path, progress: Callable[[int], object] | None) -> int:
        written = pushed = 0
        with target.open("xb", buffering=0) as file:
            size = 0 if cid.codec == RAW else self.stat(cid).size  # one raw block is small, and is read below
            if size >= WRITE_BACK_BYTES:
                preallocate(file.fileno(), 0, size)  # the kernel then has less to do for each page
            for leaf, piece in self._loaded(file_leaves(cid, self.blocks.get, self._near(cid))):
                if not (leaf.data is None and len(piece) >= COPY_FROM_BYTES and self._copy(leaf.cid, file)):
                    rest = piece
                    while rest:
                        rest = rest[file.write(rest) :]
                written += len(piece)
                if written - pushed >= WRITE_BACK_BYTES:
                    start_write_back(file.fileno(), pushed, written - pushed)
                    pushed = written
                if progress is not None:
                    progress(len(piece))
        return written

    def _copy(self, cid: Cid, file: io.FileIO) -> bool:
        """Have the kernel append a block, which was hashed just now, from where it lies; whether it could."""
        extent = self.blocks.extent(cid) if isinstance(self.blocks, SupportsExtent) else None
        return extent is not None and copy_range(extent.path, extent.offset, extent.length, file.fileno())

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
        if cid.codec in RECORD_CODECS:
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

    # ------------------------------------------------------------------------------------------- keeping

    def pin(
        self,
        cid: Cid,
        *,
        recursive: bool = True,
        name: str = "",
        progress: Callable[[int], object] | None = None,
    ) -> None:
        """Fetch what of ``cid`` is not here, and keep it: neither garbage collection nor a quota removes it.

        Raises:
            NotFound: A block is missing and nobody has it.
            Unsupported: Nothing can be pinned in this store.
        """
        if self.pins is None:
            raise Unsupported("nothing can be pinned in this store: it keeps everything")
        if recursive:
            for _, data in self.walk(cid):
                if progress is not None:
                    progress(memoryview(data).nbytes)
        else:
            self.blocks.get(cid)
        self.pins.pin(cid, recursive=recursive, name=name)

    def unpin(self, cid: Cid) -> None:
        """Keep ``cid`` no longer on its own behalf.

        Raises:
            NotFound: It is not pinned.
        """
        if self.pins is None:
            raise NotFound(f"{cid} is not pinned")
        self.pins.unpin(cid)

    def hold(self, label: str, cid: Cid, *, recursive: bool = True) -> None:
        """Keep as much of ``cid`` as is here, for as long as a label, such as a name, stands for it."""
        if self.pins is not None:
            self.pins.hold(label, cid, recursive=recursive)

    def used(self, cid: Cid) -> None:
        """Note that content is read now, for readers that go past :meth:`stream` and its like.

        A full store lets go of what was used longest ago.
        """
        if self.pins is not None:
            self.pins.used(cid)

    def _near(self, root: Cid) -> Callable[[list[Cid]], None]:
        """Notes that ``root`` is used, and gives what brings blocks of it near before they are read one by one."""
        self.used(root)
        return lambda cids: bring_near(self.blocks, cids, root)


def _must_not_exist(target: Path) -> None:
    if os.path.lexists(target):
        raise Conflict(f"{target} exists: choose another name, or remove it first")
