"""What a process opens once for everybody in it who names the same thing: a home's store, a cluster's client."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["Shared", "shared"]


class SupportsClose(Protocol):
    """Something that is open."""

    def close(self) -> None:
        """Close it; closing twice is fine."""
        ...


T = TypeVar("T", bound=SupportsClose)


class Shared(Generic[T]):
    """One open thing, opened at first use and again after it was closed, and closed when nobody holds this any more.

    A forked child opens its own: what it inherited belongs to its parent, and stays untouched.
    """

    def __init__(self, open_it: Callable[[], T]) -> None:
        self._open_it = open_it
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._opened: list[T] = []
        self._inherited: list[T] = []
        self._finalizer = weakref.finalize(self, _close_all, self._opened, self._process)

    def get(self) -> T:
        """The open thing."""
        if self._process != os.getpid():
            # Kept, for to be collected could mean to be closed.
            self._inherited, self._opened = self._opened, []
            self._process, self._lock = os.getpid(), threading.Lock()
            self._finalizer = weakref.finalize(self, _close_all, self._opened, self._process)
        with self._lock:
            if not self._opened:
                self._opened.append(self._open_it())
            return self._opened[0]

    def close(self, seen: T | None = None) -> None:
        """Close it, if it is open; the next :meth:`get` opens it again.

        Args:
            seen: Only if it is still this one.
        """
        if self._process != os.getpid():
            return
        with self._lock:
            if self._opened and seen in (None, self._opened[0]):
                self._opened.pop().close()


def _close_all(opened: list[T], process: int) -> None:
    if process == os.getpid():
        while opened:
            opened.pop().close()


_all: weakref.WeakValueDictionary[Hashable, Shared[SupportsClose]] = weakref.WeakValueDictionary()
_all_lock = threading.Lock()


def shared(key: Hashable, open_it: Callable[[], T]) -> Shared[T]:
    """The one :class:`Shared` of a key in this process, as long as somebody holds it.

    Args:
        key: Names what is opened, completely; begins with the kind of it.
        open_it: Opens it.
    """
    with _all_lock:
        found = _all.get(key)
        if found is None:
            found = _all[key] = Shared(open_it)
        return found  # type: ignore[return-value]  # the key's first part says what it is


def _forget_in_child() -> None:
    global _all_lock  # noqa: PLW0603 -- another thread may have held it while this process was forked
    _all_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_in_child)
