"""Child processes that can't be left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import threading
import time
from typing import IO, TYPE_CHECKING

import psutil

from holdfast.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = ["adopt_orphans", "free_port", "spawn", "stop", "tail", "wait_for_signal"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of every orphaned descendant, so that :func:`stop` of "all my children" misses none (Linux)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def spawn(
    command: Sequence[str],
    *,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    tied: bool = True,
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, which gets SIGTERM if this one dies, however it dies.

    Call it from a thread that lives as long as the process shall: the kernel watches the thread.

    Args:
        command: Program and arguments.
        log: File that takes standard error, and standard output unless ``stdout`` is given.
        environment: The whole environment; default: this process'.
        stdin: As of :class:`subprocess.Popen`.
        stdout: As of :class:`subprocess.Popen`.
        tied: Whether it shall not outlive this process.
    """
    parent = os.getpid()

    def die_with_parent() -> None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died in between
            os.kill(os.getpid(), signal.SIGTERM)

    with contextlib.ExitStack() as stack:
        target: IO[bytes] | int = subprocess.DEVNULL
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            target = stack.enter_context(log.open("ab"))
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=target if stdout is None else stdout,
            stderr=target,
            env=None if environment is None else dict(environment),
            start_new_session=True,  # Ctrl-C at the terminal is ours to hand on
            preexec_fn=die_with_parent if tied else None,  # noqa: PLW1509 -- two system calls, no locks
        )


def stop(processes: Iterable[subprocess.Popen[bytes]], *, grace_s: float = 3.0) -> None:
    """End processes and all their descendants: SIGTERM, and SIGKILL for what is left after ``grace_s``."""
    running = [process for process in processes if process.poll() is None]
    family: list[psutil.Process] = []
    for process in running:
        with contextlib.suppress(psutil.NoSuchProcess):
            family += psutil.Process(process.pid).children(recursive=True)
        process.terminate()
    deadline = time.monotonic() + grace_s
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.05, deadline - time.monotonic()))
    for process in running:
        # It may have had more children by now than when it was told to stop.
        with contextlib.suppress(psutil.NoSuchProcess):
            family += psutil.Process(process.pid).children(recursive=True)
        if process.poll() is None:
            process.kill()
    _, left = psutil.wait_procs(family, timeout=max(0.05, deadline - time.monotonic()))
    for member in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(left, timeout=2.0)
    for process in running:
        process.wait(5.0)


def free_port(host: str) -> int:
    """A port that nobody listens on at the moment.

    Raises:
        Unavailable: ``host`` is not an address of this machine.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
            port: int = probe.getsockname()[1]
            return port
    except OSError as error:
        raise Unavailable(f"{host} is not an address of this machine: {error.strerror}") from error


def tail(log: Path, lines: int = 5) -> str:
    """The last lines of a log file, in one line, for an error message."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return "no log"
    return " | ".join(line.strip() for line in text.splitlines() if line.strip()).strip()[-200 * lines :]


def wait_for_signal() -> None:
    """Return at the first SIGINT or SIGTERM. Main thread only."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    while not stopping.wait(1.0):  # in pieces: a wait without end would not be interrupted
        pass
