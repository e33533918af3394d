"""A store that fetches: what it keeps when something goes wrong, and that it mends what is rotten."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from contextlib import closing, contextmanager

import pytest
from aiohttp import web

from holdfast.errors import Corrupt, NotFound, Unavailable
from holdfast.storage.block_store import SupportsExtent, VerifyingStore
from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.exchange.fetcher import Fetcher, FetchingStore, Provider
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.testing import block

TIMEOUT_S = 30.0


@pytest.fixture
def other(tmp_path):
    """The blocks of another node."""
    with closing(LocalStore(tmp_path / "other")) as store:
        yield store


@contextmanager
def fetching(folder, *urls, **options):
    fetcher = Fetcher(lambda: [Provider(url) for url in urls], **options)
    with closing(FetchingStore(VerifyingStore(LocalStore(folder), source="the disk"), fetcher)) as store:
        yield store


def rot(store: SupportsExtent, cid: Cid) -> None:
    """Change one byte of a block on the disk."""
    extent = store.extent(cid)
    assert extent is not None
    with extent.path.open("r+b") as file:
        file.seek(extent.offset)
        first = file.read(1)
        file.seek(extent.offset)
        file.write(bytes((first[0] ^ 1,)))


def test_a_fetched_file_is_one_piece_of_memory(tmp_path, other, start_node):
    content = os.urandom(20 << 20)
    root = ContentStore(other).add_bytes(content)
    with fetching(tmp_path / "here", start_node(other).url) as store:
        fetched = ContentStore(store).open(root)
        assert fetched == content
        assert fetched.readonly
        assert not isinstance(fetched.obj, bytes)  # a map, not a copy


def test_one_block_that_nobody_has_does_not_throw_away_the_others(tmp_path, other, start_node):
    blocks = [block(b"%d" % i * 1000) for i in range(40)]
    missing = {blocks[5][0], blocks[6][0], blocks[30][0]}
    other.put_many(each for each in blocks if each[0] not in missing)
    node = start_node(other)
    with fetching(tmp_path / "here", node.url) as store:
        with pytest.raises(NotFound) as caught:
            store.prefetch([cid for cid, _ in blocks])
        assert {cid for cid, _ in blocks if not store.has(cid)} == missing
        asked = len(node.asked)
        with pytest.raises(NotFound):
            store.prefetch([cid for cid, _ in blocks])
        assert len(node.asked) - asked == len(missing)
    assert all(part in str(caught.value) for part in (str(blocks[5][0]), node.url, "2 more"))


def test_a_rotten_block_is_mended_from_another_node(tmp_path, other, start_node):
    blocks = [block(b"%d" % i * 1000) for i in range(5)]
    other.put_many(blocks)
    node = start_node(other)
    with fetching(tmp_path / "here", node.url) as store:
        store.put_many(blocks)
        rot(store, blocks[2][0])
        for cid, data in blocks:
            assert bytes(store.get(cid)) == data
        assert node.asked == [str(blocks[2][0])]
    with closing(VerifyingStore(LocalStore(tmp_path / "here"), source="the disk")) as alone:
        assert bytes(alone.get(blocks[2][0])) == blocks[2][1]


def test_a_view_does_not_cover_rotten_bytes_either(tmp_path, other, start_node):
    content = os.urandom(4 << 20)
    root = ContentStore(other).add_bytes(content)
    with fetching(tmp_path / "here", start_node(other).url) as store:
        files = ContentStore(store)
        assert files.add_bytes(content) == root
        rot(store, Cid.of(content[: 1 << 20]))
        assert files.open(root) == content


def test_a_rotten_block_that_nobody_else_has_is_an_error_that_says_so(tmp_path, other, start_node):
    cid, data = block(b"rare" * 100)
    url = start_node(other).url
    with fetching(tmp_path / "here", url) as store:
        store.put_many([(cid, data)])
        rot(store, cid)
        with pytest.raises(Corrupt) as caught:
            store.get(cid)
    assert all(part in str(caught.value) for part in (str(cid), "the disk", "the other nodes", url))
    with fetching(tmp_path / "here") as store, pytest.raises(Corrupt, match="no other node"):
        store.get(cid)


def test_what_lies_in_the_name_is_here_without_being_stored(tmp_path):
    inline = Cid(b"\x01\x55\x00\x05hello")
    with fetching(tmp_path / "here") as store:
        assert store.has(inline)
        assert bytes(store.get(inline)) == b"hello"
        store.prefetch([inline])
        assert list(store.multihashes()) == []


def test_threads_that_want_the_same_ask_the_network_once(tmp_path, other, start_node):
    blocks = [block(b"%d" % i * 1000) for i in range(60)]
    other.put_many(blocks)
    node = start_node(other)
    failed: list[BaseException] = []
    with fetching(tmp_path / "here", node.url) as store:
        ready = threading.Barrier(6)

        def work(turn: int) -> None:
            try:
                ready.wait(TIMEOUT_S)
                cids = [cid for cid, _ in blocks[turn * 5 :]]
                store.prefetch(cids)
                assert all(store.has(cid) for cid in cids)
            except BaseException as error:  # noqa: BLE001 -- the test reports it, whatever it is
                failed.append(error)

        threads = [threading.Thread(target=work, args=(turn,)) for turn in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
    assert failed == []
    assert max(Counter(node.asked).values()) == 1
    assert len(node.asked) == 60


def test_what_another_thread_fetched_between_the_look_and_the_turn_is_not_asked_for_again(
    tmp_path, other, start_node
):
    cid, data = block(b"wanted by two")
    other.put_many([(cid, data)])
    node = start_node(other)
    looked, go_on = threading.Event(), threading.Event()

    class SlowLook(FetchingStore):
        def has(self, cid: Cid) -> bool:
            here = super().has(cid)
            if threading.current_thread() is late and not looked.is_set():
                looked.set()
                assert go_on.wait(TIMEOUT_S)
            return here

    fetcher = Fetcher(lambda: [Provider(node.url)])
    with closing(SlowLook(LocalStore(tmp_path / "here"), fetcher)) as store:
        late = threading.Thread(target=store.prefetch, args=([cid],))
        late.start()
        assert looked.wait(TIMEOUT_S)
        store.prefetch([cid])
        go_on.set()
        late.join(TIMEOUT_S)
        assert store.get(cid) == data
    assert node.asked == [str(cid)]


def test_a_failed_fetch_does_not_fail_the_thread_that_waited_for_it(tmp_path, serve):
    cid, data = block(b"late")
    asked = threading.Event()
    answers = iter([503, 200])
    go_on = threading.Event()

    async def answer(_: web.Request) -> web.Response:
        status = next(answers)
        if status == 503:
            asked.set()
            await asyncio.to_thread(go_on.wait, TIMEOUT_S)
        return web.Response(status=status, body=data)

    app = web.Application()
    app.router.add_get("/ipfs/{cid}", answer)
    caught: list[BaseException] = []
    with fetching(tmp_path / "here", serve(app)) as store:

        def first() -> None:
            try:
                store.prefetch([cid])
            except Unavailable as error:
                caught.append(error)

        thread = threading.Thread(target=first)
        thread.start()
        assert asked.wait(TIMEOUT_S)
        second = threading.Thread(target=store.prefetch, args=([cid],))
        second.start()
        go_on.set()
        thread.join(TIMEOUT_S)
        second.join(TIMEOUT_S)
        assert store.has(cid)
    assert len(caught) == 1


FETCH = """
import sys
from contextlib import closing
from pathlib import Path
from holdfast.storage.cid import Cid
from holdfast.storage.exchange.fetcher import Fetcher, FetchingStore, Provider
from holdfast.storage.local.local_store import LocalStore

cids = [Cid.parse(line) for line in Path(sys.argv[3]).read_text().split()]
with closing(FetchingStore(LocalStore(Path(sys.argv[1])), Fetcher(lambda: [Provider(sys.argv[2])]))) as store:
    store.prefetch(cids)
"""


def test_a_fetch_that_was_killed_asks_only_for_the_rest(tmp_path, serve):
    blocks = dict(block(os.urandom(100_000)) for _ in range(60))
    given = set(list(blocks)[:35])
    asked: list[Cid] = []
    open_gate = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        cid = Cid.parse(request.match_info["cid"])
        asked.append(cid)
        if cid not in given:
            await open_gate.wait()
        return web.Response(body=blocks[cid])

    async def open_now(_: web.Request) -> web.Response:
        open_gate.set()
        return web.Response()

    app = web.Application()
    app.router.add_get("/ipfs/{cid}", answer)
    app.router.add_get("/open", open_now)
    url = serve(app)
    (tmp_path / "cids").write_text("\n".join(map(str, blocks)))
    command = [sys.executable, "-c", FETCH, str(tmp_path / "here"), url, str(tmp_path / "cids")]

    def here() -> set[Cid]:
        with closing(LocalStore(tmp_path / "here")) as store:
            return {cid for cid in blocks if store.has(cid)}

    process = subprocess.Popen(command)
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while here() != given:  # all that was given is committed while the rest hangs
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(TIMEOUT_S)
    asked.clear()
    urllib.request.urlopen(f"{url}/open", timeout=TIMEOUT_S).close()
    subprocess.run(command, timeout=TIMEOUT_S, check=True)
    assert Counter(asked) == Counter(set(blocks) - given)
    with closing(VerifyingStore(LocalStore(tmp_path / "here"), source="the disk")) as store:
        assert all(bytes(store.get(cid)) == data for cid, data in blocks.items())


def test_blocks_are_there_for_others_while_the_fetch_goes_on(tmp_path, serve):
    blocks = dict(block(b"%d" % i * 100) for i in range(10))
    last = list(blocks)[-1]
    seen = threading.Event()

    async def answer(request: web.Request) -> web.Response:
        cid = Cid.parse(request.match_info["cid"])
        if cid == last:
            await asyncio.to_thread(seen.wait, TIMEOUT_S)
        return web.Response(body=blocks[cid])

    app = web.Application()
    app.router.add_get("/ipfs/{cid}", answer)
    with fetching(tmp_path / "here", serve(app)) as store:
        thread = threading.Thread(target=store.prefetch, args=(list(blocks),))
        thread.start()
        deadline = time.monotonic() + TIMEOUT_S
        while sum(map(store.has, blocks)) < 9:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not store.has(last)
        seen.set()
        thread.join(TIMEOUT_S)
        assert store.has(last)
