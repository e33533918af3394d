"""What tests of the gateways ask with, and a store from whose file the kernel can send."""

import asyncio
import io
import socket
import time
from urllib.parse import urlsplit

import aiohttp

from holdfast.errors import NotFound
from holdfast.storage.block_store import Extent
from holdfast.storage.cid import DAG_PB, Cid
from holdfast.storage.formats.car import read_car
from holdfast.storage.formats.dag_pb import PbLink, PbNode, UnixFs, UnixFsType, encode_node

TOKEN = "a-token-of-some-length"
CAR = "application/vnd.ipld.car"
PATIENCE_S = 20.0


class FileStore:
    """Blocks in one file, from where the kernel can send them; counts what is read in another way."""

    def __init__(self, path):
        self.path = path
        self.places = {}
        self.read = []
        path.touch()

    def get(self, cid):
        self.read.append(cid)
        extent = self.extent(cid)
        if extent is None:
            raise NotFound(f"{cid} is not here")
        with self.path.open("rb") as file:
            file.seek(extent.offset)
            return file.read(extent.length)

    def extent(self, cid):
        place = self.places.get(cid.multihash)
        return None if place is None else Extent(self.path, *place)

    def has(self, cid):
        return cid.multihash in self.places

    def put_many(self, blocks, *, resume=None):
        del resume
        with self.path.open("ab") as file:
            for cid, data in blocks:
                self.places[cid.multihash] = (file.tell(), len(data))
                file.write(data)
        return 0

    def forget(self, cid):
        del self.places[cid.multihash]

    def multihashes(self):
        return iter(sorted(self.places))

    def close(self):
        pass


def ask(url, *, method="GET", **headers):
    """Status, headers and body of one request; underscores in header names become dashes."""

    async def go():
        timeout = aiohttp.ClientTimeout(total=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, url, headers=named, allow_redirects=False) as response,
        ):
            return response.status, response.headers, await response.read()

    return asyncio.run(go())


def unpacked(body):
    """The blocks of a CAR, each verified."""

    async def go():
        stream = io.BytesIO(body)

        async def read(size):
            return stream.read(size)

        return [block async for block in read_car(read)]

    return asyncio.run(go())


def cids_in(url, **headers):
    """The CIDs of the blocks in the CAR at an address, in order, as text."""
    status, _, body = ask(url, **headers)
    assert status == 200, body
    return [str(cid) for cid, _ in unpacked(body)]


def imported(path, store):
    """Put a CAR's blocks into a store; their CIDs in order, as text."""
    found = unpacked(path.read_bytes())
    store.put_many(found)
    return [str(cid) for cid, _ in found]


def connect(url):
    connection = socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=PATIENCE_S)
    connection.settimeout(PATIENCE_S)
    return connection


def talk(url, request):
    """Everything that a server answers to these bytes until it closes the connection."""
    answer = b""
    with connect(url) as connection:
        connection.sendall(request)
        while piece := connection.recv(1 << 16):
            answer += piece
    return answer


def until(condition):
    """Wait for something that is bound to happen."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def leaves_file(store, leaves, *, inner_links=0):
    """A file of these leaves; its root, and the CIDs of all blocks."""
    nodes = []
    for data in leaves:
        cid = Cid.of(data)
        store.put_many([(cid, data)])
        nodes.append((cid, len(data)))
    made = [cid for cid, _ in nodes]
    while len(nodes) > 1 or not inner_links:
        inner_links = inner_links or len(nodes)
        parents = []
        for at in range(0, len(nodes), inner_links):
            group = nodes[at : at + inner_links]
            message = UnixFs(
                type=UnixFsType.FILE,
                file_size=sum(size for _, size in group),
                block_sizes=tuple(size for _, size in group),
            )
            data = encode_node(PbNode(tuple(PbLink(cid, "", size) for cid, size in group), message.encode()))
            cid = Cid.of(data, DAG_PB)
            store.put_many([(cid, data)])
            made.append(cid)
            parents.append((cid, sum(size for _, size in group)))
        nodes = parents
    return nodes[0][0], made


def slow_client(url, root):
    """A client that asks for a CAR and does not read it."""
    connection = connect(url)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    connection.sendall(f"GET /ipfs/{root}?format=car&car-dups=y HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return connection
