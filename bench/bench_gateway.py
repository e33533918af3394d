"""Measures the gateway against aiohttp's own file answers over loopback: `python -m bench.bench_gateway [FOLDER]`.

Both servers run in one process of their own and are asked over one connection that stays open, by a client that reads and throws
away. The candidates take turns; each line gives the median, the spread (least to most), the ratio to its yardstick, and the processor time
that the server took for one request, which a busy machine changes least.
"""

import asyncio
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from aiohttp import web

from holdfast.storage.block_store import Extent
from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.gateway.web_gateway import gateway_app
from holdfast.storage.local.local_store import LocalStore
from holdfast.web import listen

ROUNDS = 15
BLOCKS = 256
WHOLE_MIB = 128
SIZES = {"1 MiB": 1 << 20, "256 KiB": 256 << 10, "4 KiB": 4 << 10}


class OneFile:
    """A store of one file, from which the kernel sends: what the server costs, without an index."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[bytes, tuple[int, int]] = {}

    def put(self, data: bytes) -> Cid:
        """Keep a block."""
        cid = Cid.of(data)
        with self._path.open("ab") as file:
            self._places[cid.multihash] = (file.tell(), len(data))
            file.write(data)
        return cid

    def extent(self, cid: Cid) -> Extent | None:
        """Where it lies."""
        place = self._places.get(cid.multihash)
        return None if place is None else Extent(self._path, *place)

    def get(self, cid: Cid) -> bytes:
        """Its bytes."""
        offset, length = self._places[cid.multihash]
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def has(self, cid: Cid) -> bool:
        """Whether it is here."""
        return cid.multihash in self._places


def serve(folder: Path, told: Connection) -> None:
    """Make the content, serve it, tell where it is, and end when told to."""

    async def go() -> None:
        names: dict[str, Any] = {}
        one_file = OneFile(folder / "one-file.bin")
        with closing(LocalStore(folder / "store")) as blocks:
            store = ContentStore(blocks)
            for name, size in SIZES.items():
                pieces = [os.urandom(size) for _ in range(BLOCKS)]
                cids = [(Cid.of(piece), piece) for piece in pieces]
                blocks.put_many(cids)
                for piece in pieces:
                    one_file.put(piece)
                for at, piece in enumerate(pieces):
                    (folder / f"{size}-{at}.bin").write_bytes(piece)
                files = [f"/file/{size}-{at}" for at in range(BLOCKS)]
                names[name] = (files, [f"/ipfs/{cid}?format=raw" for cid, _ in cids])
            whole = folder / "whole.bin"
            whole.write_bytes(os.urandom(WHOLE_MIB << 20))
            root = store.add(whole)
            names["whole"] = ("/file/whole", f"/ipfs/{root}?format=car", f"/ipfs/{root}")

            async def file(request: web.Request) -> web.FileResponse:
                return web.FileResponse(folder / f"{request.match_info['name']}.bin")

            plain = web.Application()
            plain.router.add_get("/file/{name}", file)
            kernel = gateway_app(store, blocks=one_file)  # type: ignore[arg-type]
            runners = [await listen(app, "127.0.0.1", 0) for app in (plain, gateway_app(store), kernel)]
            told.send((names, [url for _, url in runners]))
            await asyncio.to_thread(told.recv)
            for runner, _ in runners:
                await runner.cleanup()

    asyncio.run(go())


class Client:
    """One connection that stays open; reads answers and throws them away."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        self._buffer = bytearray(1 << 20)
        self._view = memoryview(self._buffer)

    def get(self, path: str) -> int:
        """Ask for one path; the bytes of its body (with their framing, where the length was not stated)."""
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        got = self._socket.recv_into(self._view)
        while (end := self._buffer.find(b"\r\n\r\n", 0, got)) < 0:
            got += self._socket.recv_into(self._view[got:])
        head = bytes(self._buffer[:end]).lower()
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(head.decode())
        body = got - end - 4
        if b"content-length: " in head:
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            while body < length:
                body += self._socket.recv_into(self._view)
            return body
        last = bytes(self._buffer[max(0, got - 5) : got])
        while last != b"0\r\n\r\n":
            got = self._socket.recv_into(self._view)
            body += got
            last = (last + bytes(self._buffer[max(0, got - 5) : got]))[-5:]
        return body

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def rate(client: Client, paths: list[str], server: psutil.Process) -> tuple[float, float, float]:
    """Requests a second, MiB a second, and milliseconds of processor that the server took for each request."""
    before, start = server.cpu_times(), time.perf_counter()
    size = sum(client.get(path) for path in paths)
    took, after = time.perf_counter() - start, server.cpu_times()
    busy = after.user + after.system - before.user - before.system
    return len(paths) / took, size / took / (1 << 20), 1000 * busy / len(paths)


def report(
    title: str, results: dict[str, list[tuple[float, float, float]]], yardstick: str, *, requests: bool
) -> None:
    at = 0 if requests else 1
    unit = "requests/s" if requests else "MiB/s"
    print(f"\n{title} ({unit}; median of {len(results[yardstick])}, spread, ratio to {yardstick})")
    base = statistics.median(value[at] for value in results[yardstick])
    for name, values in results.items():
        of = [value[at] for value in values]
        median = statistics.median(of)
        busy = statistics.median(value[2] for value in values)
        print(
            f"  {name:<34}{median:>8,.0f}  {min(of):>8,.0f} .. {max(of):<8,.0f}{median / base:>6.2f} x  {busy:>8.3f} ms of server"
        )


def measure(names: dict[str, Any], urls: list[str], server: psutil.Process) -> None:
    plain, store, kernel = (Client(url) for url in urls)
    yardstick = "aiohttp FileResponse"
    for name, size in SIZES.items():
        files, blocks = names[name]
        candidates = {
            yardstick: (plain, files),
            "raw blocks of a LocalStore": (store, blocks),
            "raw blocks of one file": (kernel, blocks),
        }
        results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in candidates}
        for _ in range(ROUNDS):
            for candidate, (client, paths) in candidates.items():
                results[candidate].append(rate(client, paths, server))
        report(f"Blocks of {name}, one after the other", results, yardstick, requests=size < 1 << 20)
    file, car, path = names["whole"]
    whole = {
        yardstick: (plain, [file]),
        "the file as a CAR": (store, [car]),
        "the file for a browser, hashed": (store, [path]),
    }
    results = {name: [] for name in whole}
    for _ in range(ROUNDS):
        for candidate, (client, paths) in whole.items():
            results[candidate].append(rate(client, paths, server))
    report(f"A file of {WHOLE_MIB} MiB", results, yardstick, requests=False)
    for client in (plain, store, kernel):
        client.close()


def main() -> None:
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        ours, theirs = spawn.Pipe()
        server = spawn.Process(target=serve, args=(Path(folder), theirs))
        server.start()
        try:
            names, urls = ours.recv()
            measure(names, urls, psutil.Process(server.pid))
            ours.send(None)
        finally:
            server.join(10)
            if server.is_alive():
                server.kill()


if __name__ == "__main__":
    main()
