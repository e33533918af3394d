"""Two hints to the kernel that Python has no call for; where the system lacks them, nothing happens."""

from __future__ import annotations

__all__ = ["WRITE_BACK_BYTES", "preallocate", "start_write_back"]

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
