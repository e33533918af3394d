"""What the kernel does better than a loop of reads and writes, where it can; and hints that Python has no call for."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["COPY_FROM_BYTES", "WRITE_BACK_BYTES", "copy_range", "preallocate", "start_write_back"]

COPY_FROM_BYTES = 64 << 10
"""A smaller piece is written as quickly as its file is opened."""

WRITE_BACK_BYTES = 16 << 20
"""So much is worth a hint."""
_SYNC_FILE_RANGE_WRITE = 2
_FALLOC_FL_KEEP_SIZE = 1


def start_write_back(handle: int, offset: int, length: int) -> None:
    """Start writing a range to the disk without waiting; it makes nothing durable."""
    import ctypes  # takes a few milliseconds, which only large writes are worth

    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is not None:
        call(handle, ctypes.c_int64(offset), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE)


def preallocate(handle: int, offset: int, length: int) -> bool:
    """Have the disk set room aside behind the file's end; whether it did. Cutting the file gives the room back."""
    import ctypes

    call = getattr(ctypes.CDLL(None), "fallocate", None)
    where = (ctypes.c_int64(offset), ctypes.c_int64(length))
    return call is not None and call(handle, _FALLOC_FL_KEEP_SIZE, *where) == 0


def copy_range(path: Path, offset: int, length: int, handle: int) -> bool:
    """Append a piece of one file to another, within the kernel; whether it could. If it could not, nothing was appended.

    Raises:
        OSError: The disk is full or failing.
    """
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    at = os.lseek(handle, 0, os.SEEK_CUR)
    try:
        end = offset + length
        while offset < end:
            done = os.copy_file_range(source, handle, end - offset, offset)
            if not done:
                break
            offset += done
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            raise
    finally:
        os.close(source)
    if offset < end:
        os.ftruncate(handle, at)
        os.lseek(handle, at, os.SEEK_SET)
        return False
    return True
