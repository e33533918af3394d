import asyncio
import gzip
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from aiohttp import web

from holdfast.errors import Conflict, Corrupt, NotFound, Unavailable
from holdfast.storage.block_store import MAX_BLOCK_BYTES, VerifyingStore
from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.exchange.fetcher import Fetcher, FetchingStore, Provider
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.testing import BlockStoreTests, block


class TestFetchingStore(BlockStoreTests):
    """Over a real second node, which has nothing that the suite asks for."""

    @pytest.fixture
    def make_store(self, tmp_path, start_node):
        with closing(LocalStore(tmp_path / "second")) as second:
            second.put_many([block(b"only the second node has it")])
            node = start_node(second)
            yield lambda: FetchingStore(
                VerifyingStore(LocalStore(tmp_path / "first"), source="the disk"),
                Fetcher(lambda: [Provider(node.url)], timeout_s=10),
            )

    def test_a_block_of_the_second_node_is_found_and_kept(self, store):
        cid, data = block(b"only the second node has it")
        assert not store.has(cid)
        assert bytes(store.get(cid)) == data
        assert store.has(cid)


@pytest.fixture
def fetch():
    """Makes fetchers, closed after the test."""
    made = []

    def make(*providers, **options):
        listed = [Provider(each) if isinstance(each, str) else each for each in providers]
        made.append(Fetcher(lambda: listed, **{"timeout_s": 5.0, **options}))
        return made[-1]

    yield make
    for fetcher in made:
        fetcher.close()


@pytest.fixture
def other(tmp_path):
    """The blocks of another node."""
    with closing(LocalStore(tmp_path / "other")) as store:
        yield store


@pytest.fixture
def answer(serve):
    """Starts a provider that answers every request as it is told, and counts them."""

    def start(handler):
        requests = []

        async def note(request):
            requests.append(request)
            return await handler(request)

        app = web.Application()
        app.router.add_get("/{path:.*}", note)
        return serve(app), requests

    return start


async def lie(_):
    return web.Response(body=b"not what you asked for")


async def hang(request):
    while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110 -- no event tells
        await asyncio.sleep(0.02)
    raise web.HTTPNotFound


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_one_node_does_not_do_the_work_of_all(fetch, other, start_node):
    many = [block(b"%d" % i * 1000) for i in range(60)]
    other.put_many(many)
    nodes = [start_node(other) for _ in range(3)]
    fetcher = fetch(*(node.url for node in nodes))
    assert fetcher.fetch([cid for cid, _ in many]) == [data for _, data in many]
    asked = [set(node.asked) for node in nodes]
    assert all(len(each) >= 10 for each in asked)
    assert (
        sum(len(node.asked) for node in nodes) == len(set.union(*asked)) == 60
    )  # and none is asked for twice
    size = {str(cid): len(data) for cid, data in many}
    assert fetcher.statistics() == {
        "blocks": 60,
        "bytes": sum(size.values()),
        "wrong_blocks": 0,
        "failures": 0,
        "bytes_by_provider": {node.url: sum(size[cid] for cid in asked[i]) for i, node in enumerate(nodes)},
    }


def test_what_one_node_lacks_is_asked_of_the_next(fetch, tmp_path, other, start_node):
    cid, data = block(b"rare")
    other.put_many([(cid, data)])
    with closing(LocalStore(tmp_path / "empty")) as empty:
        nodes = [start_node(empty), start_node(empty), start_node(other)]
        fetcher = fetch(*(node.url for node in nodes))
        assert fetcher.fetch([cid]) == [data]
    assert fetcher.statistics()["failures"] == 0


def test_a_liar_can_not_poison_the_store_and_is_asked_last(fetch, blocks, other, start_node, answer):
    many = [block(b"%d" % i) for i in range(20)]
    other.put_many(many)
    liar, lies = answer(lie)
    node = start_node(other)
    store = FetchingStore(blocks, fetch(liar, node.url))
    for cid, data in many:
        assert bytes(store.get(cid)) == data
    assert len(lies) == 1  # asked first once, then only where the honest one has nothing
    statistics = store.statistics()
    assert (statistics["wrong_blocks"], statistics["blocks"]) == (1, 20)
    assert statistics["bytes_by_provider"] == {node.url: sum(len(data) for _, data in many)}
    with pytest.raises(Corrupt, match="do not hash"):
        store.get(Cid.of(b"nobody has it"))
    assert len(lies) == 2
    assert len(list(blocks.multihashes())) == 20


def test_a_liar_alone_gives_an_error_that_names_it(fetch, blocks, answer):
    liar, _ = answer(lie)
    cid = Cid.of(b"wanted")
    with pytest.raises(Corrupt, match=liar) as caught:
        FetchingStore(blocks, fetch(liar)).get(cid)
    assert str(cid) in str(caught.value)
    assert not blocks.has(cid)


def test_a_node_that_hangs_does_not_hang_us(fetch, other, start_node, answer):
    cid, data = block(b"wanted")
    other.put_many([(cid, data)])
    hanging, asked = answer(hang)
    node = start_node(other)
    fetcher = fetch(hanging, node.url, timeout_s=0.5)
    start = time.monotonic()
    assert fetcher.fetch([cid]) == [data]
    assert time.monotonic() - start < 3
    assert fetcher.fetch([cid]) == [data]  # for a while it is asked last
    assert len(asked) == 1
    assert fetcher.statistics()["failures"] == 1
    alone = fetch(hanging, timeout_s=0.3)
    with pytest.raises(Unavailable, match=hanging):
        alone.fetch([cid])


def test_a_node_that_drips_does_not_outlast_the_deadline(fetch, other, start_node, answer):
    cid, data = block(b"d" * 1000)
    other.put_many([(cid, data)])

    async def drip(request):
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        for _ in range(1000):
            await response.write(b"d")
            await asyncio.sleep(0.05)
        return response

    fetcher = fetch(answer(drip)[0], start_node(other).url, timeout_s=0.6)
    start = time.monotonic()
    assert fetcher.fetch([cid]) == [data]
    assert time.monotonic() - start < 3


def test_who_was_asked_is_named_when_nobody_has_it(fetch, tmp_path, start_node):
    cid = Cid.of(b"nobody has it")
    with closing(LocalStore(tmp_path / "empty")) as empty:
        urls = [start_node(empty).url for _ in range(2)]
        with pytest.raises(NotFound) as caught:
            fetch(*urls).fetch([cid])
    assert all(part in str(caught.value) for part in (str(cid), *urls))


def test_without_other_nodes_nothing_is_awaited(fetch):
    with pytest.raises(NotFound, match="no other node"):
        fetch().fetch([Cid.of(b"x")])
    assert fetch().fetch([]) == []


def test_a_node_that_is_gone_is_not_taken_for_one_that_lacks_the_block(fetch, other, start_node):
    cid, data = block(b"x")
    gone = closed_port()
    with pytest.raises(Unavailable, match=gone):
        fetch(gone).fetch([cid])
    other.put_many([(cid, data)])
    assert fetch(gone, start_node(other).url).fetch([cid]) == [data]


@pytest.mark.parametrize("status", [301, 302, 401, 403, 429, 500, 503])
def test_no_other_status_is_taken_for_an_answer(fetch, answer, status):
    async def respond(_):
        return web.Response(status=status, body=b"x", headers={"Location": "/elsewhere"})

    url, asked = answer(respond)
    with pytest.raises(Unavailable, match=str(status)):
        fetch(url).fetch([Cid.of(b"x")])
    assert len(asked) == 1


def test_a_redirect_can_not_lead_us_into_another_network(fetch, answer):
    secret, reached = answer(lie)

    async def redirect(_):
        raise web.HTTPFound(secret + "/internal")

    with pytest.raises(Unavailable):
        fetch(answer(redirect)[0]).fetch([Cid.of(b"x")])
    assert reached == []


def test_an_endless_body_does_not_fill_the_memory(fetch, answer):
    sent = []

    async def flood(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(bytes(1 << 20))
            sent.append(1)
        return response

    with pytest.raises(Corrupt, match="sends more"):
        fetch(answer(flood)[0]).fetch([Cid.of(b"x")])
    assert len(sent) < 100


def test_a_compressed_body_does_not_unfold_in_the_memory(fetch, answer):
    zeros = bytes(MAX_BLOCK_BYTES)

    async def bomb(request):
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=gzip.compress(zeros), headers={"Content-Encoding": "gzip"})

    with pytest.raises(Corrupt):
        fetch(answer(bomb)[0]).fetch([Cid.of(zeros)])


def test_a_body_that_is_cut_off_is_asked_for_elsewhere(fetch, other, start_node, answer):
    cid, data = block(b"whole" * 100)
    other.put_many([(cid, data)])

    async def cut(request):
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[:100])
        request.transport.abort()
        return response

    fetcher = fetch(answer(cut)[0], start_node(other).url)
    assert fetcher.fetch([cid]) == [data]
    assert (fetcher.statistics()["failures"], fetcher.statistics()["wrong_blocks"]) == (1, 0)


def test_the_token_is_not_given_to_strangers(fetch, tmp_path, other, start_node):
    cid, data = block(b"x")
    other.put_many([(cid, data)])
    with closing(LocalStore(tmp_path / "empty")) as empty:
        stranger, own = start_node(empty), start_node(other, token="the-token-of-the-cluster")
        provider = Provider(own.url, "the-token-of-the-cluster")
        assert "the-token" not in repr(provider)
        assert fetch(stranger.url + "/", provider).fetch([cid]) == [data]
    assert stranger.authorizations == [None]
    assert own.authorizations == ["Bearer the-token-of-the-cluster"]


def test_not_more_requests_run_than_allowed(fetch, answer):
    running = []
    most = []

    async def count(request):
        running.append(request)
        most.append(len(running))
        await asyncio.sleep(0.02)
        running.remove(request)
        return web.Response(body=b"x")

    fetcher = fetch(answer(count)[0], concurrency=3)
    threads = [threading.Thread(target=fetcher.fetch, args=([Cid.of(b"x")] * 8,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert fetcher.statistics()["blocks"] == 32
    assert max(most) == 3


def leftovers():
    ours = ("holdfast-fetch", "holdfast-routing")
    threads = [thread.name for thread in threading.enumerate() if thread.name in ours]
    return len(list(Path("/proc/self/fd").iterdir())), threads


def settled_leftovers():
    """The leftovers once the server has noticed which connections were closed."""
    seen = [leftovers()]
    for _ in range(100):
        time.sleep(0.05)
        seen.append(leftovers())
        if len(set(map(str, seen[-6:]))) == 1 and len(seen) > 6:
            break
    return seen[-1]


def test_closing_leaves_no_thread_and_no_socket(other, start_node):
    many = [block(b"%d" % i) for i in range(30)]
    other.put_many(many)
    node = start_node(other)
    for turn in range(4):
        fetcher = Fetcher(lambda: [Provider(node.url)])
        if turn == 1:  # the first one makes the server open its own files
            before = settled_leftovers()
        fetcher.fetch([cid for cid, _ in many])
        fetcher.close()
        fetcher.close()
        with pytest.raises(Conflict, match="closed"):
            fetcher.fetch([many[0][0]])
    assert settled_leftovers() == before


def test_closing_does_not_wait_for_a_node_that_hangs(answer):
    url, asked = answer(hang)
    fetcher = Fetcher(lambda: [Provider(url)], timeout_s=30)
    caught = []

    def work():
        try:
            fetcher.fetch([Cid.of(b"x")])
        except Conflict as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not asked:
        time.sleep(0.01)
    start = time.monotonic()
    fetcher.close()
    thread.join(5)
    assert not thread.is_alive()
    assert time.monotonic() - start < 5
    assert len(caught) == 1


def test_an_interrupt_does_not_leave_it_unusable(other, start_node, answer):
    cid, data = block(b"x")
    other.put_many([(cid, data)])
    hanging, asked = answer(hang)
    listed = [Provider(hanging)]
    fetcher = Fetcher(lambda: listed, timeout_s=20)
    with closing(fetcher):
        main = threading.get_ident()

        def interrupt():
            while not asked:
                time.sleep(0.01)
            signal.pthread_kill(main, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            fetcher.fetch([cid])
        thread.join(5)
        listed[:] = [Provider(start_node(other).url)]
        start = time.monotonic()
        assert fetcher.fetch([cid]) == [data]
        assert time.monotonic() - start < 5
    assert time.monotonic() - start < 10  # and closing it does not wait for the abandoned request


SCRIPT = """
import os, sys
from pathlib import Path
from holdfast.storage.cid import Cid
from holdfast.storage.exchange.fetcher import Fetcher, Provider

fetcher = Fetcher(lambda: [Provider(sys.argv[1])], timeout_s=5)
cid = Cid.parse(sys.argv[2])
print(len(fetcher.fetch([cid])[0]), flush=True)
if sys.argv[3] == "fork":
    child = os.fork()
    print(len(fetcher.fetch([cid])[0]), flush=True)
    if child:
        assert os.waitpid(child, 0)[1] == 0
        print(len(fetcher.fetch([cid])[0]), flush=True)
    fetcher.close()
    if not child:
        os._exit(0)
"""


@pytest.mark.parametrize(("mode", "lines"), [("fork", 4), ("never closed", 1)])
def test_a_fork_or_a_forgotten_close_does_not_hang_the_process(other, start_node, mode, lines):
    cid, data = block(b"12345")
    other.put_many([(cid, data)])
    arguments = [sys.executable, "-c", SCRIPT, start_node(other).url, str(cid), mode]
    done = subprocess.run(arguments, capture_output=True, timeout=20, check=False)
    # Parent and children print at the same time: the line breaks may come late.
    assert b"".join(done.stdout.split()) == b"5" * lines, done.stderr
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_whole_directory_comes_from_another_node_and_stays(tmp_path, blocks, other, start_node, fetch):
    there = ContentStore(other)
    files = {"a/large": os.urandom(5 << 20), "a/b/small": b"s", "empty": b""}
    root = there.add_files(files)
    node = start_node(other)
    here = ContentStore(FetchingStore(VerifyingStore(blocks, source="the disk"), fetch(node.url)))
    here.get(root, tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files} == files
    asked = list(node.asked)
    assert len(asked) == len(set(asked)) == len(list(other.multihashes()))
    here.get(root, tmp_path / "again")
    assert node.asked == asked
    assert list(blocks.multihashes()) == list(other.multihashes())
