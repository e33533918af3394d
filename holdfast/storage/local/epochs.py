"""Epochs: how a collector knows that no add builds on what it is about to remove.

An add skips blocks that are here, so a block that it skipped must not go before its commit has renewed the block's time. Each
add is a member of an epoch: it holds a shared lock on the epoch's file. A collector announces a cut-off and begins the next epoch
in one change of the index, and waits for the members of the epoch before. Members of the new one know the cut-off and take
older blocks for absent. A long add moves on by itself at its next block, after it renewed what it skipped. Two files suffice,
because only two epochs ever have members.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from holdfast.errors import Conflict, Unavailable
from holdfast.storage.local.index_rows import EPOCH
from holdfast.storage.local.segments import lock_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from holdfast.storage.local.index import Index

__all__ = ["Epochs", "Membership"]

_POLL_S = 0.01
_CLAIM_ATTEMPTS = 20  # an add that looks whether a collector died holds its lock for a moment


class Membership:
    """That an add is part of an epoch, until it leaves."""

    __slots__ = ("_handle", "packed")

    def __init__(self, packed: bytes, handle: int) -> None:
        self.packed = packed
        """The epoch's number and cut-off, as the packed totals hold them."""
        self._handle = handle

    def leave(self) -> None:
        """End it; twice is fine."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class Epochs:
    """The epochs of one store.

    Args:
        index: Holds the epoch's number and the announced cut-off.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._folder = index.folder / "locks"
        self._collector = self._folder / "collector"

    def enter(self) -> Membership:
        """Become a member of the present epoch."""
        while True:
            packed = self._packed()
            number, cutoff_s = _numbers(packed)
            if cutoff_s and self._collector_died():
                continue
            handle = lock_file(self._path(number), shared=True, wait=True)
            if handle is None:  # it can't be: this lock waits
                continue
            packed = self._packed()
            if _numbers(packed)[0] == number:  # else a collector went on before it could see this lock
                return Membership(packed, handle)
            os.close(handle)

    @contextmanager
    def collecting(self, cutoff_s: int, *, timeout_s: float | None) -> Iterator[int]:
        """Announce a cut-off, and wait until no add builds on older blocks any more.

        Raises:
            Conflict: Somebody else collects.
            Unavailable: Adds that began before did not move on in time.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        handle = self._claim()
        try:
            number, _ = _numbers(self._packed())
            # Whoever is left from an epoch that a collector gave up on would be taken for a member of the next one.
            self._drain(number + 1, deadline)
            with self._index.changing() as change:
                change.totals.epoch = number + 1
                change.totals.cutoff_s = cutoff_s
            try:
                self._drain(number, deadline)
                yield cutoff_s
            finally:
                self._withdraw()
        finally:
            os.close(handle)

    def wait_for_collector(self, timeout_s: float) -> None:
        """Wait until nobody collects, or the time is up."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            handle = lock_file(self._collector)
            if handle is not None:
                os.close(handle)
                return
            time.sleep(_POLL_S)

    def _claim(self) -> int:
        for _ in range(_CLAIM_ATTEMPTS):
            handle = lock_file(self._collector)
            if handle is not None:
                return handle
            time.sleep(_POLL_S)
        raise Conflict(f"another garbage collection of {self._index.folder} is at work; wait for its end")

    def _collector_died(self) -> bool:
        """Whether the announced cut-off is a dead collector's; then it is void, and withdrawn."""
        handle = lock_file(self._collector)
        if handle is None:
            return False
        try:
            self._withdraw()
        finally:
            os.close(handle)
        return True

    def _withdraw(self) -> None:
        with self._index.changing() as change:
            change.totals.cutoff_s = 0

    def _drain(self, number: int, deadline: float | None) -> None:
        while True:
            handle = lock_file(self._path(number))
            if handle is not None:
                os.close(handle)
                return
            if deadline is not None and time.monotonic() >= deadline:
                raise Unavailable(
                    f"adds to {self._index.folder} that began before are still at work; collect again later"
                )
            time.sleep(_POLL_S)

    def _packed(self) -> bytes:
        with self._index.reading() as txn:
            return self._index.packed_totals(txn)[EPOCH]

    def _path(self, number: int) -> Path:
        return self._folder / f"epoch-{number % 2}"


def _numbers(packed: bytes) -> tuple[int, int]:
    return int.from_bytes(packed[:8], "little"), int.from_bytes(packed[8:], "little")
