"""A real cluster on loopback, started once: a master and two workers, each its own process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

import holdfast
from holdfast.cluster.daemon import read_announcement
from holdfast.cluster.master import MASTER_ID, Master
from holdfast.cluster.membership import HEARTBEAT_S
from holdfast.cluster.processes import free_port, spawn, stop, tail
from holdfast.config import load_settings, token_for
from holdfast.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from anyio.from_thread import BlockingPortal

START_TIMEOUT_S = 100.0

CODE = '''
"""A training function of a user: counts what it was given, and fails when told to."""
import time
import torch
from torch import nn


class Scale(nn.Module):
    input_column = "x"
    input_shape = (3,)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.weight


def train(context):
    if context.config.get("fail") == context.rank:
        raise ValueError("out of data")
    if context.config.get("sleep_s"):
        time.sleep(context.config["sleep_s"])
    model = context.prepare(Scale())
    rows = 0
    size, epoch = context.config.get("batch_size", 4), context.config.get("epoch")
    for batch in context.batches("train", batch_size=size, epoch=epoch):
        rows += len(batch["x"])
        model(batch["x"]).sum().backward()
    context.report(rows=context.sum(rows), mine=float(rows), world=context.world_size, model=getattr(model, "module", model))
    return getattr(model, "module", model)
'''


@contextlib.contextmanager
def listening_master(home: Path) -> Iterator[tuple[Master, BlockingPortal]]:
    """A master that answers HTTP, without Ray, in a thread with a loop of its own."""

    async def make() -> Master:
        return Master(load_settings(home, master__port=0))

    async def beat() -> None:
        while True:  # else it would be taken for dead in a test that is slow
            master.members.heartbeat(MASTER_ID, **await anyio.to_thread.run_sync(master.holdings))
            await anyio.sleep(HEARTBEAT_S)

    with anyio.from_thread.start_blocking_portal() as portal:
        master = portal.call(make)
        try:
            portal.call(master.listen)
            beating = portal.start_task_soon(beat)
            try:
                yield master, portal
            finally:
                beating.cancel()
        finally:
            portal.call(master.aclose)


@dataclass(frozen=True)
class Cluster:
    """Where the running cluster is."""

    url: str
    token: str
    base: Path
    daemons: dict[str, subprocess.Popen[bytes]]

    def connect(self, home: Path) -> holdfast.Client:
        return holdfast.connect(self.url, home=home, token=self.token)


def wait_for(what: Callable[[], Any], *, timeout_s: float = 20.0) -> Any:
    """What ``what`` gives, once it raises neither NotFound nor AssertionError."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return what()
        except (NotFound, AssertionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def start_daemon(base: Path, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "holdfast.cluster.cli", *arguments, "--home", str(base / name)]
    return spawn(command, log=base / name / "daemon.log")


def announced(base: Path, name: str, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Where a daemon is, once it is ready."""

    def ready() -> dict[str, Any]:
        if process.poll() is not None:
            pytest.fail(f"{name} ended: {tail(base / name / 'daemon.log')}")
        return read_announcement(base / name)

    facts: dict[str, Any] = wait_for(ready, timeout_s=START_TIMEOUT_S)
    return facts


def run_cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one holdfast command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "holdfast.cluster.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )


def cli_json(*arguments: str, **environment: str) -> Any:
    """The JSON that a successful command prints."""
    done = run_cli(*arguments, "--json", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    base = tmp_path_factory.mktemp("cluster")
    token = token_for(base / "master")
    url = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    daemons = {"master": start_daemon(base, "master", "up", "--port", url.rpartition(":")[2])}
    join = ("--join", url, "--token-file", str(base / "master" / "token"), "--cpus", "1", "--wait", "60")
    try:
        for name in ("worker-1", "worker-2"):
            daemons[name] = start_daemon(base, name, "worker", *join)
        for name, process in daemons.items():
            announced(base, name, process)
        yield Cluster(url, token, base, daemons)
    finally:
        stop(daemons.values(), grace_s=6.0)


@pytest.fixture
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of a user, importable here and nowhere else: the cluster knows it by CID only."""
    folder = tmp_path / "user"
    folder.mkdir()
    (folder / "user_training.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "user_training", raising=False)
    import user_training  # type: ignore[import-not-found]

    yield user_training
    sys.modules.pop("user_training", None)
