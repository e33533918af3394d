"""A stored file as Python's binary files are: seekable, buffered, and fetching only the blocks that are read."""

from __future__ import annotations

import atexit
import io
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from holdfast.errors import Corrupt, InvalidInput, Unavailable
from holdfast.storage.block_store import bring_near
from holdfast.storage.formats.unixfs import file_leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore
    from holdfast.storage.formats.unixfs import Leaf

__all__ = ["ContentFile", "FileOwner"]

_BUFFER_BYTES = 64 << 10
_SMALL_READ_BYTES = 512 << 10
"""Who reads larger pieces knows what they need, such as the columns of a Parquet file: nothing is read ahead then."""
_MAX_BLOCKS_AHEAD = 8
_ARROW_LETS_GO_S = 0.1
_program_ends = threading.Event()


class FileOwner(Protocol):
    """The file system of an open file."""

    def reading(self, work: Callable[[ContentStore], Any]) -> Any:
        """What ``work`` gives, done with the open store; its errors are those of a file system."""
        ...

    def info(self, path: str) -> dict[str, Any]:
        """What is at a path."""
        ...


class ContentFile(io.BufferedReader):
    """An open file. It can be pickled: whoever unpickles it has the same content open at the same place.

    A read fetches the blocks that it touches, at once. Small reads, one behind the other, fetch up to eight blocks ahead
    once they have gone through two whole ones.

    Args:
        fs: Whose file it is.
        path: Its path there.
        cid: The file's root; of an inline file, only shown.
        size: In bytes.
        data: All bytes of an inline file, which has no blocks.
    """

    def __init__(
        self, fs: FileOwner, path: str, cid: Cid | None, size: int, *, data: bytes | None = None
    ) -> None:
        super().__init__(_BlockReader(fs, path, cid, size, data), _BUFFER_BYTES)
        self.fs = fs
        self.path = path
        self.cid = cid
        self.size = size
        self._data = data

    def info(self) -> dict[str, Any]:
        """What the file system says of the path."""
        return self.fs.info(self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, ((self.fs, self.path, self.cid, self.size), self._data, self.tell())


def _reopened(
    place: tuple[FileOwner, str, Cid | None, int], data: bytes | None, position: int
) -> ContentFile:
    file = ContentFile(*place, data=data)
    file.seek(position)
    return file


class _BlockReader(io.RawIOBase):
    """Reads up to the end of the block that the position is in: the rest of a block costs nothing more.

    So no block is fetched for the buffer's sake.
    """

    mode = "rb"

    def __init__(self, fs: FileOwner, path: str, cid: Cid | None, size: int, data: bytes | None) -> None:
        super().__init__()
        self.name = path
        self._fs = fs
        self._cid = cid
        self._size = size
        self._position = 0
        self._piece = memoryview(data or b"")
        self._piece_at = 0
        self._leaves: Iterator[Leaf] = iter(())
        self._leaves_of: ContentStore | None = None
        self._pieces_read = 0
        """How many lie behind this one that were read in small pieces, without a jump."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check_open()
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}.get(whence)
        if start is None:
            raise InvalidInput(f"whence must be 0, 1 or 2, not {whence}")
        if start + offset < 0:
            raise InvalidInput(f"{self.name}: byte {start + offset} lies before the file")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        self._check_open()
        target = memoryview(buffer).cast("B")
        if not target or self._position >= self._size:
            return 0
        piece = self._rest_of_piece(len(target))
        count = min(len(piece), len(target))
        target[:count] = piece[:count]
        self._position += count
        return count

    def readall(self) -> bytes:
        self._check_open()
        pieces = []
        while self._position < self._size:
            pieces.append(self._rest_of_piece(self._size - self._position))
            self._position += len(pieces[-1])
        return b"".join(pieces)

    def close(self) -> None:
        self._piece = memoryview(b"")
        self._leaves = iter(())
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise InvalidInput(f"{self.name} is closed")
        if _program_ends.is_set() and threading.current_thread() is not threading.main_thread():
            raise Unavailable(f"{self.name} is not read further: the program ends")

    def _rest_of_piece(self, wanted: int) -> memoryview:
        """What there is from the position to the end of its block; ``wanted`` bytes will be read from here."""
        if wanted > _SMALL_READ_BYTES:
            self._pieces_read = 0  # also where this piece covers it
        inside = self._position - self._piece_at
        if not 0 <= inside < len(self._piece):
            self._fs.reading(lambda store: self._advance(store, wanted))
            inside = self._position - self._piece_at
        return self._piece[inside:]

    def _advance(self, store: ContentStore, wanted: int) -> None:
        """Make the block at the position the current piece."""
        goes_on = self._piece_at + len(self._piece) == self._position and store is self._leaves_of
        leaf = next(self._leaves, None) if goes_on else None
        if leaf is None:
            self._leaves = self._leaves_from(store, self._window(wanted, goes_on=goes_on))
            self._leaves_of = store
            leaf = next(self._leaves, None)
        if leaf is None:
            raise Corrupt(f"{self._cid} ends before byte {self._position} of {self._size}")
        try:
            data = memoryview(leaf.data if leaf.data is not None else store.blocks.get(leaf.cid)).cast("B")
        except BaseException:
            self._leaves = iter(())
            raise
        stated = self._size if leaf.size is None else leaf.size
        if len(data) != stated or not leaf.offset <= self._position < leaf.offset + stated:
            raise Corrupt(f"{leaf.cid} in the file {self._cid} has {len(data)} bytes, not {stated} as stated")
        self._pieces_read = self._pieces_read + 1 if goes_on and wanted <= _SMALL_READ_BYTES else 0
        self._piece, self._piece_at = data, leaf.offset

    def _window(self, wanted: int, *, goes_on: bool) -> int:
        """Behind which byte the next blocks need not be near."""
        # A fill of the buffer says nothing of how much is wanted: one block has at least one byte of it.
        exact = wanted if wanted > _BUFFER_BYTES else 1
        ahead = 0
        if goes_on and self._pieces_read:
            ahead = min(self._pieces_read + 1, _MAX_BLOCKS_AHEAD) * len(self._piece)
        return self._position + max(exact, ahead)

    def _leaves_from(self, store: ContentStore, end: int) -> Iterator[Leaf]:
        if self._cid is None:
            return iter(())
        root = self._cid
        return file_leaves(
            root, store.blocks.get, lambda cids: bring_near(store.blocks, cids, root), self._position, end
        )


@atexit.register
def _wait_for_arrow() -> None:
    """Let pyarrow's threads, which read our files, drop what they hold before the interpreter goes.

    A table is given to whoever asked for it before the last of them has let go of its bytes, its file and its file system,
    for each of which it needs the interpreter; and a scan that was left goes on reading. Where the program ends just then
    they find no interpreter, and the whole process aborts or hangs (apache/arrow issues 39162 and 50482). They can't be
    joined; while this sleeps they are done in microseconds, for no thread of theirs reads on.
    """
    _program_ends.set()
    if "pyarrow.parquet" in sys.modules or "pyarrow.dataset" in sys.modules:
        time.sleep(_ARROW_LETS_GO_S)
