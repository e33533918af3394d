"""Which of the user's files are stored already, as far as their status tells."""

from __future__ import annotations

import hashlib
import os
import struct
import time
from typing import TYPE_CHECKING

from holdfast.storage.cid import Cid
from holdfast.storage.formats.dag import reachable
from holdfast.storage.formats.unixfs import Node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from holdfast.storage.formats.unixfs import Profile
    from holdfast.storage.local.local_store import LocalStore

__all__ = ["SourceCache"]

_TABLE = "sources"
_STATUS = struct.Struct("<QQQqq")  # device, inode, size, mtime and ctime in ns
_SIZES = struct.Struct("<QQ")
_MIN_BYTES = 64 << 10
"""Smaller files are read again as quickly as they are looked up."""
_TICK_NS = 2_000_000_000
"""A file that changed so shortly before it was read may have changed again without its times telling."""
_MAX_WAITING = 100_000


class SourceCache:
    """The root of each file that was added, for as long as nobody changed the file.

    A file counts as unchanged if device, inode, size, and both times are what they were; the time of the last status
    change can't be set back by ordinary means. The collector empties the cache before it removes anything.

    Args:
        local: Where the files' blocks are.
        profile: Of the files; the same file has another root in another profile.
    """

    def __init__(self, local: LocalStore, profile: Profile | None = None) -> None:
        self._local = local
        self._profile = str(profile).encode()
        self._waiting: dict[bytes, bytes] = {}

    def of(self, profile: Profile) -> SourceCache:
        """The cache for one add with this profile."""
        return SourceCache(self._local, profile)

    def find(self, path: str, status: os.stat_result, *, by_reference: bool) -> Node | None:
        """The root of an unchanged file, or None."""
        if status.st_size < _MIN_BYTES:
            return None
        with self._local.transaction() as txn:
            value = txn.get(_TABLE, self._key(path, by_reference=by_reference))
        if value is None or value[: _STATUS.size] != _status(status):
            return None
        file_size, total_size = _SIZES.unpack_from(value, _STATUS.size)
        cid = Cid(value[_STATUS.size + _SIZES.size :])
        return Node(cid, file_size, total_size) if self._local.has(cid) else None

    def blocks_of(self, node: Node) -> Iterator[Cid]:
        """Every block of a file that :meth:`find` found."""
        return reachable(self._local.get, node.cid)

    def note(self, path: str, status: os.stat_result, node: Node, *, by_reference: bool) -> None:
        """Remember the root of a file, from :meth:`save` on; ``status`` is from before it was read."""
        if status.st_size < _MIN_BYTES or len(self._waiting) >= _MAX_WAITING:
            return
        if max(status.st_ctime_ns, status.st_mtime_ns) > time.time_ns() - _TICK_NS:
            return
        self._waiting[self._key(path, by_reference=by_reference)] = (
            _status(status) + _SIZES.pack(node.file_size, node.total_size) + node.cid.raw
        )

    def save(self) -> None:
        """Keep what was noted; call it when the blocks are durable."""
        if self._waiting:
            with self._local.transaction(write=True) as txn:
                for key, value in self._waiting.items():
                    txn.put(_TABLE, key, value)
            self._waiting = {}

    def clear(self) -> None:
        """Forget everything."""
        with self._local.transaction(write=True) as txn:
            for key, _ in list(txn.items(_TABLE)):
                txn.delete(_TABLE, key)

    def _key(self, path: str, *, by_reference: bool) -> bytes:
        text = os.fsencode(os.path.abspath(path))  # noqa: PTH100 -- a Path would cost more than the hash
        return hashlib.sha256(text + b"\0" + self._profile + (b"r" if by_reference else b"c")).digest()[:16]


def _status(status: os.stat_result) -> bytes:
    return _STATUS.pack(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
