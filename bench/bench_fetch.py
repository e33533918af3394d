"""Measures a fetch from one node to another against `curl -o file` of the same bytes: `python -m bench.bench_fetch [FOLDER] [MIB]`.

Both servers are processes of their own, on loopback: a node with its block server, and aiohttp's FileResponse. The fetch
verifies every block and is durable when it returns; curl does neither. The two take turns; each line gives the
median, the spread (least to most), and the ratio to curl.
"""

import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.exchange.fetcher import Fetcher, FetchingStore, Provider
from holdfast.storage.formats.unixfs import file_leaves
from holdfast.storage.local.local_store import LocalStore

ROUNDS = 7
PIECE_BYTES = 1 << 20
PROFILES = {"1 MiB blocks": "unixfs-v1-2025", "256 KiB blocks": "kubo-v1-raw"}


def serve(kind: str, path: Path) -> None:
    """The server's process: prints its URL, and serves until its standard input ends."""
    from aiohttp import web

    from holdfast.storage.gateway.node_server import add_block_routes
    from holdfast.web import errors_as_json, listen

    async def run() -> None:
        app = web.Application(middlewares=[errors_as_json])
        if kind == "file":

            async def send(_: web.Request) -> web.FileResponse:
                return web.FileResponse(path)

            app.router.add_get("/file", send)
        else:
            add_block_routes(app, VerifyingStore(LocalStore(path), source="the disk"))
        runner, url = await listen(app, "127.0.0.1", 0)
        print(url, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await runner.cleanup()

    asyncio.run(run())


@contextmanager
def server(kind: str, path: Path) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", kind, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


def timed(run: Callable[[], object]) -> float:
    os.sync()  # what the one before left to be written is not this one's work
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(folder: Path, mebibytes: int) -> None:
    source = folder / "source"
    with source.open("wb") as file:
        for _ in range(mebibytes):
            file.write(os.urandom(PIECE_BYTES))
    roots: dict[str, Cid] = {}
    with closing(LocalStore(folder / "served")) as blocks:
        for title, profile in PROFILES.items():
            roots[title] = ContentStore(blocks, profile=profile).add(source)

    def curl(url: str) -> float:
        command = ["curl", "-sS", "-o", str(folder / "copy"), f"{url}/file"]
        seconds = timed(lambda: subprocess.run(command, check=True))
        assert (folder / "copy").stat().st_size == mebibytes * PIECE_BYTES
        (folder / "copy").unlink()
        return seconds

    def fetch(url: str, root: Cid) -> float:
        target = folder / "fetched"
        with closing(
            FetchingStore(
                VerifyingStore(LocalStore(target), source="the disk"), Fetcher(lambda: [Provider(url)])
            )
        ) as store:
            seconds = timed(
                lambda: list(file_leaves(root, store.get, lambda cids: store.prefetch(cids, root=root)))
            )
            received = store.statistics()["bytes"]
            assert isinstance(received, int)
            assert received >= mebibytes * PIECE_BYTES
        shutil.rmtree(target)
        return seconds

    with server("file", source) as file_url, server("node", folder / "served") as node_url:
        results: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            results.setdefault("curl -o file (FileResponse)", []).append(curl(file_url))
            for title, root in roots.items():
                results.setdefault(f"fetch, {title}, durable", []).append(fetch(node_url, root))
    rates = {name: [mebibytes / seconds for seconds in values] for name, values in results.items()}
    base = statistics.median(next(iter(rates.values())))
    print(f"\nFetching {mebibytes} MiB over loopback HTTP (MiB/s; median of {ROUNDS}, spread, ratio to curl)")
    for name, values in rates.items():
        median = statistics.median(values)
        print(
            f"  {name:<34}{median:>10,.0f}  {min(values):>10,.0f} .. {max(values):<10,.0f}{median / base:>7.2f} x"
        )


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["--serve"]:
        serve(arguments[1], Path(arguments[2]))
        return
    with tempfile.TemporaryDirectory(dir=arguments[0] if arguments else None) as folder:
        measure(Path(folder), int(arguments[1]) if len(arguments) > 1 else 1024)


if __name__ == "__main__":
    main()
