"""Blocks that lie in the user's own files.

The index holds a row for each file: its path, and its size, times and inode as they were when it was added. Such a file can
change at any moment, so its blocks are read, never mapped, and hashed each time.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.errors import Corrupt, Denied, InvalidInput, NotFound
from holdfast.storage.local.index_rows import NUMBER, PLACE, REFERENCE

if TYPE_CHECKING:
    from holdfast.storage.cid import Cid
    from holdfast.storage.local.index import Index
    from holdfast.storage.local.index_changes import Change

__all__ = ["FileRange", "FileTable", "read_reference"]

_ROW = struct.Struct(
    "<Q16sQqqQ"
)  # blocks, digest of what follows, size, mtime and ctime in ns, inode; then the path
_STATUS = struct.Struct("<QqqQ")


@dataclass(frozen=True, slots=True)
class FileRange:
    """A block's bytes, as they lie in a file of the user's own."""

    path: Path
    offset: int
    length: int


class FileTable:
    """The files that one call of ``put_many`` refers to, under numbers of their own until they are committed."""

    def __init__(self) -> None:
        self._numbers: dict[Path, int] = {}
        self._rows: list[bytes] = []
        self._unchanged: dict[int, bool] = {}

    def place(self, cid: Cid, data: FileRange) -> bytes:
        """The place of a block, for :meth:`settle`.

        Raises:
            NotFound: The file is gone.
            Denied: It can't be looked at.
            InvalidInput: It ends before the range does, or its path is not absolute.
        """
        number = self._numbers.get(data.path)
        if number is None:
            if not data.path.is_absolute():
                raise InvalidInput(f"{cid} is to lie in {data.path}: a reference needs an absolute path")
            number = len(self._rows)
            self._rows.append(_status(data.path, cid) + os.fsencode(data.path))
            self._numbers[data.path] = number
        size = _STATUS.unpack_from(self._rows[number])[0]
        if data.offset < 0 or data.length < 0 or data.offset + data.length > size:
            raise InvalidInput(
                f"{cid} is to lie at bytes {data.offset} to {data.offset + data.length} of {data.path}, which has {size}"
            )
        return PLACE.pack(REFERENCE | number, data.offset, data.length)

    def is_unchanged(self, index: Index, number: int) -> bool:
        """Whether a file in the index still has the status with which it was added."""
        known = self._unchanged.get(number)
        if known is None:
            with index.reading() as txn:
                row = txn.get(b"#" + NUMBER.pack(number), db=index.tables["files"])
            known = False
            if row is not None:
                try:
                    known = _status_of(Path(os.fsdecode(row[_ROW.size :])).stat()) == row[24 : _ROW.size]
                except OSError:
                    known = False
            self._unchanged[number] = known
        return known

    def settle(self, change: Change, places: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """The same places with the files' numbers in the index; files that are new to it are entered."""
        if not self._rows:
            return places
        numbers = [_number_of(change, row) for row in self._rows]
        settled = {}
        for key, place in places.items():
            segment, offset, length = PLACE.unpack(place)
            if segment & REFERENCE:
                place = PLACE.pack(REFERENCE | numbers[segment ^ REFERENCE], offset, length)  # noqa: PLW2901
            settled[key] = place
        return settled


def read_reference(index: Index, cid: Cid, number: int, offset: int, length: int) -> bytes | None:
    """A block from the user's file, hashed just now; None if the index has forgotten the file meanwhile.

    Raises:
        NotFound: The file is gone.
        Denied: It can't be read.
        Corrupt: It holds other bytes now.
    """
    with index.reading() as txn:
        row = txn.get(b"#" + NUMBER.pack(number), db=index.tables["files"])
    if row is None:
        return None
    path = os.fsdecode(row[_ROW.size :])
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(
            f"{cid} lies in the file {path}, which is gone: put it back, or add it again"
        ) from error
    except PermissionError as error:
        raise Denied(f"{cid} lies in the file {path}, and there is no permission to read it") from error
    try:
        data = os.pread(handle, length, offset)
        while len(data) < length and (more := os.pread(handle, length - len(data), offset + len(data))):
            data += more
    except OSError as error:
        raise Corrupt(f"{cid} lies in the file {path}, which can't be read: {error.strerror}") from error
    finally:
        os.close(handle)
    if len(data) < length:
        raise Corrupt(f"{cid} lies in the file {path}, which has become too short: add it again")
    cid.check(data, source=f"the file {path}, which was added by reference,")
    return data


def _number_of(change: Change, row: bytes) -> int:
    """The number of a file in the index; it is forgotten when the change ends without a block in it."""
    files = change.tables["files"]
    digest = hashlib.sha256(row).digest()[:16]
    raw = change.txn.get(b"@" + digest, db=files)
    if raw is not None:
        number = int(NUMBER.unpack(raw)[0])
    else:
        number = change.totals.next_file
        if number >= REFERENCE:
            raise InvalidInput("the index has given every number that it has to files; make a new home")
        change.totals.next_file += 1
        change.txn.put(b"@" + digest, NUMBER.pack(number), db=files)
        change.txn.put(b"#" + NUMBER.pack(number), struct.pack("<Q", 0) + digest + row, db=files)
    change.use_file(number, 0)
    return number


def _status(path: Path, cid: Cid) -> bytes:
    try:
        return _status_of(path.stat())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"{cid} is to lie in the file {path}, which is not there") from error
    except PermissionError as error:
        raise Denied(
            f"{cid} is to lie in the file {path}, and there is no permission to look at it"
        ) from error


def _status_of(status: os.stat_result) -> bytes:
    return _STATUS.pack(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
