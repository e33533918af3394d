"""From a path to blocks: what ``add`` does with files and folders before anything is stored."""

from __future__ import annotations

import io
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from holdfast.errors import Conflict, Denied, InvalidInput, NotFound
from holdfast.storage.cid import RAW
from holdfast.storage.formats.format_chunkers import FormatChunker
from holdfast.storage.formats.unixfs import (
    Node,
    directory_blocks,
    file_blocks,
    file_name,
    file_places,
    symlink_blocks,
)
from holdfast.storage.local.references import FileRange

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from holdfast.storage.block_store import Payload
    from holdfast.storage.cid import Buffer, Cid
    from holdfast.storage.formats.unixfs import Profile
    from holdfast.storage.local.sources import SourceCache

    Blocks = Generator[tuple[Cid, Payload], None, Node]
    Cut = Generator[tuple[Cid, Buffer], None, Node]
    Placed = Generator[tuple[Cid, Buffer | int], None, Node]
    OnBytes = Callable[[int], object]

__all__ = ["MAX_TREE_DEPTH", "cid_of", "path_blocks", "root_of", "tree_blocks"]

MAX_TREE_DEPTH = 128


def cid_of(path: str | os.PathLike[str], profile: Profile, *, progress: OnBytes | None = None) -> Cid:
    """The CID that a file or folder would get; nothing is stored.

    Raises:
        NotFound: There is no such path.
        InvalidInput: See :meth:`ContentStore.add`.
    """
    return root_of(path_blocks(Path(path), profile, progress=progress))


def root_of(blocks: Blocks) -> Cid:
    """The root of what a generator of blocks makes; the blocks are dropped."""
    while True:
        try:
            next(blocks)
        except StopIteration as end:
            root: Node = end.value
            return root.cid


def path_blocks(
    path: Path,
    profile: Profile,
    *,
    progress: OnBytes | None = None,
    sources: SourceCache | None = None,
    by_reference: bool = False,
) -> Blocks:
    """Yield the blocks of a file, or of a folder and all that is in it; the return value is the root.

    Args:
        path: Followed if it is a symbolic link; those inside a folder become links.
        profile: Decides the CIDs.
        progress: Told how many more bytes were read, now and then.
        sources: Files that it knows to be unchanged and stored are passed over; others are noted in it.
        by_reference: Yield ranges of the files in place of their bytes.

    Raises:
        NotFound: There is no such path.
        InvalidInput: It is neither a file nor a directory, has a name that is not valid Unicode, or is nested too
            deep to be written out again.
        Denied: A file can't be read.
        Conflict: A file changed while it was read.
    """
    if by_reference and not profile.raw_leaves:
        raise InvalidInput(
            f"the profile {profile.name} wraps every piece of a file, so files can't be added by reference with it; "
            "choose unixfs-v1-2025"
        )
    return (yield from _Walk(profile, progress, sources, by_reference=by_reference).blocks(path))


class _Walk:
    def __init__(
        self,
        profile: Profile,
        progress: OnBytes | None,
        sources: SourceCache | None,
        *,
        by_reference: bool,
    ) -> None:
        self._profile = profile
        self._progress = progress
        self._sources = sources
        self._by_reference = by_reference
        chunker = profile.chunker
        # A folder has files of many formats; those that a chunker for one can't read are cut as its pieces are.
        self._plain = replace(profile, chunker=chunker.inner) if isinstance(chunker, FormatChunker) else None

    def blocks(self, path: Path) -> Blocks:
        """The path that the caller named."""
        try:
            mode = path.stat().st_mode
        except FileNotFoundError as error:
            raise NotFound(f"there is no file or directory {path}") from error
        except PermissionError as error:
            raise Denied(f"no permission to read {path}") from error
        if stat.S_ISDIR(mode):
            return (yield from self._folder(str(path), 0))
        if not stat.S_ISREG(mode):
            raise InvalidInput(f"{path} is neither a file nor a directory")
        return (yield from self._file(str(path), self._profile))

    def _folder(self, path: str, depth: int) -> Blocks:
        if depth > MAX_TREE_DEPTH:
            raise InvalidInput(f"{path[:80]}... is nested deeper than {MAX_TREE_DEPTH}")
        try:
            with os.scandir(path) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except PermissionError as error:
            raise Denied(f"no permission to read {path}") from error
        children: list[tuple[str, Node]] = []
        for entry in found:
            file_name(entry.name)
            if entry.is_symlink():
                goal = os.readlink(entry.path)  # noqa: PTH115 -- Path.readlink would tidy the text, and so change the CID
                node = yield from symlink_blocks(goal, self._profile)
            elif entry.is_dir():
                node = yield from self._folder(entry.path, depth + 1)
            elif entry.is_file():
                node = yield from self._file(entry.path, self._profile, self._plain)
            else:
                raise InvalidInput(f"{entry.path} is neither a file nor a directory")
            children.append((entry.name, node))
        return (yield from directory_blocks(children, self._profile))

    def _file(self, path: str, profile: Profile, otherwise: Profile | None = None) -> Blocks:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as error:
            raise Denied(f"no permission to read {path}") from error
        except FileNotFoundError as error:
            raise Conflict(f"{path} was removed while its folder was read; add it again") from error
        with io.FileIO(handle, "rb") as file:
            before = os.fstat(handle)
            if self._sources is not None:
                known = self._sources.find(path, before, by_reference=self._by_reference)
                if known is not None:
                    for below in self._sources.blocks_of(known):
                        yield below, None  # it is here; a collector that works just now is to leave it here
                    if self._progress is not None:
                        self._progress(before.st_size)
                    return known
            node = yield from self._read(file, path, profile, otherwise)
            after = os.fstat(handle)
        if _identity(after) != _identity(before) or node.file_size != before.st_size:
            raise Conflict(f"{path} changed while it was read; add it again")
        if self._sources is not None:
            self._sources.note(path, before, node, by_reference=self._by_reference)
        return node

    def _read(self, file: io.FileIO, path: str, profile: Profile, otherwise: Profile | None) -> Blocks:
        try:
            if isinstance(profile.chunker, FormatChunker):
                blocks = _cut_by_format(file, path, profile, otherwise, self._progress)
                return (yield from (self._referenced(blocks, path) if self._by_reference else blocks))
            if self._by_reference:
                return (yield from self._referenced(file_places(file, profile, self._progress), path))
            return (yield from file_blocks(file, profile, self._progress))
        except Conflict as error:
            raise Conflict(f"{path}: {error}") from error

    def _referenced(self, blocks: Placed, path: str) -> Blocks:
        real = Path(path).resolve()
        offset = 0
        while True:
            try:
                cid, data = next(blocks)
            except StopIteration as end:
                node: Node = end.value
                return node
            if isinstance(data, int) or cid.codec == RAW:  # the leaves come first, and in order
                size = data if isinstance(data, int) else len(data)
                yield cid, FileRange(real, offset, size)
                offset += size
            else:
                yield cid, data


def _cut_by_format(
    file: BinaryIO, path: str, profile: Profile, otherwise: Profile | None, progress: OnBytes | None
) -> Cut:
    blocks = file_blocks(file, profile, progress)
    try:
        first = next(blocks)
    except InvalidInput as error:
        if otherwise is None:
            raise InvalidInput(f"{path} can't be cut by {profile.chunker.name}: {error}") from error
        file.seek(0)
        return (yield from file_blocks(file, otherwise, progress))
    yield first
    return (yield from blocks)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def tree_blocks(files: Mapping[str, Buffer | Node], profile: Profile) -> Blocks:
    """Yield the blocks of a directory made of relative paths and what is there; the return value is its root.

    What is stored already is given as its node, and its blocks are not yielded.

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
    return _nested_blocks(tree, profile)


def _nested_blocks(tree: Mapping[str, Any], profile: Profile) -> Blocks:
    children = []
    for name, value in sorted(tree.items()):
        if isinstance(value, dict):
            node = yield from _nested_blocks(value, profile)
        elif isinstance(value, Node):
            node = value
        else:
            node = yield from file_blocks(io.BytesIO(value), profile)
        children.append((name, node))
    return (yield from directory_blocks(children, profile))
