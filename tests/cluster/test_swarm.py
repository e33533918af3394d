"""Several nodes that fetch the same thing at once, each a process of its own, from a source that can't send much."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from holdfast.config import token_for
from holdfast.http_client import HttpClient
from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.exchange.peer_id import ed25519_public_key, peer_id_of_key
from holdfast.storage.local.local_store import LocalStore
from holdfast.web import listen

from .conftest import listening_master

if TYPE_CHECKING:
    from pathlib import Path

NODES = 4
SIZE_BYTES = 24 << 20
UPLOAD_BYTES_PER_S = 8 << 20
TIMEOUT_S = 60.0

NODE = """
import asyncio, json, sys, threading
from pathlib import Path
from aiohttp import web
from holdfast.config import load_settings, token_for
from holdfast.http_client import HttpClient
from holdfast.storage.cid import Cid
from holdfast.storage.gateway.node_server import add_block_routes
from holdfast.storage.opening import open_blocks, open_store, write_peers
from holdfast.storage.exchange.peer_id import peer_id_of
from holdfast.web import bearer_token, errors_as_json, listen

home, master, token, name, root = Path(sys.argv[1]), *sys.argv[2:]
token_for(home, token)
settings = load_settings(home)
app = web.Application(middlewares=[errors_as_json, bearer_token(token)])
add_block_routes(app, open_blocks(settings))
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
runner, url = asyncio.run_coroutine_threadsafe(listen(app, "127.0.0.1", 0), loop).result()
HttpClient(master, token).post(
    "/api/v0/nodes", {"id": name, "url": url, "host": "127.0.0.1", "num_cpus": 1, "peer_id": peer_id_of(home)}
)
write_peers(home, [], master=master, node_id=name, node_url=url)
print(url, flush=True)
sys.stdin.readline()
with open_store(settings) as store:
    length = sum(len(piece) for piece in store.stream(Cid.parse(root)))
    print(json.dumps({"length": length, **store.blocks.statistics()}), flush=True)
    sys.stdin.read()  # others may still want something
asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
"""


class Seed:
    """A node with a slow line, whatever the number of those who ask."""

    def __init__(self, blocks: LocalStore) -> None:
        self._blocks = blocks
        self._line = asyncio.Lock()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        data = bytes(self._blocks.get(Cid.parse(request.match_info["cid"])))
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        for at in range(0, len(data), 1 << 16):
            piece = data[at : at + (1 << 16)]
            async with self._line:
                await asyncio.sleep(len(piece) / UPLOAD_BYTES_PER_S)
            await response.write(piece)
        return response


@pytest.mark.slow
def test_nodes_that_fetch_the_same_feed_each_other(tmp_path: Path) -> None:
    with ExitStack() as stack:
        blocks = stack.enter_context(closing(LocalStore(tmp_path / "seed")))
        root = ContentStore(blocks, profile="kubo-v1-raw").add_bytes(os.urandom(SIZE_BYTES))
        token = token_for(tmp_path / "master")
        master, portal = stack.enter_context(listening_master(tmp_path / "master"))
        api = HttpClient(master.url, token)

        async def start_seed() -> tuple[web.AppRunner, str]:
            app = web.Application()
            app.router.add_get("/ipfs/{cid}", Seed(blocks).answer)
            return await listen(app, "127.0.0.1", 0)

        runner, seed_url = portal.call(start_seed)
        stack.callback(portal.call, runner.cleanup)
        joining: dict[str, Any] = {"host": "127.0.0.1", "num_cpus": 1}
        peer_id = peer_id_of_key(ed25519_public_key(bytes(32)))
        api.post("/api/v0/nodes", {"id": "seed", "url": seed_url, "peer_id": peer_id, **joining})
        api.post("/api/v0/providers", {"node": "seed", "cids": [str(root)]})

        nodes: dict[str, subprocess.Popen[str]] = {}
        for number in range(NODES):
            name = f"node-{number}"
            command = [sys.executable, "-c", NODE, str(tmp_path / name), master.url, token, name, str(root)]
            nodes[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(_end, nodes[name])
        urls = {process.stdout.readline().strip(): name for name, process in nodes.items()}  # type: ignore[union-attr]
        assert len(urls) == NODES
        for process in nodes.values():
            process.stdin.write("go\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        stop = asyncio.Event()

        async def beat() -> None:
            while not stop.is_set():
                for member in master.members.all():
                    master.members.heartbeat(member.id, blocks=0, size_bytes=0)
                await asyncio.sleep(0.5)

        beating = portal.start_task_soon(beat)
        try:
            told = {name: json.loads(process.stdout.readline()) for name, process in nodes.items()}  # type: ignore[union-attr]
        finally:
            portal.call(stop.set)
            beating.result(TIMEOUT_S)
        assert {each["length"] for each in told.values()} == {SIZE_BYTES}
        received: dict[str, int] = {}
        for each in told.values():
            for url, size in each["bytes_by_provider"].items():
                received[url] = received.get(url, 0) + size
        assert received.keys() <= {seed_url, *urls}
        from_seed = received.pop(seed_url)
        assert from_seed < sum(received.values())
        assert len(received) > 1  # and not one node feeds all the others


def _end(process: subprocess.Popen[str]) -> None:
    process.stdin.close()  # type: ignore[union-attr]
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()  # type: ignore[union-attr]
