"""Between an add and its pin a daemon's own garbage collection takes nothing; and blocks come several at a time through a node."""

import asyncio
import io
import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from aiohttp import web

from holdfast.errors import Conflict, NotFound
from holdfast.storage.cid import DAG_CBOR, Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.exchange.fetcher import Fetcher, FetchingStore
from holdfast.storage.formats import dag_cbor
from holdfast.storage.formats.car import car_blocks
from holdfast.storage.formats.dag import links_of
from holdfast.storage.kubo.kubo_pins import KuboPins
from holdfast.storage.kubo.kubo_store import KuboStore
from holdfast.storage.testing import block
from tests.interop.conftest import js_ipfs, node  # noqa: F401 -- fixtures: the real daemon, and the Node.js it runs on

Serve = Callable[[web.Application], str]


class Daemon:
    """A daemon that keeps blocks and pins in memory, as Kubo's RPC API tells of them."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, bytes] = {}
        self.pins: dict[Cid, set[bytes]] = {}
        self.imports: list[tuple[str, list[Cid]]] = []
        self.calls: list[str] = []
        self.pin_error = ""
        self.together = 0
        self._gets = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/api/v0/{call:.*}", self.answer)
        return app

    def collect(self) -> None:
        """The daemon's own garbage collection."""
        kept = set().union(*self.pins.values())
        self.blocks = {key: data for key, data in self.blocks.items() if key in kept}

    async def answer(self, request: web.Request) -> web.Response:
        call, argument = request.match_info["call"], request.query.get("arg", "")
        self.calls.append(call)
        if call == "version":
            return web.json_response({"Version": "0.29.0", "Repo": "15", "System": "amd64/linux"})
        if call == "id":
            return web.json_response({"ID": "12D3KooW", "AgentVersion": "kubo/0.29.0/"})
        if call == "dag/import":
            return await self._import(request)
        cid = Cid.parse(argument)
        if call == "pin/rm":
            if self.pins.pop(cid, None) is None:
                return web.json_response({"Message": "not pinned", "Code": 0}, status=500)
            return web.json_response({"Pins": [argument]})
        data = self.blocks.get(cid.multihash)
        if data is None:
            return web.json_response({"Message": "block was not found locally", "Code": 0}, status=500)
        if call == "pin/add":
            self.pins[cid] = {cid.multihash, *(link.multihash for link in links_of(cid, data))}
            return web.json_response({"Pins": [argument]})
        if call == "block/get":
            await self._meet()
            return web.Response(body=data)
        return web.json_response({"Key": argument, "Size": len(data)})

    async def _meet(self) -> None:
        """Hold a request up until another one is here as well, or it is clear that none comes."""
        self._gets += 1
        for _ in range(100):
            self.together = max(self.together, self._gets)
            if self.together > 1:
                break
            await asyncio.sleep(0.01)
        self._gets -= 1

    async def _import(self, request: web.Request) -> web.Response:
        form = await request.multipart()
        part: Any = await form.next()
        reader = car_blocks(io.BytesIO(await part.read()))
        found = list(reader)
        self.blocks |= {cid.multihash: data for cid, data in found}
        self.imports.append((request.query["pin-roots"], [cid for cid, _ in found]))
        lines: list[Any] = []
        if request.query["pin-roots"] == "true":
            (root,) = reader.roots
            lines.append({"Root": {"Cid": {"/": str(root)}, "PinErrorMsg": self.pin_error}})
            links = {link.multihash for link in links_of(root, self.blocks[root.multihash])}
            if not self.pin_error:
                assert links <= self.blocks.keys()
                self.pins[root] = {root.multihash, *links}
        lines.append({"Stats": {"BlockCount": len(found), "BlockBytesCount": 1}})
        return web.Response(text="".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


def test_what_an_add_has_imported_survives_a_collection_before_its_pin(daemon: Daemon, serve: Serve) -> None:
    with KuboStore(serve(daemon.app())) as store:
        pins = KuboPins(store)
        there, new, later = block(b"there"), block(b"new"), block(b"later")
        store.put_many([there])
        assert daemon.imports.pop()[0] == "false"  # nobody said that it would be kept
        with pins.adding():
            store.put_many([(there[0], None), new])
            daemon.collect()
            store.put_many([later])
            daemon.collect()
            assert [store.has(cid) for cid, _ in (there, new, later)] == [True, True, True]
            pins.pin(new[0])
        assert list(daemon.pins) == [new[0]]  # no guard is left
        daemon.collect()
        assert [store.has(cid) for cid, _ in (there, new, later)] == [False, True, False]


def test_an_add_that_fails_leaves_no_guard(daemon: Daemon, serve: Serve) -> None:
    with KuboStore(serve(daemon.app())) as store:

        def add_and_fail() -> None:
            with KuboPins(store).adding():
                store.put_many([block(b"new")])
                assert len(daemon.pins) == 1
                raise KeyError("the caller's own")

        with pytest.raises(KeyError, match="own"):
            add_and_fail()
        assert not daemon.pins


def test_what_was_collected_before_it_was_guarded_is_not_built_on(daemon: Daemon, serve: Serve) -> None:
    with KuboStore(serve(daemon.app())) as store:
        store.put_many([block(b"there")])
        daemon.pin_error = "block was not found locally"
        with pytest.raises(Conflict, match="add it again"), KuboPins(store).adding():
            store.put_many([block(b"there"), block(b"new")])


def test_blocks_that_are_said_to_be_there_are_asked_for_at_once(daemon: Daemon, serve: Serve) -> None:
    there = [block(b"%d" % i) for i in range(40)]
    with KuboStore(serve(daemon.app())) as store:
        store.put_many(there)
        asked: list[int] = []
        lacking = store._lacking

        def counted(cids: Any, listed: Any) -> Any:
            asked.append(len(cids))
            return lacking(cids, listed)

        store._lacking = counted  # type: ignore[method-assign]
        assert store.put_many([(cid, None) for cid, _ in there]) == 0
        assert asked == [40]
        with pytest.raises(NotFound, match="add it again"):
            store.put_many([(there[0][0], None), (Cid.of(b"never stored"), None), block(b"new")])
        assert not store.has(block(b"new")[0])


def test_a_node_reads_several_blocks_of_its_daemon_at_a_time(daemon: Daemon, serve: Serve) -> None:
    pieces = [b"%d" % i * 1000 for i in range(12)]
    kubo = KuboStore(serve(daemon.app()))
    with closing(FetchingStore(kubo, Fetcher(list))) as store:
        store.put_many([block(piece) for piece in pieces])
        cids = [block(piece)[0] for piece in pieces]
        store.prefetch(cids)
        assert [bytes(store.get(cid)) for cid in cids] == pieces
    assert daemon.together > 1
    assert daemon.calls.count("block/get") == len(pieces)


# ------------------------------------------------------------------------------------------- the real one


@pytest.fixture
def real(js_ipfs: str) -> Iterator[KuboStore]:  # noqa: F811 -- the fixture
    with KuboStore(js_ipfs) as store:
        yield store


def collect(store: KuboStore) -> None:
    with urllib.request.urlopen(
        urllib.request.Request(f"{store.url}/api/v0/repo/gc", method="POST"), timeout=60
    ) as answer:
        assert answer.status == 200
        answer.read()


@pytest.mark.interop
def test_a_real_daemon_keeps_what_is_guarded_and_nothing_else(real: KuboStore) -> None:
    pins = KuboPins(real)
    before = pins.pins()
    (there, _), (leaf, data), (loose, _) = block(b"there"), block(b"leaf" * 1000), block(b"loose")
    record = dag_cbor.encode({"leaf": leaf})
    root = Cid.of(record, DAG_CBOR)
    real.put_many([block(b"there")])
    with pins.adding():
        real.put_many([(there, None), (leaf, data)])
        collect(real)
        real.put_many([(root, record), block(b"loose")])
        collect(real)
        assert not real.lacking([there, leaf, root, loose])
        pins.pin(root)
    collect(real)
    assert [real.has(cid) for cid in (there, leaf, root, loose)] == [False, True, True, False]
    assert [pin.cid for pin in pins.pins() if pin not in before] == [root]
    pins.unpin(root)
    collect(real)


@pytest.mark.interop
def test_an_add_to_a_real_daemon_outlives_a_collection_just_before_its_pin(
    real: KuboStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = KuboPins.pin

    def late(self: KuboPins, cid: Cid, **options: Any) -> None:
        collect(real)
        pin(self, cid, **options)

    monkeypatch.setattr(KuboPins, "pin", late)
    content = b"".join(b"%07d" % i for i in range(500_000))
    store = ContentStore(real, pins=KuboPins(real))
    cid = store.add_bytes(content)
    collect(real)
    assert bytes(store.open(cid)) == content
    store.unpin(cid)
    collect(real)
