"""Whole nodes: one that keeps its blocks in a daemon, and one that Helia finds through the cluster's routing."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from holdfast.config import load_settings
from holdfast.errors import Unsupported
from holdfast.storage.cid import Cid
from holdfast.storage.kubo.kubo_store import KuboStore
from holdfast.storage.opening import open_local

pytestmark = [pytest.mark.interop, pytest.mark.timeout(240)]

HOLDFAST = [sys.executable, "-m", "holdfast.cluster.cli"]
PATIENCE_S = 100.0


def command(home: Path, *arguments: str, fails: bool = False) -> str:
    done = subprocess.run(
        [*HOLDFAST, *arguments, "--home", str(home)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


@contextmanager
def running(home: Path, *arguments: str) -> Iterator[dict[str, Any]]:
    """A master on a free port; gives what it says of itself."""
    home.mkdir(exist_ok=True)
    with (home / "log").open("wb") as log:
        process = psutil.Popen(
            [*HOLDFAST, "up", "--home", str(home), "--port", "0", "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        text = ""
        while not text.endswith("}\n"):
            line = process.stdout.readline().decode()
            assert line, (home / "log").read_text()[-2000:]
            text += line
        yield json.loads(text)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        process.stdout.close()


def counted(home: Path, url: str) -> bool:
    (node,) = json.loads(command(home, "status", "--json", "--address", url))["nodes"]
    return bool(node["blocks"] and node["bytes"])


@pytest.fixture
def fetch() -> Callable[[str, str], bytes]:
    def get(url: str, token: str) -> bytes:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    return get


def test_a_node_keeps_and_serves_its_blocks_from_the_daemon(
    js_ipfs: str, fetch: Callable[[str, str], bytes], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    (tmp_path / "file").write_bytes(b"kept by another program\n" * 1000)
    with running(home, "--ipfs", js_ipfs) as facts:
        # Another process on the same home, which nobody told of the daemon.
        cid = Cid.parse(command(home, "add", str(tmp_path / "file"), "--cid-only").strip())
        assert command(home, "cat", str(cid)) == "kept by another program\n" * 1000
        token = (home / "token").read_text().strip()
        assert Cid.of(fetch(f"{facts['url']}/ipfs/{cid}?format=raw", token)) == cid
        with KuboStore(js_ipfs) as daemon:
            assert daemon.has(cid)
        deadline = time.monotonic() + PATIENCE_S
        while not counted(home, facts["url"]):  # it comes with the next heartbeat
            assert time.monotonic() < deadline
    assert load_settings(home).storage.ipfs == js_ipfs
    assert not (home / "blocks").exists()  # nothing of it lies here
    assert "--no-copy" in command(home, "add", str(tmp_path / "file"), "--no-copy", fails=True)
    assert "ipfs repo gc" in command(home, "gc", fails=True)
    with pytest.raises(Unsupported, match="ipfs repo verify"):
        open_local(load_settings(home))


def test_helia_finds_what_a_node_announced_through_our_routing(
    helia: Callable[..., Any], tree: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    data = (tree / "5000000.bin").read_bytes()
    with running(home) as facts:
        cid = command(home, "add", str(tree / "5000000.bin"), "--cid-only").strip()
        token = (home / "token").read_text().strip()
        to = str(tmp_path / "out")
        # It knows no gateway, only whom to ask for one; nodes announce roots, so it takes the rest from where the root is.
        helia([{"do": "cat", "cid": cid, "to": to, "session": True}], routers=[facts["url"]], token=token)
    assert (tmp_path / "out").read_bytes() == data
