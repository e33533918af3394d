"""An event loop in a thread of its own, for synchronous code that needs asynchronous parts."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, TypeVar

from holdfast.errors import Conflict

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["LoopThread"]

_T = TypeVar("_T")


class LoopThread:
    """Runs coroutines from other threads. The thread is a daemon: one that nobody closed keeps no program from ending.

    Not anyio's blocking portal, which does keep it. A process that forks from this one inherits the object but no thread;
    there, :meth:`close` does nothing.

    Args:
        name: Of the thread, and in error messages.
        at_end: Called in the loop when it closes, after everything that ran was cancelled.
    """

    def __init__(self, name: str, *, at_end: Callable[[], Coroutine[Any, Any, object]] | None = None) -> None:
        self.process = os.getpid()
        self._name = name
        self._at_end = at_end
        self._lock = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What ``work`` returns; it is cancelled when the caller is interrupted.

        Raises:
            Conflict: The thread is closed, or was closed meanwhile.
        """
        with self._lock:
            if self._closed:
                work.close()
                raise Conflict(f"{self._name} is closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError as error:
            raise Conflict(f"{self._name} was closed while it worked") from error
        finally:
            future.cancel()

    def close(self) -> None:
        """Cancel what runs, and end the thread. Closing twice is fine."""
        if self.process != os.getpid():
            return
        with self._lock:
            if not self._closed:
                self._closed = True
                asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        if threading.current_thread() is not self._thread:  # the garbage collector calls from anywhere
            self._thread.join()

    def _serve(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._at_end is not None:
            await self._at_end()
        await self._loop.shutdown_default_executor()
        self._loop.stop()
