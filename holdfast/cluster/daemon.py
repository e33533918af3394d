"""What master and worker have in common: one home each, clean ends, and a note of where they are."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import time
from typing import IO, TYPE_CHECKING, Any, Protocol

import psutil

from holdfast.cluster.processes import adopt_orphans
from holdfast.errors import Conflict, NotFound, Unavailable, disk_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["Daemon", "announce", "end_daemon", "home_lock", "read_announcement", "run_daemon"]


@contextlib.contextmanager
def home_lock(home: Path) -> Iterator[None]:
    """Hold a home for one daemon.

    Raises:
        Conflict: Another daemon uses it.
    """
    with disk_errors(home):
        home.mkdir(parents=True, exist_ok=True)
        lock: IO[str] = (home / "daemon.lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"another holdfast daemon uses {home}: give this one its own --home") from None
        try:
            yield
        finally:
            (home / "daemon.json").unlink(missing_ok=True)


def announce(home: Path, **facts: Any) -> None:
    """Write where the daemon is to ``<home>/daemon.json``: it is ready from now on."""
    partial = home / ".daemon.json.part"
    partial.write_text(json.dumps({"pid": os.getpid(), **facts}), encoding="utf-8")
    partial.rename(home / "daemon.json")


def read_announcement(home: Path) -> dict[str, Any]:
    """What the daemon of a home announced.

    Raises:
        NotFound: No daemon runs there.
    """
    try:
        facts: dict[str, Any] = json.loads((home / "daemon.json").read_text(encoding="utf-8"))
        with (home / "daemon.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return facts
    except (FileNotFoundError, ValueError):
        pass
    raise NotFound(f"no holdfast daemon runs on {home}")


def end_daemon(home: Path, *, timeout_s: float = 10.0) -> int:
    """Tell the daemon of a home to stop, and wait until it has; gives its pid.

    Raises:
        NotFound: No daemon runs there.
        Unavailable: It does not stop.
    """
    pid: int = read_announcement(home)["pid"]
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            raise Unavailable(f"the daemon {pid} on {home} did not stop within {timeout_s:.0f} s")
        time.sleep(0.05)
    return pid


class Daemon(Protocol):
    """What :func:`run_daemon` runs."""

    async def start(self) -> None:
        """Return once it is ready."""
        ...

    async def watch(self, stopping: asyncio.Event) -> None:
        """Work until ``stopping`` is set; raise if it can't go on."""
        ...

    async def aclose(self) -> None:
        """Release everything, also after a start that failed."""
        ...

    def facts(self) -> dict[str, Any]:
        """What to announce once it is ready; ``role`` and ``url`` at least."""
        ...


async def run_daemon(
    home: Path, make: Callable[[], Daemon], on_ready: Callable[[dict[str, Any]], object]
) -> None:
    """Be a daemon until SIGINT or SIGTERM, which also end a start that is under way.

    Args:
        home: Locked for as long as it runs.
        make: Makes the daemon, inside the event loop.
        on_ready: Called with its facts once it is ready.

    Raises:
        Conflict: Another daemon uses the home.
        Unavailable: It could not start, or could not go on.
    """
    adopt_orphans()
    with home_lock(home):
        stopping = stop_signal()
        daemon = make()
        try:
            starting = asyncio.create_task(daemon.start())
            waiting = asyncio.create_task(stopping.wait())
            await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if not starting.done():
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                return
            starting.result()
            announce(home, **daemon.facts())
            on_ready(daemon.facts())
            await daemon.watch(stopping)
        finally:
            await daemon.aclose()


def stop_signal() -> asyncio.Event:
    """An event that SIGINT and SIGTERM set from now on."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, event.set)
    return event
