"""KuboStore against a real daemon with the RPC API: js-ipfs."""

import asyncio
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from holdfast.errors import Corrupt, NotFound, Unsupported
from holdfast.storage.block_store import Pin, SupportsPins, SupportsPrefetch
from holdfast.storage.cid import DAG_CBOR, Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.formats import dag_cbor
from holdfast.storage.kubo.kubo_pins import KuboPins
from holdfast.storage.kubo.kubo_store import KuboStore
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.local.references import FileRange
from holdfast.storage.testing import BlockStoreTests, block

pytestmark = pytest.mark.interop


class Client:
    """Calls to the daemon with nothing of ours in between."""

    def __init__(self, url: str) -> None:
        self.url = url

    def raw(self, call: str, *arguments: str, data: bytes | None = None, **options: str) -> bytes:
        async def ask() -> bytes:
            form = aiohttp.FormData()
            if data is not None:
                form.add_field(
                    "file", io.BytesIO(data), filename="file", content_type="application/octet-stream"
                )
            query = [("arg", argument) for argument in arguments] + list(options.items())
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session,
                session.post(
                    f"{self.url}/api/v0/{call}", params=query, data=form if data is not None else None
                ) as answer,
            ):
                body = await answer.read()
                assert answer.status == 200, body
                return body

        return asyncio.run(ask())

    def lines(self, call: str, *arguments: str, **options: Any) -> list[Any]:
        return [json.loads(line) for line in self.raw(call, *arguments, **options).splitlines() if line]

    def blocks(self) -> set[str]:
        return {line["Ref"] for line in self.lines("refs/local")}


@pytest.fixture
def client(js_ipfs: str) -> Iterator[Client]:
    """The daemon as it was when the test began: what a test leaves in it goes with the test."""
    client = Client(js_ipfs)
    client.raw("files/ls", "/")  # makes the root of its mutable file system, a block like any other
    before = client.blocks()
    yield client
    for line in client.lines("pin/ls", type="all", stream="true"):
        if line["Type"] in ("recursive", "direct"):
            client.raw("pin/rm", line["Cid"])
    if any(entry["Name"] == "holdfast" for entry in client.lines("files/ls", "/")[0]["Entries"] or ()):
        client.raw("files/rm", "/holdfast", recursive="true")
    left = sorted(client.blocks() - before)
    for at in range(0, len(left), 100):
        client.raw("block/rm", *left[at : at + 100], force="true")


@pytest.fixture
def store(client: Client) -> Iterator[KuboStore]:
    with KuboStore(client.url) as store:
        yield store


class FromNow(KuboStore):
    """A store without the blocks that the daemon had before: it is never quite empty."""

    def __init__(self, url: str, before: set[bytes]) -> None:
        super().__init__(url)
        self._before = before

    def multihashes(self) -> Iterator[bytes]:
        return (multihash for multihash in super().multihashes() if multihash not in self._before)


class TestKuboStore(BlockStoreTests):
    @pytest.fixture
    def make_store(self, client: Client) -> Callable[[], KuboStore]:
        with KuboStore(client.url) as store:
            before = set(store.multihashes())
        return lambda: FromNow(client.url, before)


def test_a_store_says_what_it_can_do(store: KuboStore) -> None:
    assert isinstance(store, SupportsPrefetch)
    assert isinstance(KuboPins(store), SupportsPins)
    assert store.agent.startswith("js-ipfs/")


def test_the_statistics_of_a_node_are_not_made_up(store: KuboStore, client: Client) -> None:
    store.put_many([block(os.urandom(1000)) for _ in range(7)])
    held = store.statistics()
    assert held["blocks"] == len(client.blocks())
    assert held["bytes"] > 7000


def test_reading_ahead_neither_mixes_up_nor_hides_blocks(store: KuboStore) -> None:
    blocks = [block(b"%d" % i * 5000) for i in range(100)]
    missing = block(b"nobody stored this")[0]
    store.put_many(blocks)
    cids = [cid for cid, _ in blocks]
    store.prefetch([*cids[:50], missing, *cids[50:]])
    for cid, data in blocks[::2]:
        assert store.get(cid) == data
    store.prefetch(cids)
    for cid, data in blocks[::-1]:
        assert store.get(cid) == data
    with pytest.raises(NotFound, match=str(missing)):
        store.get(missing)


def test_what_lies_in_a_users_file_is_not_stored_as_if_it_were_here(store: KuboStore, tmp_path: Path) -> None:
    (tmp_path / "own").write_bytes(b"mine")
    before = list(store.multihashes())
    with pytest.raises(Unsupported, match="--no-copy"):
        store.put_many([block(b"first"), (Cid.of(b"mine"), FileRange(tmp_path / "own", 0, 4))])
    assert list(store.multihashes()) == before


def test_a_spool_larger_than_its_memory_loses_nothing(client: Client, tmp_path: Path) -> None:
    data = os.urandom(64 << 20)
    blocks = [block(data[at : at + (1 << 20)]) for at in range(0, len(data), 1 << 20)]
    with KuboStore(client.url, scratch=tmp_path) as store:
        assert store.put_many(blocks) == len(data)
        assert list(tmp_path.iterdir()) == []
        for cid, content in blocks:
            assert store.get(cid) == content


def test_a_lying_daemon_does_not_get_its_bytes_in(store: KuboStore, client: Client) -> None:
    promised, sent = Cid.of(b"what was promised"), b"something else"
    # js-ipfs takes a CAR as it is, and hashes nothing.
    frame = promised.raw + sent
    header = dag_cbor.encode({"roots": [promised], "version": 1})
    car = bytes([len(header)]) + header + bytes([len(frame)]) + frame
    client.raw("dag/import", data=car, **{"pin-roots": "false"})
    assert client.raw("block/get", str(promised)) == sent
    with pytest.raises(Corrupt, match=str(promised)):
        store.get(promised)


# ---------------------------------------------------------------------------------------------- pins


def test_pins_are_the_daemons_own(store: KuboStore, client: Client) -> None:
    pins = KuboPins(store)
    (leaf, data), (other, _) = block(b"leaf" * 100), block(b"other")
    record = dag_cbor.encode({"leaf": leaf})
    root = Cid.of(record, DAG_CBOR)
    store.put_many([(leaf, data), (root, record), block(b"other")])
    pins.pin(root, name="first name")
    pins.pin(other, recursive=False)
    assert pins.pins() == sorted(
        [Pin(cid=root, recursive=True, name="first name"), Pin(cid=other, recursive=False)],
        key=lambda pin: pin.cid,
    )
    pins.pin(root, recursive=False, name="second name")
    assert Pin(cid=root, recursive=True, name="second name") in pins.pins()
    kinds = {Cid.parse(text): facts["Type"] for text, facts in client.lines("pin/ls")[0]["Keys"].items()}
    assert kinds == {root: "recursive", other: "direct", leaf: "indirect"}
    pins.unpin(other)
    with pytest.raises(NotFound, match="not pinned"):
        pins.unpin(other)
    with pytest.raises(NotFound, match="not pinned"):
        pins.unpin(leaf)
    assert [pin.cid for pin in pins.pins()] == [root]


def test_what_is_not_whole_is_not_pinned(store: KuboStore) -> None:
    leaf = Cid.of(b"never stored")
    record = dag_cbor.encode({"leaf": leaf})
    root = Cid.of(record, DAG_CBOR)
    store.put_many([(root, record)])
    pins = KuboPins(store)
    with pytest.raises(NotFound, match=str(leaf)):
        pins.pin(root)
    assert pins.pins() == []
    pins.pin(root, recursive=False)
    assert pins.pins() == [Pin(cid=root, recursive=False)]


def test_garbage_collection_takes_nothing_that_a_label_holds(store: KuboStore, client: Client) -> None:
    pins = KuboPins(store)
    (leaf, data), (old, _), (loose, _) = block(b"kept"), block(b"was kept"), block(b"loose")
    record = dag_cbor.encode({"leaf": leaf})
    root = Cid.of(record, DAG_CBOR)
    store.put_many([(leaf, data), (root, record), block(b"was kept"), block(b"loose")])
    label = "model ../ü/x:1"
    pins.hold(label, old)
    pins.hold("another model:1", root)
    pins.hold(label, root)
    assert pins.held(label) == root
    client.raw("repo/gc")
    assert [store.has(cid) for cid in (root, leaf, old, loose)] == [True, True, False, False]
    pins.release(label)
    pins.release("never held")
    client.raw("repo/gc")
    assert store.has(leaf)
    pins.release("another model:1")
    assert pins.held("another model:1") is None
    client.raw("repo/gc")
    assert not store.has(leaf)


# -------------------------------------------------------------------------------------------- content


@pytest.mark.parametrize("profile", ["unixfs-v0-2015", "unixfs-v1-2025", "kubo-v1-raw"])
def test_js_ipfs_reads_every_byte_of_what_we_wrote(
    profile: str, store: KuboStore, client: Client, tree: Path, tmp_path: Path
) -> None:
    with closing(ContentStore(KuboStore(client.url), profile=profile, pins=KuboPins(store))) as ours:
        root = ours.add(tree)
        names = {entry["Name"] for entry in client.lines("ls", str(root))[0]["Objects"][0]["Links"]}
        assert names == {path.name for path in tree.iterdir()}
        many = client.lines("ls", f"{root}/many")[0]["Objects"][0]["Links"]
        assert {entry["Name"] for entry in many} == {path.name for path in (tree / "many").iterdir()}
        files = [
            *tree.glob("*.bin"),
            tree / "deep" / "deeper" / "größe 漢字.txt",
            tree / "many" / many[17]["Name"],
        ]
        for path in files:
            assert client.raw("cat", f"/ipfs/{root}/{path.relative_to(tree)}") == path.read_bytes(), path
        part = client.raw("cat", f"/ipfs/{root}/5000000.bin", offset="262140", length="2000000")
        assert part == (tree / "5000000.bin").read_bytes()[262_140:2_262_140]
        # And back through our own reader, from the daemon's repository.
        ours.get(root, tmp_path / "out")
    for path in tree.rglob("*"):
        copy = tmp_path / "out" / path.relative_to(tree)
        if path.is_symlink():
            assert copy.readlink() == path.readlink()
        elif path.is_file():
            assert copy.read_bytes() == path.read_bytes()
        else:
            assert copy.is_dir()


@pytest.mark.parametrize(
    ("profile", "options"),
    [
        ("unixfs-v0-2015", {"cid-version": "0", "raw-leaves": "false"}),
        ("kubo-v1-raw", {"cid-version": "1", "raw-leaves": "true"}),
    ],
)
def test_js_ipfs_gives_a_file_the_cid_that_we_give_it(
    profile: str, options: dict[str, str], client: Client, tree: Path, tmp_path: Path
) -> None:
    with closing(ContentStore(LocalStore(tmp_path / "blocks"), profile=profile)) as ours:
        for path in tree.glob("*.bin"):
            added = client.lines("add", data=path.read_bytes(), pin="false", **options)
            assert Cid.parse(added[-1]["Hash"]) == ours.add(path), path.name


def test_we_read_what_js_ipfs_wrote(store: KuboStore, client: Client, tree: Path) -> None:
    data = (tree / "5000000.bin").read_bytes()
    added = client.lines("add", data=data, pin="false", **{"cid-version": "0"})
    content = ContentStore(store)
    assert b"".join(content.stream(Cid.parse(added[-1]["Hash"]))) == data
    stored = client.lines(
        "dag/put", data=b'{"a":[1,"x",null],"b":{"/":{"bytes":"AAEC"}}}', **{"store-codec": "dag-cbor"}
    )
    assert content.get_record(Cid.parse(stored[0]["Cid"]["/"])) == {"a": [1, "x", None], "b": b"\0\1\2"}


def test_a_whole_dag_travels_through_a_car(
    store: KuboStore, client: Client, tree: Path, tmp_path: Path
) -> None:
    from holdfast.storage.formats.car import read_car

    root = ContentStore(store).add(tree / "deep")
    car = client.raw("dag/export", str(root))

    async def blocks() -> list[tuple[Cid, bytes]]:
        at = 0

        async def read(size: int) -> bytes:
            nonlocal at
            at += size
            return car[at - size : at]

        return [pair async for pair in read_car(read)]

    with closing(LocalStore(tmp_path / "blocks")) as local:
        local.put_many(asyncio.run(blocks()))
        ContentStore(local).get(root, tmp_path / "out")
    text = (tree / "deep" / "deeper" / "größe 漢字.txt").read_bytes()
    assert (tmp_path / "out" / "deeper" / "größe 漢字.txt").read_bytes() == text
