"""One Ray node, as child processes of a daemon: the only file that knows how Ray is started.

Ray's own token authentication is always on, with the cluster's token; the mode and the token file are set
explicitly for each process, because Ray's defaults depend on what it finds in the user's home.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from holdfast.cluster.processes import free_port, spawn, stop, tail
from holdfast.errors import Unavailable

if TYPE_CHECKING:
    import subprocess

__all__ = ["RayNode", "ray_environment"]

START_TIMEOUT_S = 60.0
OBJECT_STORE_BYTES = 100 << 20
"""Ray's shared memory. Data goes through the block stores, so Ray needs little."""

_SHORT_FOLDER = "/tmp"  # noqa: S108 -- what is made there has mode 0700
_PREFIX = "hf-ray-"


def _remove_stale_folders() -> None:
    """Remove what daemons left that were killed: their folders' names have their pids."""
    for folder in Path(_SHORT_FOLDER).glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        with contextlib.suppress(FileNotFoundError):
            if pid.isdigit() and not psutil.pid_exists(int(pid)) and folder.stat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)


def ray_environment(home: Path, node_ip: str) -> dict[str, str]:
    """The environment of every process that speaks to the cluster's Ray, on the node whose home this is."""
    environment = {
        **os.environ,
        "HOLDFAST_HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_TRAIN_V2_ENABLED": "1",
        # Each is one more process or thread a run, for clouds and dashboards that are not here.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        # Ray otherwise hides the CPUs' real thread count behind OMP_NUM_THREADS=1 warnings.
        "PYTHONWARNINGS": "ignore",
    }
    if node_ip.startswith("127."):
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # gloo would take the machine's outer address
    return environment


class RayNode:
    """A head or worker node of Ray on this machine.

    Args:
        home: The daemon's home; its token is the cluster's.
        node_ip: The node's address. Several nodes on one machine each need one: 127.0.0.2, 127.0.0.3, ...
        num_cpus: CPUs that jobs may use.
        head: Address of the head (``host:port``), or None to be the head.
    """

    def __init__(self, home: Path, *, node_ip: str, num_cpus: int, head: str | None = None) -> None:
        self._home = home
        self.node_ip = node_ip
        self._num_cpus = num_cpus
        self._head = head
        self._log = home / "logs" / "ray.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: Path | None = None
        self.address = head or f"{node_ip}:{free_port(node_ip)}"
        """Of the cluster's head."""

    def start(self) -> None:
        """Start the processes; return at once. Follow with :meth:`wait_ready`."""
        _remove_stale_folders()
        # A short folder: Ray puts Unix sockets into it, whose paths have at most 107 bytes.
        self._scratch = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_SHORT_FOLDER))
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--block",
            "--node-ip-address",
            self.node_ip,
            "--num-cpus",
            str(self._num_cpus),
            "--object-store-memory",
            str(OBJECT_STORE_BYTES),
            "--resources",
            json.dumps({"holdfast": 1}),
            "--temp-dir",
            str(self._scratch),
            "--min-worker-port",
            "0",
            "--max-worker-port",
            "0",
            "--dashboard-agent-listen-port",
            "0",
            "--include-log-monitor",
            "false",
            "--disable-usage-stats",
            "--log-color",
            "false",
        ]
        if self._head is None:
            port = self.address.rpartition(":")[2]
            command += ["--head", "--port", port, "--include-dashboard", "false"]
        else:
            command += ["--address", self._head]
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._log.write_text("")
        self._process = spawn(command, log=self._log, environment=ray_environment(self._home, self.node_ip))

    async def wait_for_head(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once the cluster's head accepts connections.

        Raises:
            Unavailable: It does not, for ``timeout_s``.
        """
        host, port = self.address.rsplit(":", 1)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError as error:
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"Ray's head at {self.address} does not answer: {error.strerror}"
                    ) from error
                await asyncio.sleep(0.1)
            else:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
                return

    def ready(self) -> bool:
        """Whether the node has joined its cluster.

        Raises:
            Unavailable: Ray ended instead; the message has its last words.
        """
        self.check()
        return "Ray runtime started" in self._log.read_text(encoding="utf-8", errors="replace")

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once the node has joined its cluster.

        Raises:
            Unavailable: It ended, or takes longer than ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while not self.ready():
            if time.monotonic() > deadline:
                raise Unavailable(f"Ray did not start within {timeout_s:.0f} s: {tail(self._log)}")
            time.sleep(0.1)

    def check(self) -> None:
        """Return while Ray runs.

        Raises:
            Unavailable: It ended.
        """
        if self._process is None or self._process.poll() is not None:
            raise Unavailable(f"Ray ended on node {self.node_ip}; {self._log} says: {tail(self._log, 1)}")

    def stop(self) -> None:
        """End all processes of the node, and remove what they left on the disk. Stopping twice is fine."""
        if self._process is not None:
            stop([self._process], grace_s=2.0)
            self._process = None
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None
