"""What every test is held to: no process and no listening port is left behind."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from holdfast.cluster.processes import adopt_orphans

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_S = 5.0


def pytest_configure() -> None:
    """Make every orphaned descendant a child of this process, where the check below sees it."""
    adopt_orphans()


def _children() -> dict[int, str]:
    found = {}
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child.pid, os.WNOHANG)  # an adopted orphan that ended
            else:
                found[child.pid] = " ".join(child.cmdline())[:200]
    return found


def _listening() -> set[tuple[str, int]]:
    connections = psutil.Process().net_connections("tcp")
    return {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Fail a test that leaves a process or a listening port, and end what it left."""
    processes, ports = _children(), _listening()
    yield
    deadline = time.monotonic() + PATIENCE_S
    while True:
        new = {pid: command for pid, command in _children().items() if pid not in processes}
        open_ports = _listening() - ports
        if not new and not open_ports:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    for pid in new:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
    pytest.fail(f"the test left processes {new or 'none'} and listening ports {open_ports or 'none'}")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a holdfast home of its own, and none of the user's settings."""
    for name in [name for name in os.environ if name.startswith("HOLDFAST_") and name != "HOLDFAST_FIXTURES"]:
        monkeypatch.delenv(name)
    home = tmp_path / "default-home"
    monkeypatch.setenv("HOLDFAST_HOME", str(home))
    return home
